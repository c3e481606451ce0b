"""What blissful-tuner made of files on small models, with its own code of 2026-04-15.

That code cannot be installed here, so what it did is written out. Of Wan, Qwen-Image, FramePack, HunyuanVideo 1.5,
FLUX.2 and Z-Image the script's own `load_dit_model` ran up to the merged weights, and of FLUX.1 Kontext, HunyuanVideo
and Kandinsky 5 the network that the script merges: 2,448 files, of two to three layers each.
"""

import pytest
import torch
from adapters import KINDS, KINDS_OF_FILES, adapter
from safetensors.torch import load_file, save_file

from lora_inspect.architectures import by_name
from lora_inspect.ops.compat import compat

pytestmark = pytest.mark.slow

SAME, STRENGTH, LOST = "same meaning", "wrong strength", "DoRA lost"
PARTLY, NOTHING, REFUSED = "partly loaded", "nothing loaded", "refused"
LAYERS = {
    "wan": ("blocks.0.self_attn.q", "blocks.0.cross_attn.k", "blocks.1.ffn.0"),
    "qwen_image": ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.img_mlp.net.2"),
    "framepack": ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.proj_mlp"),
    "hunyuan_video_1_5": ("double_blocks.0.img_attn_q", "double_blocks.1.txt_mlp.fc1"),
    "flux2": ("double_blocks.0.img_attn.proj", "single_blocks.1.linear2"),
    "z_image": ("layers.0.attention.to_q", "layers.1.feed_forward.w1"),
    "flux": ("double_blocks.0.img_attn.proj", "double_blocks.1.img_mod.lin", "single_blocks.0.linear2"),
    "hunyuan_video": ("double_blocks.0.img_attn_qkv", "single_blocks.1.linear2"),
    "kandinsky5": (
        "visual_transformer_blocks.0.self_attention.to_query",
        "text_transformer_blocks.0.feed_forward.in_layer",
    ),
}
CONVERTING, PLAIN = ("wan", "qwen_image"), ("hunyuan_video_1_5", "flux2", "z_image")
DOTTED = ("diffusion_model.", "transformer.")
FAILS = "ValueError: not enough values to unpack (expected 2, got 1)"
ALL_KINDS = {**KINDS, **KINDS_OF_FILES}


def spelled(prefix):
    return lambda path: prefix + (path if prefix.endswith(".") else path.replace(".", "_"))


@pytest.fixture
def judged(tmp_path):
    def judge(family, kind, has_alpha, prefix="lora_unet_"):
        numbers = torch.Generator().manual_seed(2)
        layers = {
            path: {"weight": torch.randn(16, 16, generator=numbers), "bias": torch.randn(16, generator=numbers)}
            for path in LAYERS[family]
        }
        tensors, _ = adapter(ALL_KINDS[kind], layers, spelled(prefix), has_alpha)
        file = tmp_path / "adapter.safetensors"
        save_file(tensors, file, {"ss_base_model_version": by_name(family).metadata_names[0]})
        (found,) = compat(str(file), "blissful").verdicts
        return found

    return judge


