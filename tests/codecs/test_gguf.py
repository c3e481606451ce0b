"""ggml's blocks, against their published layouts in plain Python and against what diffusers computes with torch."""

import numpy as np
import pytest
import torch
from ggml_blocks import TERMS
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize, quantize

from lora_inspect.codecs import gguf

diffusers = pytest.importorskip("diffusers.quantizers.gguf.utils")
pytestmark = pytest.mark.numeric

# Of types whose numbers stand in tables of the library, only whole blocks can be compared, with the library itself.
IN_TABLES = ["IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "TQ1_0", "TQ2_0"]
WRITTEN = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
# Where the half-precision numbers of a block stand: scales and least values, which random bits may make no number.
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,), "IQ1_S": (0,), "IQ2_XXS": (0,),
    "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,), "TQ1_0": (52,), "TQ2_0": (64,),
}  # fmt: skip


def decoded(blocks, kind):
    with np.errstate(all="ignore"):
        return torch.from_numpy(gguf.decoded(blocks, kind))


def drawn(kind, rows=5, columns=768, seed=0):
    """Bytes of whole blocks, all drawn but for the scales, which are numbers."""
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    generator = np.random.default_rng(seed)
    blocks = generator.integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    for at in HALVES.get(kind, ()):
        halves = generator.normal(0, 0.1, (rows, columns // block)).astype(np.float16)
        blocks[..., at : at + 2] = halves[..., None].view(np.uint8)
    if kind == "IQ1_M":  # whose scale is four bits of each of four numbers
        blocks[..., 49::2][..., -4:] &= 0x3F
    return torch.from_numpy(blocks.reshape(rows, -1))


@pytest.mark.parametrize("kind", TERMS)
def test_each_number_is_that_of_the_published_layout(kind):
    blocks = drawn(kind, rows=2)
    found = decoded(blocks, kind).double()
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    for row in range(2):
        content = bytes(blocks[row].tolist())
        for place in range(768):
            own = content[place // block * size : (place // block + 1) * size]
            terms = TERMS[kind](own, place % block)
            bound = 2**-23 * sum(map(abs, terms))
            assert abs(found[row, place].item() - sum(terms)) <= bound, (row, place)


@pytest.mark.parametrize("kind", sorted(set(TERMS) & {kind.name for kind in diffusers.dequantize_functions}))
def test_equals_diffusers(kind):
    blocks = drawn(kind)
    number = GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[number]
    expected = diffusers.dequantize_functions[number](blocks.reshape(-1, size), block, size, torch.float32)
    assert torch.equal(decoded(blocks, kind), expected.reshape(5, 768))


@pytest.mark.parametrize("kind", IN_TABLES)
def test_types_of_tables_are_the_librarys(kind):
    blocks = drawn(kind)
    expected = dequantize(blocks.reshape(-1, blocks.shape[1]).numpy(), GGMLQuantizationType[kind])
    found = decoded(blocks, kind)
    assert found.shape == (5, 768)
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert len(found.unique()) > 2
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_the_library_writes_is_near_the_weight(kind):
    weight = np.random.default_rng(1).normal(size=(5, 768)).astype(np.float32)
    blocks = torch.from_numpy(quantize(weight, GGMLQuantizationType[kind]))
    steps = {"Q4": 8, "Q5": 16, "Q8": 127}[kind[:2]]
    wide = np.abs(weight).reshape(5, -1, 32).max(-1, keepdims=True) * (1 + 2**-8) / steps
    error = np.abs(decoded(blocks, kind).numpy() - weight).reshape(5, -1, 32)
    assert (error <= wide).all()


@pytest.mark.parametrize("kind", [*TERMS, *IN_TABLES])
def test_any_rows_are_decoded_by_themselves(kind):
    blocks = drawn(kind)
    assert torch.equal(decoded(blocks[2:4].contiguous(), kind), decoded(blocks, kind)[2:4])
