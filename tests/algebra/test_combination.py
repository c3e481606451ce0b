"""The factors of sums as they are written: against dense float64 matrices, at any number of threads, with errors."""

import math
from copy import copy
from types import SimpleNamespace

import numpy
import pytest
import torch
from adapters import lora
from safetensors.torch import save_file

from lora_inspect.algebra import combination
from lora_inspect.algebra.combination import made, made_by_rule, measured
from lora_inspect.algebra.inputs import read_inputs
from lora_inspect.algebra.linear import module_threads
from lora_inspect.algebra.linear.core import Core
from lora_inspect.algebra.linear.ranks import RankRule, choose_ranks
from lora_inspect.algebra.options import CombineRequest
from lora_inspect.algebra.output.output_modules import file_error
from lora_inspect.algebra.plan import plan_sum
from lora_inspect.errors import DamagedError, RefusedError
from lora_inspect.maths.stored_numbers import decoded
from lora_inspect.progress import silent
from lora_inspect.reading.model.settings import parse_arguments

SHAPES = {"blocks.0.self_attn.q": (48, 40), "blocks.0.ffn.0": (96, 40), "blocks.1.ffn.2": (40, 96)}


EXACT = RankRule()


class Input:
    """A file of kohya's names with factors of float32, bfloat16 or float16, and its changes in float64."""

    def __init__(self, folder, rank, alpha, seed, multiplier=1.0, dtype=torch.float32, size=1.0):
        numbers = torch.Generator().manual_seed(seed)
        tensors, self.dense, self.multiplier = {}, {}, multiplier
        for path, (rows, columns) in SHAPES.items():
            name = "lora_unet_" + path.replace(".", "_")
            up = (size * torch.randn(rows, rank, generator=numbers)).to(dtype)
            down = torch.randn(rank, columns, generator=numbers).to(dtype)
            tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
            self.dense[name] = multiplier * (alpha / rank) * (up.double() @ down.double()).numpy()
        self.path = folder / f"{seed}.safetensors"
        save_file(tensors, self.path)


def planned(arguments, dtype="F32", rule=EXACT):
    """The planned sum of files at their multipliers, none of which is a copy."""
    request = CombineRequest(dtype=dtype)
    return plan_sum(read_inputs(parse_arguments(arguments), request), None, request, rule, is_resized=False)


def combined(inputs, rule=EXACT, dtype="F32", passes=1):
    """The written matrices by name, the modules as they were made, and their ranks, in one pass or in two."""
    plan = planned([f"{one.path}:{one.multiplier}" for one in inputs], dtype, rule)
    if passes == 1:
        found = list(made_by_rule(plan.modules, rule, plan.making, silent))
    else:
        known = measured(plan.modules, plan.making, silent)
        ranks = choose_ranks([one.spectrum for one in known], rule, sum)
        found = list(made(known, ranks, plan.making, silent))
    matrices = {}
    for one in found:
        if one.rank:
            up, down = (decoded(dtype, part).reshape(part.shape).astype(float) for part in (one.up, one.down))
            assert up.shape[1] == down.shape[0] == one.rank
            matrices[one.key] = up @ down
    return SimpleNamespace(matrices=matrices, made=found, ranks=[one.rank for one in found])


def dense_sum(inputs):
    return {name: sum(one.dense[name] for one in inputs) for name in inputs[0].dense}


@pytest.fixture
def three(tmp_path):
    return [
        Input(tmp_path, 4, 4.0, 1, 0.7), Input(tmp_path, 8, 1.0, 2, -0.4), Input(tmp_path, 3, 12.0, 3, 1.5)
    ]  # fmt: skip


def relative(found, meant):
    return numpy.linalg.norm(found - meant) / numpy.linalg.norm(meant)


def test_the_sum_is_that_of_dense_matrices_to_the_rounding_of_float32(three):
    found, meant = combined(three), dense_sum(three)
    assert found.matrices.keys() == meant.keys()
    assert found.ranks == [15, 15, 15]
    assert max(relative(found.matrices[name], meant[name]) for name in meant) < 2e-7


@pytest.mark.parametrize(("dtype", "bound"), [("F64", 1e-12), ("F32", 2e-7), ("F16", 1e-3), ("BF16", 6e-3)])
def test_rounding_is_measured(dtype, bound, three):
    found, meant = combined(three, dtype=dtype), dense_sum(three)
    errors = {name: numpy.linalg.norm(found.matrices[name] - meant[name]) for name in meant}
    said = {one.key: one.rounding for one in found.made}
    norms = {name: numpy.linalg.norm(value) for name, value in meant.items()}
    assert [one.norm for one in found.made] == pytest.approx([norms[one.key] for one in found.made], rel=1e-6)
    norms = list(norms.values())
    assert math.hypot(*errors.values()) / math.hypot(*norms) < bound
    if dtype in ("F16", "BF16"):
        for name, error in errors.items():
            assert said[name] == pytest.approx(error, rel=0.5)
        whole = math.hypot(*errors.values()) / math.hypot(*norms)
        assert file_error(one.account for one in found.made).rounding == pytest.approx(whole, rel=0.3)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("rule", [RankRule(rank=5), RankRule(energy=0.9), RankRule(max_error=0.3, max_rank=6)])
