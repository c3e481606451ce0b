"""What stable-diffusion.cpp of 2026-08-19 makes of files, as its own loader did on a small model of each family.

The code is not installed here, so what it did is written out.
"""

import pytest
from adapters import lora

from lora_inspect.architectures import by_name
from lora_inspect.ops.compat import compat

OTHERS = ("hunyuan_video_1_5", "anima", "ltx2")
FLUX, SDXL, SD15, WAN, QWEN, Z_IMAGE, SD3, CHROMA = (
    {"ss_base_model_version": name}
    for name in ("flux1", "sdxl_base_v1-0", "sd_v1", "wan", "qwen_image", "z_image", "sd_3", "chroma")
)
HUNYUAN_15, ANIMA, LTX2 = ({"ss_base_model_version": by_name(name).metadata_names[0]} for name in OTHERS)
OTHER = "wrong change"
SAME, NOTHING, PARTLY, STRENGTH, LOST = (
    "same meaning",
    "nothing loaded",
    "partly loaded",
    "wrong strength",
    "DoRA lost",
)
OF_FLUX = ("double_blocks.0.img_attn.qkv", "single_blocks.1.linear1", "double_blocks.1.txt_mod.lin")
OF_FLUX_DIFFUSERS = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_out")
OF_SDXL = ("input_blocks.4.1.transformer_blocks.0.attn1.to_q", "input_blocks.1.0.emb_layers.1")
OF_UNET = ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.0.resnets.0.time_emb_proj")
OF_WAN = ("blocks.0.self_attn.q", "blocks.0.ffn.0")
OF_WAN_DIFFUSERS = ("blocks.0.attn1.to_q", "blocks.0.ffn.net.2")
OF_QWEN = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.img_mlp.net.2")
OF_Z_IMAGE = ("layers.0.attention.qkv", "layers.0.feed_forward.w1")
OF_Z_IMAGE_PARTS = ("layers.0.attention.to_q", "layers.0.attention.to_out.0")
OF_SD3 = ("joint_blocks.0.context_block.attn.proj", "joint_blocks.0.x_block.mlp.fc1")
OF_HUNYUAN_15 = ("double_blocks.0.img_attn_proj", "double_blocks.0.txt_mlp.fc2", "double_blocks.0.img_mod.linear")
OF_ANIMA = ("blocks.0.self_attn.q_proj", "blocks.0.cross_attn.output_proj", "blocks.1.mlp.layer1")
OF_LTX2 = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.0.audio_attn1.to_k")
ENDS = {"flux": "img_in", "sdxl": "label_emb.0.0", "wan": "text_embedding.0"}
OWN = f"diffusion_model.{OF_FLUX[0]}"


@pytest.fixture
def judged(write_safetensors):
    def judge(tensors, metadata=FLUX):
        (found,) = compat(str(write_safetensors(tensors, metadata)), "stable-diffusion-cpp").verdicts
        return found

    return judge


def named(prefix, *paths, **options):
    separator = "_" if prefix.endswith("_") else "."
    made = {}
    for path in paths:
        made |= lora(prefix + path.replace(".", separator), **{"out": 8, "inputs": 8, **options})
    return made


