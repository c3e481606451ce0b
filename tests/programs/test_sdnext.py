"""What SD.Next of 2026-07-23 makes of files, as its own network code did on small models and on FLUX's own widths.

The code cannot be installed here, so what it did is written out.
"""

import pytest
from adapters import lora

from lora_inspect.ops.compat import compat

SD15, SDXL, SD3, FLUX, FLUX2, Z_IMAGE = (
    {"ss_base_model_version": name} for name in ("sd_v1", "sdxl_base_v1-0", "sd_3", "flux1", "flux_2_dev", "z_image")
)
OF_SD3 = ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.ff_context.net.2")
OF_FLUX2 = ("double_blocks.0.img_attn.qkv", "single_blocks.1.linear2")
OF_FLUX2_DIFFUSERS = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_qkv_mlp_proj")
SAME, NOTHING, PARTLY, REFUSED = "same meaning", "nothing loaded", "partly loaded", "refused"
OF_SDXL = ("input_blocks.4.1.transformer_blocks.0.attn1.to_q", "input_blocks.1.0.emb_layers.1")
OF_UNET = ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.0.resnets.0.time_emb_proj")
OF_FLUX = ("double_blocks.0.img_attn.proj", "single_blocks.1.modulation.lin")
OF_FLUX_DIFFUSERS = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp")
OF_Z_IMAGE = ("layers.0.attention.qkv", "layers.0.feed_forward.w1")
OF_Z_IMAGE_DIFFUSERS = ("layers.0.attention.to_q", "layers.0.attention.to_out.0", "layers.0.feed_forward.w1")
Q = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
UNPACK = "not enough values to unpack (expected 2, got 1)"
FLAG = {"use_rslora_flag": ("F32", (), 1.0)}


@pytest.fixture
def judged(write_safetensors):
    def judge(tensors, metadata=SDXL):
        (found,) = compat(str(write_safetensors(tensors, metadata)), "sdnext").verdicts
        return found

    return judge


def named(prefix, *paths, **options):
    separator = "_" if prefix.endswith("_") else "."
    made = {}
    for path in paths:
        made |= lora(prefix + path.replace(".", separator), **{"out": 8, "inputs": 8, **options})
    return made


def with_magnitudes(tensors, shape):
    ups = [key for key in tensors if key.endswith(".lora_up.weight")]
    return {**tensors, **{key.replace("lora_up.weight", "dora_scale"): ("F32", shape, 1) for key in ups}}


