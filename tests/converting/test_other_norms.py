"""DoRA for ComfyUI with a base: its own formula makes of the output what was trained, and ours too.

ComfyUI (`weight_decompose`): W + m * (dora_scale / (|W| + 2^-23) * V - W) by rows, where trainers divide by |V|.
"""

import json

import layouts
import pytest
import torch
from adapters import dotted, factors, kohya
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_inspect.converting.steps import dora_delta, renormalise
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.programs import added
from lora_inspect.programs.record import BASE_NORM, COMPUTES, OTHER_AXIS, SILENT, Loader, Program, Rule, Strangers
from lora_inspect.reading.file_info import inspect
from lora_inspect.reading.scale.dora_evidence import NORMS_KEY, NormsRecord
from lora_inspect.reporting.file_record import as_json

pytestmark = pytest.mark.numeric

EPS = 2.0**-23
FLUX = {"ss_base_model_version": "flux1"}
SPLIT = [
    *(f"transformer_blocks.0.attn.to_{part}" for part in "qkv"), "transformer_blocks.0.attn.to_out.0",
    *(f"single_transformer_blocks.0.attn.to_{part}" for part in "qkv"), "single_transformer_blocks.0.proj_mlp",
    "norm_out.linear",
]  # fmt: skip
FUSED = ["double_blocks.0.img_attn.qkv", "double_blocks.0.img_mlp.2", "single_blocks.0.linear1", "final_layer.linear"]


def one_dimensional(prefix, adapter):
    """Kohya's names with the magnitude of musubi-tuner's offspring."""
    return {
        key.replace(".dora_scale", ".dora_layer.weight"): tensor.flatten() if "dora_scale" in key else tensor
        for key, tensor in kohya(prefix, adapter).items()
    }


SPELLINGS = {
    "dora_scale": (FUSED, kohya, "lora_unet_"),
    "dora_layer": (FUSED, one_dimensional, "lora_unet_"),
    "magnitude vectors": (FUSED, dotted, "diffusion_model."),
    "magnitude vectors of parts": (SPLIT, dotted, "transformer."),
    "dora_scale of parts": (SPLIT, kohya, "lora_transformer_"),
}


