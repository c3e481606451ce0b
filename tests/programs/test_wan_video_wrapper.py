"""What ComfyUI-WanVideoWrapper made of files of Wan, with its own code of 2026-02-01 over ComfyUI 0.33.0.

That code cannot be installed here, so what it did is written out: `add_lora_weights` and `apply_lora`, and unmerged
`set_lora_params` with the layer that it puts in place of each, on five small layers: 824 files.
"""

import pytest
import torch
from adapters import DEFAULT, KINDS, KINDS_OF_FILES, adapter
from safetensors.torch import load_file, save_file

from lora_inspect.ops.compat import compat

pytestmark = pytest.mark.slow

MERGED, UNMERGED = "wanvideo", "wanvideo-unmerged"
SAME, STRENGTH, LOST, WRONG = "same meaning", "wrong strength", "DoRA lost", "DoRA wrong"
PARTLY, NOTHING, REFUSED, OTHER = "partly loaded", "nothing loaded", "refused", "wrong change"
PATHS = ("blocks.0.self_attn.q", "blocks.0.self_attn.o", "blocks.0.cross_attn.k", "blocks.1.ffn.0", "blocks.1.ffn.2")
FIRST, SECOND = ("blocks.0.attn1.to_q", "blocks.0.attn1.to_out.0"), ("blocks.0.attn2.to_q", "blocks.0.attn2.to_out.0")
FEED_FORWARD = ("blocks.1.ffn.net.0.proj", "blocks.1.ffn.net.2")
ALL_KINDS = {**KINDS, **KINDS_OF_FILES}
NAMED = ("diffusion_model.", "transformer.", "lora_unet_", "")
FOR_EACH_ALPHA = pytest.mark.parametrize("has_alpha", [True, False], ids=["alpha", "none"])


def spelled(prefix):
    return lambda path: prefix + (path if not prefix or prefix.endswith(".") else path.replace(".", "_"))


@pytest.fixture
def judged(tmp_path):
    def judge(program, kind, has_alpha, prefix="diffusion_model.", paths=PATHS, spelling=None):
        numbers = torch.Generator().manual_seed(2)
        layers = {
            path: {"weight": torch.randn(16, 16, generator=numbers), "bias": torch.randn(16, generator=numbers)}
            for path in paths
        }
        tensors, _ = adapter(ALL_KINDS[kind], layers, spelled(prefix), has_alpha, spelling=spelling)
        file = tmp_path / "adapter.safetensors"
        save_file(tensors, file, {"ss_base_model_version": "wan2.1"})
        (found,) = compat(str(file), program).verdicts
        return found

    return judge


# By kind: the verdict with an alpha, and without.
OF_MERGED = {
    "lora": (SAME, SAME),
    "lora A/B": (SAME, SAME),
    "rslora flag": (STRENGTH, SAME),
    "dora_scale of outputs": (WRONG, WRONG),
    "dora_scale of inputs": (SAME, SAME),
    "dora_layer": (LOST, LOST),
    "magnitude vector": (LOST, LOST),
    **dict.fromkeys(("loha", "lokr whole", "lokr low-rank", "oft small blocks"), (SAME, SAME)),
    "full": (SAME, SAME),
    "bias beside lora": (SAME, SAME),
    "bias of the up layer": (PARTLY, PARTLY),
    "stranger": (SAME, SAME),
    "dotted stranger": (SAME, SAME),
}
OF_UNMERGED = {
    **OF_MERGED,
    **dict.fromkeys(("dora_scale of outputs", "dora_scale of inputs"), (LOST, LOST)),
    "loha": (OTHER, OTHER),
    **dict.fromkeys(("lokr whole", "lokr low-rank", "oft small blocks"), (REFUSED, REFUSED)),
    "bias beside lora": (PARTLY, PARTLY),
}
# Behind two underscores it renames the suffixes of LoRA alone.
OF_FUN = {
    **OF_MERGED,
    "dora_scale of outputs": (LOST, LOST),
    "dora_scale of inputs": (LOST, LOST),
    **dict.fromkeys(("loha", "lokr whole", "lokr low-rank", "oft small blocks", "full"), (NOTHING, NOTHING)),
    "bias beside lora": (PARTLY, PARTLY),
}
TABLES = {MERGED: OF_MERGED, UNMERGED: OF_UNMERGED}


@FOR_EACH_ALPHA
@pytest.mark.parametrize("kind", OF_MERGED)
@pytest.mark.parametrize("prefix", NAMED)
@pytest.mark.parametrize("program", TABLES)
def test_names_of_the_original_layers(judged, program, prefix, kind, has_alpha):
    found, verdict = judged(program, kind, has_alpha, prefix), TABLES[program][kind][not has_alpha]
    assert (found.verdict, found.by) == (verdict, "run")
    if verdict == STRENGTH:
        assert (found.factor, found.silent) == (0.5, True)


