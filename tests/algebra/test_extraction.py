"""Extracted factors beside dense singular value decompositions, and the noise that no rank is spent on."""

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.algebra.extracting.extracted_modules import named
from lora_inspect.algebra.extracting.extraction import written_by_rule, written_in_size
from lora_inspect.algebra.extracting.model_pair import Noise, difference_blocks, noise_of, open_pair
from lora_inspect.algebra.options import ExtractRequest, rank_rule
from lora_inspect.algebra.output.output_modules import Making
from lora_inspect.maths.stored_numbers import decoded
from lora_inspect.progress import silent

pytestmark = pytest.mark.numeric

SHAPES = {"a": (300, 200), "b": (160, 400), "c": (96, 64, 3, 3), "d": (40, 40)}


def spectrum(kind, count):
    steps = numpy.arange(1, count + 1)
    return {"steep": 0.7**steps, "power": 1 / steps, "flat": numpy.ones(count)}[kind]


def change(kind, shape, seed):
    """A matrix of given singular values."""
    numbers = numpy.random.default_rng(seed)
    rows, columns = shape[0], int(numpy.prod(shape[1:]))
    count = min(rows, columns)
    left, right = (numpy.linalg.qr(numbers.standard_normal((side, count)))[0] for side in (rows, columns))
    return (left * spectrum(kind, count)) @ right.T


def pair_of(folder, kind, dtype=torch.float32):
    """Two models, and their differences as they are stored, in float64."""
    numbers = torch.Generator().manual_seed(1)
    base, tuned = {}, {}
    for seed, (name, shape) in enumerate(SHAPES.items()):
        weight = 0.02 * torch.randn(shape, generator=numbers)
        base[f"{name}.weight"] = weight.to(dtype)
        tuned[f"{name}.weight"] = (
            base[f"{name}.weight"].double() + torch.from_numpy(change(kind, shape, seed)).reshape(shape)
        ).to(dtype)
    save_file(base, folder / "base.safetensors")
    save_file(tuned, folder / "tuned.safetensors")
    dense = {name: (tuned[name].double() - base[name].double()).flatten(1).numpy() for name in base}
    return open_pair(str(folder / "tuned.safetensors"), str(folder / "base.safetensors")), dense


def found_of(pair, **options):
    request = ExtractRequest(**options)
    matrices = named(pair, request).matrices
    return list(zip(matrices, written_by_rule(matrices, rank_rule(request), Making("F32", "F32"), silent), strict=True))


def product(made):
    up, down = (decoded("F32", factor).reshape(factor.shape).astype(float) for factor in (made.up, made.down))
    return up @ down


@pytest.mark.parametrize("rank", [1, 8, 32])
@pytest.mark.parametrize("kind", ["steep", "power", "flat"])
def test_factors_are_nearly_the_best_and_the_error_is_true(kind, rank, tmp_path):
    pair, dense = pair_of(tmp_path, kind)
    for module, written in found_of(pair, rank=rank):
        meant = dense[module.parts[0].tensor.name]
        values = numpy.linalg.svd(meant, compute_uv=False)
        best = float(numpy.sqrt((values[rank:] ** 2).sum()))
        error = float(numpy.linalg.norm(meant - product(written.made)))
        assert written.made.rank == rank
        assert error <= 1.01 * best + 1e-5 * written.norm
        assert written.norm == pytest.approx(float(numpy.linalg.norm(meant)), rel=1e-6)
        # Never below the real one, but for the rounding of the factors to float32.
        assert written.error >= error - 2 * written.made.rounding - 1e-12
        assert written.error == pytest.approx(error, rel=1e-6, abs=2 * written.made.rounding + 1e-7 * written.norm)


@pytest.mark.parametrize(("option", "value"), [("energy", 0.9), ("max_error", 0.2), ("energy", 0.999)])
def test_the_least_rank_that_a_rule_allows(option, value, tmp_path):
    pair, dense = pair_of(tmp_path, "power")
    limit = value if option == "max_error" else (1 - value) ** 0.5
    for module, written in found_of(pair, **{option: value}):
        values = numpy.linalg.svd(dense[module.parts[0].tensor.name], compute_uv=False)
        tails = numpy.sqrt(numpy.append((values[::-1] ** 2).cumsum()[::-1], 0.0))
        least = int(numpy.argmax(tails <= limit * tails[0]))
        assert least <= written.made.rank <= least + 1
        assert written.error <= limit * written.norm * (1 + 1e-9)


