"""What InvokeAI 6.14.0-alpha of 2026-08-19 makes of files, as its own code did on small models.

The code cannot be installed here, so what it did is written out: identification by all its classes, its loader, and its
patches on its own models, with diffusers 0.39.0 and transformers 5.5.4.
"""

import json

import pytest
from adapters import lora

from lora_inspect.ops.compat import compat
from lora_inspect.reading.model.settings import Settings

SD15, SDXL, FLUX, WAN, QWEN, Z_IMAGE = (
    {"ss_base_model_version": name} for name in ("sd_v1", "sdxl_base_v1-0", "flux1", "wan", "qwen_image", "z_image")
)
OF_FLUX = ("double_blocks.0.txt_attn.proj", "single_blocks.1.modulation.lin")
OF_FLUX_DIFFUSERS = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp")
SAME, NOTHING, PARTLY, REFUSED, UNTESTED = "same meaning", "nothing loaded", "partly loaded", "refused", "not tested"
OF_SDXL = ("input_blocks.4.1.transformer_blocks.0.attn2.to_k", "input_blocks.1.0.emb_layers.1")
OF_UNET = ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "down_blocks.0.resnets.0.time_emb_proj")
OF_WAN = ("blocks.0.self_attn.q", "blocks.0.cross_attn.o", "blocks.1.ffn.0")
OF_WAN_DIFFUSERS = ("blocks.0.attn1.to_q", "blocks.0.attn2.to_out.0", "blocks.1.ffn.net.0.proj")
OF_QWEN = ("transformer_blocks.0.attn.add_q_proj", "transformer_blocks.1.img_mod.1")
OF_Z_IMAGE = ("layers.0.attention.to_q", "layers.0.attention.to_out.0", "layers.1.feed_forward.w1")
UNPACK, UNSUPPORTED = "not enough values to unpack (expected 2, got 1)", "Unsupported lora format"
WIDTHS = {"attn2.to_k": 2048, "time_emb_proj": 1280}
FLAG = {"use_rslora_flag": ("F32", (), 1.0)}


@pytest.fixture
def judged(write_safetensors):
    def judge(tensors, metadata, family=None):
        settings = Settings(architecture=family, of_several=True)
        (found,) = compat(str(write_safetensors(tensors, metadata)), "invokeai", settings).verdicts
        return found

    return judge


def named(prefix, *paths, **options):
    separator = "_" if prefix.endswith("_") else "."
    made = {}
    for path in paths:
        width = next((width for end, width in WIDTHS.items() if path.endswith(end)), 8)
        made |= lora(prefix + path.replace(".", separator), **{"out": 8, "inputs": width, **options})
    return made


