"""The effect of one unknown key in a file, in Forge and in SD.Next, as their own code showed.

Of Forge of 2025-06-26 `model_lora_keys_unet`, `load_lora` and `merge_lora_to_weight` ran on weights with the names of
its models, and of SD.Next of 2026-07-23 `load_safetensors` and `network_calc_weights` on modules with the layers of
the files. Neither can be installed here, so settings, logs, hashes and devices were replaced. The
changes of the weights were compared with those of the same file without the key.
"""

import pytest
from adapters import lora
from unknown_keys import PLACES

from lora_inspect.ops.compat import compat

SAME, PARTLY, NOTHING, REFUSED = "same meaning", "partly loaded", "nothing loaded", "refused"
UNET, OF_SDXL = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "transformer_blocks.0.attn1.to_q"
OF_FLUX = ("double_blocks.0.img_attn.proj", "single_blocks.0.linear2")
OF_FLUX_DIFFUSERS = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_k")
SD3, SD3_DIFFUSERS = "joint_blocks.0.x_block.attn.proj", "transformer_blocks.0.attn.to_q"
Z_IMAGE = ("layers.0.feed_forward.w1", "layers.0.attention.qkv")
Z_IMAGE_DIFFUSERS = ("layers.0.attention.to_q", "layers.0.feed_forward.w1")
FLUX2 = ("double_blocks.0.img_attn.qkv", "single_blocks.0.linear2")
FLUX2_DIFFUSERS = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_out")


def named(prefix, paths, spelling):
    """(the tensors of layers with these paths, the name of each)."""
    names = [prefix + (path.replace(".", "_") if prefix.endswith("_") else path) for path in paths]
    tensors = {}
    for name in names:
        tensors |= lora(name, 4, 4.0, 12, 8, spelling)
    return tensors, names


def verdict_of(program, version, tensors, write_safetensors):
    file = write_safetensors(tensors, {"ss_base_model_version": version})
    (found,) = compat(str(file), program).verdicts
    return found


# It prints the names of up to 12 keys, and refuses a file with more.
IN_FORGE = [
    ("sd_v1", "lora_unet_", (UNET,), "kohya"),
    ("sd_v1", "diffusion_model.", (f"input_blocks.4.1.{OF_SDXL}",), "peft"),
    ("sdxl_base_v1-0", "lora_unet_", (f"input_blocks.4.1.{OF_SDXL}",), "kohya"),
    ("sdxl_base_v1-0", "lora_unet_", (UNET,), "kohya"),
    ("sdxl_base_v1-0", "lycoris_", (UNET,), "kohya"),
    ("sdxl_base_v1-0", "diffusion_model.", (f"input_blocks.4.1.{OF_SDXL}",), "peft"),
    ("flux1", "lora_unet_", OF_FLUX, "kohya"),
    ("flux1", "diffusion_model.", OF_FLUX, "peft"),
    ("flux1", "transformer.", ("transformer_blocks.0.attn.to_out.0",), "peft"),
    ("flux1", "lora_transformer_", ("transformer_blocks.0.attn.to_out.0",), "kohya"),
    ("chroma", "lora_unet_", OF_FLUX, "kohya"),
    ("chroma", "diffusion_model.", OF_FLUX, "peft"),
    ("sd_3", "lora_unet_", (SD3,), "kohya"),
    ("sd_3", "diffusion_model.", (SD3,), "peft"),
]


@pytest.mark.parametrize("place", PLACES)
def test_in_forge(place, write_safetensors):
    for version, prefix, paths, spelling in IN_FORGE:
        tensors, (module, *_) = named(prefix, paths, spelling)
        key = PLACES[place].format(module=module, prefix=prefix, other=module.replace("0", "7", 1))
        found = verdict_of("forge", version, {**tensors, key: ("F32", (2,), 1.0)}, write_safetensors)
        assert found.verdict == SAME, (version, key, found.says)


