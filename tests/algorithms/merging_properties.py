"""Properties of the merge of every case: it is the formula, the library and our own forward, however it is cut."""

import pytest
import torch
from every_case import WHOLE, WrittenCase, assert_close
from library_case import apply
from row_dependent_products import backwards, row_dependent_products, term_by_term

from lora_inspect import open_adapter
from lora_inspect.algorithms.record import SEEN
from lora_inspect.errors import LoraInspectError
from lora_inspect.maths.change import folded, settled
from lora_inspect.maths.dora import INPUT
from lora_inspect.merging.single_weight import needs_weight
from lora_inspect.ops.merge import MergeOptions, plan_merge

# These sum over the rows of the weight in float64, whose own last bit shows how they are cut.
SUMMED = {"deft", "frod", "peanut"}
# In float32, of the largest number of the weight; docs/merging.md states it.
LAST_DIGITS = 32 * 2.0**-24


def forward_merge_formula_and_library_agree(written: WrittenCase) -> None:
    case = written.case
    for multiplier in case.multipliers:
        found = written.merged(multiplier)
        for name, expected in case.oracle(multiplier).items():
            assert_close(found[name], expected, case.bound)
        output = apply(case.layer, found, case.input)
        assert_close(output, case.library(multiplier), case.bound)
        if case.forward:
            assert_close(case.forward(multiplier), output, case.bound)
        # A change that is none would agree with anything.
        assert any(not torch.equal(found[name], case.base[name]) for name in found)


def the_delta_of_a_module_is_the_change(written: WrittenCase) -> None:
    case, adapter = written.case, open_adapter(written.adapter)
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


def blocks_of_any_size_give_the_same(written: WrittenCase) -> None:
    case = written.case
    multiplier = case.multipliers[-1] if 0.5 not in case.multipliers else 0.5
    for elements in (1, 37):
        for name, tensor in written.merged(multiplier, elements).items():
            assert_close(tensor, written.merged(multiplier)[name], case.bound)


def what_becomes_of_rows_does_not_show_how_they_are_cut(written: WrittenCase) -> None:
    for placed, tensors in written.placed_alone():
        for dtype in (torch.float32, torch.float64):
            if dtype == torch.float64 and _is_summed(placed.contribution):
                continue
            with row_dependent_products():
                whole = _changed(written.case, placed, tensors, dtype, WHOLE)
                for rows in (1, 2, 3, 5, 7):
                    found = _changed(written.case, placed, tensors, dtype, rows)
                    assert torch.equal(found, whole), f"in blocks of {rows} rows of {dtype}"


def another_order_of_adding_changes_last_digits_alone(written: WrittenCase) -> None:
    for placed, tensors in written.placed_alone():
        found = _changed(written.case, placed, tensors, torch.float32, WHOLE)
        for kernel in (term_by_term, backwards):
            with row_dependent_products(lambda rows, columns, kernel=kernel: kernel):
                other = _changed(written.case, placed, tensors, torch.float32, WHOLE)
            assert float((found - other).abs().max()) <= LAST_DIGITS * float(found.abs().max())


def _changed(case, placed, tensors, dtype, count):
    """The parameter with the contribution in it, folded in blocks of so many rows."""
    algorithm = placed.contribution.algorithm
    own = {role: one if role in algorithm.positions else one.to(dtype) for role, one in tensors.items()}
    if placed.contribution.formula.seen:
        own[SEEN] = placed.contribution.formula.seen(own, _blocks_of(case.base["layer.weight"].to(dtype), count)(1))
    weight = case.base[placed.place.target.name].to(dtype)
    read = _blocks_of(weight.flatten(1) if weight.dim() > 1 else weight.unsqueeze(1), count)
    multiplier = 0.5 if 0.5 in case.multipliers else 1.0
    links = settled([(placed.change(own, case.dora_rule), multiplier)], read)
    return torch.cat([rows for _, rows in folded(links, read)])


def _blocks_of(weight, count):
    """Reads the weight in blocks of about so many rows, in memory of their own."""

    def read(together):
        step = len(weight) if together == 0 else max(together, count // together * together)
        return ((first, weight[first : first + step].clone()) for first in range(0, len(weight), step))

    return read


def _is_summed(contribution) -> bool:
    """True where it takes a sum over all rows of the weight, as it is stored."""
    algorithm, magnitude = contribution.algorithm, contribution.magnitude
    over_rows = magnitude is not None and (magnitude.axis == INPUT) != bool(algorithm.transposed)
    return over_rows or algorithm.name in SUMMED


def shapes_tell_which_rows_belong_together(written: WrittenCase) -> None:
    for placed, tensors in written.placed_alone():
        contribution = placed.contribution._replace(magnitude=None)
        change = placed._replace(contribution=contribution, place=placed.place._replace(transposed=False))
        if not placed.place.transposed:
            assert contribution.formula.together(contribution.shapes) == change.change(tensors).together


def an_algorithm_says_whether_its_change_depends_on_the_weight(written: WrittenCase) -> None:
    case = written.case
    for placed, tensors in written.placed_alone():
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


def a_multiplier_that_no_program_defines_is_refused(written: WrittenCase) -> None:
    case, named = written.case, [(written.adapter, 0.5)]
    if all(one.algorithm.blends and not one.algorithm.replaces for one in written.contributions):
        assert case.multipliers != (1.0,)
        plan_merge(written.base, named, MergeOptions(dora_rule=case.dora_rule))
    else:
        assert case.multipliers == (1.0,)
        with pytest.raises(LoraInspectError, match=r"give 1, or 0|give it 1 or 0"):
            plan_merge(written.base, named, MergeOptions())


def a_multiplier_of_0_is_no_change_at_all(written: WrittenCase) -> None:
    found = written.merged(0.0)
    assert all(torch.equal(found[name], tensor) for name, tensor in written.case.base.items())


OF_MERGING = (
    forward_merge_formula_and_library_agree,
    the_delta_of_a_module_is_the_change,
    blocks_of_any_size_give_the_same,
    what_becomes_of_rows_does_not_show_how_they_are_cut,
    another_order_of_adding_changes_last_digits_alone,
    shapes_tell_which_rows_belong_together,
    an_algorithm_says_whether_its_change_depends_on_the_weight,
    a_multiplier_that_no_program_defines_is_refused,
    a_multiplier_of_0_is_no_change_at_all,
)
