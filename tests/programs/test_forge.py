"""What Forge of 2025-06-26 makes of files, as its own code did on a small model of each family.

The code cannot be installed here, so what it did is written out.
"""

import pytest
from adapters import lora, split

from lora_inspect.ops.compat import compat

FLUX, CHROMA, SDXL, SD3, WAN = (
    {"ss_base_model_version": name} for name in ("flux1", "chroma", "sdxl_base_v1-0", "sd_3", "wan")
)
SAME, NOTHING, PARTLY, REFUSED = "same meaning", "nothing loaded", "partly loaded", "refused"
NO_MODELS = "has no such models"
LIMIT = 12


@pytest.fixture
def judged(write_safetensors):
    def judge(tensors, metadata=FLUX):
        (found,) = compat(str(write_safetensors(tensors, metadata)), "forge").verdicts
        return found

    return judge


def named(prefix, *paths, **options):
    separator = "_" if prefix.endswith("_") else "."
    found = {}
    for path in paths:
        found |= lora(prefix + path.replace(".", separator), **{"out": 8, "inputs": 8, **options})
    return found


OF_FLUX = ("double_blocks.0.img_attn.proj", "single_blocks.1.linear2", "double_blocks.1.txt_mod.lin")
OF_FLUX_DIFFUSERS = ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp", "norm_out.linear")
OF_SD3 = ("joint_blocks.0.x_block.attn.proj", "joint_blocks.1.context_block.mlp.fc1")
OF_SD3_DIFFUSERS = ("transformer_blocks.0.attn.to_out.0", "transformer_blocks.1.ff_context.net.0.proj")
OF_SDXL = ("input_blocks.4.1.transformer_blocks.0.attn1.to_q", "input_blocks.1.0.emb_layers.1")
OF_SDXL_DIFFUSERS = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2",
)


@pytest.mark.parametrize("alpha", [8.0, None], ids=["alpha", "none"])
@pytest.mark.parametrize("spelling", ["kohya", "peft"])
@pytest.mark.parametrize(
    ("metadata", "paths", "verdicts"),
    [
        (FLUX, OF_FLUX, {"lora_unet_": SAME, "diffusion_model.": SAME, "transformer.": NOTHING, "lycoris_": NOTHING}),
        (
            FLUX,
            OF_FLUX_DIFFUSERS,
            {"transformer.": SAME, "lora_transformer_": SAME, "lycoris_": SAME, "": NOTHING, "lora_unet_": NOTHING},
        ),
        # It has no names of diffusers for these two.
        (CHROMA, OF_FLUX[:2], {"lora_unet_": SAME, "diffusion_model.": SAME}),
        (CHROMA, OF_FLUX_DIFFUSERS[:2], {"transformer.": NOTHING, "lycoris_": NOTHING}),
        (SD3, OF_SD3, {"lora_unet_": SAME, "diffusion_model.": SAME}),
        (SD3, OF_SD3_DIFFUSERS, {"transformer.": NOTHING, "lora_transformer_": NOTHING}),
        (SDXL, OF_SDXL, {"lora_unet_": SAME, "diffusion_model.": SAME}),
        (SDXL, OF_SDXL_DIFFUSERS, {"lora_unet_": SAME, "lycoris_": SAME, "unet.": PARTLY, "": PARTLY}),
        (WAN, ("blocks.0.self_attn.q",), {"lora_unet_": NO_MODELS}),
    ],
)
def test_names_are_found_or_not_whatever_the_spelling_and_alpha(judged, metadata, paths, verdicts, spelling, alpha):
    found = {
        prefix: judged(named(prefix, *paths, spelling=spelling, alpha=alpha), metadata).verdict for prefix in verdicts
    }
    assert found == verdicts


def blocks(count, prefix="lora_unet_", alpha=8.0):
    return named(prefix, *(f"double_blocks.{i}.img_attn.proj" for i in range(count)), alpha=alpha)