@pytest.mark.parametrize(
    ("metadata", "prefix", "paths", "kohya", "peft"),
    [
        (SDXL, "lora_unet_", OF_SDXL, SAME, REFUSED),
        (SDXL, "lora_unet_", OF_UNET, SAME, REFUSED),
        (SDXL, "unet.", OF_UNET, REFUSED, REFUSED),
        (SDXL, "diffusion_model.", OF_SDXL, REFUSED, REFUSED),
        (SDXL, "lycoris_", OF_UNET, REFUSED, REFUSED),
        (FLUX, "lora_unet_", OF_FLUX, SAME, REFUSED),
        (FLUX, "lora_unet_", OF_FLUX_DIFFUSERS, REFUSED, REFUSED),
        (FLUX, "diffusion_model.", OF_FLUX, REFUSED, REFUSED),
        (FLUX, "diffusion_model.", OF_FLUX_DIFFUSERS, REFUSED, REFUSED),
        (FLUX, "lycoris_", OF_FLUX_DIFFUSERS, REFUSED, REFUSED),
        (WAN, "lora_unet_", OF_WAN, SAME, SAME),
        (WAN, "lora_unet_", OF_WAN_DIFFUSERS, SAME, SAME),
        (WAN, "diffusion_model.", OF_WAN, SAME, SAME),
        (WAN, "diffusion_model.", OF_WAN_DIFFUSERS, SAME, SAME),
        (WAN, "transformer.", OF_WAN_DIFFUSERS, SAME, SAME),
        (QWEN, "lora_unet_", OF_QWEN, SAME, REFUSED),
        (QWEN, "transformer.", OF_QWEN, SAME, "wrong strength"),
        (QWEN, "", OF_QWEN, SAME, "wrong strength"),
        (QWEN, "diffusion_model.", OF_QWEN, REFUSED, REFUSED),
        (QWEN, "lycoris_", OF_QWEN, REFUSED, REFUSED),
        (Z_IMAGE, "transformer.", OF_Z_IMAGE, SAME, "wrong strength"),
        (Z_IMAGE, "diffusion_model.", OF_Z_IMAGE, SAME, "wrong strength"),
        (Z_IMAGE, "lora_unet_", OF_Z_IMAGE, REFUSED, REFUSED),
        (Z_IMAGE, "", OF_Z_IMAGE, REFUSED, REFUSED),
    ],
)
def test_names_and_spellings(judged, metadata, prefix, paths, kohya, peft):
    for spelling, verdict in (("kohya", kohya), ("peft", peft)):
        found = judged(named(prefix, *paths, spelling=spelling), metadata)
        assert found.verdict == verdict
        if verdict == "wrong strength":
            assert (found.factor, found.silent) == (2.0, True)


def test_alpha_may_be_missing(judged):
    for metadata, prefix, paths in (
        (SDXL, "lora_unet_", OF_SDXL),
        (WAN, "diffusion_model.", OF_WAN),
        (QWEN, "transformer.", OF_QWEN),
        (Z_IMAGE, "transformer.", OF_Z_IMAGE),
    ):
        assert judged(named(prefix, *paths, alpha=None), metadata).verdict == SAME
    for spelled in ("transformer.",):
        assert judged(named(spelled, *OF_QWEN, alpha=None, spelling="peft"), QWEN).verdict == SAME


def test_factors_of_peft_in_the_own_names_of_flux_have_no_alpha(judged):
    assert judged(named("diffusion_model.", *OF_FLUX, alpha=None, spelling="peft"), FLUX).verdict == SAME
    assert judged(named("diffusion_model.", *OF_FLUX, alpha=None), FLUX).verdict == REFUSED


def test_every_key_of_flux_is_of_its_blocks(judged):
    tensors = named("lora_unet_", *OF_FLUX)
    assert judged({**tensors, **FLAG}, FLUX).says == "the file is in none of the formats of FLUX that it knows"
    assert judged({**tensors, **named("lora_unet_", "img_in")}, FLUX).verdict == REFUSED
    found = judged({**tensors, **named("lora_unet_", "final_layer.linear")}, FLUX)
    assert (found.verdict, found.silent) == (PARTLY, True)


def test_the_widths_of_flux_tell_it_from_flux2(judged):
    path = "double_blocks.0.img_attn.proj"
    assert judged(named("lora_unet_", path, out=3072, inputs=3072), FLUX).verdict == SAME
    assert judged(named("lora_unet_", path), FLUX).says == "the file is taken for one of FLUX.2"


def test_fused_layers_of_z_image_are_not_found(judged):
    found = judged(named("diffusion_model.", "layers.0.attention.qkv", OF_Z_IMAGE[2]), Z_IMAGE)
    assert (found.verdict, found.silent) == (PARTLY, False)


def test_layers_outside_of_blocks_are_passed_over(judged):
    for prefix in ("lora_unet_", "diffusion_model."):
        found = judged(named(prefix, *OF_WAN, "patch_embedding"), WAN)
        assert (found.verdict, found.silent) == (PARTLY, True)
    assert judged(named("lora_unet_", *OF_QWEN, "txt_in"), QWEN).verdict == PARTLY
    assert judged(named("transformer.", *OF_QWEN, "txt_in"), QWEN).verdict == SAME