@pytest.mark.parametrize(
    ("metadata", "prefix", "paths", "kohya", "peft"),
    [
        (SDXL, "lora_unet_", OF_SDXL, SAME, NOTHING),
        (SDXL, "lora_unet_", OF_UNET, SAME, NOTHING),
        (SD15, "lora_unet_", OF_UNET, SAME, NOTHING),
        (SDXL, "unet.", OF_UNET, SAME, NOTHING),
        (SDXL, "diffusion_model.", OF_SDXL, NOTHING, NOTHING),
        (SDXL, "lycoris_", OF_UNET, NOTHING, NOTHING),
        (SDXL, "lora_transformer_", OF_UNET, NOTHING, NOTHING),
        (FLUX, "transformer.", OF_FLUX_DIFFUSERS, SAME, NOTHING),
        (FLUX, "lora_transformer_", OF_FLUX_DIFFUSERS, SAME, NOTHING),
        (FLUX, "lycoris_", OF_FLUX_DIFFUSERS, SAME, NOTHING),
        (FLUX, "lora_unet_", OF_FLUX, SAME, NOTHING),
        (FLUX, "lora_unet_", OF_FLUX_DIFFUSERS, NOTHING, NOTHING),
        (FLUX, "diffusion_model.", OF_FLUX, NOTHING, NOTHING),
        (FLUX, "diffusion_model.", OF_FLUX_DIFFUSERS, NOTHING, NOTHING),
        (SD3, "transformer.", OF_SD3, SAME, NOTHING),
        (SD3, "lora_transformer_", OF_SD3, SAME, NOTHING),
        (SD3, "lycoris_", OF_SD3, SAME, NOTHING),
        (FLUX2, "lora_unet_", OF_FLUX2, SAME, SAME),
        (FLUX2, "diffusion_model.", OF_FLUX2, SAME, SAME),
        (FLUX2, "transformer.", OF_FLUX2_DIFFUSERS, SAME, SAME),
        (FLUX2, "lycoris_", OF_FLUX2_DIFFUSERS, SAME, SAME),
        (FLUX2, "diffusion_model.", OF_FLUX2_DIFFUSERS, NOTHING, NOTHING),
        (Z_IMAGE, "lora_unet_", OF_Z_IMAGE, SAME, SAME),
        (Z_IMAGE, "lora_unet_", OF_Z_IMAGE_DIFFUSERS, SAME, SAME),
        (Z_IMAGE, "diffusion_model.", OF_Z_IMAGE, SAME, SAME),
        (Z_IMAGE, "diffusion_model.", OF_Z_IMAGE_DIFFUSERS, SAME, SAME),
        (Z_IMAGE, "transformer.", OF_Z_IMAGE_DIFFUSERS, SAME, SAME),
        (Z_IMAGE, "lycoris_", OF_Z_IMAGE_DIFFUSERS, SAME, SAME),
        (Z_IMAGE, "lora_transformer_", OF_Z_IMAGE_DIFFUSERS, SAME, SAME),
    ],
)
def test_names_and_spellings(judged, metadata, prefix, paths, kohya, peft):
    for spelling, verdict in (("kohya", kohya), ("peft", peft)):
        found = judged(named(prefix, *paths, spelling=spelling), metadata)
        assert (found.verdict, found.silent) == (verdict, False)


def test_alpha_may_be_missing_but_in_kohyas_names_of_flux(judged):
    assert judged(named("lora_unet_", *OF_SDXL, alpha=None)).verdict == SAME
    assert judged(named("transformer.", *OF_FLUX_DIFFUSERS, alpha=None), FLUX).verdict == SAME
    assert judged(named("diffusion_model.", *OF_Z_IMAGE, alpha=None), Z_IMAGE).verdict == SAME
    found = judged(named("lora_unet_", *OF_FLUX, alpha=None), FLUX)
    assert (found.verdict, found.says) == (REFUSED, "'lora_unet_double_blocks_0_img_attn_proj.alpha'")


def test_a_file_of_flux_in_kohyas_names_may_hold_nothing_else(judged):
    tensors = named("lora_unet_", *OF_FLUX)
    for path in ("img_in", "final_layer.linear"):
        found = judged({**tensors, **named("lora_unet_", path)}, FLUX)
        assert (found.verdict, found.silent) == (NOTHING, False)
    assert judged(with_magnitudes(tensors, (8, 1)), FLUX).verdict == NOTHING
    assert judged({**tensors, **FLAG}, FLUX).says == UNPACK


def test_single_blocks_of_flux_have_one_width(judged):
    tensors = named("lora_unet_", *OF_FLUX)
    path = "single_blocks.0.linear1"
    assert judged({**tensors, **named("lora_unet_", path, out=21504, rank=2)}, FLUX).verdict == SAME
    assert judged({**tensors, **named("lora_unet_", path, out=56)}, FLUX).verdict == REFUSED


def test_names_without_a_word_are_not_those_of_lycoris(judged):
    tensors = named("lycoris_", *OF_FLUX_DIFFUSERS, "x_embedder")
    assert judged(tensors, FLUX).verdict == PARTLY


def test_bare_names_of_z_image_are_those_of_blocks(judged):
    assert judged(named("", *OF_Z_IMAGE_DIFFUSERS), Z_IMAGE).verdict == SAME
    found = judged(named("", *OF_Z_IMAGE_DIFFUSERS, "cap_embedder.1"), Z_IMAGE)
    assert (found.verdict, found.silent) == (PARTLY, True)