def test_a_cap_stands_beside_a_rule_and_alone(tmp_path):
    pair, _ = pair_of(tmp_path, "power")
    assert {one.made.rank for _, one in found_of(pair, energy=0.9999, max_rank=5)} == {5}
    assert {one.made.rank for _, one in found_of(pair, max_rank=6)} == {6}


def test_no_rank_is_spent_on_the_rounding_of_the_models(tmp_path):
    pair, dense = pair_of(tmp_path, "steep", torch.bfloat16)
    for module, written in found_of(pair, rank=40):
        tensor = module.parts[0].tensor
        rows, columns = dense[tensor.name].shape
        assert written.is_noise
        assert written.made.rank < 40
        values = numpy.linalg.svd(dense[tensor.name], compute_uv=False)
        edge = noise_of(tensor).tuned * (rows**0.5 + columns**0.5 + 1)
        assert written.made.rank <= int((values > edge).sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_the_noise_of_rounding_is_estimated(dtype, tmp_path):
    exact = 0.3 * torch.randn(200, 300, generator=torch.Generator().manual_seed(2))
    rounded = exact.to(dtype)
    save_file({"a.weight": rounded}, tmp_path / "tuned.safetensors")
    save_file({"a.weight": exact}, tmp_path / "base.safetensors")
    (tensor,) = open_pair(str(tmp_path / "tuned.safetensors"), str(tmp_path / "base.safetensors")).tensors.values()
    real = float((rounded.double() - exact.double()).square().mean().sqrt())
    found = noise_of(tensor)
    assert found.tuned == pytest.approx(real, rel=0.1)
    assert found.base < 1e-3 * real
    # Numbers of half precision in a wider type are as far apart as they were.
    save_file({"a.weight": rounded.float()}, tmp_path / "tuned.safetensors")
    (tensor,) = open_pair(str(tmp_path / "tuned.safetensors"), str(tmp_path / "base.safetensors")).tensors.values()
    if dtype in (torch.bfloat16, torch.float16):
        assert noise_of(tensor) == pytest.approx(found)
    assert Noise(3.0, 4.0).both == 5.0


def test_ranks_go_where_they_lower_the_error_most(tmp_path):
    pair, dense = pair_of(tmp_path, "power")
    modules = named(pair, ExtractRequest(size="1")).matrices
    bytes_of = [4 * (module.shape[0] + int(numpy.prod(module.shape[1:]))) for module in modules]

    def size(ranks):
        return sum(rank * own for rank, own in zip(ranks, bytes_of, strict=True))

    rule = rank_rule(ExtractRequest(size="60000", max_rank=30))
    ranks, made = written_in_size(modules, rule, Making("F32", "F32"), size, silent)
    assert 60000 - max(bytes_of) < size(ranks) <= 60000
    values = [numpy.linalg.svd(dense[one.parts[0].tensor.name], compute_uv=False)[:30] for one in modules]
    gains = sorted(
        ((float(value) ** 2 / own, number) for number, own in enumerate(bytes_of) for value in values[number]),
        reverse=True,
    )
    worth = [0] * len(modules)
    for _, number in gains:
        worth[number] += 1
        if size(worth) > 60000:
            worth[number] -= 1
            break
    assert sum(abs(one - other) for one, other in zip(ranks, worth, strict=True)) <= 2
    for module, rank, written in zip(modules, ranks, made, strict=True):
        assert written.made.rank == rank
        meant = dense[module.parts[0].tensor.name]
        error = float(numpy.linalg.norm(meant - product(written.made)))
        assert written.error == pytest.approx(error, rel=1e-5)


def test_blocks_are_the_difference(tmp_path):
    pair, dense = pair_of(tmp_path, "flat")
    for tensor in pair.tensors.values():
        rows = numpy.concatenate([block for _, block in difference_blocks(tensor)])
        numpy.testing.assert_allclose(rows, dense[tensor.name], rtol=1e-6, atol=1e-8)
    assert load_file(tmp_path / "base.safetensors").keys() == pair.tensors.keys()