def test_the_width_of_the_text_encoder_tells_the_model(judged):
    path = OF_UNET[0]
    assert judged(named("lora_unet_", path, inputs=768), SD15).verdict == SAME
    assert judged(named("lora_unet_", path, inputs=512), SDXL).says == "unrecognized token vector length 512"
    one = path.replace("attn2.to_k", "attn1.to_q")
    assert judged(named("lora_unet_", one), SDXL).says == "unrecognized token vector length None"
    deep = one.replace("transformer_blocks.0", "transformer_blocks.2")
    assert judged(named("lora_unet_", deep), SDXL).verdict == SAME


@pytest.mark.parametrize(
    ("metadata", "prefix", "paths", "says"),
    [
        (SDXL, "lora_unet_", OF_SDXL, "Unrecognized SDXL LoRA key prefix: 'use_rslora_flag'."),
        (QWEN, "lora_unet_", OF_QWEN, UNPACK),
        (Z_IMAGE, "transformer.", OF_Z_IMAGE, UNSUPPORTED),
    ],
)
def test_flags_make_it_refuse_the_file(judged, metadata, prefix, paths, says):
    assert judged({**named(prefix, *paths), **FLAG}, metadata).says == says


def test_words_behind_dotted_names_make_it_refuse_the_file(judged):
    for suffix in ("scale", "use_rslora_flag"):
        for prefix, verdict in (("diffusion_model.", REFUSED), ("lora_unet_", None)):
            tensors = named(prefix, OF_WAN[0])
            module = next(iter(tensors)).removesuffix(".lora_down.weight")
            found = judged({**tensors, f"{module}.{suffix}": ("F32", (), 1.0)}, WAN)
            assert (found.verdict == REFUSED) == (verdict == REFUSED)


def test_flags_in_a_file_of_wan_are_passed_over(judged):
    found = judged({**named("lora_unet_", *OF_WAN), **FLAG}, WAN)
    assert (found.verdict, found.factor, found.silent) == ("wrong strength", 0.25, True)


def test_bundled_embeddings_are_taken_out(judged):
    bundle = {"bundle_emb.word.string_to_param.*": ("F32", (2, 768), 0.5)}
    assert judged({**named("lora_unet_", *OF_SDXL), **bundle}, SDXL).verdict == SAME


@pytest.mark.parametrize(
    ("suffix", "shape", "flat", "dotted"),
    [
        ("dora_scale", (8, 1), "DoRA wrong", "DoRA wrong"),
        ("dora_scale", (1, 8), SAME, SAME),
        ("dora_layer.weight", (8,), "DoRA lost", "DoRA lost"),
        ("lora_magnitude_vector", (8,), "DoRA lost", REFUSED),
        ("lora_magnitude_vector.weight", (8,), "DoRA lost", "DoRA lost"),
        ("magnitude", (8,), "DoRA lost", REFUSED),
    ],
)
def test_magnitudes_are_along_the_inputs(judged, suffix, shape, flat, dotted):
    for prefix, verdict in (("lora_unet_", flat), ("diffusion_model.", dotted)):
        tensors = named(prefix, OF_WAN[0])
        module = next(iter(tensors)).removesuffix(".lora_down.weight")
        found = judged({**tensors, f"{module}.{suffix}": ("F32", shape, 1)}, WAN)
        assert (found.verdict, found.silent) == (verdict, verdict == "DoRA wrong")


def test_magnitudes_beside_the_factors_of_peft(judged):
    for metadata, path, verdict in ((WAN, OF_WAN_DIFFUSERS[0], SAME), (QWEN, OF_QWEN[0], "DoRA lost")):
        key = f"transformer.{path}.dora_scale"
        tensors = named("transformer.", path, spelling="peft", alpha=None)
        assert judged({**tensors, key: ("F32", (1, 8), 1)}, metadata).verdict == verdict


