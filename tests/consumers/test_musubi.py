"""What musubi-tuner made of files on small models, with its own code of 2026-06-24.

That code cannot be installed here, so what it did is written out: `load_safetensors_with_lora_and_fp8` on the weights
of Wan, FLUX.2, Qwen-Image, Z-Image, FramePack, Krea 2 and HunyuanVideo 1.5, and the networks of FLUX.1 Kontext and
HunyuanVideo with `merge_to`.
"""

import pytest
import torch
from adapter_kinds import KINDS, adapter
from safetensors.torch import save_file

from lora_inspect.architectures import by_name
from lora_inspect.ops.compat import compat

SAME, STRENGTH, LOST = "same meaning", "wrong strength", "DoRA lost"
PARTLY, NOTHING, REFUSED = "partly loaded", "nothing loaded", "refused"
LAYERS = {
    "flux": ("double_blocks.0.img_attn.proj", "double_blocks.1.img_mod.lin", "single_blocks.0.linear2"),
    "flux2": ("double_blocks.0.img_attn.proj", "single_blocks.1.linear2"),
    "framepack": ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.proj_mlp"),
    "hunyuan_video": ("double_blocks.0.img_attn_qkv", "single_blocks.1.linear2"),
    "hunyuan_video_1_5": ("double_blocks.0.img_attn_q", "double_blocks.1.txt_mlp.fc1"),
    "krea2": ("blocks.0.attn.wq", "blocks.1.mlp.gate"),
    "qwen_image": ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.img_mlp.net.2"),
    "wan": ("blocks.0.self_attn.q", "blocks.1.ffn.0"),
    "z_image": ("layers.0.attention.to_q", "layers.1.feed_forward.w1"),
}
MERGED = ("flux2", "framepack", "hunyuan_video_1_5", "krea2", "qwen_image", "wan", "z_image")
NETWORKS = ("flux", "hunyuan_video")


def spelled(prefix):
    return lambda path: prefix + (path if prefix.endswith(".") else path.replace(".", "_"))


@pytest.fixture
def judged(tmp_path):
    def judge(family, kind, has_alpha=True, prefix="lora_unet_", paths=None):
        numbers = torch.Generator().manual_seed(2)
        layers = {
            path: {
                "weight": torch.randn(16, 16, generator=numbers),
                "bias": torch.randn(16, generator=numbers),
            }
            for path in paths or LAYERS[family]
        }
        tensors, _ = adapter(KINDS[kind], layers, spelled(prefix), has_alpha)
        file = tmp_path / "adapter.safetensors"
        save_file(tensors, file, {"ss_base_model_version": by_name(family).metadata_names[0]})
        (found,) = compat(str(file), "musubi").verdicts
        return found

    return judge


# By kind: the verdict with an alpha, and without.
OF_MERGE = {
    "lora": (SAME, SAME),
    "lora A/B": (NOTHING, NOTHING),
    "rslora flag": (STRENGTH, SAME),
    "dora_scale of outputs": (LOST, LOST),
    "dora_scale of inputs": (LOST, LOST),
    "dora_layer": (LOST, LOST),
    "magnitude vector": (NOTHING, NOTHING),
    "loha": (SAME, SAME),
    "lokr whole": (SAME, SAME),
    "lokr low-rank": (SAME, SAME),
    "oft small blocks": (NOTHING, NOTHING),
    "ia3": (NOTHING, NOTHING),
    "full": (NOTHING, NOTHING),
    "full and bias": (NOTHING, NOTHING),
    "bias beside lora": (PARTLY, PARTLY),
    "bias of the up layer": (PARTLY, PARTLY),
}
OF_NETWORK = {
    **OF_MERGE,
    "lora": (SAME, REFUSED),
    "rslora flag": (STRENGTH, REFUSED),
    **dict.fromkeys(("dora_scale of outputs", "dora_scale of inputs", "dora_layer"), (LOST, REFUSED)),
    **dict.fromkeys(("loha", "lokr whole", "lokr low-rank"), (NOTHING, NOTHING)),
    **dict.fromkeys(("bias beside lora", "bias of the up layer"), (PARTLY, REFUSED)),
}


