"""forward = merge = formula = the real library, for every algorithm on every kind of layer it is for.

A case is one test: its files are written once, and all properties that do not hold are named.
"""

import math
import traceback
from dataclasses import replace

import pytest
import torch
from converting_properties import OF_CONVERTING
from every_case import CASES, EVERY, WrittenCase, write
from merging_properties import OF_MERGING

from lora_inspect.algorithms import every
from lora_inspect.architectures.rows import Runs
from lora_inspect.converting.growth import Growth
from lora_inspect.converting.steps.part import as_factor, read_parts
from lora_inspect.converting.steps.split_fuse import arrange
from lora_inspect.converting.target.target_layout import Destination, Source
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.model.contribution import Module

pytestmark = pytest.mark.numeric
COMPUTED = {name for name, algorithm in every().items() if algorithm.formula}


@pytest.mark.parametrize("case", EVERY)
def test_every_property_holds(case, tmp_path):
    written, failures = WrittenCase(case, tmp_path), []
    for holds in (*OF_MERGING, *OF_CONVERTING):
        try:
            holds(written)
        except Exception:  # the next properties are looked at as well, and all failures are named
            failures.append(f"{holds.__name__}: {traceback.format_exc()}")
    assert not failures, "\n".join(failures)


def test_every_algorithm_that_is_computed_has_cases(tmp_path):
    found = set()
    for case in (case for cases in CASES.values() for case in cases):
        found |= {contribution.algorithm.name for contribution in WrittenCase(case, tmp_path).contributions}
    missing, unknown = sorted(COMPUTED - found), sorted(found - COMPUTED)
    assert not missing, f"add cases of {missing} to a file in tests/algorithms/cases/"
    assert not unknown


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
            part = replace(part, magnitude=None, error=0.125)
            rows, half = len(change), (len(change) - 1) // 2
            # The rows from 1 on, in two runs whose order is turned round.
            runs = Runs(0, half, 1 + half, 2, half, -half)
            taken = Destination(module, (Source(module, runs),), runs.rows)
            (few,) = arrange(taken, [[part]], "alpha", growth)
            order = [source + at for first, last, source in runs.each() for at in range(last - first)]
            torch.testing.assert_close(changed(few), change[order])
            # All that was lost may have been lost in these.
            lost, norm = 0.125 * float(change.norm()), float(change[order].norm())
            assert few.error == pytest.approx(lost / norm if norm else float(lost > 0))
            # Between rows of zeros, below itself at another scale.
            both = (Source(module, Runs(2, rows)), Source(module, Runs(rows + 3, rows)))
            (whole,) = arrange(
                Destination(module, both, 2 * rows + 4), [[part], [replace(part, scale=-3.0)]], "alpha", growth
            )
            expected = torch.zeros(2 * rows + 4, change.shape[1], dtype=torch.float64)
            expected[2 : rows + 2], expected[rows + 3 : 2 * rows + 3] = change, change * (-3.0 / part.scale)
            torch.testing.assert_close(changed(whole), expected)
            assert whole.rank == part.rank
    assert found == {name for name, algorithm in every().items() if algorithm.rows}, (
        "each algorithm with `rows`, and no other, needs a case in tests/algorithms/cases/ whose factors have rows"
    )
