"""convert --layout, then merge: what a merge on the adapter's own layout makes, carried over by the real libraries."""

import layouts
import pytest
import torch
from adapters import NAMES, assert_within, dotted, expected, factors, kohya
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers
from diffusers_families import says
from layouts import FUSED, SPLIT, sdxl
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.numeric

MULTIPLIER = 0.5
FLUX = says("flux")
# The layers of the double blocks, and of the whole final layer, whose rows all have a magnitude where one has.
WHOLE = [path for path in SPLIT if ".0.attn.to_" in path and not path.startswith("single")] + ["norm_out.linear"]


@pytest.fixture
def converted(tmp_path, run):
    """`converted(adapter, layout)`: the tensors that `convert --layout` writes."""

    def convert(adapter, layout, *options, says=FLUX, out="converted.safetensors"):
        save_file({name: value.contiguous() for name, value in adapter.items()}, tmp_path / "adapter.safetensors", says)
        ended = run("convert", tmp_path / "adapter.safetensors", "--layout", layout, "-o", tmp_path / out, *options)
        assert ended.status == 0, ended.stderr
        return load_file(tmp_path / out)

    return convert


@pytest.fixture
def carried(tmp_path, run, converted):
    """`carried(base, adapter, layout)`: the base with the adapter in it, which was converted to the layout first."""

    def carry(base, adapter, layout, *options, says=FLUX):
        converted(adapter, layout, *options, says=says)
        save_file({name: value.contiguous() for name, value in base.items()}, tmp_path / "base.safetensors")
        file, out = tmp_path / "converted.safetensors", tmp_path / "out.safetensors"
        ended = run("merge", tmp_path / "base.safetensors", f"{file}:{MULTIPLIER}", "-o", out)
        assert ended.status == 0, ended.stderr
        return load_file(out)

    return carry


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("names", [pytest.param("onetrainer", id="OneTrainer"), "diffusers"])
def test_flux_in_diffusers_names_becomes_original(names, dora, carried):
    base = layouts.flux(blocks=2, width=4)
    own = layouts.flux_in_diffusers(base)
    adapter = factors(own, WHOLE if dora else SPLIT, dora)
    options = ["--keep-dora"] if dora else []
    found = layouts.flux_in_diffusers(carried(base, NAMES[names].tensors(adapter, "transformer"), "original", *options))
    assert_within(found, *expected(own, adapter, MULTIPLIER, interpolate=dora))


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("names", ["kohya", "comfyui"])
def test_flux_in_original_names_becomes_that_of_diffusers(names, dora, carried):
    own = layouts.flux(blocks=2, width=4)
    adapter = factors(own, FUSED, dora)
    options = ["--keep-dora"] if dora else []
    base = layouts.flux_in_diffusers(own)
    found = carried(base, NAMES[names].tensors(adapter, "transformer"), "diffusers", *options)
    values, bounds = expected(own, adapter, MULTIPLIER, interpolate=NAMES[names].is_flat)
    assert_within(found, layouts.flux_in_diffusers(values), layouts.flux_in_diffusers(bounds))


@pytest.mark.parametrize("name", layouts.NARROW)
def test_original_names_become_those_of_diffusers(name, carried):
    own = layouts.synthetic(name)
    adapter = factors(own, layouts.matrices(own))
    found = carried(layouts.in_diffusers(name, own), dotted("diffusion_model.", adapter), "diffusers", says=says(name))
    values, bounds = expected(own, adapter, MULTIPLIER, interpolate=False)
    assert_within(found, layouts.in_diffusers(name, values), layouts.in_diffusers(name, bounds))


@pytest.mark.parametrize("name", layouts.NARROW)
def test_diffusers_names_become_original(name, carried):
    base = layouts.synthetic(name)
    own = layouts.in_diffusers(name, base)
    adapter = factors(own, layouts.matrices(own))
    found = layouts.in_diffusers(name, carried(base, dotted("transformer.", adapter), "original", says=says(name)))
    assert_within(found, *expected(own, adapter, MULTIPLIER, interpolate=False))