def test_other_kinds_of_flux2(judged):
    for suffix, shape, verdict in (("diff", (24, 8), PARTLY), ("hada_w1_a", (8, 8), "not tested")):
        kinds = {suffix: ("F32", shape, 0.5)}
        if suffix != "diff":
            kinds = {f"hada_w{number}_{side}": ("F32", (8, 8), 0.5) for number in "12" for side in "ab"}
        tensors = {f"diffusion_model.{OF_FLUX2[0]}.{name}": tensor for name, tensor in kinds.items()}
        assert judged({**named("diffusion_model.", OF_FLUX2[1]), **tensors}, FLUX2).verdict == verdict


def test_keys_without_a_dot_make_it_refuse_the_file(judged):
    found = judged({**named("lora_unet_", *OF_SDXL), **FLAG})
    assert (found.verdict, found.says) == (REFUSED, UNPACK)
    found = judged({**named("diffusion_model.", *OF_Z_IMAGE), **FLAG}, Z_IMAGE)
    assert (found.verdict, found.factor, found.silent) == ("wrong strength", 0.25, True)


def test_a_scale_takes_the_place_of_alpha(judged):
    found = judged({**named("lora_unet_", OF_SDXL[0]), f"{Q}.scale": ("F32", (), 0.75)})
    assert (found.verdict, found.factor) == ("wrong strength", 1.5)


@pytest.mark.parametrize(
    ("suffix", "shape", "unet", "z_image"),
    [
        ("dora_scale", (8, 1), SAME, SAME),
        ("dora_scale", (1, 8), SAME, SAME),
        ("dora_layer.weight", (8,), "DoRA lost", "DoRA lost"),
        ("lora_magnitude_vector", (8,), "DoRA lost", SAME),
        ("lora_magnitude_vector.weight", (8,), "DoRA lost", "DoRA lost"),
        ("magnitude", (8,), "DoRA lost", SAME),
    ],
)
def test_magnitudes(judged, suffix, shape, unet, z_image):
    found = judged({**named("lora_unet_", OF_SDXL[0]), f"{Q}.{suffix}": ("F32", shape, 1)})
    assert (found.verdict, found.silent) == (unet, unet != SAME)
    path = OF_Z_IMAGE[1]
    tensors = {**named("diffusion_model.", path), f"diffusion_model.{path}.{suffix}": ("F32", shape, 1)}
    assert judged(tensors, Z_IMAGE).verdict == z_image


def test_magnitudes_of_inputs_are_not_cut(judged):
    tensors = named("diffusion_model.", *OF_Z_IMAGE)
    assert judged(with_magnitudes(tensors, (8, 1)), Z_IMAGE).verdict == SAME
    assert judged(with_magnitudes(tensors, (1, 8)), Z_IMAGE).verdict == PARTLY


def test_magnitudes_behind_dotted_names_of_flux_are_dropped(judged):
    for prefix, verdict in (("transformer.", "DoRA lost"), ("lora_transformer_", SAME)):
        assert judged(with_magnitudes(named(prefix, *OF_FLUX_DIFFUSERS), (8, 1)), FLUX).verdict == verdict


def rotation(module, alpha):
    made = {f"{module}.oft_blocks": ("F32", (2, 4, 4), 0.5)}
    return made if alpha is None else {**made, f"{module}.alpha": ("F32", (), alpha)}


@pytest.mark.parametrize(
    ("module", "metadata"), [(Q, SDXL), (f"diffusion_model.{OF_Z_IMAGE[1]}", Z_IMAGE)], ids=["sdxl", "z_image"]
)
def test_rotations_need_a_limit(judged, module, metadata):
    assert judged(rotation(module, 1.0), metadata).verdict == SAME
    none = judged(rotation(module, 0.0), metadata)
    assert (none.verdict, none.factor) == ("wrong strength", 0.0)
    assert judged(rotation(module, None), metadata).verdict == REFUSED


