"""convert --layout of differences of norms and parameters: into a base of that layout, and back."""

import layouts
import pytest
import torch
from adapter_files import norm_differences, spelled_norms, with_norms
from adapters import assert_within, dotted, expected, factors
from diffusers_families import says
from safetensors.torch import load_file, save_file

from lora_inspect.architectures import by_name

pytestmark = pytest.mark.numeric

MULTIPLIER = 0.5
NAMES = [name for name in (*layouts.NARROW, "flux") if by_name(name).layouts[0].norms]


def save(tensors, path, metadata=None):
    save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata)
    return path


def base_of(name):
    return layouts.flux(blocks=2, width=4) if name == "flux" else layouts.synthetic(name)


def layout_of(name, called):
    return next(layout for layout in by_name(name).layouts if layout.name == called)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_there_into_a_base_of_diffusers_and_back(name, run, tmp_path):
    own = base_of(name)

    def in_diffusers(base):
        return layouts.flux_in_diffusers(base) if name == "flux" else layouts.in_diffusers(name, base)

    layers, differences = factors(own, layouts.matrices(own)), norm_differences(own, layout_of(name, "original"))
    norms = spelled_norms(differences, lambda path: f"diffusion_model.{path}")
    adapter = save(dotted("diffusion_model.", layers) | norms, tmp_path / "adapter.safetensors", says(name))
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    run("convert", adapter, "--layout", "diffusers", "-o", there)
    base = save(in_diffusers(own), tmp_path / "base.safetensors")
    run("merge", base, f"{there}:{MULTIPLIER}", "-o", tmp_path / "out.safetensors")
    values, bounds = expected(own, layers, MULTIPLIER, interpolate=False)
    values, bounds = with_norms(values, bounds, differences, MULTIPLIER)
    assert_within(load_file(tmp_path / "out.safetensors"), in_diffusers(values), in_diffusers(bounds))
    run("convert", there, "--layout", "original", "-o", back)
    found = load_file(back)
    assert [key for key in norms if not torch.equal(found[key], norms[key])] == []


# Underscored names have none for a parameter, which is all that AuraFlow has.
PROGRAMS = [
    (name, scheme) for name in NAMES for scheme in ("comfyui", "kohya") if (name, scheme) != ("auraflow", "kohya")
]


@pytest.mark.parametrize(("name", "scheme"), PROGRAMS)
@pytest.mark.slow
def test_names_of_diffusers_for_a_program_and_back(name, scheme, run, tmp_path):
    base = base_of(name)
    own = layouts.flux_in_diffusers(base) if name == "flux" else layouts.in_diffusers(name, base)
    layout = layout_of(name, "diffusers")
    differences = norm_differences(own, layout)
    if scheme == "kohya":
        differences = {key: value for key, value in differences.items() if layouts.split(key)[1]}
    adapter = dotted("transformer.", factors(own, layouts.matrices(own)))
    adapter |= spelled_norms(differences, lambda path: f"transformer.{path}")
    source = save(adapter, tmp_path / "adapter.safetensors", says(name))
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    run("convert", source, "--to", scheme, "-o", there)
    run("convert", there, "--layout", "diffusers", "-o", back)
    found = load_file(back)

    def named(path):
        return f"transformer.{path}" if scheme == "comfyui" else layout.kohya_prefix + path.replace(".", "_")

    expected_norms = spelled_norms(differences, named)
    assert [key for key, value in expected_norms.items() if not torch.equal(found[key], value)] == []
