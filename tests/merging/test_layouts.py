"""Adapters in one layout on bases in another one, against the merge on their own layout, mapped by the real libraries.

What is expected is computed in float64 on the adapter's own layout and carried over by diffusers' converters.
"""

import layouts
import pytest
import torch
from adapters import NAMES, assert_within, dotted, expected, factors, kohya
from layouts import FUSED, SPLIT, sdxl

from lora_inspect.merging import fold

pytestmark = pytest.mark.numeric

MULTIPLIERS = [1.0, 0.5, -1.0]


@pytest.fixture(params=[*((multiplier, 1 << 20) for multiplier in MULTIPLIERS), (0.5, 24)], ids=str)
def strength(request, monkeypatch):
    """Every multiplier with a weight in one block, and one of them with weights in tiny blocks."""
    multiplier, elements = request.param
    monkeypatch.setattr(fold, "BLOCK_ELEMENTS", elements)
    return multiplier


# FLUX as narrow as here is of no published size, which alone would tell it from its descendants.
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("names", [pytest.param("onetrainer", id="OneTrainer"), "diffusers"])
@pytest.mark.slow
def test_flux_in_diffusers_names_on_the_original_base(names, dora, strength, merged):
    base = layouts.flux(blocks=2, width=4)
    own = layouts.flux_in_diffusers(base)
    adapter = factors(own, SPLIT, dora)
    found = layouts.flux_in_diffusers(merged(base, NAMES[names].tensors(adapter, "transformer"), strength))
    assert_within(found, *expected(own, adapter, strength, interpolate=NAMES[names].is_flat))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("names", ["kohya", "comfyui"])
@pytest.mark.slow
def test_flux_in_original_names_on_the_base_of_diffusers(names, dora, strength, merged):
    own = layouts.flux(blocks=2, width=4)
    adapter = factors(own, FUSED, dora)
    found = merged(layouts.flux_in_diffusers(own), NAMES[names].tensors(adapter, "transformer"), strength)
    values, bounds = expected(own, adapter, strength, interpolate=NAMES[names].is_flat)
    assert_within(found, layouts.flux_in_diffusers(values), layouts.flux_in_diffusers(bounds))


@pytest.mark.parametrize(
    "paths", [SPLIT[1:2], SPLIT[:2], SPLIT[11:12], SPLIT[14:15], FUSED[:1], FUSED[5:6], FUSED[8:9]]
)
def test_some_layers_of_flux_alone(paths, merged):
    """A base that is whole tells which of the families with these names it is."""
    original = layouts.flux(blocks=2, width=4)
    diffusers = layouts.flux_in_diffusers(original)
    if paths[0] in SPLIT:
        adapter = factors(diffusers, paths)
        found = layouts.flux_in_diffusers(merged(original, kohya("lora_transformer_", adapter)))
        assert_within(found, *expected(diffusers, adapter, 1.0, interpolate=False))
    else:
        adapter = factors(original, paths)
        found = merged(diffusers, kohya("lora_unet_", adapter))
        values, bounds = expected(original, adapter, 1.0, interpolate=False)
        assert_within(found, layouts.flux_in_diffusers(values), layouts.flux_in_diffusers(bounds))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_the_multiplier_0_leaves_every_bit_as_it_is(dora, merged):
    original = layouts.flux(width=4, dtype=torch.bfloat16)
    diffusers = layouts.flux_in_diffusers(original)
    for base, adapter in (
        (original, kohya("lora_transformer_", factors(diffusers, [path for path in SPLIT if ".1." not in path], dora))),
        (diffusers, kohya("lora_unet_", factors(original, ["double_blocks.0.img_attn.qkv", FUSED[8]], dora))),
    ):
        found = merged(base, adapter, 0.0)
        assert found.keys() == base.keys()
        assert all(torch.equal(found[name].view(torch.int16), base[name].view(torch.int16)) for name in base)