DORA = ("dora_scale of outputs", "dora_scale of inputs", "dora_layer")
# By kind: the verdict with an alpha, and without.
OF_KOHYA = {
    "lora": (SAME, SAME),
    "lora A/B": (NOTHING, NOTHING),
    "rslora flag": (STRENGTH, SAME),
    **dict.fromkeys(DORA, (LOST, LOST)),
    "magnitude vector": (NOTHING, NOTHING),
    **dict.fromkeys(("loha", "lokr whole", "lokr low-rank"), (SAME, SAME)),
    **dict.fromkeys(("full", "ia3", "oft small blocks"), (NOTHING, NOTHING)),
    **dict.fromkeys(("bias beside lora", "bias of the up layer"), (PARTLY, PARTLY)),
    # Its key has no dot, and stands before those of the layers.
    "stranger": (SAME, SAME),
    "dotted stranger": (SAME, SAME),
}
# In the names that a script renames: what has no dot makes it fail.
OF_DOTTED = {
    **OF_KOHYA,
    "lora A/B": (SAME, SAME),
    "magnitude vector": (LOST, LOST),
    "rslora flag": (REFUSED, REFUSED),
    "stranger": (REFUSED, REFUSED),
}
OF_NETWORK = {
    **OF_KOHYA,
    "lora": (SAME, REFUSED),
    "dotted stranger": (SAME, REFUSED),
    "stranger": (REFUSED, REFUSED),
    "rslora flag": (STRENGTH, REFUSED),
    **dict.fromkeys(DORA, (LOST, REFUSED)),
    **dict.fromkeys(("loha", "lokr whole", "lokr low-rank"), (NOTHING, NOTHING)),
    **dict.fromkeys(("bias beside lora", "bias of the up layer"), (PARTLY, REFUSED)),
}
OF_DOTTED_NETWORK = {**OF_DOTTED, **dict.fromkeys(("loha", "lokr whole", "lokr low-rank"), (NOTHING, NOTHING))}
# Of FramePack's dotted names, of which those with `lora_A` alone are renamed: the verdict and the factor.
OF_FRAMES = {
    "lora A/B": ((STRENGTH, 1.333), (SAME, 1.0)),
    "magnitude vector": ((LOST, 1.333), (LOST, 1.0)),
}
FOR_EACH_ALPHA = pytest.mark.parametrize("has_alpha", [True, False], ids=["alpha", "none"])


@FOR_EACH_ALPHA
@pytest.mark.parametrize("kind", OF_KOHYA)
@pytest.mark.parametrize("family", [*CONVERTING, *PLAIN, "framepack"])
def test_names_with_underscores_are_merged(judged, family, kind, has_alpha):
    found, verdict = judged(family, kind, has_alpha), OF_KOHYA[kind][not has_alpha]
    if kind == "stranger" and family in CONVERTING:
        verdict = REFUSED
    assert (found.verdict, found.by) == (verdict, "run")
    assert found.factor == {STRENGTH: 0.5, NOTHING: None, REFUSED: None}.get(verdict, 1.0)


@FOR_EACH_ALPHA
@pytest.mark.parametrize("prefix", DOTTED)
@pytest.mark.parametrize("kind", OF_DOTTED)
@pytest.mark.parametrize("family", CONVERTING)
def test_dotted_names_are_renamed(judged, family, kind, prefix, has_alpha):
    found, verdict = judged(family, kind, has_alpha, prefix), OF_DOTTED[kind][not has_alpha]
    assert (found.verdict, found.by) == (verdict, "run")
    assert verdict != REFUSED or found.says == FAILS


@FOR_EACH_ALPHA
@pytest.mark.parametrize("kind", OF_NETWORK)
@pytest.mark.parametrize("family", ["flux", "hunyuan_video", "kandinsky5"])
def test_a_network_of_the_file(judged, family, kind, has_alpha):
    found, verdict = judged(family, kind, has_alpha), OF_NETWORK[kind][not has_alpha]
    if kind == "stranger" and family == "kandinsky5":
        verdict = OF_NETWORK["lora"][not has_alpha]
    assert (found.verdict, found.by) == (verdict, "run")
    assert verdict != REFUSED or found.says.startswith(("KeyError: 'lora_unet_", FAILS))


@FOR_EACH_ALPHA
@pytest.mark.parametrize("prefix", DOTTED)
@pytest.mark.parametrize("kind", OF_DOTTED_NETWORK)
@pytest.mark.parametrize("family", ["flux", "hunyuan_video"])
def test_a_network_of_dotted_names(judged, family, kind, prefix, has_alpha):
    found, verdict = judged(family, kind, has_alpha, prefix), OF_DOTTED_NETWORK[kind][not has_alpha]
    assert (found.verdict, found.by) == (verdict, "run")
    assert verdict != REFUSED or found.says == FAILS