ALPHA, BIAS = {"alpha": ("F32", (), 4.0)}, {"diff_b": ("F32", (8,), 0.5)}
LOHA = {f"hada_w{number}_{side}": ("F32", (8, 8), 0.5) for number in "12" for side in "ab"} | ALPHA
LOKR = {"lokr_w1": ("F32", (2, 2), 0.5), "lokr_w2": ("F32", (4, 4), 0.5)} | ALPHA
FULL = {"diff": ("F32", (8, 8), 0.5)}
ROTATION = {"oft_blocks": ("F32", (2, 4, 4), 0.5)} | ALPHA
GAINS = {"weight": ("F32", (8,), 0.5), "on_input": ("BOOL", (), True)}


@pytest.mark.parametrize(
    ("kind", "alone", "beside", "dotted"),
    [
        (LOHA, REFUSED, SAME, REFUSED),
        (LOKR, SAME, SAME, REFUSED),
        (FULL, REFUSED, SAME, REFUSED),
        ({**FULL, **BIAS}, REFUSED, SAME, REFUSED),
        (GAINS, REFUSED, SAME, REFUSED),
        (ROTATION, REFUSED, REFUSED, REFUSED),
        (BIAS, UNTESTED, REFUSED, REFUSED),
    ],
)
def test_kinds_of_patches(judged, kind, alone, beside, dotted):
    def made(prefix):
        module = prefix + OF_WAN[0].replace(".", "_" if prefix.endswith("_") else ".")
        return {f"{module}.{suffix}": tensor for suffix, tensor in kind.items()}

    assert judged(made("lora_unet_"), WAN).verdict == alone
    assert judged({**named("lora_unet_", OF_WAN[1]), **made("lora_unet_")}, WAN).verdict == beside
    assert judged({**named("diffusion_model.", OF_WAN[1]), **made("diffusion_model.")}, WAN).verdict == dotted


def test_a_bias_beside_lora_is_dropped(judged):
    for suffix in ("diff_b", "lora_up.bias"):
        found = judged(
            {**named("lora_unet_", OF_WAN[0]), f"lora_unet_blocks_0_self_attn_q.{suffix}": BIAS["diff_b"]}, WAN
        )
        assert (found.verdict, found.silent) == (PARTLY, False)


CLIP = "text_model.encoder.layers.0.self_attn.q_proj"
T5 = ("encoder.block.0.layer.0.SelfAttention.q", "encoder.block.1.layer.1.DenseReluDense.wi_0")
TE, TE1, TE2 = (named(prefix, CLIP, inputs=768) for prefix in ("lora_te_", "lora_te1_", "text_encoder."))
SECOND = named("lora_te2_", CLIP, inputs=1280)
UNET = named("lora_unet_", *OF_UNET)
SELF = named("lora_unet_", OF_UNET[0].replace("attn2.to_k", "attn1.to_q"))
SMALL = named("lora_unet_", OF_UNET[0], inputs=768)
IN_PEFT = named("text_encoder.", CLIP, spelling="peft", alpha=None)
SD2 = {"ss_base_model_version": "sd_v2"}


@pytest.mark.parametrize(
    ("metadata", "tensors", "verdict", "says"),
    [
        (SD15, {**SMALL, **TE}, SAME, ""),
        (SD15, TE, SAME, ""),
        (SD15, {**SMALL, **TE1}, PARTLY, ""),
        (SD15, {**SMALL, **IN_PEFT}, REFUSED, "Unsupported lora format"),
        (SD2, {**named("lora_unet_", OF_UNET[0], inputs=1024), **named("lora_te_", CLIP, inputs=1024)}, SAME, ""),
        (SDXL, {**UNET, **TE1, **SECOND}, SAME, ""),
        (SDXL, {**UNET, **TE1}, SAME, ""),
        (SDXL, {**UNET, **SECOND}, SAME, ""),
        (SDXL, {**TE, **UNET}, REFUSED, "unrecognized token vector length 768"),
        (SDXL, {**UNET, **IN_PEFT}, REFUSED, "Unrecognized SDXL LoRA key prefix"),
        (SDXL, {**SELF, **TE1, **SECOND}, REFUSED, "unrecognized token vector length None"),
        (SDXL, {**TE1, **SECOND}, REFUSED, "unrecognized token vector length None"),
    ],
)
def test_text_encoders_of_stable_diffusion(judged, metadata, tensors, verdict, says):
    found = judged(tensors, metadata)
    assert (found.verdict, says in found.says) == (verdict, True)