@pytest.mark.slow
@pytest.mark.parametrize("is_original", [False, True], ids=["diffusers' names", "LDM's names"])
def test_sdxl_across_its_layouts(is_original, carried):
    diffusers, names = sdxl()
    back = {ours: theirs for theirs, ours in names.items()}
    original = {names[name]: value for name, value in diffusers.items() if name in names}
    chosen = [name for at, name in enumerate(sorted(names)) if diffusers[name].dim() > 1 and at % 7 < 2]
    paths = [(names[name] if is_original else name).removesuffix(".weight") for name in chosen]
    own, other = (original, diffusers) if is_original else (diffusers, original)
    adapter = factors(own, paths)
    layout = "diffusers" if is_original else "original"
    found = carried(other, kohya("lora_unet_", adapter), layout)
    values, bounds = expected(own, adapter, MULTIPLIER, interpolate=False)
    renamed = {
        names[name] if is_original else back[name]: value for name, value in found.items() if name in {*names, *back}
    }
    assert_within(renamed, *({name: part[name] for name in renamed} for part in (values, bounds)))


def test_flux_is_what_diffusers_own_converter_of_adapters_makes_of_it(converted):
    base = layouts.flux(blocks=2, width=4)
    paths = [path for path in FUSED if "_blocks." in path]
    file = kohya("lora_unet_", factors(base, paths))
    found = converted(file, "diffusers")
    theirs = _convert_kohya_flux_lora_to_diffusers({name: value.clone() for name, value in file.items()})
    downs = {name for name in theirs if name.endswith("lora_A.weight")}
    names = {name.removeprefix("transformer.").removesuffix(".lora_A.weight") for name in downs}
    assert {"lora_transformer_" + name.replace(".", "_") for name in names} == {
        name.partition(".")[0] for name in found
    }
    for name in names:
        ours = "lora_transformer_" + name.replace(".", "_")
        down, up = (found[f"{ours}.lora_{side}.weight"].double() for side in ("down", "up"))
        scale = float(found[f"{ours}.alpha"]) / down.shape[0]
        their_down, their_up = (theirs[f"transformer.{name}.lora_{side}.weight"].double() for side in "AB")
        torch.testing.assert_close(scale * up @ down, their_up @ their_down, rtol=1e-5, atol=1e-6)


def test_there_and_back_every_factor_is_the_same_to_the_last_bit(converted):
    own = layouts.flux_in_diffusers(layouts.flux(blocks=2, width=4))
    adapter = {path: part._replace(alpha=float(len(part.down))) for path, part in factors(own, SPLIT).items()}
    file = kohya("lora_transformer_", adapter)
    back = converted(converted(file, "original", out="original.safetensors"), "diffusers")
    assert {name: value for name, value in back.items() if name in file}.keys() == file.keys()
    for name, value in file.items():
        assert torch.equal(back[name], value), name
    # The rows beside them in a fused layer are zeros now.
    for name in back.keys() - file.keys():
        assert name.endswith((".lora_down.weight", ".alpha")) or not back[name].any()


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("is_fused", [True, False], ids=["a fused adapter", "an adapter of the parts"])
def test_phi3_across_its_layouts(is_fused, dora, carried):
    fused = {name: value.clone() for name, value in layouts.tiny("Phi3").state_dict().items()}
    split = layouts.split_phi3(fused)
    own, other = (fused, split) if is_fused else (split, fused)
    paths = [name.removesuffix(".weight") for name in own if ".layers." in name and own[name].dim() == 2]
    adapter = factors(own, paths, dora)
    options = ["--keep-dora"] if dora else []
    found = carried(other, dotted("diffusion_model.", adapter), "split" if is_fused else "fused", *options, says={})
    # Readers of these names interpolate with what is written as `dora_scale`.
    values, bounds = expected(own, adapter, MULTIPLIER, interpolate=dora)
    if is_fused:
        assert_within(found, layouts.split_phi3(values), layouts.split_phi3(bounds))
    else:
        assert_within(layouts.split_phi3(found), values, bounds)


def test_framepack_becomes_hunyuan_video_s_original_names(converted):
    own = layouts.in_diffusers("hunyuan_video", layouts.synthetic("hunyuan_video"))
    paths = [path for path in layouts.matrices(own) if path.startswith(("transformer_blocks", "single_transformer"))]
    file = kohya("lora_unet_", factors(own, paths))
    found = {
        name: converted(file, "original", says=says(name), out=f"{name}.safetensors")
        for name in ("framepack", "hunyuan_video")
    }
    assert any("double_blocks_0_img_attn_qkv" in key for key in found["framepack"])
    assert found["framepack"].keys() == found["hunyuan_video"].keys()
    assert all(torch.equal(found["framepack"][key], value) for key, value in found["hunyuan_video"].items())