@pytest.mark.parametrize("spelling", ["kohya", "peft"])
@pytest.mark.parametrize(
    ("metadata", "paths", "verdicts"),
    [
        (FLUX, OF_FLUX, {"diffusion_model.": SAME, "lora_unet_": SAME}),
        (FLUX, (*OF_FLUX, ENDS["flux"]), {"diffusion_model.": SAME, "lora_unet_": PARTLY}),
        (FLUX, OF_FLUX_DIFFUSERS, {"transformer.": SAME, "diffusion_model.": SAME, "lora_unet_": SAME, "": SAME}),
        (FLUX, OF_FLUX_DIFFUSERS, {"lora_transformer_": NOTHING, "base_model.model.": NOTHING, "lycoris_": SAME}),
        (FLUX, (*OF_FLUX_DIFFUSERS, "x_embedder"), {"transformer.": SAME, "": PARTLY, "lycoris_": PARTLY}),
        (SDXL, OF_SDXL, {"lora_unet_": SAME, "diffusion_model.": SAME}),
        (SDXL, (*OF_SDXL, ENDS["sdxl"]), {"lora_unet_": PARTLY, "diffusion_model.": PARTLY}),
        (SDXL, OF_UNET, {"lora_unet_": SAME, "unet.": SAME, "": SAME}),
        (SDXL, (*OF_UNET, "conv_in"), {"lora_unet_": PARTLY, "unet.": PARTLY}),
        (SD15, OF_UNET, {"lora_unet_": SAME, "unet.": SAME}),
        (WAN, OF_WAN, {"diffusion_model.": SAME, "lora_unet_": SAME}),
        (WAN, (*OF_WAN, ENDS["wan"]), {"diffusion_model.": SAME, "lora_unet_": PARTLY}),
        (WAN, OF_WAN_DIFFUSERS, {"transformer.": NOTHING, "diffusion_model.": NOTHING, "lora_unet_": NOTHING}),
        (QWEN, OF_QWEN, {"transformer.": SAME, "diffusion_model.": SAME, "lora_unet_": SAME}),
        (Z_IMAGE, OF_Z_IMAGE, {"diffusion_model.": SAME, "lora_unet_": PARTLY, "": NOTHING}),
        (Z_IMAGE, OF_Z_IMAGE_PARTS, {"transformer.": SAME, "lora_unet_": SAME, "": NOTHING, "lycoris_": NOTHING}),
        (Z_IMAGE, (*OF_Z_IMAGE_PARTS, "layers.0.feed_forward.w1"), {"transformer.": SAME, "lora_unet_": PARTLY}),
        (FLUX, OF_FLUX, {"": NOTHING}),
        (CHROMA, ("double_blocks.0.img_attn.qkv", "single_blocks.1.linear1"), {"": NOTHING}),
        (WAN, OF_WAN, {"": NOTHING}),
        (WAN, (*OF_WAN, "time_embedding.0"), {"": PARTLY}),
        (SD3, OF_SD3, {"diffusion_model.": SAME, "lora_unet_": NOTHING, "": NOTHING}),
        (HUNYUAN_15, OF_HUNYUAN_15, {"lora_unet_": SAME}),
        (HUNYUAN_15, (*OF_HUNYUAN_15, "double_blocks.0.txt_attn_q", "img_in.proj"), {"lora_unet_": PARTLY}),
        (ANIMA, OF_ANIMA, {"diffusion_model.": SAME, "lora_unet_": SAME}),
        (ANIMA, (*OF_ANIMA, "blocks.0.adaln_modulation_mlp.1"), {"diffusion_model.": SAME, "lora_unet_": PARTLY}),
        (LTX2, OF_LTX2, {"diffusion_model.": SAME, "transformer.": SAME, "": SAME, "lora_unet_": PARTLY}),
        (LTX2, (*OF_LTX2, "time_embed.linear"), {"diffusion_model.": PARTLY, "transformer.": PARTLY, "": PARTLY}),
    ],
)
def test_names_are_found_or_not(judged, metadata, paths, verdicts, spelling):
    found = {prefix: judged(named(prefix, *paths, spelling=spelling), metadata).verdict for prefix in verdicts}
    assert found == verdicts


@pytest.mark.parametrize(
    ("parts", "verdict"),
    [
        (("to_q",), SAME),
        (("to_q", "to_k"), SAME),
        (("to_q", "to_k", "to_v"), SAME),
        (("to_q", "to_v"), PARTLY),
        (("to_k",), NOTHING),
    ],
)
def test_parts_of_a_fused_layer_need_those_before_them(judged, parts, verdict):
    found = judged(named("transformer.transformer_blocks.0.attn.", *parts))
    assert (found.verdict, found.silent) == (verdict, verdict != SAME)


