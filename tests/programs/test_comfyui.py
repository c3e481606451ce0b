"""What ComfyUI makes of files, as its own code did on a small model of each family: 0.33.0, and 0.3.64 where named.

The code cannot be installed here, so what it did is written out.
"""

import pytest
from adapters import lora, split

from lora_inspect.ops.compat import compat

NOW, BEFORE = "comfyui", "comfyui-0.3.64"
WAN, FLUX, SDXL, HUNYUAN = (
    {"ss_base_model_version": name} for name in ("wan", "flux1", "sdxl_base_v1-0", "hunyuan-video")
)
Q, F = "lora_unet_blocks_0_self_attn_q", "lora_unet_blocks_0_ffn_0"


@pytest.fixture
def judged(write_safetensors):
    def judge(tensors, metadata=WAN, name=NOW):
        (found,) = compat(str(write_safetensors(tensors, metadata)), name).verdicts
        return found

    return judge


def layers(*names, **options):
    return {key: tensor for name in names for key, tensor in lora(name, **{"out": 8, "inputs": 8, **options}).items()}


def named(prefix, *paths, **options):
    separator = "_" if prefix.endswith("_") else "."
    return layers(*(prefix + path.replace(".", separator) for path in paths), **options)


OF_WAN = ("blocks.0.self_attn.q", "blocks.0.ffn.0", "blocks.1.cross_attn.k")
OF_WAN_DIFFUSERS = ("blocks.0.attn1.to_q", "blocks.0.ffn.net.2", "blocks.1.attn2.to_k")
OF_FLUX = ("double_blocks.0.img_attn.proj", "single_blocks.1.linear2", "double_blocks.1.txt_mod.lin")
OF_FLUX_DIFFUSERS = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp", "norm_out.linear")
OF_SDXL = ("input_blocks.4.1.transformer_blocks.0.attn1.to_q", "input_blocks.1.0.emb_layers.1")
OF_SDXL_DIFFUSERS = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2",
)
OF_HUNYUAN = ("double_blocks.0.img_attn_proj", "double_blocks.0.img_mlp.fc1", "single_blocks.1.linear2")
OF_HUNYUAN_COMFYUI = ("double_blocks.0.img_attn.proj", "double_blocks.0.img_mlp.0", "single_blocks.1.linear2")

SAME, NOTHING, PARTLY, UNTESTED = "same meaning", "nothing loaded", "partly loaded", "not tested"


@pytest.mark.parametrize("alpha", [8.0, None], ids=["alpha", "none"])
@pytest.mark.parametrize("spelling", ["kohya", "peft"])
@pytest.mark.parametrize(
    ("metadata", "paths", "verdicts"),
    [
        (WAN, OF_WAN, {"lora_unet_": SAME, "diffusion_model.": SAME, "transformer.": NOTHING, "lycoris_": NOTHING}),
        (WAN, OF_WAN_DIFFUSERS, {"transformer.": NOTHING, "diffusion_model.": NOTHING, "lora_unet_": NOTHING}),
        (FLUX, OF_FLUX, {"lora_unet_": SAME, "diffusion_model.": SAME, "transformer.": NOTHING, "lycoris_": NOTHING}),
        (
            FLUX,
            OF_FLUX_DIFFUSERS,
            {"transformer.": SAME, "lora_transformer_": SAME, "lycoris_": SAME, "": SAME}
            | {"diffusion_model.": NOTHING, "lora_unet_": NOTHING},
        ),
        (SDXL, OF_SDXL, {"lora_unet_": SAME, "diffusion_model.": SAME, "unet.": NOTHING}),
        # Of the attentions its dictionary has the names of their processors alone.
        (SDXL, OF_SDXL_DIFFUSERS, {"lora_unet_": SAME, "lycoris_": SAME, "unet.": PARTLY, "": PARTLY}),
        (HUNYUAN, OF_HUNYUAN, {"lora_unet_": PARTLY, "transformer.": SAME, "diffusion_model.": SAME}),
        (HUNYUAN, OF_HUNYUAN_COMFYUI, {"lora_unet_": SAME, "diffusion_model.": SAME, "transformer.": PARTLY}),
    ],
)
def test_names_are_found_or_not_whatever_the_spelling_and_alpha(judged, metadata, paths, verdicts, spelling, alpha):
    found = {
        prefix: judged(named(prefix, *paths, spelling=spelling, alpha=alpha), metadata).verdict for prefix in verdicts
    }
    assert found == verdicts


def test_what_is_not_found_is_said(judged):
    found = judged(named("transformer.", *OF_WAN_DIFFUSERS))
    assert not found.silent
    assert "lora key not loaded" in found.says
    assert len(found.ignored) == 9