def test_differences_of_fused_layers_are_left(judged):
    key = f"diffusion_model.{OF_Z_IMAGE[0]}.diff"
    assert judged({**named("diffusion_model.", OF_Z_IMAGE[1]), key: ("F32", (24, 8), 0.5)}, Z_IMAGE).verdict == PARTLY
    key = f"diffusion_model.{OF_Z_IMAGE[1]}.diff"
    assert judged({key: ("F32", (8, 8), 0.5)}, Z_IMAGE).verdict == SAME


def test_text_encoders(judged):
    path = "text_model.encoder.layers.0.self_attn.q_proj"
    for metadata, paths, prefix, verdict in (
        (SDXL, OF_SDXL, "lora_te1_", SAME),
        (SDXL, OF_SDXL, "lora_te2_", SAME),
        (SD15, OF_UNET, "lora_te_", SAME),
        (SD15, OF_UNET, "lora_te1_", PARTLY),
    ):
        width = 1280 if prefix == "lora_te2_" else 768
        encoder = named(prefix, path, out=width, inputs=width)
        assert judged({**named("lora_unet_", *paths), **encoder}, metadata).verdict == verdict


def test_a_layer_gets_its_weight_for_a_bias(judged):
    found = judged({**named("lora_unet_", OF_SDXL[0]), f"{Q}.diff_b": ("F32", (8,), 0.5)})
    assert (found.verdict, found.silent) == ("wrong change", True)


@pytest.mark.parametrize(
    ("metadata", "prefix", "path", "spelling", "alpha"),
    [
        ({"ss_base_model_version": "wan"}, "transformer.", "blocks.0.attn1.to_q", "peft", None),
        ({"ss_base_model_version": "wan"}, "lora_unet_", "blocks.0.self_attn.q", "kohya", 8.0),
        ({"ss_base_model_version": "qwen_image"}, "transformer.", "transformer_blocks.0.attn.to_q", "peft", None),
        ({"ss_base_model_version": "qwen_image"}, "lora_unet_", "transformer_blocks.0.attn.to_q", "kohya", 8.0),
    ],
)
def test_other_models_go_through_diffusers(write_safetensors, metadata, prefix, path, spelling, alpha):
    file = write_safetensors(named(prefix, path, spelling=spelling, alpha=alpha), metadata)
    (own,), (theirs,) = (compat(str(file), name).verdicts for name in ("sdnext", "diffusers"))
    assert (own.verdict, own.factor, own.by) == (theirs.verdict, theirs.factor, "read")
    assert own.verdict not in ("not tested", "has no such models")


OF_SD3_KOHYA = ("joint_blocks.0.context_block.attn.proj", "joint_blocks.1.x_block.mlp.fc1")


def test_kohyas_names_of_sd3_get_the_layers_of_the_other_stream(judged):
    """Its conversion ran: it takes the text's queries for the picture's."""
    assert judged(named("lora_unet_", *OF_SD3_KOHYA), SD3).verdict == SAME
    for side in ("context", "x"):
        found = judged(named("lora_unet_", *OF_SD3_KOHYA, f"joint_blocks.0.{side}_block.attn.qkv"), SD3)
        assert (found.verdict, found.silent) == ("wrong change", True)


def test_kohyas_names_of_sd3_need_alphas(judged):
    found = judged(named("lora_unet_", *OF_SD3_KOHYA, alpha=None), SD3)
    assert (found.verdict, found.says) == (REFUSED, "KeyError: it wants an alpha of every layer")


def test_with_a_second_encoder_the_layers_of_sd3_are_lost(judged):
    encoders = {
        key: tensor
        for number, width in ((1, 768), (2, 1280))
        for key, tensor in lora(f"lora_te{number}_text_model_encoder_layers_0_mlp_fc1", out=width, inputs=width).items()
    }
    found = judged({**named("lora_unet_", *OF_SD3_KOHYA), **encoders}, SD3)
    assert (found.verdict, found.silent, found.by) == (PARTLY, True, "read")
