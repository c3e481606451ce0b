"""forward = merge = formula = the real library, for every algorithm on every kind of layer it is for."""

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from library_case import apply
from safetensors.torch import load_file, save_file

from lora_inspect import open_adapter
from lora_inspect.algorithms import every
from lora_inspect.architectures.rows import Runs
from lora_inspect.converting.arranged_rows import arrange
from lora_inspect.converting.asked_full import becomes_full
from lora_inspect.converting.growth import Growth
from lora_inspect.converting.part import read_parts
from lora_inspect.converting.relayout import Destination, Source
from lora_inspect.converting.scaled_factors import as_factor
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.matching.place import Place, Placed
from lora_inspect.maths.dora import OF_STORED_ROWS, SPELLINGS
from lora_inspect.merging import folded_weights
from lora_inspect.merging.lone_change import needs_weight
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.contribution import Module

pytestmark = pytest.mark.numeric
HERE = Path(__file__).parent
COMPUTED = {name for name, algorithm in every().items() if algorithm.formula}


def load(path):
    spec = importlib.util.spec_from_file_location(f"cases_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.cases())


CASES = {path.stem: load(path) for path in sorted((HERE / "cases").glob("*.py"))}
EVERY = [pytest.param(case, id=f"{name}: {case.id}") for name, cases in CASES.items() for case in cases]


def test_every_algorithm_that_is_computed_has_cases(tmp_path):
    found = set()
    for case in (case for cases in CASES.values() for case in cases):
        _, adapter = write(case, tmp_path)
        adapter = read_adapter(open_checkpoint(adapter))
        found |= {contribution.algorithm.name for contribution in adapter.contributions}
    assert found == COMPUTED


# That of mlx-lm stands in files of another form, and is looked at in tests of its own.
PLAIN = tuple(suffix for suffix in SPELLINGS if suffix != OF_STORED_ROWS)
DECOMPOSED = [each for each in EVERY if any(key.endswith(PLAIN) for key in each.values[0].tensors)]


def write(case, folder):
    """The base and the adapter of a case, as files."""
    save_file(case.base, folder / "base.safetensors")
    adapter = weights = folder / "adapter.safetensors"
    if case.config is not None:
        adapter = folder / "adapter"
        adapter.mkdir(exist_ok=True)
        (adapter / "adapter_config.json").write_text(json.dumps(case.config))
        weights = adapter / "adapter_model.safetensors"
    save_file(dict(case.tensors), weights, metadata=dict(case.metadata))
    return str(folder / "base.safetensors"), str(adapter)


def merge_files(base, adapter, multiplier, options, output):
    merge(plan_merge(base, [(adapter, multiplier)], options), str(output), force=True)
    return load_file(output)


@pytest.fixture
def merged(tmp_path, monkeypatch):
    """The layer's tensors with the case's adapter merged into them."""

    def run(case, multiplier, elements):
        monkeypatch.setattr(folded_weights, "BLOCK_ELEMENTS", elements)
        options = MergeOptions(dora_rule=case.dora_rule)
        return merge_files(*write(case, tmp_path), multiplier, options, tmp_path / "merged.safetensors")

    return run


def assert_close(found, expected, bound):
    largest = float(expected.abs().max())
    assert found.shape == expected.shape
    assert float((found.double() - expected.double()).abs().max()) <= bound * largest


@pytest.mark.parametrize("case", EVERY)
def test_forward_merge_formula_and_library_agree(case, merged):
    for multiplier in case.multipliers:
        found = merged(case, multiplier, 1 << 20)
        for name, expected in case.oracle(multiplier).items():
            assert_close(found[name], expected, case.bound)
        output = apply(case.layer, found, case.input)
        assert_close(output, case.library(multiplier), case.bound)
        if case.forward:
            assert_close(case.forward(multiplier), output, case.bound)
        # A change that is none would agree with anything.
        assert any(not torch.equal(found[name], case.base[name]) for name in found)


@pytest.mark.parametrize("case", EVERY)
def test_the_delta_of_a_module_is_the_change(case, tmp_path):
    adapter = open_adapter(write(case, tmp_path)[1])
    (module,) = adapter.modules
    for name, expected in case.oracle(1.0).items():
        parameter, weight = name.removeprefix("layer."), case.base[name]
        own = [one for one in adapter._info.adapter.modules[module.key].changes if one.algorithm.parameter == parameter]
        if not own:
            assert torch.equal(expected, weight.double())
            with pytest.raises(ValueError, match=f"changes no {parameter}"):
                module.delta(weight, parameter=parameter)
            continue
        if any(one.algorithm.experts or one.formula.seen for one in own):
            with pytest.raises(LoraInspectError, match="merge the adapter into its base"):
                module.delta(weight, parameter=parameter)
            continue
        largest, change = float(expected.abs().max()), expected - weight.double()
        found = module.delta(weight, parameter=parameter, dtype=torch.float64)
        assert found.shape == weight.shape
        assert float((found - change).abs().max()) <= case.bound * largest
        if any(map(needs_weight, own)):
            with pytest.raises(LoraInspectError, match="give the base's weight"):
                module.delta(parameter=parameter)
        elif None not in own[0].shape:
            alone = module.delta(parameter=parameter, dtype=torch.float64)
            # PEFT has a second side of 1 on the kernels of all that it factorises, as on those of Conv2d.
            flat = weight.flatten(min(1, weight.dim() - 1)).shape
            assert alone.shape in (weight.shape, flat, (*weight.shape, 1))
            assert float((alone.reshape(weight.shape) - change).abs().max()) <= case.bound * largest


@pytest.mark.parametrize("case", EVERY)
def test_blocks_of_any_size_give_the_same(case, merged):
    multiplier = case.multipliers[-1] if 0.5 not in case.multipliers else 0.5
    whole = merged(case, multiplier, 1 << 20)
    for elements in (1, 37):
        for name, tensor in merged(case, multiplier, elements).items():
            assert_close(tensor, whole[name], case.bound)


def placed_alone(case, folder):
    """Each contribution of a case in its place, with the tensors that its change is made of."""
    base, adapter = write(case, folder)
    targets = open_checkpoint(base).tensors
    for contribution in read_adapter(open_checkpoint(adapter)).contributions:
        place = Place(
            targets[f"layer.{contribution.algorithm.parameter}"], None, bool(contribution.algorithm.transposed)
        )
        infos = dict(contribution.operands)
        if contribution.magnitude:
            infos["magnitude"] = contribution.magnitude.info
        tensors = {role: case.tensors[info.name] for role, info in infos.items()}
        positions = {role: tensors[role].long() for role in tensors if role in contribution.algorithm.positions}
        yield Placed(contribution, place), tensors | positions


@pytest.mark.parametrize("case", EVERY)
def test_shapes_tell_which_rows_belong_together(case, tmp_path):
    for placed, tensors in placed_alone(case, tmp_path):
        contribution = placed.contribution._replace(magnitude=None)
        change = placed._replace(contribution=contribution, place=placed.place._replace(transposed=False))
        if not placed.place.transposed:
            assert contribution.formula.together(contribution.shapes) == change.change(tensors).together


@pytest.mark.parametrize("case", EVERY)
def test_an_algorithm_says_whether_its_change_depends_on_the_weight(case, tmp_path):
    for placed, tensors in placed_alone(case, tmp_path):
        weight = case.base[placed.place.target.name]
        weight = weight.flatten(1) if weight.dim() > 1 else weight.unsqueeze(1)
        differences = []
        for whole in (weight, 2 * weight):
            rows = whole.clone()
            change = placed.change(tensors).settled(lambda whole=whole: iter([(0, whole.clone())]), 1.0)
            change.fold(rows, 0, 1.0)
            differences.append(rows - whole)
        if not differences[0].any():
            continue  # the bias alone is changed
        same = float((differences[0] - differences[1]).abs().max()) <= case.bound * float(weight.abs().max())
        assert same is not (placed.contribution.multiplies or placed.contribution.algorithm.replaces)


@pytest.mark.parametrize("case", EVERY)
def test_a_multiplier_that_no_program_defines_is_refused(case, tmp_path):
    base, adapter = write(case, tmp_path)
    algorithms = [contribution.algorithm for contribution in read_adapter(open_checkpoint(adapter)).contributions]
    if all(algorithm.blends and not algorithm.replaces for algorithm in algorithms):
        assert case.multipliers != (1.0,)
        plan_merge(base, [(adapter, 0.5)], MergeOptions(dora_rule=case.dora_rule))
    else:
        assert case.multipliers == (1.0,)
        with pytest.raises(LoraInspectError, match=r"give 1, or 0|give it 1 or 0"):
            plan_merge(base, [(adapter, 0.5)], MergeOptions())


# Those beside whose tensors some program writes an alpha.
WITH_ALPHA = {"glora", "old_glora", "loha", "lokr", "lokr_rows", "lora", "lora_bias", "lora_embedding"}
WITH_ALPHA |= {"oft", "lycoris_boft", "tlora", "bdlora", "kasa", "lora_experts", "lora_embedding_along_tokens"}


@pytest.mark.parametrize("case", EVERY)
def test_an_alpha_that_nothing_takes_is_left_and_named(case, tmp_path):
    adapter = read_adapter(open_checkpoint(write(case, tmp_path)[1]))
    for module in adapter.modules.values():
        if module.contributions[0].algorithm.name == "saved":  # where it would be one more parameter of the base
            continue
        alone = {contribution.algorithm.name for contribution in module.contributions}.isdisjoint(WITH_ALPHA)
        key = f"{module.name.key}.alpha"
        again = replace(case, tensors={**case.tensors, key: torch.tensor(3.0)})
        assert (key in read_adapter(open_checkpoint(write(again, tmp_path)[1])).unclaimed) == alone


@pytest.mark.parametrize("case", EVERY)
def test_a_multiplier_of_0_is_no_change_at_all(case, merged):
    found = merged(case, 0.0, 1 << 20)
    assert all(torch.equal(found[name], tensor) for name, tensor in case.base.items())


@pytest.mark.parametrize("case", EVERY)
def test_its_standard_form_merges_to_the_same(case, tmp_path):
    base, adapter = write(case, tmp_path)
    dora = any(key.endswith(tuple(SPELLINGS)) for key in case.tensors)
    # What has llama.cpp's names becomes a folder of PEFT.
    is_folder = case.config is not None or any(key.endswith(".weight.lora_a") for key in case.tensors)
    output = str(tmp_path / ("standard" if is_folder else "standard.safetensors"))
    result = convert_to_standard(adapter, output, ConvertOptions(keep_dora=dora))
    assert result.exact
    before = merge_files(base, adapter, 1.0, MergeOptions(), tmp_path / "before.safetensors")
    after = merge_files(base, result.output, 1.0, MergeOptions(), tmp_path / "after.safetensors")
    for name, tensor in before.items():
        # Where alpha goes through a float32, and where programs add another number to a norm.
        assert_close(after[name], tensor, max(case.bound, 1e-6))


def parts_with_rows(case, folder):
    """The parts of a case whose rows can be arranged, each with its change as a matrix."""
    for module in read_adapter(open_checkpoint(write(case, folder)[1])).modules.values():
        for part in read_parts(module):
            by_role = part.algorithm.rows
            if part.factors.keys() <= by_role.keys() | set(by_role.values()):
                yield part, changed(part)


def changed(part):
    factors = {role: as_factor(factor).values for role, factor in part.factors.items()}
    shape = part.formula.shape(part.shapes)
    matrix = torch.zeros(shape[0], math.prod(shape[1:]), dtype=torch.float64)
    part.formula.change(factors, part.scale, part.origin.alpha, **part.origin.settings).fold(matrix, 0, 1.0)
    return matrix


def test_rows_of_its_factors_are_rows_of_its_change(tmp_path):
    found = set()
    for case in (case for cases in CASES.values() for case in cases):
        for part, change in parts_with_rows(case, tmp_path):
            found.add(part.algorithm.name)
            has_kernel = any(len(part.shapes[other]) > 2 for other in part.algorithm.rows.values() if other)
            if len(change) < 3 or has_kernel:
                continue
            module, growth = Module(part.origin.module, ()), Growth("", 0, allowed=True)
            part = replace(part, magnitude=None)
            rows, half = len(change), (len(change) - 1) // 2
            # The rows from 1 on, in two runs whose order is turned round.
            runs = Runs(0, half, 1 + half, 2, half, -half)
            taken = Destination(module, (Source(module, runs),), runs.rows)
            (few,) = arrange(taken, [[part]], "alpha", growth)
            order = [source + at for first, last, source in runs.each() for at in range(last - first)]
            torch.testing.assert_close(changed(few), change[order])
            # Between rows of zeros, below itself at another scale.
            both = (Source(module, Runs(2, rows)), Source(module, Runs(rows + 3, rows)))
            (whole,) = arrange(
                Destination(module, both, 2 * rows + 4), [[part], [replace(part, scale=-3.0)]], "alpha", growth
            )
            expected = torch.zeros(2 * rows + 4, change.shape[1], dtype=torch.float64)
            expected[2 : rows + 2], expected[rows + 3 : 2 * rows + 3] = change, change * (-3.0 / part.scale)
            torch.testing.assert_close(changed(whole), expected)
            assert whole.rank == part.rank
    assert found == {name for name, algorithm in every().items() if algorithm.rows}


SIDES = ("lora_down", "lora_A", "lora_up", "lora_B")


def added(weights, config):
    """What a reader of alpha and rank adds to the weight of a file's one module, and the roles that it finds there."""
    tensors = {key.replace("lora_embedding_", "lora_").removesuffix(".weight"): t for key, t in weights.items()}
    sides = {name: tensor for key, tensor in tensors.items() for name in SIDES if key.endswith(name)}
    (down, up), alphas = (
        [next(sides[name].double() for name in names if name in sides) for names in (SIDES[:2], SIDES[2:])],
        [float(tensor) for key, tensor in tensors.items() if key.endswith(".alpha")],
    )
    alpha = alphas[0] if alphas else config["lora_alpha"] if config else len(down)
    return alpha / len(down) * up.flatten(1) @ down.flatten(1), tensors.keys()


@pytest.mark.parametrize("case", DECOMPOSED)
def test_its_true_change_is_a_plain_lora(case, tmp_path):
    base, adapter = write(case, tmp_path)
    output = str(tmp_path / ("plain" if case.config is not None else "plain.safetensors"))
    result = convert_to_standard(adapter, output, ConvertOptions(base=base, rank=1000))
    folder = Path(result.output)
    if case.config is not None:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
    else:
        tensors, config = load_file(folder), None
    change, keys = added(tensors, config)
    weight = case.base["layer.weight"]
    assert {key.rpartition(".")[2] for key in keys} <= {*SIDES, "alpha"}
    # PEFT looks for the factors of an Embedding under names of their own.
    is_embedding = isinstance(case.layer, torch.nn.Embedding)
    assert len([key for key in tensors if ".lora_embedding_" in key]) == (2 if is_embedding else 0)
    assert result.target["algorithm"] == ("lora_embedding" if is_embedding else "lora")
    if not is_embedding:
        ones = (1,) * len(weight.shape[2:])
        assert {tensor.shape[2:] for key, tensor in tensors.items() if ".lora_up" in key or ".lora_B" in key} == {ones}
        downs = {tensor.shape[1:] for key, tensor in tensors.items() if ".lora_down" in key or ".lora_A" in key}
        assert downs == {weight.shape[1:]}
    change = change.T if is_embedding else change
    changed = {**case.base, "layer.weight": (weight.double() + change.reshape(weight.shape)).to(weight.dtype)}
    # The factors are rounded to float32.
    assert_close(changed["layer.weight"], case.oracle(1.0)["layer.weight"], max(case.bound, 1e-5))
    assert_close(apply(case.layer, changed, case.input), case.library(1.0), max(case.bound, 1e-5))


@pytest.mark.parametrize("case", EVERY)
def test_its_full_difference_is_what_becomes_of_the_layer(case, tmp_path):
    base, adapter = write(case, tmp_path)
    contributions = list(read_adapter(open_checkpoint(adapter)).contributions)
    # Underscored names of no known family stay as they are; of others LyCORIS's take any.
    scheme = None if any(key.startswith("lora_transformer_") for key in case.tensors) else "lycoris"
    options = ConvertOptions(base=base, algorithm="full", scheme=scheme, allow_growth=True)
    output = tmp_path / "full.safetensors"
    if any(one.algorithm.experts or one.algorithm.transposed for one in contributions):
        with pytest.raises(LoraInspectError, match="of which no program reads a full difference; merge it"):
            convert_to_standard(adapter, str(output), options)
        return
    if not any(becomes_full(one.algorithm) for one in contributions):
        return
    result = convert_to_standard(adapter, str(output), options)
    assert result.exact
    assert result.verified.modules == result.modules == 1
    differences = load_file(output)
    prefix = "lycoris_" if scheme else "lora_transformer_"
    ends = {f"{prefix}layer{suffix}": f"layer.{name}" for suffix, name in ((".diff", "weight"), (".diff_b", "bias"))}
    assert differences.keys() <= ends.keys()
    assert {tensor.dtype for tensor in differences.values()} == {torch.float32}
    expected = case.oracle(1.0)
    for key, name in ends.items():
        if key not in differences:
            assert name not in expected or torch.equal(expected[name].double(), case.base[name].double())
            continue
        due = expected[name].double() - case.base[name].double()
        # The difference is rounded once, and the oracle has the bound of its library.
        bound = 2.0**-23 * float(due.abs().max()) + case.bound * float(expected[name].abs().max())
        assert float((differences[key].double() - due).abs().max()) <= bound