@pytest.mark.parametrize(("name", "verdict"), [(NOW, SAME), (BEFORE, NOTHING)])
def test_names_without_a_prefix_are_found_since(judged, name, verdict):
    assert judged(named("", *OF_FLUX_DIFFUSERS), FLUX, name).verdict == verdict
    assert judged(named("transformer.", *OF_FLUX_DIFFUSERS), FLUX, name).verdict == SAME


def test_a_version_may_have_no_models_of_a_family(judged):
    z_image = named("diffusion_model.", "layers.0.attention.out", "noise_refiner.0.attention.out")
    says = {"ss_base_model_version": "zimage"}
    assert judged(z_image, says, NOW).verdict == SAME
    assert judged(z_image, says, BEFORE).verdict == "has no such models"


def test_files_of_wan_fun_are_known_by_one_key(judged):
    paths = ("blocks.0.cross_attn.k", "blocks.0.self_attn.q")
    assert judged(named("lora_unet__", *paths)).verdict == SAME
    assert judged(named("lora_unet__", *paths[1:])).verdict == NOTHING


def test_files_of_uso_are_known_by_two_keys(judged):
    def processors(*names):
        return {
            f"{name}.{side}.weight": ("F32", shape, 0.5)
            for name in names
            for side, shape in (("down", (4, 8)), ("up", (8, 4)))
        }

    keys = ("single_blocks.37.processor.qkv_lora", "double_blocks.18.processor.qkv_lora2")
    assert judged(processors("double_blocks.0.processor.qkv_lora1", *keys), FLUX).verdict == SAME
    assert judged(processors("double_blocks.0.processor.qkv_lora1", *keys[1:]), FLUX).verdict == NOTHING


def test_processors_of_old_diffusers_are_found(judged):
    path = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor"
    tensors = {
        f"{path}.{leaf}_lora.{side}.weight": ("F32", shape, 0.5)
        for leaf in ("to_q", "to_out")
        for side, shape in (("down", (4, 8)), ("up", (8, 4)))
    }
    assert judged(tensors, SDXL).verdict == SAME


CLIP, T5 = "text_model.encoder.layers.0.self_attn.q_proj", "encoder.block.0.layer.0.SelfAttention.q"


@pytest.mark.parametrize(
    ("metadata", "path", "verdicts"),
    [
        (
            SDXL,
            CLIP,
            {"lora_te1_": SAME, "lora_te2_": SAME, "text_encoder.": SAME, "text_encoder_2.": SAME, "lora_te3_": PARTLY}
            | {"text_encoders.clip_l.transformer.": SAME, "text_encoders.clip_h.transformer.": PARTLY},
        ),
        (FLUX, T5, {"lora_te2_": SAME, "lora_te3_": SAME, "text_encoder_2.": PARTLY, "lora_te1_": PARTLY}),
    ],
)
def test_text_encoders_are_found_by_some_names(judged, metadata, path, verdicts):
    model = named("lora_unet_", *(OF_SDXL if metadata is SDXL else OF_FLUX))
    width = 4096 if path == T5 else 1280
    found = {
        prefix: judged(
            {**model, **named(prefix, path, out=width, inputs=width if prefix != "lora_te1_" else 768)}, metadata
        ).verdict
        for prefix in verdicts
    }
    assert found == verdicts


def of(*suffixes, module=F, shape=(8, 8)):
    return {f"{module}{suffix}": ("F32", shape, 0.5) for suffix in suffixes}


