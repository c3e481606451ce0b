"""Files as OneTrainer of 2026-08-19 and ai-toolkit of 2026-08-21 loaded them, to go on with their training.

Their code ran as `tests/reruns/` has it; neither can be installed here, so what they did is written out: 1,865 files of
ten families for OneTrainer, and 912 of eleven for ai-toolkit, with settings that were those of the file.
"""

import shlex

import pytest
import torch
from adapters import KINDS, KINDS_OF_FILES, adapter
from safetensors.torch import load_file, save_file

from lora_inspect.architectures import by_name
from lora_inspect.ops.compat import compat

SAME, STRENGTH, WRONG, OTHER = "same meaning", "wrong strength", "DoRA wrong", "wrong change"
PARTLY, NOTHING, REFUSED = "partly loaded", "nothing loaded", "refused"
ALL_KINDS = {**KINDS, **KINDS_OF_FILES}
LAYERS = {
    "sdxl": ("down_blocks.1.attentions.0.proj_in", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"),
    "flux": ("transformer_blocks.0.attn.to_out.0", "transformer_blocks.0.ff.net.2"),
    "qwen_image": ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.img_mlp.net.2"),
    "z_image": ("layers.0.attention.to_q", "layers.1.feed_forward.w1"),
    "wan": ("blocks.0.attn1.to_q", "blocks.1.ffn.net.2"),
    "chroma": ("double_blocks.0.img_attn.proj", "double_blocks.0.img_mlp.2"),
}
ORIGINAL = {
    "flux": ("double_blocks.0.img_attn.proj", "double_blocks.0.img_mlp.2"),
    "z_image": ("layers.0.attention.qkv", "layers.1.attention.out"),
    "wan": ("blocks.0.self_attn.q", "blocks.1.ffn.2"),
}
PEFT_ENDS = (".lora_B.weight", ".lora_A.weight")
MODULATION = ("double_blocks.0.img_attn.proj", "final_layer.adaLN_modulation.1")


def spelled(prefix):
    return lambda path: prefix + (path if not prefix or prefix.endswith(".") else path.replace(".", "_"))


@pytest.fixture
def judged(tmp_path):
    def judge(program, family, kind, has_alpha, prefix, paths=None):
        numbers = torch.Generator().manual_seed(2)
        layers = {path: {"weight": torch.randn(32, 32, generator=numbers)} for path in paths or LAYERS[family]}
        tensors, _ = adapter(ALL_KINDS[kind], layers, spelled(prefix), has_alpha)
        file = tmp_path / "adapter.safetensors"
        save_file(tensors, file, {"ss_base_model_version": by_name(family).metadata_names[0]})
        return compat(str(file), program).verdicts[0]

    return judge


OF_ONETRAINER = {
    "lora": SAME,
    "lora A/B": SAME,
    "loha": SAME,
    "lokr low-rank": SAME,
    "dora_scale of outputs": SAME,
    "dora_scale of inputs": SAME,
    "magnitude.weight": SAME,
    "rslora flag": REFUSED,
    "dora_layer": REFUSED,
    "magnitude vector": REFUSED,
    "full": REFUSED,
    "ia3": REFUSED,
    "oft small blocks": REFUSED,
    "bias of the up layer": REFUSED,
    "uneven": REFUSED,
    "stranger": REFUSED,
    "dotted stranger": REFUSED,
}


@pytest.mark.parametrize("kind", OF_ONETRAINER)
def test_kinds_in_onetrainer(judged, kind):
    found = judged("onetrainer", "flux", kind, True, "lora_transformer_")
    assert (found.verdict, found.by) == (OF_ONETRAINER[kind], "run")


@pytest.mark.parametrize(
    ("family", "prefix", "paths", "verdict"),
    [
        ("flux", "lora_unet_", ORIGINAL["flux"], SAME),
        ("flux", "diffusion_model.", ORIGINAL["flux"], SAME),
        ("flux", "diffusion_model.", None, REFUSED),
        ("flux", "transformer.", None, SAME),
        ("flux", "lycoris_", None, SAME),
        ("sdxl", "unet.", None, SAME),
        ("qwen_image", "lora_unet_", None, SAME),
        ("qwen_image", "diffusion_model.", None, SAME),
        ("qwen_image", "lora_transformer_", None, REFUSED),
        ("z_image", "lora_unet_", ORIGINAL["z_image"], REFUSED),
    ],
)
def test_names_in_onetrainer(judged, family, prefix, paths, verdict):
    found = judged("onetrainer", family, "lora", True, prefix, paths)
    assert (found.verdict, found.by) == (verdict, "run")


@pytest.mark.parametrize(("kind", "verdict"), [("lora", SAME), ("loha", OTHER), ("lokr low-rank", OTHER)])
def test_onetrainer_swaps_the_halves_of_loras_factors_alone(judged, kind, verdict):
    assert judged("onetrainer", "flux", kind, True, "lora_unet_", MODULATION).verdict == verdict


def test_onetrainer_asks_for_the_alpha_of_loha(judged):
    assert judged("onetrainer", "flux", "loha", False, "lora_unet_", ORIGINAL["flux"]).verdict == REFUSED


# With an alpha, and without.
OF_AI_TOOLKIT = {
    "lora": ((STRENGTH, 1.333), (SAME, 1.0)),
    "rslora flag": ((STRENGTH, 0.667), None),
    "lokr whole": ((SAME, 1.0), (SAME, 1.0)),
    "lokr low-rank": ((STRENGTH, 1.333), (SAME, 1.0)),
    "dora_scale of outputs": ((WRONG, None), (WRONG, None)),
    "magnitude.weight": ((WRONG, None), (WRONG, None)),
    "loha": ((NOTHING, None), (NOTHING, None)),
    "full": ((NOTHING, None), None),
    "oft small blocks": ((NOTHING, None), (NOTHING, None)),
    "bias of the up layer": ((PARTLY, 1.333), (PARTLY, 1.0)),
    "stranger": ((STRENGTH, 1.333), (SAME, 1.0)),
}


@pytest.mark.parametrize("has_alpha", [True, False], ids=["alpha", "none"])
@pytest.mark.parametrize("kind", OF_AI_TOOLKIT)
def test_kinds_in_ai_toolkit(judged, kind, has_alpha):
    if (seen := OF_AI_TOOLKIT[kind][not has_alpha]) is None:
        return
    verdict, factor = seen
    found = judged("ai-toolkit", "flux", kind, has_alpha, "transformer.")
    assert (found.verdict, found.by) == (verdict, "run")
    assert factor is None or found.factor == pytest.approx(factor, abs=1e-3)


@pytest.mark.parametrize(
    ("family", "prefix", "paths", "verdict"),
    [
        ("flux", "lora_unet_", ORIGINAL["flux"], NOTHING),
        ("flux", "diffusion_model.", None, NOTHING),
        ("flux", "", None, NOTHING),
        ("wan", "diffusion_model.", ORIGINAL["wan"], SAME),
        ("wan", "transformer.", None, SAME),
        ("wan", "lora_unet_", ORIGINAL["wan"], NOTHING),
        ("qwen_image", "diffusion_model.", None, SAME),
        ("z_image", "diffusion_model.", ORIGINAL["z_image"], NOTHING),
        ("sdxl", "lora_unet_", None, SAME),
        ("sdxl", "unet.", None, NOTHING),
    ],
)
def test_names_in_ai_toolkit(judged, family, prefix, paths, verdict):
    found = judged("ai-toolkit", family, "lora", False, prefix, paths)
    assert (found.verdict, found.by) == (verdict, "run")


@pytest.mark.parametrize("kind", ["lora", "rslora flag"])
def test_the_unets_have_the_alpha_of_the_settings(judged, kind):
    found = judged("ai-toolkit", "sdxl", kind, True, "lora_unet_")
    assert (found.verdict, found.factor) == ((SAME, 1.0) if kind == "lora" else (STRENGTH, 0.5))


@pytest.mark.parametrize(("program", "family"), [("onetrainer", "flux"), ("ai-toolkit", "flux"), ("ai-toolkit", "wan")])
@pytest.mark.numeric
def test_conversion_gives_trained_change(judged, program, family, tmp_path, run):
    judged(program, family, "rslora flag", True, "lora_unet_", ORIGINAL[family])
    own = load_file(tmp_path / "adapter.safetensors")
    made = tmp_path / "made.safetensors"
    ended = run("convert", tmp_path / "adapter.safetensors", "--to", program, "-o", made)
    assert ended.status == 0, ended.stderr
    assert compat(str(made), program).verdicts[0].verdict == SAME
    tensors = load_file(made)
    for old, new in zip(ORIGINAL[family], LAYERS[family], strict=True):
        flat = spelled("lora_unet_")(old)
        meant = 3.0 / 4**0.5 * own[f"{flat}.lora_up.weight"] @ own[f"{flat}.lora_down.weight"]
        # OneTrainer reads kohya's names.
        name = flat if program == "onetrainer" else spelled("transformer.")(new)
        if f"{name}.lora_B.weight" in tensors:
            change = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
            assert f"{name}.alpha" not in tensors
        else:
            down = tensors[f"{name}.lora_down.weight"]
            change = float(tensors[f"{name}.alpha"]) / len(down) * tensors[f"{name}.lora_up.weight"] @ down
        torch.testing.assert_close(change, meant)


FACTORS = {
    "lora": (("lora_up.weight", "lora_down.weight"),),
    "loha": (("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b")),
}


def change(tensors, name, pairs):
    """alpha/rank · the product of the products of each pair (out, rank) and (rank, in), and the rank."""
    products = [tensors[f"{name}.{left}"].double() @ tensors[f"{name}.{right}"].double() for left, right in pairs]
    rank = len(tensors[f"{name}.{pairs[0][1]}"])
    return float(tensors[f"{name}.alpha"]) / rank * torch.stack(products).prod(0), rank


@pytest.mark.parametrize(
    ("program", "family", "prefix", "algorithm"),
    [
        ("onetrainer", "flux", "lora_transformer_", "lora"),
        ("onetrainer", "flux", "lora_transformer_", "loha"),
        ("ai-toolkit", "sdxl", "lora_unet_", "lora"),
    ],
)
@pytest.mark.numeric
def test_the_command_for_several_ranks_fills_the_smaller_ones(tmp_path, run, program, family, prefix, algorithm):
    numbers, pairs = torch.Generator().manual_seed(2), FACTORS[algorithm]
    names = [spelled(prefix)(path) for path in LAYERS[family]]
    tensors = {}
    for name, rank in zip(names, (2, 4), strict=True):
        for left, right in pairs:
            tensors[f"{name}.{left}"] = torch.randn(32, rank, generator=numbers)
            tensors[f"{name}.{right}"] = torch.randn(rank, 32, generator=numbers)
        tensors[f"{name}.alpha"] = torch.tensor(3.0)
    file = tmp_path / "adapter.safetensors"
    save_file(tensors, file, {"ss_base_model_version": by_name(family).metadata_names[0]})
    words = shlex.split(compat(str(file), program).verdicts[0].fix)
    assert run(*words[1:]).status == 0
    assert compat(words[-1], program).verdicts[0].verdict == SAME
    made = load_file(words[-1])
    for name in names:
        found, rank = change(made, name, pairs)
        assert rank == 4
        torch.testing.assert_close(found, change(tensors, name, pairs)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prefix", ["lora_unet_", "diffusion_model."])
@pytest.mark.numeric
def test_ai_toolkit_gets_scales_in_the_factors_where_it_drops_alpha(judged, tmp_path, run, prefix):
    words = shlex.split(judged("ai-toolkit", "chroma", "rslora flag", True, prefix).fix)
    assert run(*words[1:]).status == 0
    assert compat(words[-1], "ai-toolkit").verdicts[0].verdict == SAME
    own, made = load_file(tmp_path / "adapter.safetensors"), load_file(words[-1])
    ends = (".lora_up.weight", ".lora_down.weight")
    for path in LAYERS["chroma"]:
        up, down = (own[spelled(prefix)(path) + end] for end in ends)
        name = f"diffusion_model.{path}"
        found = [
            next(made[name + end] for end in pair if name + end in made) for pair in zip(ends, PEFT_ENDS, strict=True)
        ]
        torch.testing.assert_close(found[0] @ found[1], 3.0 / 4**0.5 * up @ down)
