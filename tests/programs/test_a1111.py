"""What AUTOMATIC1111's web UI 1.10.1 makes of files, as its own network code did on small UNets and text encoders.

The code cannot be installed here, so what it did is written out.
"""

import pytest
from adapters import lora, split

from lora_inspect.ops.compat import compat

SD15, SDXL = {"ss_base_model_version": "sd_v1"}, {"ss_base_model_version": "sdxl_base_v1-0"}
SAME, NOTHING, PARTLY, REFUSED = "same meaning", "nothing loaded", "partly loaded", "refused"
OWN = ("input_blocks.4.1.transformer_blocks.0.attn1.to_q", "input_blocks.1.0.emb_layers.1")
DIFFUSERS = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.resnets.0.time_emb_proj",
)
Q = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
NORM = "lora_unet_input_blocks_4_1_transformer_blocks_0_norm1"
NO_TYPE = "Could not find a module type that would accept those keys"


@pytest.fixture
def judged(write_safetensors):
    def judge(tensors, metadata=SDXL):
        (found,) = compat(str(write_safetensors(tensors, metadata)), "a1111").verdicts
        return found

    return judge


def named(prefix, *paths, **options):
    separator = "_" if prefix.endswith("_") else "."
    made = {}
    for path in paths:
        made |= lora(prefix + path.replace(".", separator), **{"out": 8, "inputs": 8, **options})
    return made


@pytest.mark.parametrize("alpha", [8.0, None], ids=["alpha", "none"])
@pytest.mark.parametrize("spelling", ["kohya", "peft"])
@pytest.mark.parametrize(
    ("prefix", "paths", "verdict"),
    [
        ("diffusion_model.", OWN, REFUSED),
        ("unet.", DIFFUSERS, NOTHING),
        ("lycoris_", DIFFUSERS, NOTHING),
        ("lora_transformer_", DIFFUSERS, NOTHING),
    ],
)
def test_other_names_are_not_found(judged, prefix, paths, verdict, spelling, alpha):
    found = judged(named(prefix, *paths, spelling=spelling, alpha=alpha))
    assert (found.verdict, found.silent) == (verdict, verdict == NOTHING)
    assert found.says == (
        NO_TYPE if verdict == REFUSED else "it loads nothing, so the adapter has no effect; it prints nothing"
    )


def test_names_of_peft_are_not_found(judged):
    assert judged(named("base_model.model.", *DIFFUSERS, spelling="peft")).verdict == NOTHING


@pytest.mark.parametrize("paths", [OWN, DIFFUSERS])
@pytest.mark.parametrize("metadata", [SD15, SDXL])
def test_names_of_kohya_load_in_both_layouts(judged, paths, metadata):
    for alpha in (8.0, None):
        assert judged(named("lora_unet_", *paths, alpha=alpha), metadata).verdict == SAME


def test_alpha_beside_the_factors_of_peft_is_dropped(judged):
    found = judged(named("lora_unet_", *OWN, spelling="peft", alpha=8.0))
    assert (found.verdict, found.factor, found.silent) == ("wrong strength", 2.0, True)
    assert judged(named("lora_unet_", *OWN, spelling="peft", alpha=None)).verdict == SAME


def test_two_layers_of_diffusers_layout_are_not_found(judged):
    last = "up_blocks.0.upsamplers.0.conv"
    for path in (last, "add_embedding.linear_1"):
        found = judged(named("lora_unet_", *DIFFUSERS, path))
        assert (found.verdict, found.silent) == (PARTLY, True)
    assert judged(named("lora_unet_", *DIFFUSERS, last), SD15).verdict == SAME
    assert judged(named("lora_unet_", *DIFFUSERS, "up_blocks.1.upsamplers.0.conv")).verdict == SAME


def test_flags_are_passed_over(judged):
    found = judged({**named("lora_unet_", *OWN), "use_rslora_flag": ("F32", (), 1.0)})
    assert (found.verdict, found.factor, found.silent) == ("wrong strength", 0.25, True)


def test_a_scale_takes_the_place_of_alpha(judged):
    found = judged({**named("lora_unet_", OWN[0]), f"{Q}.scale": ("F32", (), 0.75)})
    assert (found.verdict, found.factor) == ("wrong strength", 1.5)


@pytest.mark.parametrize(
    ("suffix", "shape", "verdict"),
    [
        ("dora_scale", (8, 1), "DoRA wrong"),
        ("dora_scale", (1, 8), SAME),
        ("dora_layer.weight", (8,), "DoRA lost"),
        ("lora_magnitude_vector", (8,), "DoRA lost"),
        ("lora_magnitude_vector.weight", (8,), "DoRA lost"),
        ("magnitude", (8,), "DoRA lost"),
    ],
)
def test_magnitudes_are_along_the_inputs(judged, suffix, shape, verdict):
    found = judged({**named("lora_unet_", OWN[0]), f"{Q}.{suffix}": ("F32", shape, 1)})
    assert (found.verdict, found.silent) == (verdict, verdict != SAME)


def test_magnitudes_beside_the_factors_of_peft_are_dropped(judged):
    tensors = {**named("lora_unet_", OWN[0], spelling="peft", alpha=None), f"{Q}.dora_scale": ("F32", (1, 8), 1)}
    assert judged(tensors).verdict == "DoRA lost"