def test_the_last_part_of_a_single_block_needs_the_others(judged):
    block = "transformer.single_transformer_blocks.0"
    paths = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    assert judged(named(f"{block}.", *paths)).verdict == SAME
    assert judged(named(f"{block}.", *paths[3:])).verdict == NOTHING
    assert judged(named(f"{block}.", *paths[:3])).verdict == SAME


@pytest.mark.parametrize(
    ("metadata", "prefix", "path", "out", "verdict"),
    [
        (FLUX, "transformer.", "norm_out.linear", 16, OTHER),
        (FLUX, "diffusion_model.", "norm_out.linear", 16, OTHER),
        (FLUX, "diffusion_model.", "final_layer.adaLN_modulation.1", 16, SAME),
        (FLUX, "transformer.", "transformer_blocks.0.norm1_context.linear", 48, SAME),
        (SD3, "transformer.", "norm_out.linear", 16, OTHER),
        (SD3, "transformer.", "transformer_blocks.23.norm1_context.linear", 16, OTHER),
        (SD3, "transformer.", "transformer_blocks.0.norm1_context.linear", 48, SAME),
    ],
)
def test_halves_of_the_last_modulation_are_not_swapped(judged, metadata, prefix, path, out, verdict):
    found = judged(named(prefix, path, out=out), metadata)
    assert (found.verdict, found.by) == (verdict, "run")


@pytest.mark.parametrize(("dtype", "verdict"), [("BOOL", NOTHING), ("I16", NOTHING), ("I8", SAME), ("U8", SAME)])
def test_a_tensor_of_a_type_that_it_does_not_read_loses_the_file(judged, dtype, verdict):
    found = judged({**named("diffusion_model.", *OF_FLUX), "other": (dtype, (3,), 1)})
    assert (found.verdict, found.silent) == (verdict, False)


def test_the_flag_of_rslora_is_passed_over_where_its_type_is_read(judged):
    tensors = named("diffusion_model.", *OF_FLUX)
    found = judged({**tensors, "use_rslora_flag": ("F32", (), 1.0)})
    assert (found.verdict, found.factor, found.silent) == (STRENGTH, 0.25, True)
    found = judged({**tensors, "use_rslora_flag": ("BOOL", (), 1)})
    assert (found.verdict, found.silent) == (NOTHING, False)


def test_of_rank_1_it_divides_alpha_by_the_inputs(judged):
    found = judged(named("diffusion_model.", *OF_FLUX, rank=1, alpha=3.0, inputs=32))
    assert (found.verdict, found.factor) == (STRENGTH, 1 / 32)
    assert judged(named("diffusion_model.", *OF_FLUX, rank=1, alpha=None, inputs=32)).verdict == SAME


def test_a_scale_takes_the_place_of_alpha(judged):
    found = judged({**named("diffusion_model.", OF_FLUX[0]), f"{OWN}.scale": ("F32", (), 0.25)})
    assert (found.verdict, found.factor) == (STRENGTH, 0.5)


@pytest.mark.parametrize(
    ("suffix", "shape"),
    [
        ("dora_scale", (8, 1)),
        ("dora_scale", (1, 8)),
        ("dora_layer.weight", (8,)),
        ("lora_magnitude_vector", (8,)),
        ("lora_magnitude_vector.weight", (8,)),
    ],
)
def test_magnitudes_are_lost_silently(judged, suffix, shape):
    found = judged({**named("diffusion_model.", OF_FLUX[0]), f"{OWN}.{suffix}": ("F32", shape, 1)})
    assert (found.verdict, found.factor, found.silent) == (LOST, 1.0, True)


def of(*suffixes, shape=(8, 8)):
    return {f"{OWN}{suffix}": ("F32", shape, 0.5) for suffix in suffixes}