@FOR_EACH_ALPHA
@pytest.mark.parametrize("prefix", DOTTED)
@pytest.mark.parametrize("kind", [kind for kind in OF_KOHYA if kind != "lora A/B"])
@pytest.mark.parametrize("family", ["framepack"])
def test_of_framepack_those_with_lora_a_are_renamed(judged, family, kind, prefix, has_alpha):
    found = judged(family, kind, has_alpha, prefix)
    verdict, factor = OF_FRAMES.get(kind, ((NOTHING, None),) * 2)[not has_alpha]
    assert (found.verdict, found.factor, found.by) == (verdict, factor, "run")


@FOR_EACH_ALPHA
@pytest.mark.parametrize("prefix", DOTTED)
def test_framepack_forgets_alpha(judged, prefix, has_alpha):
    found = judged("framepack", "lora A/B", has_alpha, prefix)
    assert (found.verdict, found.factor) == OF_FRAMES["lora A/B"][not has_alpha]


@pytest.mark.parametrize("prefix", DOTTED)
@pytest.mark.parametrize("family", [*PLAIN, "kandinsky5"])
def test_other_scripts_rename_nothing(judged, family, prefix):
    assert judged(family, "lora A/B", True, prefix).verdict == NOTHING


@pytest.mark.parametrize("prefix", ["base_model.model.", "lycoris_", "lora_transformer_", "transformer_2."])
@pytest.mark.parametrize("family", LAYERS)
def test_other_names_are_not_found(judged, family, prefix):
    assert judged(family, "lora", True, prefix).verdict == NOTHING


# The scripts of these families read LoRA under "diffusion_model." too, so the conversion keeps that.
READING_DOTTED = ("wan", "qwen_image", "flux", "hunyuan_video")


@pytest.mark.parametrize("family", LAYERS)
def test_dotted_lora_is_read_by_some_scripts(judged, family):
    verdict = judged(family, "lora", True, "diffusion_model.").verdict
    assert (verdict == SAME) is (family in READING_DOTTED)


@pytest.mark.numeric
@pytest.mark.parametrize("family", LAYERS)
def test_conversion_has_names_that_script_reads(judged, family, tmp_path, run):
    judged(family, "rslora flag", True, "diffusion_model.")
    own = load_file(tmp_path / "adapter.safetensors")
    ended = run("convert", tmp_path / "adapter.safetensors", "--to", "blissful", "-o", tmp_path / "made.safetensors")
    assert ended.status == 0
    assert compat(str(tmp_path / "made.safetensors"), "blissful").verdicts[0].verdict == SAME
    made = load_file(tmp_path / "made.safetensors")
    for path in LAYERS[family]:
        name = f"diffusion_model.{path}"
        written = name if family in READING_DOTTED else spelled("lora_unet_")(path)
        meant = 3.0 / 4**0.5 * own[f"{name}.lora_up.weight"] @ own[f"{name}.lora_down.weight"]
        down = made[f"{written}.lora_down.weight"]
        applied = float(made[f"{written}.alpha"]) / len(down) * made[f"{written}.lora_up.weight"] @ down
        torch.testing.assert_close(applied, meant)


@pytest.mark.parametrize("kind", ["lora", "dora_scale of outputs", "loha", "bias of the up layer"])
@pytest.mark.parametrize(
    ("family", "path"),
    [("flux", "transformer_blocks.0.attn.to_q"), ("hunyuan_video", "transformer_blocks.0.attn.to_q")],
)
def test_a_network_has_none_of_diffusers_layers(judged, monkeypatch, family, path, kind):
    monkeypatch.setitem(LAYERS, family, (path, "single_transformer_blocks.0.proj_mlp"))
    for prefix in DOTTED:
        found = judged(family, kind, True, prefix)
        assert (found.verdict, found.silent, found.by) == (NOTHING, True, "run")