LOHA = (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b")
BLOCKS = {f"{F}.oft_blocks": ("F32", (2, 4, 4), 0.5)}
STAGES = {f"{F}.oft_blocks": ("F32", (2, 2, 4, 4), 0.5)}


@pytest.mark.parametrize(
    ("tensors", "verdict"),
    [
        (of(*LOHA), SAME),
        (of(".lokr_w1", ".lokr_w2", shape=(4, 4)), SAME),
        (of(".diff"), SAME),
        (BLOCKS, SAME),
        (BLOCKS | {f"{F}.alpha": ("F32", (), 0.0)}, SAME),
        # It takes alpha for the limit itself: what that does lies in the numbers.
        (BLOCKS | {f"{F}.alpha": ("F32", (), 0.5)}, UNTESTED),
        (BLOCKS | {f"{F}.rescale": ("F32", (8, 1), 0.5)}, "wrong change"),
        (STAGES | {f"{F}.alpha": ("F32", (), 0.0)}, SAME),
        # It compares no alpha with 0, logs the error and leaves the weight.
        (STAGES, NOTHING),
        ({f"{F}.weight": ("F32", (8,), 0.5), f"{F}.on_input": ("BOOL", (), 0)}, NOTHING),
        (split(F, out=4, inputs=8, parts=(0, 1)), NOTHING),
        # Of several changes of a weight it keeps one.
        ({**layers(F), **of(".diff")}, "wrong change"),
        ({**layers(F), **of(*LOHA)}, "wrong change"),
        ({**layers(F), f"{F}.diff_b": ("F32", (8,), 0.5)}, SAME),
        ({**layers(F), f"{F}.lora_up.bias": ("F32", (8,), 0.5)}, PARTLY),
    ],
)
def test_kinds(judged, tensors, verdict):
    assert judged({**layers(Q), **tensors}).verdict == (PARTLY if verdict == NOTHING else verdict)


@pytest.mark.parametrize(
    "tensors",
    [
        STAGES,
        {
            f"{F}.lokr_w1": ("F32", (4, 4), 0.5),
            f"{F}.lokr_w2_a": ("F32", (2, 2), 0.5),
            f"{F}.lokr_w2_b": ("F32", (2, 2), 0.5),
            f"{F}.lokr_t2": ("F32", (2, 2, 3, 3), 0.5),
        },
    ],
)
def test_what_fails_in_one_weight_is_logged_and_left(judged, tensors):
    found = judged({**layers(Q), **tensors})
    assert (found.verdict, found.silent) == (PARTLY, False)
    assert "ERROR" in found.says


def test_rslora_is_too_weak(judged):
    for flag in ("use_rslora_flag", f"{Q}.use_rslora_flag"):
        found = judged({**layers(Q), flag: ("F32", (), 1.0)})
        assert (found.verdict, found.factor) == ("wrong strength", 0.25)
        assert found.ignored == (flag,)


def test_an_alpha_in_metadata_is_not_read(judged):
    metadata = {**FLUX, "lora_adapter_metadata": '{"transformer.r": 16, "transformer.lora_alpha": 32}'}
    found = judged(named("transformer.", *OF_FLUX_DIFFUSERS, spelling="peft", alpha=None), metadata)
    assert (found.verdict, found.factor) == ("wrong strength", 0.5)


@pytest.mark.parametrize(
    ("suffix", "shape", "verdict"),
    [
        (".dora_scale", (8, 1), "DoRA wrong"),
        (".dora_scale", (1, 8), SAME),
        (".dora_layer.weight", (8,), "DoRA lost"),
        (".lora_magnitude_vector", (8,), "DoRA lost"),
        (".lora_magnitude_vector.weight", (8,), "DoRA lost"),
        (".magnitude", (8,), "DoRA lost"),
    ],
)
def test_magnitudes(judged, suffix, shape, verdict):
    assert judged({**layers(Q), f"{Q}{suffix}": ("F32", shape, 1.0)}).verdict == verdict


def test_an_adapters_name_inside_is_read_where_it_is_default(judged):
    def infixed(name):
        names = named("diffusion_model.", *OF_WAN, spelling="peft")
        return {
            key.replace("lora_A.", f"lora_A.{name}.").replace("lora_B.", f"lora_B.{name}."): tensor
            for key, tensor in names.items()
        }

    assert judged(infixed("default")).verdict == SAME
    assert judged(infixed("other")).verdict == NOTHING


@pytest.mark.parametrize(("kernel", "verdict"), [((3, 3), SAME), ((3, 3, 3), "refused")])
def test_tucker_cores_are_of_two_dimensions(judged, kernel, verdict):
    ones = tuple(1 for _ in kernel)
    module = "lora_unet_input_blocks_1_0_in_layers_2"
    core = {f"{module}.lora_mid.weight": ("F32", (16, 16, *kernel), 0.5)}
    assert judged({**layers(module, kernel=ones), **core}, SDXL).verdict == verdict


@pytest.mark.parametrize(
    ("prefix", "path", "verdict"),
    [
        ("transformer.", "transformer_blocks.0.attn.to_q", PARTLY),
        ("lora_transformer_", "transformer_blocks.0.attn.add_k_proj", PARTLY),
        ("lycoris_", "norm_out.linear", PARTLY),
        ("transformer.", "transformer_blocks.0.attn.to_out.0", SAME),
        ("lora_unet_", "double_blocks.0.img_attn.qkv", SAME),
    ],
)
def test_biases_of_rows_of_a_layer_are_not_found(judged, prefix, path, verdict):
    model = OF_FLUX if prefix == "lora_unet_" else OF_FLUX_DIFFUSERS
    module = prefix + (path if prefix.endswith(".") else path.replace(".", "_"))
    tensors = {**named(prefix, *model), **layers(module), f"{module}.diff_b": ("F32", (8,), 0.5)}
    found = judged(tensors, FLUX)
    assert found.verdict == verdict
    assert ("NOT LOADED ().bias" in found.says) == (verdict == PARTLY)
