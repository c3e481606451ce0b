"""--algorithm full: the base and the difference that is written are what was trained, whatever the algorithm is.

That every algorithm has its difference is looked at with the cases of all of them.
"""

import json

import layouts
import pytest
import torch
from adapters import dotted, factors, kohya
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_inspect.converting.steps import dora_delta, full_delta
from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

pytestmark = pytest.mark.numeric

FLUX = {"ss_base_model_version": "flux1"}
PATHS = ["double_blocks.0.img_attn.qkv", "double_blocks.0.img_mlp.2", "single_blocks.0.linear1", "final_layer.linear"]
LAST = "final_layer.adaLN_modulation.1"


def written(folder, name, tensors, metadata=None):
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, folder / name, metadata)
    return str(folder / name)


def converted(folder, adapter, base, metadata=FLUX, **options):
    source = written(folder, "adapter.safetensors", adapter, metadata)
    given = written(folder, "base.safetensors", base)
    asked = ConvertOptions(base=given, algorithm="full", **options)
    result = convert_to_standard(source, str(folder / "full.safetensors"), asked, force=True)
    return result, load_file(result.output)


def merged(folder, base, adapter):
    paths = [str(folder / name) for name in (base, adapter)]
    merge(plan_merge(paths[0], [(paths[1], 1.0)], MergeOptions()), str(folder / "merged.safetensors"), force=True)
    return load_file(folder / "merged.safetensors")


def assert_near(found, expected, bound=2.0**-23):
    """Each number is rounded to float32 once, of what is computed in float64."""
    assert found.dtype == torch.float32
    assert float((found.double() - expected).norm()) <= bound * float(expected.norm())