NO_METADATA = None
PT = {"format": "pt"}
AI_TOOLKIT = {**PT, "software": json.dumps({"name": "ai-toolkit", "version": "0.7"})}
HIDDEN = {"out": 3072, "inputs": 3072}
OWN = ("double_blocks.0.img_attn.proj", "double_blocks.0.txt_attn.proj")
# The layers of both kinds of blocks by which it tells diffusers' names.
TOLD = (
    *(f"transformer_blocks.0.attn.{layer}" for layer in ("to_q", "to_k", "to_v")),
    *(f"transformer_blocks.0.attn.add_{layer}_proj" for layer in "qkv"),
    *(f"single_transformer_blocks.0.attn.to_{layer}" for layer in "qkv"),
)
WITHOUT_ADDED = tuple(path for path in TOLD if "add_" not in path)
XLABS = tuple(f"double_blocks.0.processor.{layer}" for layer in ("qkv_lora1", "proj_lora1", "qkv_lora2", "proj_lora2"))
PLAIN, A_AND_B = {"alpha": None}, {"alpha": None, "spelling": "peft"}
NO_FORMAT = "the file is in none of the formats of FLUX that it knows"


def of_xlabs(*modules):
    return {
        f"{module}.{side}.weight": ("F32", shape, 0.5)
        for module in modules
        for side, shape in (("down", (4, 3072)), ("up", (9216 if "qkv" in module else 3072, 4)))
    }


@pytest.mark.parametrize(
    ("metadata", "tensors", "verdict", "says"),
    [
        # kohya: CLIP is te1, and T5 is te2, which kohya calls te3.
        (FLUX, {**named("lora_unet_", *OWN, **HIDDEN), **TE1}, SAME, ""),
        (FLUX, {**named("lora_unet_", *OWN, **HIDDEN), **TE1, **named("lora_te2_", *T5)}, SAME, ""),
        (FLUX, {**named("lora_unet_", *OWN, **HIDDEN), **TE1, **named("lora_te3_", *T5)}, REFUSED, NO_FORMAT),
        (FLUX, {**named("lora_unet_", *OWN, **HIDDEN), **IN_PEFT}, REFUSED, NO_FORMAT),
        # diffusers, ai-toolkit and PEFT: without alpha, and with the attentions of text and single blocks.
        (PT, named("transformer.", *TOLD, **HIDDEN, **A_AND_B), SAME, ""),
        (AI_TOOLKIT, named("transformer.", *TOLD, **HIDDEN, **A_AND_B), SAME, ""),
        (PT, named("transformer.", *TOLD, **HIDDEN, spelling="peft"), REFUSED, NO_FORMAT),
        (PT, named("transformer.", *TOLD, **HIDDEN), REFUSED, NO_FORMAT),
        (PT, named("transformer.", *TOLD[1:], **HIDDEN, **A_AND_B), REFUSED, "Missing LoRA layer"),
        (PT, named("transformer.", *TOLD, "norm_out.linear", **HIDDEN, **A_AND_B), REFUSED, "AssertionError"),
        (PT, named("transformer.", *WITHOUT_ADDED, **HIDDEN, **A_AND_B), REFUSED, NO_FORMAT),
        (PT, named("diffusion_model.", *TOLD, **HIDDEN, **A_AND_B), REFUSED, NO_FORMAT),
        (PT, {**named("transformer.", *TOLD, **HIDDEN, **A_AND_B), **IN_PEFT}, REFUSED, "AssertionError"),
        # OneTrainer.
        (PT, named("lora_transformer_", *TOLD, **HIDDEN), SAME, ""),
        (PT, named("lora_transformer_", *WITHOUT_ADDED, **HIDDEN), SAME, ""),
        (PT, {**named("lora_transformer_", *TOLD, **HIDDEN), **TE1, **named("lora_te2_", *T5)}, SAME, ""),
        (PT, named("lora_transformer_", *TOLD, "x_embedder", **HIDDEN), REFUSED, NO_FORMAT),
        # The original names: metadata of another program than ai-toolkit rule kohya's spelling out.
        (PT, named("diffusion_model.", *OWN, **HIDDEN, **A_AND_B), SAME, ""),
        (PT, named("diffusion_model.", *OWN, **HIDDEN, **PLAIN), REFUSED, NO_FORMAT),
        (NO_METADATA, named("diffusion_model.", *OWN, **HIDDEN, **PLAIN), SAME, ""),
        (AI_TOOLKIT, named("diffusion_model.", *OWN, **HIDDEN, **PLAIN), SAME, ""),
        (AI_TOOLKIT, named("diffusion_model.", *OWN, **HIDDEN, spelling="peft"), REFUSED, "Unsupported lora format"),
        # XLabs has adapters of the double blocks alone there.
        (PT, of_xlabs(*XLABS), SAME, ""),
        (PT, of_xlabs(*XLABS, "single_blocks.0.processor.proj_lora"), REFUSED, NO_FORMAT),
    ],
)
def test_formats_of_flux(judged, metadata, tensors, verdict, says):
    found = judged(tensors, metadata, "flux")
    assert (found.verdict, says in found.says) == (verdict, True)