def test_a_trim_is_within_a_millionth_of_the_best(rule, passes, three):
    found, meant = combined(three, rule, "F64", passes), dense_sum(three)
    for one in found.made:
        rank, name = one.rank, one.key
        values = numpy.linalg.svd(meant[name], compute_uv=False)
        best = numpy.sqrt(numpy.square(values[rank:]).sum())
        assert best <= numpy.linalg.norm(found.matrices[name] - meant[name]) * (1 + 1e-9)
        assert numpy.linalg.norm(found.matrices[name] - meant[name]) == pytest.approx(best, rel=1e-6)
        assert one.lost == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_factors_of_every_type_are_read(dtype, tmp_path):
    inputs = [Input(tmp_path, 4, 2.0, 5, 1.0, dtype), Input(tmp_path, 4, 2.0, 6, 1.0, dtype)]
    found, meant = combined(inputs), dense_sum(inputs)
    assert max(relative(found.matrices[name], meant[name]) for name in meant) < 2e-7


def test_both_factors_are_balanced(three):
    found, meant = combined(three, dtype="F64"), dense_sum(three)
    for one in found.made:
        up, down = (decoded("F64", part).reshape(part.shape) for part in (one.up, one.down))
        values = numpy.linalg.svd(meant[one.key], compute_uv=False)
        assert numpy.square(numpy.linalg.norm(up, axis=0)) == pytest.approx(values[: up.shape[1]], rel=1e-9)
        assert numpy.square(numpy.linalg.norm(down, axis=1)) == pytest.approx(values[: up.shape[1]], rel=1e-9)


def test_an_adapter_and_its_opposite_cancel_out(tmp_path):
    one = Input(tmp_path, 4, 4.0, 1, 1.0)
    other = copy(one)
    other.multiplier = -1.0
    assert combined([one, other]).ranks == [0, 0, 0]


def test_bytes_are_the_same_at_any_number_of_threads(three, monkeypatch):
    def bytes_at(count):
        monkeypatch.setattr(module_threads, "usable_cores", lambda: count)
        return [(one.up.tobytes(), one.down.tobytes()) for one in combined(three, dtype="BF16").made]

    alone = bytes_at(1)
    assert bytes_at(2) == bytes_at(4) == alone


@pytest.mark.parametrize("kept", [0, 1 << 30])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_one_pass_and_two_make_the_same(kept, dtype, three, monkeypatch):
    monkeypatch.setattr(combination, "_KEPT_BYTES", kept)
    one, two = (combined(three, RankRule(rank=5), dtype, passes) for passes in (1, 2))
    assert one.ranks == two.ranks
    bound = 1e-6 if dtype == "F32" else 1e-2
    assert max(relative(two.matrices[name], one.matrices[name]) for name in one.matrices) < bound


def test_a_size_is_for_all_modules_together(three):
    found, meant = combined(three, RankRule(size=20), passes=2), dense_sum(three)
    assert sum(found.ranks) == 20
    kept, left = [], []
    for one in found.made:
        gains = numpy.linalg.svd(meant[one.key], compute_uv=False) ** 2 / sum(meant[one.key].shape)
        kept += [*gains[: one.rank]]
        left += [*gains[one.rank :]]
    assert min(kept) >= max(left)


def test_numbers_beyond_the_type_are_refused(tmp_path):
    large = Input(tmp_path, 2, 2.0, 1, 1.0, size=3e9)
    with pytest.raises(RefusedError, match="would hold numbers beyond F16; give --dtype"):
        combined([large], dtype="F16")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_factor_that_is_not_finite_is_refused(bad, tmp_path):
    tensors = {**lora("lora_unet_blocks_0_self_attn_q", rank=2, out=8, inputs=6)}
    tensors = {name: torch.ones(shape) if shape else torch.tensor(2.0) for name, (_, shape, _) in tensors.items()}
    next(value for name, value in tensors.items() if name.endswith("up.weight"))[0, 0] = bad
    save_file(tensors, tmp_path / "bad.safetensors")
    plan = planned([str(tmp_path / "bad.safetensors")])
    with pytest.raises(DamagedError, match=f"holds {bad}"):
        measured(plan.modules, plan.making, silent)
    with pytest.raises(DamagedError, match=f"holds {bad}"):
        list(made_by_rule(plan.modules, EXACT, plan.making, silent))


def test_a_trim_that_is_not_the_best_is_noticed(three, monkeypatch):
    trim = Core.trim

    def wrong(core, rank):
        found = trim(core, rank)
        return found._replace(up=found.up[:, ::-1])

    monkeypatch.setattr(Core, "trim", wrong)
    with pytest.raises(AssertionError, match="the trim is off"):
        combined(three, RankRule(rank=5))