@pytest.mark.slow
@pytest.mark.parametrize("multiplier", MULTIPLIERS)
@pytest.mark.parametrize("is_original", [False, True], ids=["diffusers' names", "LDM's names"])
def test_sdxl_across_its_layouts(is_original, multiplier, merged):
    diffusers, names = sdxl()
    original = {names[name]: value for name, value in diffusers.items() if name in names}
    chosen = [
        name
        for at, name in enumerate(sorted(names))
        if name.endswith(".weight") and diffusers[name].dim() > 1 and at % 7 < 2
    ]
    own, other = (original, diffusers) if is_original else (diffusers, original)
    paths = [(names[name] if is_original else name).removesuffix(".weight") for name in chosen]
    assert len(paths) > 40
    assert any("resnets" in name for name in chosen)
    assert any("samplers" in name for name in chosen)
    adapter = factors(own, paths)
    found = merged(other, kohya("lora_unet_", adapter), multiplier)
    values, bounds = expected(own, adapter, multiplier, interpolate=False)
    if is_original:
        found = {names[name]: value for name, value in found.items() if name in names}
    else:
        back = {ours: theirs for theirs, ours in names.items()}
        found = {back[name]: value for name, value in found.items()}
        values, bounds = ({name: part[name] for name in names} for part in (values, bounds))
    assert_within(found, values, bounds)


@pytest.mark.parametrize("is_original", [False, True], ids=["diffusers' names", "original names"])
def test_wan_across_its_layouts(is_original, merged):
    from lora_inspect.architectures import by_name

    template, _ = by_name("wan").layouts
    paths = [path.replace("{i}", str(number)) for path in template.paths for number in (0, 1) if "blocks" in path]
    original = layouts.tensors({f"{path}.weight": (6, 5) for path in dict.fromkeys(paths)})
    convert = layouts.real.convert_wan_transformer_to_diffusers
    diffusers = convert(dict(original))
    own, other = (original, diffusers) if is_original else (diffusers, original)
    adapter = factors(own, [name.removesuffix(".weight") for name in own])
    found = merged(other, dotted("diffusion_model." if is_original else "transformer.", adapter), 0.5)
    values, bounds = expected(own, adapter, 0.5, interpolate=False)
    if is_original:
        values, bounds = convert(dict(values)), convert(dict(bounds))
    else:
        found = convert(dict(found))
    assert_within(found, values, bounds)


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", layouts.NARROW)
def test_diffusers_names_on_an_original_base(name, dora, merged):
    base = layouts.synthetic(name)
    own = layouts.in_diffusers(name, base)
    adapter = factors(own, layouts.matrices(own), dora)
    found = layouts.in_diffusers(name, merged(base, dotted("transformer.", adapter), 0.5))
    assert_within(found, *expected(own, adapter, 0.5, interpolate=False))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("name", layouts.NARROW)
def test_original_names_on_a_base_of_diffusers(name, dora, merged):
    own = layouts.synthetic(name)
    adapter = factors(own, layouts.matrices(own), dora)
    found = merged(layouts.in_diffusers(name, own), dotted("diffusion_model.", adapter), 0.5)
    values, bounds = expected(own, adapter, 0.5, interpolate=False)
    assert_within(found, layouts.in_diffusers(name, values), layouts.in_diffusers(name, bounds))


def logits(model, state):
    model.load_state_dict(state)
    with torch.no_grad():
        return model.double()(torch.arange(1, 9).reshape(1, 8)).logits


@pytest.mark.parametrize("multiplier", MULTIPLIERS)
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("is_fused", [True, False], ids=["a fused adapter", "an adapter of the parts"])
def test_phi3_across_its_layouts(is_fused, dora, multiplier, merged):
    phi3, llama = layouts.tiny("Phi3"), layouts.tiny("Llama")
    fused = {name: value.clone() for name, value in phi3.state_dict().items()}
    split = layouts.split_phi3(fused)
    before = logits(phi3, fused)
    assert (before - logits(llama, split)).abs().max() < 1e-12 * before.abs().max()
    own, other = (fused, split) if is_fused else (split, fused)
    paths = [name.removesuffix(".weight") for name in own if ".layers." in name and own[name].dim() == 2]
    adapter = factors(own, paths, dora)
    found = merged(other, dotted("diffusion_model.", adapter), multiplier)
    values, bounds = expected(own, adapter, multiplier, interpolate=False)
    if is_fused:
        assert_within(found, layouts.split_phi3(values), layouts.split_phi3(bounds))
    else:
        assert_within(layouts.split_phi3(found), values, bounds)
    merged_logits = logits(*((llama, found) if is_fused else (phi3, found)))
    meant = logits(*((phi3, values) if is_fused else (llama, values)))
    assert (meant - before).abs().max() > 1e-2 * before.abs().max()
    assert (merged_logits - meant).abs().max() < 1e-3 * meant.abs().max()
