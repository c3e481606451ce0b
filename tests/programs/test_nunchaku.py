"""Files for FLUX.1 as the converters of nunchaku 1.2.0 read them, at the widths of the model.

Its package needs compiled kernels, so what it did is written out: the packed factors that the kernels get were unpacked
and multiplied. Of 55 files, each was read as one adapter and by `compose_lora`.
"""

import pytest
import torch
from adapters import KINDS, adapter
from safetensors.torch import load_file, save_file

from lora_inspect.ops.compat import compat

SAME, STRENGTH, NOTHING, REFUSED, LOST = "same meaning", "wrong strength", "nothing loaded", "refused", "DoRA lost"
DIFFUSERS = ("transformer_blocks.0.attn.to_out.0", "transformer_blocks.0.ff.net.2")
ORIGINAL = ("double_blocks.0.img_attn.proj", "double_blocks.0.img_mlp.2")
BOTH = ("nunchaku", "nunchaku-compose")


@pytest.fixture
def judged(tmp_path):
    def judge(kind, has_alpha, prefix, paths, beside=(), spelling=None):
        numbers = torch.Generator().manual_seed(2)
        layers = {path: {"weight": torch.randn(16, 16, generator=numbers)} for path in paths}
        flat = prefix.endswith("_")
        tensors, _ = adapter(
            KINDS[kind], layers, lambda path: prefix + (path.replace(".", "_") if flat else path), has_alpha
        )
        file = tmp_path / "adapter.safetensors"
        save_file(tensors | dict(beside), file, {"ss_base_model_version": "flux1"})
        return tuple(compat(str(file), program).verdicts[0].verdict for program in BOTH)

    return judge


@pytest.mark.parametrize(
    ("kind", "has_alpha", "prefix", "paths", "seen"),
    [
        ("lora A/B", True, "transformer.", DIFFUSERS, (SAME, SAME)),
        ("lora", False, "transformer.", DIFFUSERS, (SAME, SAME)),
        ("lora", True, "transformer.", DIFFUSERS, (REFUSED, REFUSED)),
        ("lora A/B", False, "", DIFFUSERS, (SAME, SAME)),
        ("lora", True, "lora_unet_", ORIGINAL, (SAME, SAME)),
        ("lora", True, "lora_transformer_", DIFFUSERS, (SAME, SAME)),
        ("lora", True, "lora_unet_", DIFFUSERS, (REFUSED, REFUSED)),
        ("lora", True, "lycoris_", DIFFUSERS, (NOTHING, NOTHING)),
        ("lora A/B", False, "diffusion_model.", ORIGINAL, (NOTHING, NOTHING)),
        ("lora", True, "diffusion_model.", ORIGINAL, (SAME, SAME)),
        ("lora", True, "lora_unet_", ("final_layer.linear",), (STRENGTH, STRENGTH)),
        ("rslora flag", True, "lora_unet_", ORIGINAL, (STRENGTH, STRENGTH)),
        ("magnitude vector", False, "transformer.", DIFFUSERS, (LOST, LOST)),
        ("dora_scale of outputs", True, "lora_unet_", ORIGINAL, (LOST, LOST)),
        ("loha", True, "lora_unet_", ORIGINAL, (REFUSED, REFUSED)),
        ("lokr whole", True, "transformer.", DIFFUSERS, (REFUSED, REFUSED)),
        ("full", False, "lora_unet_", ORIGINAL, (NOTHING, NOTHING)),
    ],
)
def test_names_and_kinds(judged, kind, has_alpha, prefix, paths, seen):
    assert judged(kind, has_alpha, prefix, paths) == seen


@pytest.mark.parametrize(
    ("leaves", "seen"),
    [
        (("attn.to_q", "attn.to_k", "attn.to_v"), (SAME, SAME)),
        (("attn.to_q", "attn.to_v"), (SAME, REFUSED)),
        (("attn.to_k", "attn.to_v"), (SAME, NOTHING)),
        (("ff.net.0.proj",), (REFUSED, REFUSED)),
    ],
)
def test_layers_that_others_need(judged, leaves, seen):
    assert judged("lora A/B", False, "transformer.", [f"transformer_blocks.0.{leaf}" for leaf in leaves]) == seen


@pytest.mark.parametrize(("last", "verdict"), [("proj_mlp", SAME), ("attn.to_q", REFUSED)])
def test_the_output_of_a_single_block_needs_the_feed_forward(judged, last, verdict):
    paths = [f"single_transformer_blocks.0.{leaf}" for leaf in ("proj_out", last)]
    assert judged("lora A/B", False, "transformer.", paths)[0] == verdict


@pytest.mark.parametrize(
    ("stranger", "seen"), [(torch.tensor(1.0), (SAME, REFUSED)), (torch.ones(1), (REFUSED, REFUSED))]
)
def test_unknown_keys(judged, stranger, seen):
    assert judged("lora A/B", False, "transformer.", DIFFUSERS, {"extra": stranger}) == seen
    assert judged("lora", True, "lora_unet_", ORIGINAL, {"extra": stranger}) == (SAME, SAME)


@pytest.mark.numeric
def test_conversion_keeps_kohya_names_with_standard_scale(judged, tmp_path, run):
    judged("rslora flag", True, "lora_unet_", ORIGINAL)
    own = load_file(tmp_path / "adapter.safetensors")
    made = tmp_path / "made.safetensors"
    assert run("convert", tmp_path / "adapter.safetensors", "--to", "nunchaku", "-o", made).status == 0
    tensors = load_file(made)
    for path in ORIGINAL:
        flat = f"lora_unet_{path.replace('.', '_')}"
        expected = 3.0 / 4**0.5 * own[f"{flat}.lora_up.weight"] @ own[f"{flat}.lora_down.weight"]
        down = tensors[f"{flat}.lora_down.weight"]
        scale = float(tensors[f"{flat}.alpha"]) / len(down)
        torch.testing.assert_close(scale * tensors[f"{flat}.lora_up.weight"] @ down, expected)