# The verdicts of a key in one of these places other than SAME. It leaves one of 2 layers, or cannot split the key, or
# finds no other name.
BIASED, UNSPLIT, CONVERTED = {"bias": PARTLY}, {"bare": REFUSED}, {**dict.fromkeys(PLACES, NOTHING), "bare": REFUSED}
IN_SDNEXT = [
    ("sd_v1", "lora_unet_", (UNET, "mid_block.attentions.0.proj_in"), "kohya", BIASED | UNSPLIT),
    ("sd_v1", "unet.", (UNET, "mid_block.attentions.0.proj_in"), "kohya", UNSPLIT),
    ("sdxl_base_v1-0", "lora_unet_", (UNET, "mid_block.attentions.0.proj_in"), "kohya", BIASED | UNSPLIT),
    ("sdxl_base_v1-0", "unet.", (UNET, "mid_block.attentions.0.proj_in"), "kohya", UNSPLIT),
    ("flux1", "transformer.", OF_FLUX_DIFFUSERS, "kohya", UNSPLIT),
    ("flux1", "lora_transformer_", OF_FLUX_DIFFUSERS, "kohya", BIASED | UNSPLIT),
    ("flux1", "lycoris_", OF_FLUX_DIFFUSERS, "kohya", BIASED | UNSPLIT),
    ("flux1", "lora_unet_", OF_FLUX, "kohya", CONVERTED),
    ("sd_3", "transformer.", (SD3_DIFFUSERS,), "kohya", UNSPLIT),
    ("sd_3", "lora_unet_", (SD3,), "kohya", CONVERTED),
    ("flux_2_dev", "lora_unet_", FLUX2, "kohya", BIASED),
    ("flux_2_dev", "diffusion_model.", FLUX2, "peft", BIASED),
    ("flux_2_dev", "transformer.", FLUX2_DIFFUSERS, "peft", BIASED),
    ("z_image", "lora_unet_", Z_IMAGE, "kohya", BIASED),
    ("z_image", "diffusion_model.", Z_IMAGE, "peft", BIASED),
    ("z_image", "diffusion_model.", Z_IMAGE[::-1], "peft", BIASED),
    ("z_image", "transformer.", Z_IMAGE_DIFFUSERS, "peft", BIASED),
    ("z_image", "", Z_IMAGE_DIFFUSERS, "peft", BIASED),
]


@pytest.mark.parametrize("place", PLACES)
def test_in_sdnext(place, write_safetensors):
    for version, prefix, paths, spelling, verdicts in IN_SDNEXT:
        tensors, (module, *_) = named(prefix, paths, spelling)
        key = PLACES[place].format(module=module, prefix=prefix, other=module.replace("0", "7", 1))
        found = verdict_of("sdnext", version, {**tensors, key: ("F32", (2,), 1.0)}, write_safetensors)
        assert found.verdict == verdicts.get(place, SAME), (version, prefix, key, found.says)


@pytest.mark.parametrize(
    ("version", "prefix", "paths", "spelling", "verdict"),
    [
        ("sd_v1", "lora_unet_", (UNET,), "kohya", "wrong change"),
        ("flux1", "lora_transformer_", OF_FLUX_DIFFUSERS, "kohya", "wrong change"),
        ("flux1", "transformer.", OF_FLUX_DIFFUSERS, "kohya", SAME),
        ("z_image", "diffusion_model.", Z_IMAGE, "peft", "wrong change"),
        ("z_image", "diffusion_model.", Z_IMAGE[::-1], "peft", PARTLY),
    ],
)
def test_a_bias_as_large_as_the_weight_is_added_in_sdnext(version, prefix, paths, spelling, verdict, write_safetensors):
    """LyCORIS wrote the remainder of an extraction so. SD.Next leaves fused layers with a bias."""
    tensors, (module, *_) = named(prefix, paths, spelling)
    biased = {**tensors, f"{module}.bias": ("F32", (12, 8), 1.0)}
    assert verdict_of("sdnext", version, biased, write_safetensors).verdict == verdict