def test_what_fails_unmerged_says_so(judged):
    whole = judged(UNMERGED, "lokr whole", True).says
    assert whole == "RuntimeError: mat1 and mat2 shapes cannot be multiplied"
    assert judged(UNMERGED, "lokr low-rank", True).says == "AttributeError: 'NoneType' object has no attribute 'to'"


@FOR_EACH_ALPHA
@pytest.mark.parametrize("kind", OF_FUN)
@pytest.mark.parametrize("program", TABLES)
def test_two_underscores(judged, program, kind, has_alpha):
    found, verdict = judged(program, kind, has_alpha, "lora_unet__"), OF_FUN[kind][not has_alpha]
    assert (found.verdict, found.by) == (verdict, "run")


@FOR_EACH_ALPHA
@pytest.mark.parametrize("prefix", ["diffusion_model.", "transformer.", ""])
@pytest.mark.parametrize("program", TABLES)
def test_the_name_of_an_adapter_inside(judged, program, prefix, has_alpha):
    assert judged(program, "lora", has_alpha, prefix, spelling=DEFAULT).verdict == SAME


@pytest.mark.parametrize("program", TABLES)
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_diffusers_first_attention_changes_the_second(judged, program, prefix):
    assert judged(program, "lora", True, prefix, SECOND).verdict == SAME
    found = judged(program, "lora", True, prefix, FIRST)
    assert (found.verdict, found.silent) == (OTHER, True)
    found = judged(program, "lora", True, prefix, (*FIRST, *SECOND))
    assert (found.verdict, found.silent) == (PARTLY, True)
    assert judged(program, "lora", True, prefix, FEED_FORWARD).verdict == NOTHING


@pytest.mark.parametrize("program", TABLES)
def test_names_of_lycoris(judged, program):
    assert judged(program, "lora", True, "lycoris_", PATHS[:3]).verdict == SAME
    assert judged(program, "lora", True, "lycoris_", PATHS[3:]).verdict == NOTHING
    assert judged(program, "lora", True, "lycoris_", (*FIRST, *SECOND)).verdict == NOTHING
    assert judged(program, "lora", True, "lycoris_", FEED_FORWARD).verdict == SAME


@pytest.mark.parametrize(
    ("rank", "scale"), [(1, 1.0), (2, 1.0), (4, 2.0), (8, 22 / 8), (16, 4.0), (32, 181 / 32), (64, 8.0)]
)
@pytest.mark.parametrize("program", TABLES)
def test_peft_with_a_layer_that_it_looks_for_is_rs_lora_of_alpha_over_root(program, rank, scale, tmp_path):
    """Measured at rank 4; the rule is a floor of rank²/√rank over the rank."""
    name = "base_model.model.blocks.0.cross_attn.k"
    tensors = {f"{name}.lora_A.weight": torch.randn(rank, 16), f"{name}.lora_B.weight": torch.randn(16, rank)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(f'{{"peft_type": "LORA", "r": {rank}, "lora_alpha": {rank}}}')
    (found,) = compat(str(tmp_path), program).verdicts
    assert found.factor == pytest.approx(scale, rel=1e-3)
    assert found.verdict == (SAME if scale == 1.0 else STRENGTH)


@pytest.mark.parametrize("program", TABLES)
def test_peft_without_it_is_plain(judged, program):
    assert judged(program, "lora", True, "base_model.model.").verdict == SAME


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["lora", "rslora flag"])
@pytest.mark.parametrize("program", TABLES)
def test_the_conversion_for_it_gives_alpha_over_rank(judged, program, kind, tmp_path, run):
    judged(program, kind, True, "lora_transformer_", (*FIRST, *SECOND))
    own = load_file(tmp_path / "adapter.safetensors")
    ended = run("convert", tmp_path / "adapter.safetensors", "--to", program, "-o", tmp_path / "made.safetensors")
    assert ended.status == 0, ended.stderr
    made = load_file(tmp_path / "made.safetensors")
    assert compat(str(tmp_path / "made.safetensors"), program).verdicts[0].verdict == SAME
    for path, to in {"blocks.0.attn1.to_q": "self_attn.q", "blocks.0.attn2.to_out.0": "cross_attn.o"}.items():
        name, new = spelled("lora_transformer_")(path), f"diffusion_model.blocks.0.{to}"
        scale = 3.0 / 4 ** (0.5 if kind == "rslora flag" else 1.0)
        meant = scale * own[f"{name}.lora_up.weight"] @ own[f"{name}.lora_down.weight"]
        ends = (".lora_up.weight", ".lora_down.weight")
        if f"{new}.lora_up.weight" not in made:
            ends = (".lora_B.weight", ".lora_A.weight")
        up, down = (made[new + end] for end in ends)
        torch.testing.assert_close(float(made.get(f"{new}.alpha", len(down))) / len(down) * up @ down, meant)
