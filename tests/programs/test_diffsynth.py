"""What DiffSynth-Studio made of files on small layers, with its own code of 2026-08-20.

That code cannot be installed here, so what `pipe.load_lora` did is written out: 1,512 files of six families. Its models
were built without weights, and have layers of these names.
"""

import pytest
import torch
from adapters import DEFAULT, KINDS, KINDS_OF_FILES, adapter
from safetensors.torch import load_file, save_file

from lora_inspect.architectures import by_name
from lora_inspect.ops.compat import compat

pytestmark = pytest.mark.slow

SAME, STRENGTH, LOST = "same meaning", "wrong strength", "DoRA lost"
PARTLY, NOTHING = "partly loaded", "nothing loaded"
LAYERS = {
    "wan": ("blocks.0.self_attn.q", "blocks.0.cross_attn.k", "blocks.1.ffn.0"),
    "qwen_image": ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.img_mlp.net.2"),
    "z_image": ("layers.0.attention.to_q", "layers.1.feed_forward.w1"),
    "flux2": ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.attn.to_out"),
    "anima": ("blocks.0.cross_attn.q_proj", "blocks.1.mlp.layer1"),
    "ltx2": ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.ff.net.2"),
}
WRITTEN = ("wan", "qwen_image", "anima", "ltx2")
ALL_KINDS = {**KINDS, **KINDS_OF_FILES}
FOR_EACH_ALPHA = pytest.mark.parametrize("has_alpha", [True, False], ids=["alpha", "none"])


def spelled(prefix):
    return lambda path: prefix + (path if not prefix or prefix.endswith(".") else path.replace(".", "_"))


@pytest.fixture
def judged(tmp_path):
    def judge(family, kind, has_alpha, prefix, spelling=None):
        numbers = torch.Generator().manual_seed(2)
        layers = {
            path: {"weight": torch.randn(16, 16, generator=numbers), "bias": torch.randn(16, generator=numbers)}
            for path in LAYERS[family]
        }
        tensors, _ = adapter(ALL_KINDS[kind], layers, spelled(prefix), has_alpha, spelling=spelling)
        file = tmp_path / "adapter.safetensors"
        save_file(tensors, file, {"ss_base_model_version": by_name(family).metadata_names[0]})
        (found,) = compat(str(file), "diffsynth").verdicts
        return found

    return judge


# By kind: the verdict with an alpha, and without.
VERDICTS = {
    **dict.fromkeys(("lora", "lora A/B", "stranger", "dotted stranger"), (SAME, SAME)),
    "rslora flag": (STRENGTH, SAME),
    **dict.fromkeys(("dora_scale of outputs", "dora_scale of inputs", "dora_layer", "magnitude vector"), (LOST, LOST)),
    **dict.fromkeys(("loha", "lokr whole", "lokr low-rank", "full", "oft small blocks", "ia3"), (NOTHING, NOTHING)),
    **dict.fromkeys(("bias beside lora", "bias of the up layer"), (PARTLY, PARTLY)),
}


@FOR_EACH_ALPHA
@pytest.mark.parametrize("kind", VERDICTS)
@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
@pytest.mark.parametrize("family", LAYERS)
def test_names_of_its_own_models(judged, family, prefix, kind, has_alpha):
    found, verdict = judged(family, kind, has_alpha, prefix), VERDICTS[kind][not has_alpha]
    assert (found.verdict, found.by) == (verdict, "run")
    # It counts the layers that it found, and says nothing of the others.
    assert found.silent == (verdict != SAME)
    assert found.factor == {STRENGTH: 0.5, NOTHING: None}.get(verdict, 1.0)


@FOR_EACH_ALPHA
@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
@pytest.mark.parametrize("family", LAYERS)
def test_the_name_of_an_adapter_inside(judged, family, prefix, has_alpha):
    assert judged(family, "lora", has_alpha, prefix, DEFAULT).verdict == SAME


@pytest.mark.parametrize("prefix", ["transformer.", "base_model.model.", "lora_unet_", "lycoris_"])
@pytest.mark.parametrize("family", LAYERS)
def test_other_names_are_not_found(judged, family, prefix):
    found = judged(family, "lora", True, prefix)
    assert (found.verdict, found.silent) == (NOTHING, True)


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["lora", "rslora flag"])
@pytest.mark.parametrize("family", WRITTEN)
def test_the_conversion_for_it_gives_alpha_over_rank(judged, family, kind, tmp_path, run):
    judged(family, kind, True, "lora_unet_")
    own = load_file(tmp_path / "adapter.safetensors")
    ended = run("convert", tmp_path / "adapter.safetensors", "--to", "diffsynth", "-o", tmp_path / "made.safetensors")
    assert ended.status == 0, ended.stderr
    made = load_file(tmp_path / "made.safetensors")
    assert compat(str(tmp_path / "made.safetensors"), "diffsynth").verdicts[0].verdict == SAME
    for path in LAYERS[family]:
        name, new = spelled("lora_unet_")(path), f"diffusion_model.{path}"
        scale = 3.0 / 4 ** (0.5 if kind == "rslora flag" else 1.0)
        meant = scale * own[f"{name}.lora_up.weight"] @ own[f"{name}.lora_down.weight"]
        ends = (".lora_up.weight", ".lora_down.weight")
        if f"{new}.lora_up.weight" not in made:
            ends = (".lora_B.weight", ".lora_A.weight")
        up, down = (made[new + end] for end in ends)
        torch.testing.assert_close(float(made.get(f"{new}.alpha", len(down))) / len(down) * up @ down, meant)
