"""The factors of sums as they are written: against dense float64 matrices, at any number of threads, with errors."""

import math
from copy import copy
from types import SimpleNamespace

import numpy
import pytest
import torch
from adapters import lora
from safetensors.torch import save_file

from lora_inspect.algebra import combination, module_threads
from lora_inspect.algebra.alignment import MultipliedAdapter, aligned
from lora_inspect.algebra.combination import made, measured, rounding_error
from lora_inspect.algebra.ranks import RankRule, choose_ranks
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.errors import DamagedError, RefusedError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.maths.stored_numbers import decoded
from lora_inspect.progress import silent
from lora_inspect.reading.adapter import read_adapter

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
        self.adapter = read_adapter(open_checkpoint(str(self.path)))

    @property
    def multiplied(self):
        return MultipliedAdapter(self.adapter, dict.fromkeys(self.adapter.modules, self.multiplier))


def combined(inputs, rule=EXACT, dtype="F32"):
    """The written matrices by name, what was measured, and the ranks."""
    modules = measured(aligned([one.multiplied for one in inputs], ConvertOptions()), dtype, silent)
    ranks = choose_ranks([one.spectrum for one in modules], rule, sum)
    kept = [(one, rank) for one, rank in zip(modules, ranks, strict=True) if rank]
    found = list(made([one for one, _ in kept], [rank for _, rank in kept], dtype, silent))
    matrices = {}
    for one in found:
        up, down = (decoded(dtype, part).reshape(part.shape).astype(float) for part in (one.up, one.down))
        matrices[one.measured.module.module.name.key] = up @ down
    return SimpleNamespace(matrices=matrices, modules=modules, ranks=ranks, made=found)


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
    said = {one.measured.module.module.name.key: one.rounding for one in found.made}
    norms = [numpy.linalg.norm(value) for value in meant.values()]
    assert math.hypot(*errors.values()) / math.hypot(*norms) < bound
    if dtype in ("F16", "BF16"):
        for name, error in errors.items():
            assert said[name] == pytest.approx(error, rel=0.5)
        whole = math.hypot(*errors.values()) / math.hypot(*norms)
        assert rounding_error(list(said.values()), norms) == pytest.approx(whole, rel=0.3)


@pytest.mark.parametrize("rule", [RankRule(rank=5), RankRule(energy=0.9), RankRule(max_error=0.3, max_rank=6)])
def test_a_trim_is_within_a_millionth_of_the_best(rule, three):
    found, meant = combined(three, rule, "F64"), dense_sum(three)
    for one, rank in zip(found.modules, found.ranks, strict=True):
        name = one.module.module.name.key
        values = numpy.linalg.svd(meant[name], compute_uv=False)
        best = numpy.sqrt(numpy.square(values[rank:]).sum())
        assert best <= numpy.linalg.norm(found.matrices[name] - meant[name]) * (1 + 1e-9)
        assert numpy.linalg.norm(found.matrices[name] - meant[name]) == pytest.approx(best, rel=1e-6)
        assert float(one.spectrum.tails[rank]) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_factors_of_every_type_are_read(dtype, tmp_path):
    inputs = [Input(tmp_path, 4, 2.0, 5, 1.0, dtype), Input(tmp_path, 4, 2.0, 6, 1.0, dtype)]
    found, meant = combined(inputs), dense_sum(inputs)
    assert max(relative(found.matrices[name], meant[name]) for name in meant) < 2e-7


def test_both_factors_are_balanced(three):
    found = combined(three, dtype="F64")
    for one in found.made:
        up, down = (decoded("F64", part).reshape(part.shape) for part in (one.up, one.down))
        values = one.measured.spectrum.values
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


def test_a_core_that_is_not_kept_is_computed_again(three, monkeypatch):
    kept = combined(three, RankRule(rank=5)).matrices
    monkeypatch.setattr(combination, "_KEPT_BYTES", 0)
    again = combined(three, RankRule(rank=5))
    assert all(one.trim is None for one in again.modules)
    assert max(relative(again.matrices[name], kept[name]) for name in kept) < 1e-6


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
    adapter = read_adapter(open_checkpoint(str(tmp_path / "bad.safetensors")))
    modules = aligned([MultipliedAdapter(adapter, dict.fromkeys(adapter.modules, 1.0))], ConvertOptions())
    with pytest.raises(DamagedError, match=f"holds {bad}"):
        measured(modules, "F32", silent)


def test_a_trim_that_is_not_the_best_is_noticed(three, monkeypatch):
    modules = measured(aligned([one.multiplied for one in three], ConvertOptions()), "F32", silent)
    wrong = [
        combination.MeasuredModule(one.module, one.spectrum, one.shape, one.trim._replace(up=one.trim.up[:, ::-1]))
        for one in modules
    ]
    with pytest.raises(AssertionError, match="the trim is off"):
        list(made(wrong, [5, 5, 5], "F32", silent))
