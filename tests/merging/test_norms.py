"""Differences of norms and parameters on bases of another layout, as diffusers' own converters carry the merge over."""

import layouts
import pytest
from adapter_files import norm_differences, spelled_norms, with_norms
from adapters import assert_within, dotted, expected, factors
from layouts import sdxl

from lora_inspect.architectures import by_name

pytestmark = pytest.mark.numeric

MULTIPLIER = 0.5
# Adapters of Ideogram 4 are all that diffusers converts, and the others have no norms of their own names.
NAMES = [name for name in (*layouts.NARROW, "flux") if by_name(name).layouts[0].norms]


def layout_of(name, called):
    return next(layout for layout in by_name(name).layouts if layout.name == called)


def original(name):
    return layouts.flux(blocks=2, width=4) if name == "flux" else layouts.synthetic(name)


def in_diffusers(name, base):
    return layouts.flux_in_diffusers(base) if name == "flux" else layouts.in_diffusers(name, base)


def changed(own, layout, prefix):
    """(an adapter of every layer and norm of a base, the float64 merge, its bounds)."""
    layers = factors(own, layouts.matrices(own))
    differences = norm_differences(own, layout)
    values, bounds = expected(own, layers, MULTIPLIER, interpolate=False)
    tensors = dotted(prefix, layers) | spelled_norms(differences, lambda path: prefix + path)
    return tensors, *with_norms(values, bounds, differences, MULTIPLIER)


@pytest.mark.parametrize("name", NAMES)
def test_diffusers_names_on_an_original_base(name, merged):
    base = original(name)
    tensors, values, bounds = changed(in_diffusers(name, base), layout_of(name, "diffusers"), "transformer.")
    assert_within(in_diffusers(name, merged(base, tensors, MULTIPLIER)), values, bounds)


@pytest.mark.parametrize("name", NAMES)
def test_original_names_on_a_base_of_diffusers(name, merged):
    own = original(name)
    tensors, values, bounds = changed(own, layout_of(name, "original"), "diffusion_model.")
    found = merged(in_diffusers(name, own), tensors, MULTIPLIER)
    assert_within(found, in_diffusers(name, values), in_diffusers(name, bounds))


@pytest.mark.slow
@pytest.mark.parametrize("is_original", [False, True], ids=["diffusers' names", "LDM's names"])
def test_sdxl_across_its_layouts(is_original, merged):
    """Underscored names."""
    diffusers, names = sdxl()
    ours = {names[name]: value for name, value in diffusers.items() if name in names}
    own, other = (ours, diffusers) if is_original else (diffusers, ours)
    layers = factors(own, [path for path in layouts.matrices(own) if own[f"{path}.weight"].dim() == 2])
    differences = norm_differences(own, layout_of("sdxl", "original" if is_original else "diffusers"))
    assert len(differences) > 80

    def flat(path):
        return f"lora_unet_{path.replace('.', '_')}"

    tensors = dotted("", {flat(path): one for path, one in layers.items() if f"{path}.weight" in own})
    tensors |= spelled_norms(differences, flat)
    found = merged(other, tensors, MULTIPLIER)
    values, bounds = expected(own, layers, MULTIPLIER, interpolate=False)
    values, bounds = with_norms(values, bounds, differences, MULTIPLIER)
    back = names if is_original else {ours: theirs for theirs, ours in names.items()}
    found = {back[name]: value for name, value in found.items() if name in back}
    values, bounds = ({name: part[name] for name in found} for part in (values, bounds))
    assert_within(found, values, bounds)