LOHA = {f"hada_w{number}_{side}": ("F32", (8, 8), 0.5) for number in "12" for side in "ab"}
LOKR = {"lokr_w1": ("F32", (2, 2), 0.5), "lokr_w2": ("F32", (4, 4), 0.5)}
OLD_GLORA = {
    **{f"{which}.weight": ("F32", (4, 8), 0.5) for which in ("a1", "b1")},
    **{f"{which}.weight": ("F32", (8, 4), 0.5) for which in ("a2", "b2")},
}
GLORA = {
    **{f"{which}.weight": ("F32", (8, 4), 0.5) for which in ("a1", "b1")},
    **{f"{which}.weight": ("F32", (4, 8), 0.5) for which in ("a2", "b2")},
}
ALPHA, BIAS = {"alpha": ("F32", (), 2.0)}, {"diff_b": ("F32", (8,), 0.5)}
ROTATION = {"oft_blocks": ("F32", (2, 4, 4), 0.5), "alpha": ("F32", (), 0.0)}


@pytest.mark.parametrize(
    ("tensors", "verdict"),
    [
        ({**LOHA, **ALPHA}, SAME),
        ({**LOKR, **ALPHA}, SAME),
        (ROTATION, SAME),
        ({"oft_blocks": ROTATION["oft_blocks"]}, SAME),
        ({**ROTATION, "rescale": ("F32", (8, 1), 1)}, SAME),
        ({"oft_blocks": ("F32", (2, 2, 4, 4), 0.5), "alpha": ("F32", (), 0.0)}, SAME),
        ({"weight": ("F32", (8,), 0.5), "on_input": ("BOOL", (), True)}, SAME),
        ({"diff": ("F32", (8, 8), 0.5)}, SAME),
        ({"diff": ("F32", (8, 8), 0.5), **BIAS}, SAME),
        (BIAS, REFUSED),
        (OLD_GLORA, REFUSED),
        ({**GLORA, **ALPHA}, PARTLY),
    ],
)
def test_kinds_of_networks(judged, tensors, verdict):
    other = named("lora_unet_", OWN[1])
    assert judged({**other, **{f"{Q}.{suffix}": tensor for suffix, tensor in tensors.items()}}).verdict == verdict


def test_glora_is_applied_without_alpha(judged):
    tensors = {**OLD_GLORA, **ALPHA}
    found = judged({f"{Q}.{suffix}": tensor for suffix, tensor in tensors.items()})
    assert (found.verdict, found.factor) == ("wrong strength", 2.0)


@pytest.mark.parametrize("suffix", ["diff_b", "lora_up.bias"])
def test_a_bias_beside_lora_is_dropped(judged, suffix):
    found = judged({**named("lora_unet_", OWN[0]), f"{Q}.{suffix}": ("F32", (8,), 0.5)})
    assert (found.verdict, found.silent) == (PARTLY, True)


def test_a_layer_is_of_one_network(judged):
    found = judged({**named("lora_unet_", OWN[0]), f"{Q}.diff": ("F32", (8, 8), 0.5)})
    assert (found.verdict, found.ignored) == (PARTLY, (f"{Q}.diff",))


def test_norms_need_both_parameters(judged):
    weight, bias = {f"{NORM}.w_norm": ("F32", (8,), 0.5)}, {f"{NORM}.b_norm": ("F32", (8,), 0.5)}
    other = named("lora_unet_", *OWN)
    assert judged({**other, **weight, **bias}).verdict == SAME
    assert judged({**other, **weight}).verdict == REFUSED


def test_vectors_on_convolutions_are_left(judged):
    gains = {"weight": ("F32", (8,), 0.5), "on_input": ("BOOL", (), True)}
    conv = "lora_unet_input_blocks_1_0_in_layers_2"
    tensors = {f"{module}.{suffix}": tensor for module in (Q, conv) for suffix, tensor in gains.items()}
    assert judged(tensors).verdict == PARTLY


def test_slices_and_other_algorithms_make_it_refuse_the_file(judged):
    assert judged(split(Q)).says == NO_TYPE
    assert judged({f"{Q}.ia3_l": ("F32", (8, 1), 0.5)}).says == NO_TYPE


def encoder(prefix, *parts):
    return named(prefix, *(f"text_model.encoder.layers.0.self_attn.{part}" for part in parts), out=1280, inputs=1280)


ALL = ("q_proj", "k_proj", "v_proj", "out_proj")


def test_text_encoders(judged):
    unet = named("lora_unet_", *OWN)
    assert judged({**unet, **encoder("lora_te1_", "q_proj")}).verdict == SAME
    assert judged({**unet, **encoder("lora_te2_", *ALL)}).verdict == SAME
    assert judged({**unet, **encoder("text_encoder.", "q_proj")}).verdict == PARTLY


def test_attentions_of_openclip_are_changed_as_a_whole(judged):
    found = judged({**named("lora_unet_", *OWN), **encoder("lora_te2_", *ALL[:3])})
    assert (found.verdict, found.silent) == (PARTLY, True)
    assert len(found.ignored) == 6
