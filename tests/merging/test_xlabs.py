"""XLabs's adapters of FLUX.1 on bases of both layouts, against what diffusers makes of such a file."""

import layouts
import pytest
import torch
from adapters import Factors, assert_within, expected
from diffusers.loaders.lora_conversion_utils import _convert_xlabs_flux_lora_to_diffusers as in_diffusers
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.numeric
WIDTH, RANK = 8, 2
ROWS = {
    "double_blocks": {"qkv_lora1": 3 * WIDTH, "qkv_lora2": 3 * WIDTH, "proj_lora1": WIDTH, "proj_lora2": WIDTH},
    "single_blocks": {"qkv_lora": 3 * layouts.FLUX_WIDTH, "proj_lora": WIDTH},
}


@pytest.fixture(params=["", "diffusion_model."], ids=["bare", "prefix"])
def adapter(request):
    shapes = {}
    for blocks, layers in ROWS.items():
        for layer, rows in layers.items():
            name = f"{request.param}{blocks}.1.processor.{layer}"
            shapes |= {f"{name}.down.weight": (RANK, WIDTH), f"{name}.up.weight": (rows, RANK)}
    return layouts.tensors(shapes, seed=5)


def meant(base, adapter, multiplier=1.0):
    """The base in diffusers' layout with the adapter in it, and the bounds of that."""
    theirs = in_diffusers(dict(adapter))
    paths = {key.removeprefix("transformer.").rpartition(".lora_")[0] for key in theirs}
    factors = {
        path: Factors(theirs[f"transformer.{path}.lora_A.weight"], theirs[f"transformer.{path}.lora_B.weight"], RANK)
        for path in paths
    }
    assert len(factors) == 6 + 2 + 3 + 1
    return expected(layouts.flux_in_diffusers(base), factors, multiplier, interpolate=False)


@pytest.mark.parametrize("multiplier", [1.0, -0.5])
def test_on_the_original_base(adapter, multiplier, merged):
    base = layouts.flux(blocks=2, width=WIDTH)
    found = merged(base, adapter, multiplier)
    assert_within(layouts.flux_in_diffusers(found), *meant(base, adapter, multiplier))
    # The rows of the MLP are none of the attention's processor.
    mlp = slice(3 * layouts.FLUX_WIDTH, None)
    assert torch.equal(found["single_blocks.1.linear1.weight"][mlp], base["single_blocks.1.linear1.weight"][mlp])


@pytest.mark.parametrize("multiplier", [1.0, -0.5])
def test_on_the_base_of_diffusers(adapter, multiplier, merged):
    base = layouts.flux(blocks=2, width=WIDTH)
    assert_within(merged(layouts.flux_in_diffusers(base), adapter, multiplier), *meant(base, adapter, multiplier))


@pytest.mark.parametrize(("layout", "scheme"), [("original", "comfyui"), ("diffusers", "diffusers"), (None, "xlabs")])
def test_convert_writes_names_that_others_read(layout, scheme, adapter, merged, run, tmp_path):
    base = layouts.flux(blocks=2, width=WIDTH)
    save_file(adapter, tmp_path / "xlabs.safetensors")
    options = ("--layout", layout) if layout else ()
    out = tmp_path / "converted.safetensors"
    assert run("convert", tmp_path / "xlabs.safetensors", "-o", out, *options).status == 0
    written = load_file(out)
    assert run("info", out, "--json").json["scheme"] == scheme
    assert_within(layouts.flux_in_diffusers(merged(base, written)), *meant(base, adapter))
    if layout is None:
        assert all(torch.equal(written[key], value) for key, value in adapter.items())