@pytest.mark.parametrize("has_alpha", [True, False], ids=["alpha", "none"])
@pytest.mark.parametrize("kind", OF_MERGE)
@pytest.mark.parametrize("family", MERGED)
def test_a_merge_on_loading(judged, family, kind, has_alpha):
    found, verdict = judged(family, kind, has_alpha), OF_MERGE[kind][not has_alpha]
    assert (found.verdict, found.by) == (verdict, "run")
    # A flag, too, is a key that it warns of.
    assert found.silent == (verdict == STRENGTH)
    assert found.factor == {STRENGTH: 0.5, NOTHING: None}.get(verdict, 1.0)


@pytest.mark.parametrize("has_alpha", [True, False], ids=["alpha", "none"])
@pytest.mark.parametrize("kind", OF_NETWORK)
@pytest.mark.parametrize("family", NETWORKS)
def test_a_network_of_the_file(judged, family, kind, has_alpha):
    found, verdict = judged(family, kind, has_alpha), OF_NETWORK[kind][not has_alpha]
    assert (found.verdict, found.by) == (verdict, "run")
    assert found.silent == (verdict not in (SAME, REFUSED))
    assert "KeyError" in found.says or verdict != REFUSED


@pytest.mark.parametrize(
    ("family", "inside", "outside"),
    [
        ("flux", "double_blocks.0.img_attn.proj", "vector_in.in_layer"),
        ("hunyuan_video", "single_blocks.0.linear2", "txt_in.input_embedder"),
    ],
)
def test_a_network_has_layers_in_the_blocks_alone(judged, family, inside, outside):
    assert judged(family, "lora", paths=(inside, outside)).verdict == PARTLY
    assert judged(family, "lora", False, paths=(inside, outside)).verdict == REFUSED
    assert judged(family, "lora", False, paths=(outside,)).verdict in (NOTHING, "unknown")


PREFIXES = ("diffusion_model.", "transformer.", "base_model.model.", "lycoris_", "lora_transformer_")


@pytest.mark.parametrize("kind", ["lora", "rslora flag", "lokr whole"])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("family", LAYERS)
def test_other_names_are_not_found(judged, family, prefix, kind):
    found = judged(family, kind, prefix=prefix)
    # The script of FramePack converts names of others first.
    assert found.verdict == ("unknown" if family == "framepack" else NOTHING)
    assert family == "framepack" or found.silent == (family in NETWORKS)


def test_a_file_of_several_kinds_is_read_as_one_of_them(judged, tmp_path):
    tensors = {}
    for kind, path in (("lora", "blocks.0.self_attn.q"), ("loha", "blocks.0.self_attn.k")):
        made, _ = adapter(KINDS[kind], {path: {"weight": torch.randn(16, 16)}}, spelled("lora_unet_"), True)
        tensors |= made
    save_file(tensors, tmp_path / "a.safetensors", {"ss_base_model_version": "wan2.1"})
    assert compat(str(tmp_path / "a.safetensors"), "musubi").verdicts[0].verdict == "unknown"


def test_whole_factors_of_lokr_are_applied_as_they_stand(judged, tmp_path):
    """blissful-tuner, which stores `lokr_factor`, divides alpha by the largest side of w2."""
    made, _ = adapter(
        KINDS["lokr whole"], {"blocks.0.self_attn.q": {"weight": torch.randn(16, 16)}}, spelled("lora_unet_"), True
    )
    tensors = {**made, "lokr_factor": torch.tensor(2)}
    save_file(tensors, tmp_path / "a.safetensors", {"ss_base_model_version": "wan2.1"})
    (found,) = compat(str(tmp_path / "a.safetensors"), "musubi").verdicts
    assert (found.verdict, found.factor) == (STRENGTH, 2.667)
