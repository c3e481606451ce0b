"""What `convert` says of what was converted into what."""

import pytest
from adapters import IN, OUT, lora

PEFT = "base_model.model.a."
HIRA = {f"{PEFT}hira_A": ("F32", (2, IN), 1), f"{PEFT}hira_B": ("F32", (OUT, 2), 1)}
FULL = {"lora_unet_a.diff_b": ("F32", (OUT,), 1)}
MAGNITUDE = {"dora_scale": ("F32", (OUT, 1), 1)}
SIDES = {"a": (OUT, 2), "b": (2, IN)}
LOHA = {f"lora_unet_b.hada_w{n}_{side}": ("F32", shape, 1) for n in "12" for side, shape in SIDES.items()}
SAID = {
    "LoRA": (lora("lora_unet_a"), [], "kohya names, LoRA to plain LoRA"),
    "RS-LoRA": ({**lora("lora_unet_a"), "use_rslora_flag": ("F32", (), 1)}, [], "names, RS-LoRA to plain LoRA"),
    "DoRA": (
        lora("lora_unet_a", **MAGNITUDE),
        ["--keep-dora"],
        "names, LoRA with DoRA to LoRA with its magnitudes",
    ),
    "another algorithm": (HIRA, [], "peft names, HiRA"),
    "two of them": ({**lora("lora_unet_a"), **LOHA}, [], "names, LoHa and LoRA to LoHa and plain LoRA"),
    "a bias beside a weight": ({**lora("lora_unet_a"), **FULL}, [], "names, LoRA to plain LoRA"),
    "a bias alone": (FULL, [], "names, a full bias difference"),
}


@pytest.mark.parametrize(("tensors", "options", "said"), SAID.values(), ids=SAID)
def test_the_first_line_names_the_algorithms(tensors, options, said, write_safetensors, run, tmp_path):
    output = "out" if tensors is HIRA else "out.safetensors"  # an adapter of PEFT is a folder
    ended = run("convert", write_safetensors(tensors), "-o", tmp_path / output, *options)
    first, second, *_ = ended.stdout.splitlines()
    assert first.endswith(said)
    assert second.startswith("rank ") == any("lora_down" in key or "hada" in key for key in tensors)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--algorithm", "lora", "--rank", "2", "--max-error", "0.1"], "give --rank or --max-error, not both."),
        (["--rank", "2"], "--rank and --max-error limit an approximation; give --base or --algorithm, too."),
        (["--base", "BASE"], "--base needs one of --rank, --max-error, --keep-dora and --to."),
        (["--base", "BASE", "--drop-magnitude"], "--drop-magnitude cannot be combined with --keep-dora or --base."),
        (
            ["--base", "BASE", "--keep-dora", "--rank", "2"],
            "--keep-dora keeps the magnitude, but --rank and --max-error turn it into plain LoRA; leave one out.",
        ),
    ],
)
def test_wrong_usage_is_told_by_the_options_that_were_given(run, options, says):
    ended = run("convert", "ADAPTER", "-o", "OUT", *options)
    assert (ended.status, ended.stderr.splitlines()[-1]) == (2, f"Error: {says}")