@pytest.mark.parametrize("elements", [1 << 20, 24], ids=["in one block", "in tiny blocks"])
@pytest.mark.parametrize("of_base", ["original", "diffusers"])
@pytest.mark.parametrize("scheme", [None, "comfyui", "lycoris"])
@pytest.mark.slow
def test_dora_in_either_layout_of_the_base(scheme, of_base, elements, tmp_path, monkeypatch):
    monkeypatch.setattr(dora_delta, "BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(full_delta, "BLOCK_ELEMENTS", elements)
    original = layouts.flux(width=4)
    diffusers = layouts.flux_in_diffusers(original)
    adapter = factors(original, [*PATHS, LAST], dora=True)
    base = original if of_base == "original" else diffusers
    result, found = converted(tmp_path, kohya("lora_unet_", adapter), base, scheme=scheme)
    assert (result.exact, result.target["algorithm"], result.target["dora"]) == (True, "full", False)
    zeros = {name: torch.zeros_like(tensor).double() for name, tensor in original.items()}
    changes = {
        f"{path}.weight": own.folded(original[f"{path}.weight"], 1.0, False)[0] - original[f"{path}.weight"].double()
        for path, own in adapter.items()
    }
    if scheme == "lycoris":
        changes = {name: tensor for name, tensor in layouts.flux_in_diffusers(zeros | changes).items() if tensor.any()}
    prefix, flat = {None: ("lora_unet_", True), "comfyui": ("diffusion_model.", False), "lycoris": ("lycoris_", True)}[
        scheme
    ]
    expected = {}
    for name, change in changes.items():
        path = name.removesuffix(".weight")
        expected[f"{prefix}{path.replace('.', '_') if flat else path}.diff"] = change
    assert found.keys() == expected.keys()
    for key, change in expected.items():
        # The formula there is without the 2^-23 that is added to the norm.
        assert_near(found[key], change, bound=1e-6)
    assert result.verified.modules == len(expected)


def test_biases_and_differences_of_a_module_are_in_its_own(tmp_path):
    """LoRA with a bias on its up layer, and a difference of the weight and of the bias beside it."""
    base = layouts.flux(width=4)
    path, generator = "final_layer.linear", torch.Generator().manual_seed(0)
    own = factors(base, [path])[path]
    diff, diff_b, bias = (torch.randn(*shape, generator=generator) for shape in ((4, 4), (4,), (4,)))
    name = f"lora_unet_{path.replace('.', '_')}"
    tensors = kohya("lora_unet_", {path: own})
    tensors |= {f"{name}.diff": diff, f"{name}.diff_b": diff_b, f"{name}.lora_up.bias": bias}
    scale = own.alpha / len(own.down)
    result, found = converted(tmp_path, tensors, base)
    assert (found.keys(), result.target["algorithm"]) == ({f"{name}.diff", f"{name}.diff_b"}, "full+full_bias")
    assert_near(found[f"{name}.diff"], scale * own.up.double() @ own.down.double() + diff.double())
    assert_near(found[f"{name}.diff_b"], scale * bias.double() + diff_b.double())


def test_differences_that_are_some_stay_as_they_are(tmp_path):
    base = layouts.flux(width=4)
    tensors = kohya("lora_unet_", factors(base, ["double_blocks.0.img_mlp.2"]))
    kept = {
        "lora_unet_final_layer_linear.diff": torch.randn(4, 4).bfloat16(),
        "lora_unet_final_layer_linear.diff_b": torch.randn(4),
    }
    _, found = converted(tmp_path, tensors | kept, base)
    assert found.keys() == {"lora_unet_double_blocks_0_img_mlp_2.diff", *kept}
    assert all(torch.equal(found[key], tensor) for key, tensor in kept.items())
    result, _ = converted(tmp_path, kept, base)
    assert any("it holds nothing that --algorithm full changes" in note for note in result.notes)


def lora(name, out, inputs, generator, part="", kernel=()):
    """Factors of rank 2 without an alpha, and their product in float64."""
    down = torch.randn(2, inputs, *kernel, generator=generator)
    up = torch.randn(out, 2, *(1 for _ in kernel), generator=generator)
    suffix = f"{part}.weight" if part else "weight"
    tensors = {f"{name}.lora_down.{suffix}": down, f"{name}.lora_up.{suffix}": up}
    return tensors, (up.double().flatten(1) @ down.double().flatten(1)).reshape(out, inputs, *kernel)


def test_the_slices_of_a_layer_are_one_difference(tmp_path):
    generator = torch.Generator().manual_seed(1)
    slices = [lora("lora_unet_a_qkv", 4, 6, generator, f"{part}") for part in range(3)]
    tensors = {key: tensor for own, _ in slices for key, tensor in own.items()}
    base = {"a.qkv.weight": torch.randn(12, 6, generator=generator)}
    result, found = converted(tmp_path, tensors, base, None)
    assert_near(found.pop("lora_unet_a_qkv.diff"), torch.cat([product for _, product in slices]))
    assert (found, result.verified.modules) == ({}, 1)


@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_dora_of_inputs(kernel, tmp_path):
    generator = torch.Generator().manual_seed(1)
    tensors, delta = lora("lora_unet_a_q", 4, 3, generator, kernel=kernel)
    ones = (1,) * len(kernel)
    tensors["lora_unet_a_q.dora_scale"] = scale = torch.randn(1, 3, *ones, generator=generator).abs() + 2
    base = {"a.q.weight": torch.randn(4, 3, *kernel, generator=generator)}
    _, found = converted(tmp_path, tensors, base, None)
    weight = base["a.q.weight"].double()
    combined = weight + delta
    norm = combined.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, 3, *ones) + 2.0**-23
    assert_near(found["lora_unet_a_q.diff"], scale.double() * combined / norm - weight)


def test_the_base_is_what_its_codes_stand_for(tmp_path):
    generator = torch.Generator().manual_seed(1)
    tensors, delta = lora("lora_unet_a_q", 6, 8, generator)
    tensors["lora_unet_a_q.dora_scale"] = scale = torch.randn(6, 1, generator=generator).abs() + 2
    codes = torch.randn(6, 8, generator=generator).mul(20).to(torch.float8_e4m3fn)
    base = {"a.q.weight": codes, "a.q.scale_weight": torch.tensor(0.37)}
    _, found = converted(tmp_path, tensors, base, None)
    # The product of code and scale is a float32.
    weight = (codes.float() * base["a.q.scale_weight"]).double()
    combined = weight + delta
    norm = combined.norm(dim=1, keepdim=True) + 2.0**-23
    assert_near(found["lora_unet_a_q.diff"], scale.double() * combined / norm - weight)


