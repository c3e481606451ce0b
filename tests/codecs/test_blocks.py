"""What codes stand for, against the formats' definitions in plain Python and against the programs' own broadcasts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_inspect.codecs import int8, scale_weight, weight_scale, weight_scale_inv
from lora_inspect.codecs.record import Blocks, divide, extremes, multiply, own_scales

pytestmark = pytest.mark.numeric

OUT, IN = 6, 12


def by_elements(codes, scale_of):
    """q · scale in float64, one element after the other."""
    rows = codes.flatten(1).double()
    found = torch.empty_like(rows)
    for row in range(rows.shape[0]):
        for column in range(rows.shape[1]):
            found[row, column] = rows[row, column] * scale_of(row, column)
    return found.view(codes.shape)


def decoded(codes, scale, blocks, first=0, out=None):
    """q · scale of rows of codes, the first of which is `first` of `out`."""
    values = codes.clone()
    rows = values.flatten(1)
    whole = scale.reshape(blocks.grid(out or len(rows), rows.shape[1]))
    multiply(rows, own_scales(whole, blocks, first, len(rows)), blocks, first)
    return values


# A scale as it is stored, and which of its numbers belongs to an element.
MUSUBI = {
    "number": ((), lambda scale, row, column: scale.item()),
    "one number": ((1,), lambda scale, row, column: scale[0]),
    "rows": ((OUT, 1), lambda scale, row, column: scale[row, 0]),
    "blocks": ((OUT, 4, 1), lambda scale, row, column: scale[row, column // (IN // 4), 0]),
    "one block": ((OUT, 1, 1), lambda scale, row, column: scale[row, 0, 0]),
    "blocks of one column": ((OUT, IN, 1), lambda scale, row, column: scale[row, column, 0]),
}
COMFY = {
    "number": MUSUBI["number"],
    "one number": MUSUBI["one number"],
    "rows without an axis": ((OUT,), lambda scale, row, column: scale[row]),
    "rows": MUSUBI["rows"],
}
DEEPSEEK = {
    "number": MUSUBI["number"],
    "one number": MUSUBI["one number"],
    "one block": ((1, 1), lambda scale, row, column: scale[0, 0]),
}
INT8 = {name: MUSUBI[name] for name in ("number", "one number", "rows")}
CASES = [
    *((f"weight_scale_inv {name}", weight_scale_inv.blocks_of, *case) for name, case in DEEPSEEK.items()),
    *((f"int8 {name}", int8.blocks_of, *case) for name, case in INT8.items()),
    *((f"scale_weight {name}", scale_weight.blocks_of, *case) for name, case in MUSUBI.items()),
    *((f"weight_scale {name}", weight_scale.blocks_of, *case) for name, case in COMFY.items()),
]


@pytest.mark.parametrize("kernel", [(), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize(
    ("blocks_of", "shape", "scale_of"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_scale_multiplies_its_own_elements(blocks_of, shape, scale_of, dtype, kernel):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randn(OUT, IN, generator=generator).mul(50).to(dtype)
    codes = codes.view(OUT, 2, *kernel) if kernel else codes
    scale = torch.rand(shape, generator=generator).add(0.5).double()
    found = decoded(codes.double(), scale, blocks_of(tuple(codes.shape), shape))
    assert torch.equal(found, by_elements(codes, lambda row, column: scale_of(scale, row, column)))


def test_one_scale_a_row_of_a_square_weight_is_no_scale_of_columns():
    codes = torch.ones(3, 3)
    scale = torch.tensor([1.0, 2.0, 3.0])
    blocks = weight_scale.blocks_of((3, 3), (3,))
    assert decoded(codes, scale, blocks).tolist() == [[1.0] * 3, [2.0] * 3, [3.0] * 3]


WRONG = [
    (scale_weight.blocks_of, (OUT,)),  # over rows or over columns: programs that broadcast take columns
    (scale_weight.blocks_of, (IN,)),
    (scale_weight.blocks_of, (1, IN)),
    (scale_weight.blocks_of, (OUT, 2)),
    (scale_weight.blocks_of, (2 * OUT, 1)),
    (scale_weight.blocks_of, (OUT, 5, 1)),
    (scale_weight.blocks_of, (OUT, 0, 1)),
    (scale_weight.blocks_of, (OUT, 4, 3)),
    (scale_weight.blocks_of, (OUT, 2, 2, 1)),
    (scale_weight.blocks_of, (0,)),
    (weight_scale_inv.blocks_of, (OUT, 1)),
    (weight_scale_inv.blocks_of, (1, 2)),
    (weight_scale_inv.blocks_of, (1,) * 3 + (2,)),
    (int8.blocks_of, (OUT,)),
    (int8.blocks_of, (OUT, 4, 1)),
    (weight_scale.blocks_of, (IN,)),
    (weight_scale.blocks_of, (1, OUT)),
    (weight_scale.blocks_of, (OUT, 4)),
    (weight_scale.blocks_of, (OUT, 4, 1)),
    (weight_scale.blocks_of, (OUT // 2, IN // 2)),
]


@pytest.mark.parametrize(("blocks_of", "shape"), WRONG, ids=lambda value: str(getattr(value, "__module__", value)))
def test_other_shapes_fit_no_weight(blocks_of, shape):
    assert blocks_of((OUT, IN), shape) is None
    assert blocks_of((), (2,)) is None


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.randoms(use_true_random=False))
def test_rows_are_decoded_as_in_the_whole(out, blocks, width, random):
    codes = torch.tensor([[random.randrange(-448, 448) for _ in range(blocks * width)] for _ in range(out)]).float()
    scale = torch.tensor([[[random.random()] for _ in range(blocks)] for _ in range(out)])
    kinds = ((scale_weight, scale), (scale_weight, scale[:, 0]), (weight_scale, scale[:, 0, 0]))
    for kind, own in kinds:
        blocks = kind.blocks_of(tuple(codes.shape), tuple(own.shape))
        whole = decoded(codes, own, blocks)
        first = random.randrange(out)
        last = random.randrange(first, out) + 1
        assert torch.equal(decoded(codes[first:last], own, blocks, first, out), whole[first:last])


RAGGED = [(300, 200), (129, 127), (1, 1), (256, 256), (128, 385)]


@pytest.mark.parametrize("shape", RAGGED)
def test_blocks_of_128_are_smaller_at_the_edges(shape):
    out, columns = shape
    generator = torch.Generator().manual_seed(1)
    codes = torch.randn(shape, generator=generator).mul(50).to(torch.float8_e4m3fn)
    grid = (-(-out // 128), -(-columns // 128))
    scale = torch.rand(grid, generator=generator).double()
    blocks = weight_scale_inv.blocks_of(shape, grid)
    expected = codes.double() * scale.repeat_interleave(128, 0)[:out].repeat_interleave(128, 1)[:, :columns]
    assert torch.equal(decoded(codes.double(), scale, blocks), expected)
    for first in {0, out // 2, out - 1}:
        assert torch.equal(decoded(codes[first:].double(), scale, blocks, first, out), expected[first:])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.integers(0, 99))
def test_extremes_are_those_of_every_block_among_the_rows(out, columns, below, beside, seed):
    generator = torch.Generator().manual_seed(seed)
    rows, blocks = torch.randn(out, columns, generator=generator), Blocks(below, beside)
    first = seed % (below + 1)
    largest, smallest = extremes(rows, blocks, first)
    found = {}
    for row in range(out):
        for column in range(columns):
            found.setdefault(((row + first) // below - first // below, column // beside), []).append(rows[row, column])
    assert largest.shape == smallest.shape == (len({row for row, _ in found}), -(-columns // beside))
    for (row, column), own in found.items():
        assert (largest[row, column], smallest[row, column]) == (max(own), min(own))
    scale = torch.rand(largest.shape, generator=generator).add_(0.5)
    divided = rows.clone()
    divide(divided, scale, blocks, first)
    for row in range(out):
        for column in range(columns):
            own = scale[(row + first) // below - first // below, column // beside]
            assert divided[row, column] == rows[row, column] / own