def comfyui(weight, tensors, name, strength):
    """What its `weight_decompose` makes of a weight, in float64; the shapes are those that it broadcasts."""
    weight, down, up = (
        one.double() for one in (weight, tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"])
    )
    scale = float(tensors[f"{name}.alpha"]) / down.shape[0]
    combined = weight + (scale * up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    magnitude = tensors[f"{name}.dora_scale"].double()
    assert magnitude.shape == (len(weight), *(1 for _ in weight.shape[1:]))
    norm = weight.flatten(1).norm(dim=1).reshape(magnitude.shape) + EPS
    return weight + strength * (combined * (magnitude / norm) - weight)


def written(folder, name, tensors, metadata=None):
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, folder / name, metadata)
    return str(folder / name)


def converted(folder, adapter, base, metadata=FLUX, **options):
    source = adapter if isinstance(adapter, str) else written(folder, "adapter.safetensors", adapter, metadata)
    base = base if isinstance(base, str) else written(folder, "base.safetensors", base)
    output = str(folder / "comfyui.safetensors")
    result = convert_to_standard(source, output, ConvertOptions(base=base, scheme="comfyui", **options), force=True)
    return result, load_file(output)


def merged(folder, base, adapter, multiplier=1.0):
    merge(plan_merge(base, [(adapter, multiplier)], MergeOptions()), str(folder / "merged.safetensors"), force=True)
    return load_file(folder / "merged.safetensors")


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def assert_near(found, expected, weight):
    """Weights in float32, of a change that is a part of their size."""
    assert float((found - expected).norm()) <= 1e-6 * float(expected.norm())
    assert float((weight - expected).norm()) > 0.1 * float(expected.norm())


@pytest.mark.parametrize("elements", [1 << 20, 24], ids=["in one block", "in tiny blocks"])
@pytest.mark.parametrize("of_base", ["original", "diffusers"])
@pytest.mark.parametrize(("paths", "spell", "prefix"), SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.slow
def test_comfyui_makes_what_was_trained(paths, spell, prefix, of_base, elements, tmp_path, monkeypatch):
    monkeypatch.setattr(dora_delta, "BLOCK_ELEMENTS", elements)
    monkeypatch.setattr(renormalise, "BLOCK_ELEMENTS", elements)
    original = layouts.flux(width=4)
    diffusers = layouts.flux_in_diffusers(original)
    own = diffusers if paths is SPLIT else original
    adapter = factors(own, paths, dora=True)
    result, tensors = converted(tmp_path, spell(prefix, adapter), original if of_base == "original" else diffusers)
    assert (result.exact, result.source["norms"], result.target["norms"]) == (True, "sum", "base")
    assert result.verified.modules == result.modules == 4
    for strength in (1.0, 0.5, -0.25):
        found = {name: weight.double() for name, weight in original.items()}
        for key in (key for key in tensors if key.endswith(".dora_scale")):
            name = key.removesuffix(".dora_scale")
            weight = f"{name.removeprefix('diffusion_model.')}.weight"
            found[weight] = comfyui(original[weight], tensors, name, strength)
        found = layouts.flux_in_diffusers(found) if paths is SPLIT else found
        for path, layer in adapter.items():
            weight = own[f"{path}.weight"]
            trained = layer.folded(weight, 1.0, False)[0]
            assert_near(found[f"{path}.weight"], weight + strength * (trained - weight), weight.double())


@pytest.mark.parametrize("spell", [kohya, one_dimensional])
@pytest.mark.parametrize("of_base", ["original", "diffusers"])
def test_convolutions_of_sdxl(of_base, spell, tmp_path):
    diffusers, names = layouts.sdxl()
    original = {ours: diffusers[theirs] for theirs, ours in names.items()}
    layers = ["input_blocks.1.0.in_layers.2", "output_blocks.0.0.skip_connection", "input_blocks.4.1.proj_in"]
    layers += [
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
        "input_blocks.8.1.transformer_blocks.1.ff.net.0.proj",
    ]
    adapter = factors(original, layers, dora=True)
    metadata = {"ss_base_model_version": "sdxl_base_v1-0"}
    base = original if of_base == "original" else diffusers
    result, tensors = converted(tmp_path, spell("lora_unet_", adapter), base, metadata)
    assert result.exact
    for path, layer in adapter.items():
        weight = original[f"{path}.weight"]
        found = comfyui(weight, tensors, f"diffusion_model.{path}", 1.0)
        assert_near(found, layer.folded(weight, 1.0, False)[0], weight.double())


@pytest.fixture
def corrected(tmp_path):
    """(a base, an adapter of it, the same for ComfyUI) as files."""
    base = layouts.flux(width=4)
    adapter = written(tmp_path, "adapter.safetensors", kohya("lora_unet_", factors(base, FUSED, dora=True)), FLUX)
    converted(tmp_path, adapter, base)
    return str(tmp_path / "base.safetensors"), adapter, str(tmp_path / "comfyui.safetensors")


@pytest.mark.parametrize("multiplier", [1.0, 0.6, 0.0])
def test_a_merge_of_the_output_is_that_of_the_input(multiplier, corrected, tmp_path):
    """Both interpolate, as `dora_scale` does."""
    base, adapter, output = corrected
    meant, found = (merged(tmp_path, base, one, multiplier) for one in (adapter, output))
    assert meant.keys() == found.keys()
    for name, value in meant.items():
        assert float((found[name] - value).norm()) <= 1e-6 * float(value.norm())
    assert multiplier == 0.0 or not torch.equal(
        meant["final_layer.linear.weight"], load_file(base)["final_layer.linear.weight"]
    )


@pytest.mark.parametrize("rule", ["lycoris", "interpolate", "inside"])
def test_the_rule_of_a_multiplier_can_be_chosen_but_for_that_of_a_norm_nobody_knows(rule, corrected, tmp_path):
    base, adapter, output = corrected
    options, found = MergeOptions(dora_rule=rule), []
    if rule == "inside":
        with pytest.raises(
            LoraInspectError, match=r"comfyui\.safetensors: its magnitudes are over the norms of the base"
        ):
            plan_merge(base, [(output, 0.5)], options)
        return
    for one in (adapter, output):
        merge(plan_merge(base, [(one, 0.5)], options), str(tmp_path / "merged.safetensors"), force=True)
        found.append(load_file(tmp_path / "merged.safetensors"))
    for name, value in found[0].items():
        assert float((found[1][name] - value).norm()) <= 1e-6 * float(value.norm())


def test_the_plain_lora_of_the_output_is_that_of_the_input(corrected, tmp_path):
    base, adapter, output = corrected
    plain = []
    for at, source in enumerate((adapter, output)):
        path = str(tmp_path / f"plain{at}.safetensors")
        convert_to_standard(source, path, ConvertOptions(base=base, rank=1000))
        own = load_file(path)
        prefix = "lora_unet_final_layer_linear" if source is adapter else "diffusion_model.final_layer.linear"
        plain.append(own[f"{prefix}.lora_up.weight"].double() @ own[f"{prefix}.lora_down.weight"].double())
        assert NORMS_KEY not in metadata_of(path)
    assert float((plain[0] - plain[1]).norm()) <= 1e-5 * float(plain[0].norm())


def test_the_file_says_for_which_base_it_is_and_is_read_so(corrected):
    _, adapter, output = corrected
    record = json.loads(metadata_of(output)[NORMS_KEY])
    assert record.keys() == {"of", "base", "weight", "sha256"}
    assert (record["of"], record["base"]) == ("base", "base.safetensors")
    assert record["weight"] == "double_blocks.0.img_attn.qkv.weight"
    read = as_json(inspect(output))
    assert read["dora"] == {"value": True, "source": "key-scan", "modules": 4, "axis": "output", "norms": "base"}
    says = {item["where"]: item["says"] for item in read["evidence"] if item["about"] == "dora"}
    assert (
        "4 magnitudes of outputs are over the norms of the base's rows (those of base.safetensors)"
        in says[f"metadata {NORMS_KEY}"]
    )
    assert as_json(inspect(adapter))["dora"]["norms"] == "sum"


def test_another_base_is_noted(corrected, tmp_path):
    base, adapter, output = corrected
    assert not plan_merge(base, [(output, 1.0)], MergeOptions()).notes
    other = load_file(base)
    other["double_blocks.0.img_attn.qkv.weight"][0, 0] += 1
    other = written(tmp_path, "other.safetensors", other)
    (note,) = plan_merge(other, [(output, 1.0)], MergeOptions()).notes
    assert "over the norms of base.safetensors, but double_blocks.0.img_attn.qkv.weight there has other bytes" in note
    assert not plan_merge(other, [(adapter, 1.0)], MergeOptions()).notes
    plain = {key: tensor for key, tensor in load_file(output).items() if "dora" not in key}
    plain = written(tmp_path, "plain.safetensors", plain, metadata_of(output))
    assert not plan_merge(other, [(plain, 1.0)], MergeOptions()).notes
    result = convert_to_standard(output, str(tmp_path / "o.safetensors"), ConvertOptions(base=other, rank=1000))
    assert [note] == [one for one in result.notes if "other bytes" in one]


def test_it_stays_what_it_is_where_its_names_stay(corrected, tmp_path):
    _, _, output = corrected
    for options in ({"keep_dora": True}, {"scheme": "comfyui"}, {"scheme": "kohya", "keep_dora": True}):
        path = str(tmp_path / "again.safetensors")
        result = convert_to_standard(output, path, ConvertOptions(**options), force=True)
        assert result.target["norms"] == "base"
        assert metadata_of(path)[NORMS_KEY] == metadata_of(output)[NORMS_KEY]
        assert any("only ComfyUI and Forge" in remark for remark in result.remarks)


@pytest.mark.parametrize("scheme", ["diffusers", "lycoris", "peft", "onetrainer"])
def test_it_does_not_become_a_trainers_dora_without_the_base(scheme, corrected, tmp_path):
    base, adapter, output = corrected
    with pytest.raises(
        LoraInspectError, match=r"over the norms of the base.*--keep-dora with --base BASE.*--drop-magn"
    ):
        convert_to_standard(output, str(tmp_path / "out"), ConvertOptions(scheme=scheme, keep_dora=True))
    path = str(tmp_path / ("folder" if scheme == "peft" else "back.safetensors"))
    result = convert_to_standard(output, path, ConvertOptions(scheme=scheme, keep_dora=True, base=base))
    assert (result.exact, result.target["norms"]) == (True, "sum")
    assert any("of the changed weight again" in remark for remark in result.remarks)
    meant, found = merged(tmp_path, base, adapter), merged(tmp_path, base, path)
    assert all(float((found[name] - value).norm()) <= 1e-6 * float(value.norm()) for name, value in meant.items())


def toy(does, scheme):
    rule = Rule(prefixes=("lora_unet_",), kinds={"lora": COMPUTES}, magnitudes={".dora_scale output": does})
    return Program("toy", "Toy", "1.0", (Loader((rule,), Strangers(SILENT)),), {"": scheme})


def test_a_program_that_divides_so_under_names_of_others(tmp_path):
    base = layouts.flux(width=4)
    adapter = factors(base, FUSED, dora=True)
    source = written(tmp_path, "adapter.safetensors", dotted("diffusion_model.", adapter), FLUX)
    given, output = written(tmp_path, "base.safetensors", base), str(tmp_path / "toy.safetensors")
    with added(toy(BASE_NORM, "kohya")):
        with pytest.raises(
            LoraInspectError, match=r"norms of the base's weights, so the result would differ; choose --base BASE"
        ):
            convert_to_standard(source, output, ConvertOptions(program="toy"))
        result = convert_to_standard(source, output, ConvertOptions(program="toy", base=given))
    assert (result.target["scheme"], result.target["norms"]) == ("kohya", "base")
    for path, layer in adapter.items():
        weight = base[f"{path}.weight"]
        found = comfyui(weight, load_file(output), f"lora_unet_{path.replace('.', '_')}", 1.0)
        assert_near(found, layer.folded(weight, 1.0, False)[0], weight.double())


def test_a_program_that_divides_as_trainers_do_is_offered_their_magnitudes(corrected, tmp_path):
    base, _, output = corrected
    back = str(tmp_path / "back.safetensors")
    with added(toy(COMPUTES, "kohya")):
        with pytest.raises(
            LoraInspectError,
            match=r"over the norms of the base, so the result would differ; choose --keep-dora with --base BASE",
        ):
            convert_to_standard(output, back, ConvertOptions(program="toy"))
        result = convert_to_standard(output, back, ConvertOptions(program="toy", base=base, keep_dora=True))
    assert (result.target["norms"], result.exact, NORMS_KEY in metadata_of(back)) == ("sum", True, False)


def test_a_program_that_takes_the_other_axis_has_full_differences(tmp_path):
    base = layouts.flux(width=4)
    source = written(tmp_path, "adapter.safetensors", kohya("lora_unet_", factors(base, FUSED, dora=True)), FLUX)
    given, output = written(tmp_path, "base.safetensors", base), str(tmp_path / "toy.safetensors")
    with added(toy(OTHER_AXIS, "kohya")):
        with pytest.raises(LoraInspectError, match="--base BASE with --algorithm full"):
            convert_to_standard(source, output, ConvertOptions(program="toy"))
        convert_to_standard(source, output, ConvertOptions(program="toy", base=given, algorithm="full"))
    assert {key.rpartition(".")[2] for key in load_file(output)} == {"diff"}


def test_a_difference_beside_it_is_in_either_norm(tmp_path):
    """What is added to the weight comes first, so that the base of the norms is W + diff."""
    base, path = layouts.flux(width=4), "final_layer.linear"
    tensors = kohya("lora_unet_", factors(base, [path], dora=True))
    tensors["lora_unet_final_layer_linear.diff"] = torch.randn(4, 4, generator=torch.Generator().manual_seed(2))
    given = written(tmp_path, "base.safetensors", base)
    marked = written(tmp_path, "a.safetensors", tensors, FLUX | {NORMS_KEY: NormsRecord("", "", "").text()})
    output = str(tmp_path / "back.safetensors")
    result = convert_to_standard(marked, output, ConvertOptions(base=given, keep_dora=True))
    assert (result.source["norms"], result.target["norms"], result.exact) == ("base", "sum", True)
    weight = base[f"{path}.weight"].double() + tensors["lora_unet_final_layer_linear.diff"].double()
    as_one = {f"{path}.weight": weight}
    name = "lora_unet_final_layer_linear"
    meant = comfyui(as_one[f"{path}.weight"], tensors, name, 1.0)
    for file in (marked, output):
        found = merged(tmp_path, given, file)[f"{path}.weight"].double()
        assert float((found - meant).norm()) <= 1e-6 * float(meant.norm())


def verdicts(printed):
    return {one["name"]: one["verdict"] for one in json.loads(printed)["programs"]}


def test_as_a_user_has_it(tmp_path, run):
    base = layouts.flux(width=4)
    adapter = written(tmp_path, "adapter.safetensors", kohya("lora_unet_", factors(base, FUSED, dora=True)), FLUX)
    given, output = written(tmp_path, "base.safetensors", base), tmp_path / "fit.safetensors"
    judged = run("compat", adapter, "--json").stdout
    assert {"comfyui": "DoRA wrong"}.items() <= verdicts(judged).items()
    ended = run("convert", adapter, "--to", "comfyui", "--base", given, "-o", output)
    assert "exact except for the rounding of float32" in ended.stdout
    assert "magnitudes of outputs are over the row norms of the base" in ended.stdout
    assert "over the norms of the base" in run("info", output).stdout
    assert verdicts(run("compat", output, "--json").stdout)["comfyui"] == "same meaning"
    told = run("convert", output, "--to", "comfyui", "-o", tmp_path / "again.safetensors", "--json").json
    assert (told["from"]["norms"], told["to"]["norms"], told["exact"]) == ("base", "base", True)
    assert (
        "but these are over the norms of the base"
        in run("convert", output, "--to", "diffusers", "-o", tmp_path / "no").refusal
    )


def test_the_magnitude_can_be_dropped(corrected, tmp_path):
    _, _, output = corrected
    result = convert_to_standard(output, str(tmp_path / "p.safetensors"), ConvertOptions(drop_magnitude=True))
    assert result.target["norms"] is None
    assert NORMS_KEY not in metadata_of(tmp_path / "p.safetensors")


def test_without_a_base_the_output_says_that_comfyui_makes_something_else(tmp_path):
    base = layouts.flux(width=4)
    adapter = written(tmp_path, "a.safetensors", kohya("lora_unet_", factors(base, FUSED, dora=True)), FLUX)
    output = str(tmp_path / "out.safetensors")
    with pytest.raises(LoraInspectError, match=r"it is DoRA .* choose --keep-dora"):
        convert_to_standard(adapter, output, ConvertOptions(scheme="comfyui"))
    result = convert_to_standard(adapter, output, ConvertOptions(scheme="comfyui", keep_dora=True))
    assert any("its change is not the trained one; give --base BASE" in remark for remark in result.remarks)
    assert (result.target["norms"], NORMS_KEY in metadata_of(output)) == ("sum", False)


def test_magnitudes_of_inputs_need_no_base_for_comfyui(tmp_path):
    base = layouts.flux(width=4)
    tensors = kohya("lora_unet_", factors(base, ["final_layer.linear"]))
    scale = torch.ones(1, 4)
    tensors["lora_unet_final_layer_linear.dora_scale"] = scale
    adapter, output = written(tmp_path, "a.safetensors", tensors, FLUX), str(tmp_path / "out.safetensors")
    with pytest.raises(LoraInspectError, match="stay as they are in the output, so --base has nothing to do"):
        converted(tmp_path, adapter, base)
    result = convert_to_standard(adapter, output, ConvertOptions(scheme="comfyui"))
    assert torch.equal(load_file(output)["diffusion_model.final_layer.linear.dora_scale"], scale)
    assert (result.target["norms"], result.target["dora"], NORMS_KEY in metadata_of(output)) == (None, True, False)


@pytest.mark.parametrize("row", ["of W", "of both"])
def test_a_row_of_no_length_is_exact(row, tmp_path):
    """ComfyUI divides it by its eps, and a row of V without length stays one."""
    base = layouts.flux(width=4)
    path = "final_layer.linear"
    adapter = factors(base, [path], dora=True)
    own = adapter[path]
    base[f"{path}.weight"][1] = 0.0
    if row == "of both":
        own.up[1] = 0.0
    _, tensors = converted(tmp_path, kohya("lora_unet_", adapter), base)
    weight = base[f"{path}.weight"].double()
    combined = weight + own.alpha / len(own.down) * own.up.double() @ own.down.double()
    meant = own.magnitude.double().reshape(-1, 1) * combined / (combined.norm(dim=1, keepdim=True) + EPS)
    found = comfyui(base[f"{path}.weight"], tensors, f"diffusion_model.{path}", 1.0)
    assert float((found - meant).norm()) <= 1e-6 * float(meant.norm())


def test_norms_that_are_no_numbers_are_refused(tmp_path):
    base = layouts.flux(width=4)
    adapter = kohya("lora_unet_", factors(base, FUSED, dora=True))
    base["double_blocks.0.img_mlp.2.weight"][1, 1] = float("inf")
    with pytest.raises(LoraInspectError, match=r"a magnitude of lora_unet_double_blocks_0_img_mlp_2 would be nan"):
        converted(tmp_path, adapter, base)


def test_a_module_that_the_base_lacks_is_refused(tmp_path):
    base = layouts.flux(width=4)
    adapter = kohya("lora_unet_", factors(base, FUSED, dora=True))
    del base["final_layer.linear.weight"]
    with pytest.raises(LoraInspectError, match=r"1 modules have no weight in .*final_layer_linear"):
        converted(tmp_path, adapter, base)


def test_a_base_is_asked_for_more_than_plain_names_can_use(corrected, tmp_path):
    base, adapter, _ = corrected
    output = str(tmp_path / "o.safetensors")
    for scheme in (None, "kohya"):
        with pytest.raises(
            LoraInspectError, match="set the accuracy of the approximation with --rank N or --max-error X"
        ):
            convert_to_standard(adapter, output, ConvertOptions(scheme=scheme, base=base))
        kept = ConvertOptions(scheme=scheme, base=base, keep_dora=True)
        with pytest.raises(LoraInspectError, match="--base has nothing to do; leave it out"):
            convert_to_standard(adapter, output, kept)


def test_the_proof_finds_a_mark_that_is_lost(corrected, tmp_path, monkeypatch):
    base, adapter, output = corrected
    monkeypatch.setattr("lora_inspect.ops.convert._norms", lambda *_: None)
    with pytest.raises(LoraInspectError, match=r"the output differs from .* \(.* differs by"):
        converted(tmp_path, adapter, base)
    with pytest.raises(LoraInspectError, match=r"the output differs from .* \(.* differs by inf"):
        convert_to_standard(output, str(tmp_path / "kept.safetensors"), ConvertOptions(keep_dora=True))


@pytest.mark.parametrize("layout", ["diffusers", None])
def test_loha_has_the_magnitude_of_its_own_change(layout, tmp_path):
    base = layouts.flux(width=4)
    name, generator = "lora_unet_double_blocks_0_img_attn_qkv", torch.Generator().manual_seed(0)
    sides = {
        f"hada_w{n}_{side}": torch.randn(*shape, generator=generator)
        for n in (1, 2)
        for side, shape in {"a": (12, 2), "b": (2, 4)}.items()
    }
    tensors = {f"{name}.{role}": side for role, side in sides.items()} | {f"{name}.alpha": torch.tensor(1.0)}
    tensors[f"{name}.dora_scale"] = 1 + torch.rand(12, 1, generator=generator)
    given = layouts.flux_in_diffusers(base) if layout else base
    _, found = converted(tmp_path, tensors, given)
    weight = base["double_blocks.0.img_attn.qkv.weight"].double()
    left, right = (sides[f"hada_w{n}_a"].double() @ sides[f"hada_w{n}_b"].double() for n in (1, 2))
    combined = weight + 0.5 * left * right
    meant = (
        tensors[f"{name}.dora_scale"].double()
        * (weight.norm(dim=1, keepdim=True) + EPS)
        / (combined.norm(dim=1, keepdim=True) + EPS)
    )
    written = found["diffusion_model.double_blocks.0.img_attn.qkv.dora_scale"]
    assert written.dtype == torch.float32
    torch.testing.assert_close(written.double(), meant, rtol=2.0**-22, atol=0)


def test_a_record_that_says_nothing_is_a_conflict(corrected, tmp_path):
    _, _, output = corrected
    tensors, metadata = load_file(output), metadata_of(output)
    for damaged in ("base", "{}", '{"of": "column"}', "["):
        path = written(tmp_path, "damaged.safetensors", tensors, metadata | {NORMS_KEY: damaged})
        with pytest.raises(LoraInspectError, match="does not say in a known form which norms"):
            plan_merge(str(tmp_path / "base.safetensors"), [(path, 1.0)], MergeOptions())
    respelled = {
        key.replace(".dora_scale", ".lora_magnitude_vector"): t.flatten() if "dora" in key else t
        for key, t in tensors.items()
    }
    path = written(tmp_path, "damaged.safetensors", respelled, metadata)
    assert open_checkpoint(path)
    with pytest.raises(LoraInspectError, match="lora_magnitude_vector is spelled for programs that divide by those"):
        plan_merge(str(tmp_path / "base.safetensors"), [(path, 1.0)], MergeOptions())