@pytest.mark.parametrize(
    ("alpha", "most"),
    [(8.0, 4), (None, 6)],
)
def test_names_that_it_does_not_find_refuse_the_file_from_13_tensors_on(judged, alpha, most):
    model = named("lora_unet_", *OF_FLUX)
    assert judged({**model, **blocks(most, "transformer.", alpha)}).verdict == PARTLY
    found = judged({**model, **blocks(most + 1, "transformer.", alpha)})
    assert (found.verdict, found.silent) == (REFUSED, False)
    assert "version mismatch" in found.says


def test_every_tensor_counts_that_nothing_uses(judged):
    flags = {f"other_{i}": ("F32", (), 1.0) for i in range(LIMIT)}
    assert judged({**blocks(2), **flags}).verdict == SAME
    assert judged({**blocks(2), **flags, "use_rslora_flag": ("F32", (), 1.0)}).verdict == REFUSED


@pytest.mark.parametrize(("count", "verdict"), [(LIMIT, "DoRA lost"), (LIMIT + 1, REFUSED)])
def test_magnitudes_that_it_does_not_read_count(judged, count, verdict):
    tensors = blocks(count)
    tensors |= {
        f"lora_unet_double_blocks_{i}_img_attn_proj.dora_layer.weight": ("F32", (8,), 1.0) for i in range(count)
    }
    assert judged(tensors).verdict == verdict


def test_text_encoders_that_it_does_not_find_count(judged):
    def encoder(count, prefix):
        return named(
            prefix,
            *(f"encoder.block.{i}.layer.0.SelfAttention.q" for i in range(count)),
            out=4096,
            inputs=4096,
        )

    assert judged({**blocks(2), **encoder(5, "lora_te2_")}).verdict == SAME
    assert judged({**blocks(2), **encoder(4, "text_encoder_2.")}).verdict == PARTLY
    assert judged({**blocks(2), **encoder(5, "text_encoder_2.")}).verdict == REFUSED


Q = "lora_unet_double_blocks_0_img_attn_proj"
LOHA = (".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b")


INFIXED = {
    f"{Q}.lora_A.default.weight": ("F32", (4, 8), 0.5),
    f"{Q}.lora_B.default.weight": ("F32", (8, 4), 0.5),
}


def of(*suffixes, shape=(8, 8)):
    return {f"{Q}{suffix}": ("F32", shape, 0.5) for suffix in suffixes}


@pytest.mark.parametrize(
    ("tensors", "verdict"),
    [
        (of(*LOHA), SAME),
        (of(".lokr_w1", ".lokr_w2", shape=(4, 4)), SAME),
        (of(".diff"), SAME),
        ({f"{Q}.oft_blocks": ("F32", (2, 4, 4), 0.5)}, NOTHING),
        ({f"{Q}.weight": ("F32", (8,), 0.5), f"{Q}.on_input": ("BOOL", (), 0)}, NOTHING),
        (split(Q, out=4, inputs=8, parts=(0, 1)), NOTHING),
        (lora(Q, out=8, inputs=8) | of(".diff"), "wrong change"),
        (lora(Q, out=8, inputs=8) | {f"{Q}.lora_up.bias": ("F32", (8,), 0.5)}, PARTLY),
        (lora(Q, out=8, inputs=8) | {f"{Q}.dora_scale": ("F32", (8, 1), 1.0)}, "DoRA wrong"),
        (lora(Q, out=8, inputs=8) | {f"{Q}.dora_scale": ("F32", (1, 8), 1.0)}, SAME),
        # Names inside are not read, though ComfyUI reads one.
        (
            {f"{Q}.lora_A.default.weight": ("F32", (4, 8), 0.5), f"{Q}.lora_B.default.weight": ("F32", (8, 4), 0.5)},
            NOTHING,
        ),
    ],
)
def test_kinds(judged, tensors, verdict):
    assert judged(tensors).verdict == verdict


def test_rslora_is_too_weak(judged):
    found = judged({**blocks(2), "use_rslora_flag": ("F32", (), 1.0)})
    assert (found.verdict, found.factor) == ("wrong strength", 0.25)