def test_a_merge_of_the_output_is_that_of_the_input(tmp_path):
    base = layouts.flux(width=4)
    converted(tmp_path, kohya("lora_unet_", factors(base, PATHS, dora=True)), base)
    meant, found = (merged(tmp_path, "base.safetensors", name) for name in ("adapter.safetensors", "full.safetensors"))
    assert any(not torch.equal(value, base[name]) for name, value in found.items())
    for name, value in meant.items():
        assert float((found[name] - value).norm()) <= 1e-6 * float(value.norm())


def test_magnitudes_over_the_norms_of_the_base(tmp_path):
    base = layouts.flux(width=4)
    adapter = kohya("lora_unet_", factors(base, PATHS, dora=True))
    _, meant = converted(tmp_path, adapter, base)
    source, given = str(tmp_path / "adapter.safetensors"), str(tmp_path / "base.safetensors")
    corrected, output = str(tmp_path / "comfyui.safetensors"), str(tmp_path / "again.safetensors")
    convert_to_standard(source, corrected, ConvertOptions(base=given, scheme="comfyui"))
    convert_to_standard(corrected, output, ConvertOptions(base=given, algorithm="full"))
    for key, tensor in load_file(output).items():
        name = "lora_unet_" + key.removeprefix("diffusion_model.").removesuffix(".diff").replace(".", "_")
        assert float((tensor - meant[f"{name}.diff"]).norm()) <= 1e-5 * float(tensor.norm())


def test_the_size_is_told_and_guarded(tmp_path, run):
    """A difference of 3072 x 3072 numbers is 37 MB, of a layer twice that; the file of rank 1 has 24 KB a layer."""
    base = {f"blocks.{block}.q.weight": torch.zeros(3072, 3072) for block in range(2)}
    tensors = {
        f"lora_unet_blocks_{block}_q.lora_{side}.weight": torch.ones(shape)
        for block in range(2)
        for side, shape in (("down", (1, 3072)), ("up", (3072, 1)))
    }
    source, given = written(tmp_path, "a.safetensors", tensors), written(tmp_path, "b.safetensors", base)
    asked = ("convert", source, "--algorithm", "full", "--base", given, "-o", tmp_path / "o.safetensors")
    assert (
        "with the full difference of lora_unet_blocks_1_q the output would hold 75,497,472 bytes" in run(*asked).refusal
    )
    assert not (tmp_path / "o.safetensors").exists()
    ended = run(*asked, "--allow-growth", "--no-verify")
    assert "rank 1, 49," in ended.stdout
    size = (tmp_path / "o.safetensors").stat().st_size
    assert 75_497_472 < size < 75_497_472 + 8192  # the data, and a header with the room that it is written with
    assert f"to {size:,} bytes" in ended.stdout
    assert torch.equal(load_file(tmp_path / "o.safetensors")["lora_unet_blocks_1_q.diff"], torch.ones(3072, 3072))


def test_what_it_was_made_of_is_in_the_metadata(tmp_path):
    base = layouts.flux(width=4)
    metadata = FLUX | {
        "ss_network_args": json.dumps({"use_dora": "True"}),
        "ss_network_dim": "4",
        "ss_network_alpha": "2",
    }
    result, _ = converted(tmp_path, kohya("lora_unet_", factors(base, PATHS, dora=True)), base, metadata)
    with safe_open(result.output, "pt") as file:
        found = file.metadata()
    said = json.loads(found["lora_inspect.converted"])
    assert (said["base"], said["dora"]) == ("base.safetensors", True)
    assert "use_dora" not in found["ss_network_args"]
    assert "lora_inspect.magnitudes" not in found