WIDE = {"out": 4096, "inputs": 4096}
OWN2 = ("double_blocks.0.img_attn.proj", "double_blocks.0.img_attn.qkv", "single_blocks.0.linear2")
IN_DIFFUSERS = ("transformer_blocks.0.ff.linear_in", "single_transformer_blocks.0.attn.to_qkv_mlp_proj")
OF_ANIMA = ("blocks.0.self_attn.q_proj", "blocks.0.cross_attn.output_proj", "blocks.1.mlp.layer1")
OF_QWEN3 = ("layers.0.self_attn.q_proj", "layers.1.mlp.gate_proj")
OF_KREA2 = ("blocks.0.attn.wq", "blocks.0.attn.gate", "blocks.1.mlp.up")
FUSION, FUSION_DIFFUSERS = "txtfusion.layerwise_blocks.0.attn.wq", "text_fusion.layerwise_blocks.0.attn.to_q"
OF_KREA2_DIFFUSERS = ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.ff.up")
NO_KREA2 = "model does not match Krea-2 LoRA heuristics"
NO_ANIMA = "model does not match Anima LoRA heuristics"


@pytest.mark.parametrize(
    ("family", "tensors", "verdict", "says"),
    [
        ("flux2", named("lora_unet_", *OWN2, **WIDE), SAME, ""),
        ("flux2", named("diffusion_model.", *OWN2, **WIDE, **A_AND_B), SAME, ""),
        ("flux2", named("diffusion_model.", *OWN2, **WIDE, spelling="peft"), REFUSED, "Unsupported lora format"),
        ("flux2", named("diffusion_model.", OWN2[1], **WIDE, **A_AND_B), REFUSED, "taken for one of FLUX.1"),
        ("flux2", named("transformer.", *IN_DIFFUSERS, **WIDE, **A_AND_B), SAME, ""),
        ("flux2", named("", *IN_DIFFUSERS, **WIDE, **A_AND_B), SAME, ""),
        ("flux2", named("transformer.", *IN_DIFFUSERS, **WIDE), REFUSED, NO_FORMAT),
        ("flux2", named("lora_transformer_", *IN_DIFFUSERS, **WIDE), REFUSED, "taken for one of FLUX.1"),
        ("anima", named("lora_unet_", *OF_ANIMA), SAME, ""),
        ("anima", {**named("lora_unet_", *OF_ANIMA), **named("lora_te_", *OF_QWEN3)}, SAME, ""),
        ("anima", named("lora_unet_", *OF_ANIMA, "final_layer.linear"), PARTLY, "Failed to find module"),
        ("anima", named("lora_unet_", *OF_ANIMA, **A_AND_B), REFUSED, "Unsupported lora format"),
        ("anima", named("diffusion_model.", *OF_ANIMA, **A_AND_B), SAME, ""),
        ("anima", named("diffusion_model.", *OF_ANIMA, spelling="peft"), "wrong strength", ""),
        ("anima", named("", *OF_ANIMA, **A_AND_B), REFUSED, NO_ANIMA),
        ("krea2", named("diffusion_model.", *OF_KREA2, spelling="peft"), SAME, ""),
        ("krea2", named("transformer.", *OF_KREA2_DIFFUSERS, FUSION_DIFFUSERS, **A_AND_B), SAME, ""),
        ("krea2", named("transformer.", *OF_KREA2_DIFFUSERS, **A_AND_B), REFUSED, NO_KREA2),
        ("krea2", named("lora_unet_", *OF_KREA2, FUSION), SAME, ""),
        ("krea2", named("lora_unet_", *OF_KREA2), REFUSED, NO_KREA2),
        ("krea2", named("lycoris_", *OF_KREA2_DIFFUSERS, FUSION_DIFFUSERS), NOTHING, "Failed to find module"),
        ("z_image", named("lora_unet__", OF_Z_IMAGE[0], OF_Z_IMAGE[2]), SAME, ""),
        ("z_image", named("lora_unet__", *OF_Z_IMAGE), PARTLY, "Failed to find module"),
        ("wan", named("transformer.", *OF_WAN), SAME, ""),
        ("wan", named("", *OF_WAN), SAME, ""),
    ],
)
def test_names_of_more_models(judged, family, tensors, verdict, says):
    found = judged(tensors, PT, family)
    assert (found.verdict, says in found.says) == (verdict, True)


