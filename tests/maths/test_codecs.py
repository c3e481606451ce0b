"""What codes stand for, against the formats' definitions in plain Python and against the programs' own broadcasts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_inspect.maths import codecs
from lora_inspect.maths.codecs import SCALE_WEIGHT, WEIGHT_SCALE

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
CASES = [
    *((f"scale_weight {name}", SCALE_WEIGHT, *case) for name, case in MUSUBI.items()),
    *((f"weight_scale {name}", WEIGHT_SCALE, *case) for name, case in COMFY.items()),
]


@pytest.mark.parametrize("kernel", [(), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize(("codec", "shape", "scale_of"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_scale_multiplies_its_own_elements(codec, shape, scale_of, dtype, kernel):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randn(OUT, IN, generator=generator).mul(50).to(dtype)
    codes = codes.view(OUT, 2, *kernel) if kernel else codes
    scale = torch.rand(shape, generator=generator).add(0.5).double()
    taken = codec.scale_shape(tuple(codes.shape), shape)
    found = codecs.decoded(codes.double(), scale.reshape(taken))
    assert found.shape == codes.shape
    assert torch.equal(found, by_elements(codes, lambda row, column: scale_of(scale, row, column)))


def test_one_scale_a_row_of_a_square_weight_is_no_scale_of_columns():
    codes = torch.ones(3, 3)
    scale = torch.tensor([1.0, 2.0, 3.0])
    shape = WEIGHT_SCALE.scale_shape((3, 3), (3,))
    assert codecs.decoded(codes, scale.reshape(shape)).tolist() == [[1.0] * 3, [2.0] * 3, [3.0] * 3]


WRONG = [
    (SCALE_WEIGHT, (OUT,)),  # over rows or over columns: programs that broadcast take columns
    (SCALE_WEIGHT, (IN,)),
    (SCALE_WEIGHT, (1, IN)),
    (SCALE_WEIGHT, (OUT, 2)),
    (SCALE_WEIGHT, (2 * OUT, 1)),
    (SCALE_WEIGHT, (OUT, 5, 1)),
    (SCALE_WEIGHT, (OUT, 0, 1)),
    (SCALE_WEIGHT, (OUT, 4, 3)),
    (SCALE_WEIGHT, (OUT, 2, 2, 1)),
    (SCALE_WEIGHT, (0,)),
    (WEIGHT_SCALE, (IN,)),
    (WEIGHT_SCALE, (1, OUT)),
    (WEIGHT_SCALE, (OUT, 4)),
    (WEIGHT_SCALE, (OUT, 4, 1)),
    (WEIGHT_SCALE, (OUT // 2, IN // 2)),
]


@pytest.mark.parametrize(("codec", "shape"), WRONG, ids=lambda value: str(getattr(value, "scale", value)))
def test_other_shapes_fit_no_weight(codec, shape):
    assert codec.scale_shape((OUT, IN), shape) is None
    assert codec.scale_shape((), (2,)) is None


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 4), st.randoms(use_true_random=False))
def test_rows_are_decoded_as_in_the_whole(out, blocks, width, random):
    codes = torch.tensor([[random.randrange(-448, 448) for _ in range(blocks * width)] for _ in range(out)]).float()
    scale = torch.tensor([[[random.random()] for _ in range(blocks)] for _ in range(out)])
    for kind, own in ((SCALE_WEIGHT, scale), (SCALE_WEIGHT, scale[:, 0]), (WEIGHT_SCALE, scale[:, 0, 0])):
        own = own.reshape(kind.scale_shape(tuple(codes.shape), tuple(own.shape)))
        whole = codecs.decoded(codes, own)
        first = random.randrange(out)
        last = random.randrange(first, out) + 1
        rows = own if not own.dim() else own[first:last]
        assert torch.equal(codecs.decoded(codes[first:last], rows), whole[first:last])