REFUSED = {
    "without a base": ({"base": None}, "is that of a base; name the one that it was trained on as --base BASE"),
    "with a rank": ({"rank": 2}, "has no rank and no error; leave --rank and --max-error out"),
    "with magnitudes": ({"keep_dora": True}, "has the magnitudes in it; leave --keep-dora out"),
    "for diffusers": ({"scheme": "diffusers"}, "no program reads full differences under names as"),
    "for PEFT": ({"scheme": "peft"}, "no program reads full differences under names as"),
    "for musubi-tuner": ({"scheme": "musubi"}, "no program reads full differences under names as"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(options, says, tmp_path):
    base = layouts.flux(width=4)
    source = written(tmp_path, "a.safetensors", kohya("lora_unet_", factors(base, PATHS, dora=True)), FLUX)
    asked = {"base": written(tmp_path, "b.safetensors", base), "algorithm": "full"} | options
    with pytest.raises(LoraInspectError, match=says):
        convert_to_standard(source, str(tmp_path / "o"), ConvertOptions(**asked))


def test_names_of_pipelines_need_others(tmp_path):
    base = layouts.flux_in_diffusers(layouts.flux(width=4))
    with pytest.raises(LoraInspectError, match="choose names under which some do with --to, for instance --to kohya"):
        converted(tmp_path, dotted("transformer.", factors(base, ["norm_out.linear"])), base)


def test_what_the_base_lacks_is_refused(tmp_path):
    base = layouts.flux(width=4)
    adapter = kohya("lora_unet_", factors(base, PATHS))
    del base["final_layer.linear.weight"]
    with pytest.raises(LoraInspectError, match=r"1 modules change what .* lacks \(lora_unet_final_layer_linear\)"):
        converted(tmp_path, adapter, base)


def test_a_bias_that_the_base_lacks_is_refused(tmp_path):
    base = layouts.flux(width=4)
    adapter = kohya("lora_unet_", factors(base, ["final_layer.linear"]))
    adapter["lora_unet_final_layer_linear.lora_up.bias"] = torch.ones(4)
    del base["final_layer.linear.bias"]
    with pytest.raises(LoraInspectError, match=r"1 modules change what .* lacks \(lora_unet_final_layer_linear\)"):
        converted(tmp_path, adapter, base)


def test_single_experts_on_a_base_of_all(tmp_path):
    mlp, generator = "model.layers.0.mlp.experts", torch.Generator().manual_seed(0)
    sizes = {"gate_proj": (6, 8), "up_proj": (6, 8), "down_proj": (8, 6)}
    single = {
        f"{mlp}.{at}.{leaf}.weight": torch.randn(shape, generator=generator)
        for at in range(3)
        for leaf, shape in sizes.items()
    }
    experts = [{leaf: single[f"{mlp}.{at}.{leaf}.weight"] for leaf in sizes} for at in range(3)]
    fused = {
        f"{mlp}.gate_up_proj": torch.stack([torch.cat([own["gate_proj"], own["up_proj"]]) for own in experts]),
        f"{mlp}.down_proj": torch.stack([own["down_proj"] for own in experts]),
    }
    adapter = factors(single, [name.removesuffix(".weight") for name in single], dora=True)
    _, found = converted(tmp_path, dotted("diffusion_model.", adapter), fused, None)
    for path, own in adapter.items():
        weight = single[f"{path}.weight"]
        change = own.folded(weight, 1.0, False)[0] - weight.double()
        assert_near(found.pop(f"diffusion_model.{path}.diff"), change)
    assert not found


def test_parts_of_a_layer_that_change_its_bias_each(tmp_path):
    base = layouts.flux_in_diffusers(layouts.flux(width=4))
    paths = [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"]
    tensors = kohya("lora_transformer_", factors(base, paths))
    tensors["lora_transformer_transformer_blocks_0_attn_to_q.diff_b"] = torch.ones(4)
    with pytest.raises(LoraInspectError, match="become one layer in the output, and some of them change a parameter"):
        converted(tmp_path, tensors, base, scheme="comfyui")


def test_what_is_not_finite_is_refused_and_nothing_is_left(tmp_path):
    base = layouts.flux(width=4)
    adapter = kohya("lora_unet_", factors(base, PATHS, dora=True))
    base["final_layer.linear.weight"][2] = float("inf")
    with pytest.raises(LoraInspectError, match=r"lora_unet_final_layer_linear makes to .* is not finite"):
        converted(tmp_path, adapter, base)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.safetensors", "base.safetensors"]


def test_the_proof_finds_a_difference_that_is_another(tmp_path, monkeypatch):
    base = layouts.flux(width=4)
    computed = full_delta.FullDelta.matrix
    calls = []

    def once_wrong(change):
        calls.append(change)
        return computed(change) * (1.001 if len(calls) == 1 else 1.0)

    monkeypatch.setattr(full_delta.FullDelta, "matrix", once_wrong)
    with pytest.raises(LoraInspectError, match=r"differs by 0\.00"):
        converted(tmp_path, kohya("lora_unet_", factors(base, PATHS)), base)
