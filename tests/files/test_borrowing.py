"""Which parts of a file a store copies, and what is left to write of it: each byte of the tensors once."""

from hypothesis import given
from hypothesis import strategies as st

from lora_inspect.files.input_file import Identity
from lora_inspect.files.pending_output import Borrowing
from lora_inspect.files.safetensors.header import Span, TensorInfo
from lora_inspect.stores import client
from lora_inspect.stores.client import part_size

SOURCE = Identity(0, 0, 1 << 60, 5, '"tag"')


def span(start, count, at, file="s3://b/base.safetensors", identity=SOURCE):
    info = TensorInfo("weight", "U8", (count,), file, start, start + count, identity)
    return Span(info, start, start + count, at)


@st.composite
def layouts(draw):
    """(spans in the order of the file, its size): gaps between spans are what is folded."""
    at, spans = draw(st.integers(1, 60)), []
    for _ in range(draw(st.integers(0, 5))):
        count = draw(st.integers(1, 90))
        spans.append(span(draw(st.integers(0, 500)), count, at))
        at += count + draw(st.integers(0, 40))
    return spans, max((one.at + one.stop - one.start for one in spans), default=at) + draw(st.integers(0, 30))


@given(layouts())
def test_each_byte_is_written_or_borrowed_once_and_from_its_place(layout):
    spans, size = layout
    with st_parts(8):
        borrowing = Borrowing("s3://b/out")
        rest = list(borrowing.rest(spans, size))
    source = {one.at + i: one.start + i for one in spans for i in range(one.stop - one.start)}
    found = [(one.at + i, one.start + i) for one in (*rest, *borrowing.parts) for i in range(one.stop - one.start)]
    assert sorted(found) == sorted(source.items())
    assert borrowing.bytes == sum(one.stop - one.start for one in borrowing.parts)
    assert all(one.at % 8 == 0 and one.stop - one.start == min(8, size - one.at) for one in borrowing.parts)
    whole = {
        at
        for at in range(0, size, 8)
        if any(one.at <= at and one.at + one.stop - one.start >= min(at + 8, size) for one in spans)
    }
    assert {one.at for one in borrowing.parts} == whole


class st_parts:
    """Parts of so many bytes."""

    def __init__(self, count):
        self.count = count

    def __enter__(self):
        self.before, client.PART_BYTES = client.PART_BYTES, self.count

    def __exit__(self, *_):
        client.PART_BYTES = self.before


def test_nothing_is_borrowed_from_elsewhere():
    size = 4 * client.PART_BYTES
    for one in (
        span(0, size, 0, "base.safetensors"),
        span(0, size, 0, "https://h.example/base.safetensors"),
        span(0, size, 0, identity=SOURCE._replace(tag="")),
        span(0, size, 0, identity=None),
    ):
        borrowing = Borrowing("s3://b/out")
        assert list(borrowing.rest([one], size)) == [one]
        assert borrowing.parts == []


def test_an_object_has_no_more_parts_than_stores_take():
    for size in (0, 1, client.PART_BYTES, 10_000 * client.PART_BYTES, 10_000 * client.PART_BYTES + 1, 5 << 40):
        assert -(-size // part_size(size)) <= 10_000
        assert part_size(size) % client.PART_BYTES == 0
    assert part_size(10_000 * client.PART_BYTES) == client.PART_BYTES
