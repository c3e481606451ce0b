"""How far a merged weight is from the exact one: bounds of what is written in float32, and how bfloat16 is rounded."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.reading.model.settings import parse_argument

pytestmark = pytest.mark.numeric

UNIT = 2.0**-23
# Rows and columns as attention and convolutions have them, and the rank.
SIZES = [(7, 5, 1), (64, 300, 4), (320, 768, 16), (1536, 3072, 64), (130, 4100, 128)]
# The change beside the weight, as trained adapters have it, and where terms are much larger than their sum.
STRENGTHS = [0.02, 1.0, 300.0]


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator)


def change(drawn, out, columns, rank, strength):
    """Factors of a change whose entries are as large as `strength` times those of a weight of 1/sqrt(columns)."""
    down, up = drawn(rank, columns), drawn(out, rank) * strength / (rank * columns) ** 0.5
    return {"a.lora_down.weight": down, "a.lora_up.weight": up, "a.alpha": torch.tensor(0.75 * rank)}


def exact(weight, adapters, multipliers):
    """(W + Σ s U D, |W| + Σ |s U D|) in float64."""
    total, terms = weight.double(), weight.double().abs()
    for tensors, multiplier in zip(adapters, multipliers, strict=True):
        scale = float(tensors["a.alpha"]) / len(tensors["a.lora_down.weight"]) * multiplier
        up, down = tensors["a.lora_up.weight"].double(), tensors["a.lora_down.weight"].double()
        total = total + scale * up @ down
        terms = terms + abs(scale) * up.abs() @ down.abs()
    return total, terms


def merged(folder, weight, adapters, multipliers, **options):
    save_file({"a.weight": weight}, folder / "base.safetensors")
    named = []
    for number, (tensors, multiplier) in enumerate(zip(adapters, multipliers, strict=True)):
        save_file(tensors, folder / f"{number}.safetensors")
        named.append(parse_argument(f"{folder / f'{number}.safetensors'}:{multiplier}"))
    options = MergeOptions(allow_loss=True, **options)
    merge(plan_merge(str(folder / "base.safetensors"), named, options), str(folder / "out.safetensors"), force=True)
    return load_file(folder / "out.safetensors")["a.weight"]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_float32_is_within_a_unit_of_its_terms(size, strength, stored, drawn, tmp_path):
    """|error| <= 2^-23 (|W| + Σ |s U D|), in two adapters, whichever way the terms cancel."""
    weight = (drawn(*size[:2]) / size[1] ** 0.5).to(stored)
    first = change(drawn, *size, strength)
    # The second takes nearly all of the first away.
    second = {**first, "a.lora_up.weight": -first["a.lora_up.weight"]}
    adapters, multipliers = [first, second], [1.5, 1.4921875]
    total, terms = exact(weight, adapters, multipliers)
    found = merged(tmp_path, weight, adapters, multipliers, dtype="F32")
    assert found.dtype == torch.float32
    assert ((found.double() - total).abs() <= UNIT * terms).all()


def dora(tensors, weight, axis, drawn):
    """The tensors with magnitudes near the norms that the weight has, and what they make of it, in float64."""
    (total, terms), over = exact(weight, [tensors], [1.0]), 1 - axis
    norms = total.norm(dim=over, keepdim=True)
    magnitude = (norms * (1 + 0.01 * drawn(*norms.shape))).float()
    gain = magnitude.double() / (norms + UNIT)
    return {**tensors, "a.dora_scale": magnitude}, total * gain, terms * gain


@pytest.mark.parametrize("axis", [0, 1], ids=["output", "input"])
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_dora_in_float32_is_within_four_times_that(size, strength, axis, drawn, tmp_path):
    weight = drawn(*size[:2]) / size[1] ** 0.5
    tensors, total, terms = dora(change(drawn, *size, strength), weight, axis, drawn)
    found = merged(tmp_path, weight, [tensors], [1.0], dtype="F32")
    assert ((found.double() - total).abs() <= 4 * UNIT * terms).all()


def assert_rounded(found, total, terms, rank):
    """At least 99.9% are the nearest number; the others are a neighbour of it, or as near as sums in float32 can be.

    Those are off by a rounding of each product and of each sum at most, n 2^-24 of the terms in all.
    """
    nearest = total.to(torch.bfloat16)
    off = (found.double() - nearest.double()).abs()
    assert (off == 0).double().mean() >= 0.999
    exponent = torch.frexp(torch.maximum(found.double().abs(), nearest.double().abs())).exponent
    assert ((off <= torch.ldexp(torch.ones_like(off), exponent - 8)) | (off <= (rank + 2) * UNIT / 2 * terms)).all()


@pytest.mark.parametrize("strength", [0.02, 1.0])
@pytest.mark.parametrize("size", [(3072, 3072, 64), (1536, 8960, 32)], ids=str)
@pytest.mark.slow
def test_bfloat16_is_rounded_to_the_nearest_number(size, strength, drawn, tmp_path):
    weight = (drawn(*size[:2]) / size[1] ** 0.5).bfloat16()
    tensors = change(drawn, *size, strength)
    assert_rounded(merged(tmp_path, weight, [tensors], [1.0]), *exact(weight, [tensors], [1.0]), size[2])


@pytest.mark.parametrize("axis", [0, 1], ids=["output", "input"])
@pytest.mark.slow
def test_dora_in_bfloat16_is_rounded_to_the_nearest_number(axis, drawn, tmp_path):
    size = 3072, 3072, 64
    weight = (drawn(*size[:2]) / size[1] ** 0.5).bfloat16()
    tensors, total, terms = dora(change(drawn, *size, 0.02), weight, axis, drawn)
    assert_rounded(merged(tmp_path, weight, [tensors], [1.0]), total, terms, 2 * size[2])