@pytest.mark.parametrize(
    ("tensors", "verdict"),
    [
        (of(".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b"), SAME),
        (of(".lokr_w1", ".lokr_w2", shape=(4, 4)), SAME),
        (of(".diff"), SAME),
        ({f"{OWN}.oft_blocks": ("F32", (2, 4, 4), 0.5)}, NOTHING),
        ({f"{OWN}.weight": ("F32", (8,), 0.5), f"{OWN}.on_input": ("F32", (), 0)}, NOTHING),
        (lora(OWN, out=8, inputs=8) | of(".diff_b", shape=(8,)), SAME),
        (lora(OWN, out=8, inputs=8) | of(".lora_up.bias", shape=(8,)), PARTLY),
        (lora(OWN, out=8, inputs=8) | of(".diff"), PARTLY),
        (
            {
                f"{OWN}.lora_A.default.weight": ("F32", (4, 8), 0.5),
                f"{OWN}.lora_B.default.weight": ("F32", (8, 4), 0.5),
            },
            SAME,
        ),
    ],
)
def test_kinds(judged, tensors, verdict):
    assert judged({**tensors, **named("diffusion_model.", OF_FLUX[1])} if verdict == PARTLY else tensors).verdict == (
        verdict
    )


def test_one_unknown_key_is_passed_over(judged):
    found = judged({**named("diffusion_model.", *OF_FLUX), "extra.weight": ("F32", (2,), 1.0)})
    assert (found.verdict, found.by) == (SAME, "run")


CLIP = "text_model.encoder.layers.0.self_attn."


@pytest.mark.parametrize(
    ("prefix", "leaves", "verdict"),
    [
        ("lora_te1_", ("q_proj", "out_proj"), SAME),
        ("lora_te1_", ("k_proj",), SAME),
        ("lora_te2_", ("q_proj", "k_proj"), SAME),
        ("lora_te2_", ("k_proj",), PARTLY),
        ("text_encoder.", ("q_proj",), PARTLY),
        ("text_encoder_2.", ("q_proj",), PARTLY),
    ],
)
def test_text_encoders_of_sdxl(judged, prefix, leaves, verdict):
    width = 1280 if "2" in prefix else 768
    encoder = named(prefix, *(CLIP + leaf for leaf in leaves), out=width, inputs=width)
    assert judged({**named("lora_unet_", *OF_SDXL), **encoder}, SDXL).verdict == verdict


XLABS = "double_blocks.0.processor.proj_lora1"
QUERY, T5 = "text_model.encoder.layers.0.self_attn.q_proj", "encoder.block.0.layer.0.SelfAttention.q"


def test_the_names_of_xlabs_are_none_of_its(judged):
    tensors = {f"{XLABS}.down.weight": ("F32", (4, 8), 0.5), f"{XLABS}.up.weight": ("F32", (8, 4), 0.5)}
    assert judged(tensors).verdict == NOTHING


def test_kohyas_rotations_are_passed_over(judged):
    module = f"oft_unet_{OF_SDXL[0].replace('.', '_')}"
    tensors = {f"{module}.oft_blocks": ("F32", (2, 4, 4), 0.1), f"{module}.alpha": ("F32", (), 0.001)}
    assert judged(tensors, SDXL).verdict == NOTHING


@pytest.mark.parametrize(
    ("metadata", "own", "prefix", "path", "verdict"),
    [
        (SD15, OF_UNET, "text_encoder.", QUERY, PARTLY),
        (SD3, OF_SD3, "lora_te1_", QUERY, PARTLY),
        (SD3, OF_SD3, "lora_te2_", QUERY, PARTLY),
        (SD3, OF_SD3, "lora_te3_", T5, SAME),
        (FLUX, OF_FLUX, "lora_te3_", T5, SAME),
        (FLUX, OF_FLUX, "lora_te2_", T5, PARTLY),
    ],
)
def test_encoders_that_it_finds(judged, metadata, own, prefix, path, verdict):
    of_model = named("unet." if metadata is SD15 else "diffusion_model.", *own)
    found = judged({**of_model, **named(prefix, path, out=4096, inputs=4096)}, metadata)
    assert (found.verdict, found.silent, found.by) == (verdict, verdict == PARTLY, "run")
