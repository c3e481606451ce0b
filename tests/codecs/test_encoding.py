"""Rows of a weight as codes again: what did not change keeps its codes, what does not fit gets a fresh scale."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_inspect.codecs import int8, plain_fp8, scale_weight, weight_scale, weight_scale_inv
from lora_inspect.codecs.record import BadSetting, CodedTensor, Extremes, NoCode
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.tensors import numbers_of, stored_as

pytestmark = pytest.mark.numeric

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
STORED = {E4M3: "F8_E4M3", E5M2: "F8_E5M2", torch.int8: "I8"}
LARGEST = {E4M3: 448, E5M2: 57344, torch.int8: 127}
OUT, IN = 300, 256
# A codec, the element type of its codes, and the shape of its scale.
SPELLINGS = {
    f"{codec.name} {list(shape)} of {STORED[dtype]}": (codec, dtype, shape)
    for codec, dtypes, shapes in (
        (scale_weight.CODEC, (E4M3, E5M2), [(), (1,), (OUT, 1), (OUT, 4, 1)]),
        (weight_scale.CODEC, (E4M3, E5M2), [(), (1,), (OUT, 1), (OUT,)]),
        (weight_scale_inv.CODEC, (E4M3,), [(), (3, 2)]),
        (int8.CODEC, (torch.int8,), [(), (1,), (OUT, 1)]),
    )
    for dtype in dtypes
    for shape in shapes
}
every_spelling = pytest.mark.parametrize(("codec", "dtype", "shape"), SPELLINGS.values(), ids=SPELLINGS)


def drawn(dtype, out=OUT, columns=IN, seed=1):
    """Codes of every kind that are numbers."""
    codes = torch.randint(0, 256, (out, columns), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    if dtype == torch.int8:
        return codes.view(torch.int8)
    codes[~codes.view(dtype).float().isfinite()] = 0x80
    return codes.view(dtype)


def prepared(codec, codes, scale):
    """What the codec makes of a scale that stands beside codes."""
    name = next(iter(codec.settings))
    infos = [
        TensorInfo(n, STORED.get(t.dtype, "F32"), tuple(t.shape), "f", 0, 0) for n, t in (("w", codes), (name, scale))
    ]
    layout = codec.layout(CodedTensor(infos[0], {name: infos[1]}, {}, lambda info: b""))
    return codec.prepared({name: scale}, layout)


def decoded(codec, codes, state):
    rows = torch.empty(codes.shape)
    codec.decode(numbers_of(codes, rows), state, 0, rows)
    return rows


def encoded(codec, rows, state, dtype, step=128):
    """The codes of the whole weight, and the tensors beside them, from blocks of `step` rows."""
    encoding = codec.encoding(state)
    blocks = [(first, rows[first : first + step].clone()) for first in range(0, len(rows), step)]
    seen = [encoding.extremes(block, first) for first, block in blocks]
    if state.values.shape[0] == 1:  # all rows share it
        whole = seen[0]
        for other in seen[1:]:
            whole = whole.joined(other)
        seen = [whole] * len(seen)
    codes, settled = torch.empty(rows.shape, dtype=dtype), []
    for (first, block), own in zip(blocks, seen, strict=True):
        settled.append(encoding.settled(own, first))
        encoding.numbers(block, settled[-1], first)
        stored_as(block, codes[first : first + step])
    return codes, encoding.settings(settled)


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8)


def scales(shape, dtype=torch.float32, seed=2):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).add_(0.01).mul_(0.03).to(dtype)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@every_spelling
def test_what_did_not_change_keeps_its_codes_and_its_scale(codec, dtype, shape, stored):
    codes, scale = drawn(dtype), scales(shape, stored)
    state = prepared(codec, codes, scale)
    found, settings = encoded(codec, decoded(codec, codes, state), state, dtype)
    assert bits(found).equal(bits(codes))
    ((name, written),) = settings.items()
    assert (name, written.shape, written.dtype) == (next(iter(codec.settings)), scale.shape, scale.dtype)
    assert bits(written).equal(bits(scale))


def number_of(scale, shape, row, column):
    """Which number of a scale of each shape belongs to an entry, as the formats have it."""
    if scale.numel() == 1:
        return scale.reshape(())
    if shape == (3, 2):
        return scale[row // 128, column // 128]
    return scale.reshape(OUT, -1)[row, column * (scale.numel() // OUT) // IN]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@every_spelling
def test_a_block_with_a_larger_number_gets_a_fresh_scale_and_others_keep_theirs(codec, dtype, shape, stored):
    codes, scale = drawn(dtype), scales(shape, stored)
    state = prepared(codec, codes, scale)
    rows = decoded(codec, codes, state)
    row, column = 131, 70
    peak = rows.abs().max() * 1.7
    rows[row, column] = -peak
    found, settings = encoded(codec, rows, state, dtype)
    (written,) = settings.values()
    every = [(r, c) for r in range(OUT) for c in range(0, IN, 64)]
    changed = number_of(written, shape, row, column).item()
    own = number_of(torch.arange(scale.numel()).reshape(shape), shape, row, column)
    others = [(r, c) for r, c in every if number_of(torch.arange(scale.numel()).reshape(shape), shape, r, c) != own]
    assert all(number_of(written, shape, r, c) == number_of(scale, shape, r, c) for r, c in others)
    kept = torch.zeros(OUT, IN, dtype=torch.bool)
    for r, c in others:
        kept[r, c : c + 64] = True
    assert bits(found.view(torch.uint8)[kept]).equal(bits(codes.view(torch.uint8)[kept]))
    # The least number of the type under which the largest entry is not beyond the largest code.
    least = Fraction(peak.item()) / LARGEST[dtype]
    below = torch.tensor(changed, dtype=stored).nextafter(torch.tensor(0.0, dtype=stored)).item()
    assert Fraction(below) < least * Fraction(1 + 2.0**-22)
    assert Fraction(changed) >= least * Fraction(1 - 2.0**-23)
    exact = rows.double() / torch.tensor([[number_of(written, shape, r, c).item() for c in range(IN)] for r in (row,)])
    again = numbers_of(found[row : row + 1], torch.empty(1, IN)).double()
    step = {E4M3: 32.0, E5M2: 8192.0, torch.int8: 1.0}[dtype]
    assert (again - exact[row]).abs().max() <= step / 2 * (1 + 2.0**-20)
    assert again[0, column].item() == -LARGEST[dtype] or stored != torch.float32


@pytest.mark.parametrize(
    ("dtype", "fits", "beyond"),
    [(E4M3, (463.9, -463.9), (464.1, -464.1)), (E5M2, (61439, -61439), (61441, -61441)),
     (torch.int8, (127.4, -128.4), (127.6, -128.6))],
)  # fmt: skip
def test_a_scale_is_kept_as_long_as_there_is_a_nearest_code(dtype, fits, beyond):
    codec = int8.CODEC if dtype == torch.int8 else weight_scale.CODEC
    scale = torch.ones(2, 1)
    state = prepared(codec, torch.zeros(2, 4).to(dtype), scale)
    for value in fits:
        _, settings = encoded(codec, torch.tensor([[value, 1, 0, -1], [3.0, 0, 0, 0]]), state, dtype)
        assert settings["weight_scale"].tolist() == [[1], [1]]
    for value in beyond:
        _, settings = encoded(codec, torch.tensor([[value, 1, 0, -1], [3.0, 0, 0, 0]]), state, dtype)
        assert settings["weight_scale"].flatten().tolist() == pytest.approx([abs(value) / LARGEST[dtype], 1])


@pytest.mark.parametrize("scale", [0.0, 1e-42])
def test_a_scale_of_nothing_is_kept_under_zeros_alone(scale):
    state = prepared(weight_scale.CODEC, torch.zeros(2, 4).to(E4M3), torch.full((2, 1), scale))
    codes, settings = encoded(weight_scale.CODEC, torch.tensor([[0.0] * 4, [1.0, 0, 0, -448]]), state, E4M3)
    assert settings["weight_scale"].tolist() == [[torch.tensor(scale).item()], [1.0]]
    assert codes.float().tolist() == [[0.0] * 4, [1.0, 0, 0, -448]]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_has_no_code(value):
    rows = torch.ones(3, 4)
    rows[1, 2] = value
    for codec, state in (
        (weight_scale.CODEC, prepared(weight_scale.CODEC, rows.to(E5M2), torch.ones(3, 1))),
        (weight_scale.CODEC, prepared(weight_scale.CODEC, rows.to(E4M3), torch.ones(()))),
        (int8.CODEC, prepared(int8.CODEC, torch.ones(3, 4).to(torch.int8), torch.ones(3, 1))),
    ):
        with pytest.raises(NoCode) as raised:
            encoded(codec, rows, state, E5M2)
        assert raised.value.value in (value, abs(value)) or value != value
    encoding = plain_fp8.CODEC.encoding("F8_E5M2")
    with pytest.raises(NoCode):
        encoding.settled(encoding.extremes(rows, 0), 0)


def test_a_number_beyond_every_scale_of_the_type_has_no_code():
    state = prepared(weight_scale.CODEC, torch.ones(1, 2).to(E4M3), torch.ones((), dtype=torch.float16))
    encoded(weight_scale.CODEC, torch.tensor([[65504.0 * 448, 1]]), state, E4M3)
    with pytest.raises(NoCode):
        encoded(weight_scale.CODEC, torch.tensor([[65504.0 * 449, 1]]), state, E4M3)


@pytest.mark.parametrize(("stored", "value"), [("F8_E4M3", 464.0), ("F8_E4M3", -464.0), ("F8_E5M2", 61440.0)])
def test_codes_without_a_scale_hold_what_they_reach(stored, value):
    encoding = plain_fp8.CODEC.encoding(stored)
    rows = torch.tensor([[value, 1.0]])
    with pytest.raises(NoCode):
        encoding.settled(encoding.extremes(rows, 0), 0)
    encoding.settled(encoding.extremes(rows * 0.999, 0), 0)
    assert encoding.settings([None]) == {}


def test_a_scale_that_is_no_number_is_named():
    with pytest.raises(BadSetting) as raised:
        prepared(int8.CODEC, torch.ones(2, 2).to(torch.int8), torch.tensor([[1.0], [torch.inf]]))
    assert raised.value.name == "weight_scale"


@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 999), st.sampled_from(list(STORED)))
def test_codes_are_the_nearest_under_their_scale(out, columns, seed, dtype):
    codec = int8.CODEC if dtype == torch.int8 else scale_weight.CODEC
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(out, columns, generator=generator).mul_(10.0 ** (seed % 7 - 3))
    state = prepared(codec, torch.zeros(out, columns).to(dtype), scales((out, 1), seed=seed))
    codes, settings = encoded(codec, rows, state, dtype, step=1)
    (scale,) = settings.values()
    lattice = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    lattice = lattice[lattice.isfinite()].unique()
    exact = rows.double() / scale.double()
    best = (exact.unsqueeze(-1) - lattice).abs().amin(-1)
    found = (exact - numbers_of(codes, torch.empty(rows.shape)).double()).abs()
    assert (found <= best + exact.abs() * 2.0**-22).all()


def test_extremes_of_blocks_are_joined():
    one = Extremes(torch.tensor([[1.0, 5.0]]), torch.tensor([[-1.0, 0.0]]))
    other = Extremes(torch.tensor([[2.0, 4.0]]), torch.tensor([[0.0, -3.0]]))
    joined = one.joined(other)
    assert (joined.largest.tolist(), joined.smallest.tolist()) == ([[2.0, 5.0]], [[-1.0, -3.0]])


@pytest.mark.parametrize("dtype", STORED)
def test_one_scale_for_all_experts_holds_however_their_rows_are_read(dtype):
    """A weight (experts, out, in) is changed as a matrix (experts · out, in)."""
    codec = int8.CODEC if dtype == torch.int8 else weight_scale.CODEC
    codes, scale = drawn(dtype, 12, 20), torch.tensor(0.02)
    state = prepared(codec, codes.view(3, 4, 20), scale)
    rows = decoded(codec, codes, state)
    assert torch.equal(rows, numbers_of(codes, torch.empty(12, 20)) * scale)
    found, settings = encoded(codec, rows, state, dtype, step=5)
    assert bits(found).equal(bits(codes))
    assert settings["weight_scale"].equal(scale)
    rows[11, 3] = rows.abs().max() * 2
    _, settings = encoded(codec, rows, state, dtype, step=5)
    assert settings["weight_scale"].item() == pytest.approx(rows[11, 3].item() / LARGEST[dtype])
