"""Adapters of text encoders in the names of transformers on single files, which have CLIP as open_clip names it.

What is expected is computed in float64 on transformers' layout and carried over by diffusers' converter of open_clip.
"""

from types import SimpleNamespace

import layouts
import pytest
import torch
from adapters import assert_within, dotted, expected, factors, kohya
from layouts import real

pytestmark = pytest.mark.numeric

WIDTH, BLOCKS = 8, 2
LAYER = {
    "attn.in_proj_weight": (3 * WIDTH, WIDTH), "attn.in_proj_bias": (3 * WIDTH,),
    "attn.out_proj.weight": (WIDTH, WIDTH), "attn.out_proj.bias": (WIDTH,),
    "mlp.c_fc.weight": (4 * WIDTH, WIDTH), "mlp.c_fc.bias": (4 * WIDTH,),
    "mlp.c_proj.weight": (WIDTH, 4 * WIDTH), "mlp.c_proj.bias": (WIDTH,),
    **{f"ln_{norm}.{parameter}": (WIDTH,) for norm in (1, 2) for parameter in ("weight", "bias")},
}  # fmt: skip
ROOT = "text_model.encoder.layers"
LAYERS = [
    f"{ROOT}.{block}.{leaf}"
    for block in range(BLOCKS)
    for leaf in (*(f"self_attn.{part}_proj" for part in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
]
# Where a single file has its text encoder, and what underscored and dotted files call that one.
PLACES = {
    "SDXL's second": ("conditioner.embedders.1.model.", "lora_te2_", "text_encoder_2."),
    "the refiner's": ("conditioner.embedders.0.model.", "lora_te2_", "text_encoder_2."),
    "SD 2.x's": ("cond_stage_model.model.", "lora_te_", "text_encoder."),
}


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def place(request):
    return request.param


def open_clip(prefix, seed=0):
    shapes = {
        f"{prefix}transformer.resblocks.{block}.{name}": shape
        for block in range(BLOCKS)
        for name, shape in LAYER.items()
    }
    more = {"token_embedding.weight": (5, WIDTH), "positional_embedding": (3, WIDTH), "ln_final.weight": (WIDTH,)}
    return layouts.tensors({**shapes, **{f"{prefix}{name}": shape for name, shape in more.items()}}, seed)


def in_transformers(base, prefix):
    """What diffusers' converter makes of the encoder at the prefix."""
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=WIDTH))
    return real.convert_open_clip_checkpoint(model, dict(base), prefix=prefix)


@pytest.mark.parametrize("multiplier", [1.0, 0.5, -1.0])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("spell", [kohya, dotted])
def test_every_layer_of_the_encoder(spell, dora, multiplier, place, merged):
    prefix, flat, dots = place
    base = open_clip(prefix)
    own = in_transformers(base, prefix)
    adapter = factors(own, LAYERS, dora)
    found = merged(base, spell(flat if spell is kohya else dots, adapter), multiplier)
    assert found.keys() == base.keys()
    values, bounds = expected(own, adapter, multiplier, interpolate=spell is kohya)
    assert_within(in_transformers(found, prefix), values, bounds)


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_one_part_of_the_fused_layer_alone(part, place, merged):
    prefix, flat, _ = place
    base = open_clip(prefix)
    own = in_transformers(base, prefix)
    adapter = factors(own, [f"{ROOT}.1.self_attn.{part}_proj"])
    found = in_transformers(merged(base, kohya(flat, adapter)), prefix)
    assert_within(found, *expected(own, adapter, 1.0, interpolate=False))


def test_a_change_of_its_bias_lands_on_the_rows_of_the_part(place, merged):
    prefix, flat, _ = place
    base = open_clip(prefix)
    change = torch.arange(1.0, WIDTH + 1)
    found = merged(base, {f"{flat}text_model_encoder_layers_0_self_attn_k_proj.diff_b": change}, 0.5)
    name = f"{prefix}transformer.resblocks.0.attn.in_proj_bias"
    meant = base[name].clone()
    meant[WIDTH : 2 * WIDTH] += 0.5 * change
    torch.testing.assert_close(found[name], meant, rtol=0, atol=1e-6)
    assert all(torch.equal(found[other], base[other]) for other in base if other != name)


def test_norms_and_embeddings_have_names_of_their_own(place, merged):
    prefix, flat, _ = place
    base = open_clip(prefix)
    norms = {"encoder_layers_1_layer_norm1": "transformer.resblocks.1.ln_1", "final_layer_norm": "ln_final"}
    change = torch.arange(1.0, WIDTH + 1)
    found = merged(base, {f"{flat}text_model_{name}.w_norm": change.clone() for name in norms})
    for name in norms.values():
        torch.testing.assert_close(found[f"{prefix}{name}.weight"], base[f"{prefix}{name}.weight"] + change)


def test_a_kohya_file_of_sdxl_on_a_single_file_of_all_components(merged):
    """CLIP-L has transformers' names in such a file, and the UNet those of the original repository."""
    first, second, unet = (
        "conditioner.embedders.0.transformer.",
        "conditioner.embedders.1.model.",
        "model.diffusion_model.",
    )
    clip_l = {f"{first}{name}": value for name, value in in_transformers(open_clip("", 3), "").items()}
    layers = [f"input_blocks.4.1.transformer_blocks.0.attn2.{leaf}" for leaf in ("to_q", "to_k", "to_v")]
    model = layouts.tensors({f"{unet}{path}.weight": (6, 4) for path in layers}, 4)
    base = {**model, **clip_l, **open_clip(second)}
    parts = {
        "lora_unet_": factors({name.removeprefix(unet): value for name, value in model.items()}, layers),
        "lora_te1_": factors({name.removeprefix(first): value for name, value in clip_l.items()}, LAYERS, seed=8),
        "lora_te2_": factors(in_transformers(base, second), LAYERS, seed=9),
    }
    adapter = {name: value for prefix, part in parts.items() for name, value in kohya(prefix, part).items()}
    found = merged(base, adapter)
    for prefix, root in (("lora_unet_", unet), ("lora_te1_", first)):
        own = {name.removeprefix(root): value for name, value in base.items() if name.startswith(root)}
        now = {name.removeprefix(root): value for name, value in found.items() if name.startswith(root)}
        assert_within(now, *expected(own, parts[prefix], 1.0, interpolate=False))
    own, now = in_transformers(base, second), in_transformers(found, second)
    assert_within(now, *expected(own, parts["lora_te2_"], 1.0, interpolate=False))