@pytest.mark.parametrize(
    ("family", "prefix", "paths", "suffix", "verdict"),
    [
        ("sd15", "lora_unet_", OF_UNET[:1], None, REFUSED),
        ("qwen_image", "transformer.", OF_QWEN, "strange", REFUSED),
        ("qwen_image", "transformer.", OF_QWEN, None, REFUSED),
        ("qwen_image", "lora_unet_", OF_QWEN, "strange", SAME),
        ("z_image", "diffusion_model.", OF_Z_IMAGE, "strange", REFUSED),
        ("z_image", "transformer.", OF_Z_IMAGE, "strange.weight", SAME),
        ("z_image", "transformer.", OF_Z_IMAGE, None, REFUSED),
        ("z_image", "lora_unet__", OF_Z_IMAGE[:1], "scale", REFUSED),
        ("anima", "lora_unet_", OF_ANIMA, None, REFUSED),
        ("anima", "diffusion_model.", OF_ANIMA, "strange", REFUSED),
        ("krea2", "diffusion_model.", OF_KREA2, "strange", REFUSED),
        ("krea2", "lora_unet_", (*OF_KREA2, FUSION), "strange", PARTLY),
    ],
)
def test_a_stray_key_is_a_layer_of_no_kind(judged, family, prefix, paths, suffix, verdict):
    tensors = named(prefix, *paths, inputs=768)
    module = next(iter(tensors)).removesuffix(".lora_down.weight")
    stray = f"{module}.{suffix}" if suffix else "strange.weight"
    assert judged({**tensors, stray: ("F32", (8,), 0.5)}, None, family).verdict == verdict
