"""Entries of shards: what is read is what was written, to the last bit, or none at all."""

import json
import math
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora_inspect.maths.share import Estimate, Rounding
from lora_inspect.merging.jobs.shard_entry import ShardEntry, read_entry
from lora_inspect.merging.retention import ObservedWeight

ENTRY = ShardEntry(
    made_of={"version": "1", "adapters": [{"multiplier": 0.1}]},
    size=10,
    data_start=4,
    sha256="ab",
    late=[(5, 7)],
    settled={"a.scale": b"\0\xff"},
    counts={"BF16": 3},
    records=[["a", "BF16", True, [0], ""]],
    base_sha256=None,
)


@given(st.integers(1, 3).flatmap(lambda k: st.tuples(st.just(k), st.lists(st.floats(), min_size=99, max_size=99))))
def test_what_was_seen_keeps_every_bit(drawn):
    count, numbers = drawn
    left = iter(numbers)

    def tensor(*shape):
        values = [next(left) for _ in range(math.prod(shape))]
        return torch.tensor(values, dtype=torch.float64).reshape(shape)

    # Of rounding that is known nothing is lost besides.
    rounding = Rounding(tensor(count, count), torch.zeros(count).double(), tensor(count), tensor(count))
    kept = Estimate(tensor(count), tensor(count, count), rounding)
    seen = ObservedWeight("a.weight", "BF16", True, tuple(range(count)), kept)
    again = ObservedWeight.of_record(json.loads(json.dumps(seen.in_record())))
    assert again[:4] == seen[:4]
    for one, other in zip((*again.kept[:2], *again.kept.rounding), (*kept[:2], *rounding), strict=True):
        assert one.shape == other.shape
        assert bits(one) == bits(other)


def bits(tensor):
    return struct.pack(f"{tensor.numel()}d", *tensor.flatten().tolist())


def test_an_entry_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(ENTRY.content())
    assert read_entry(str(path)) == ENTRY


@pytest.mark.parametrize("position", range(0, len(ENTRY.content()), 7))
def test_an_entry_with_another_byte_in_it_is_none(position, tmp_path):
    content = bytearray(ENTRY.content())
    content[position] ^= 1
    path = tmp_path / "a.json"
    path.write_bytes(content)
    assert read_entry(str(path)) is None


@pytest.mark.parametrize("count", [0, 1, 50, -1])
def test_a_part_of_an_entry_is_none(count, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(ENTRY.content()[:count])
    assert read_entry(str(path)) is None


def test_no_entry_is_none(tmp_path):
    assert read_entry(str(tmp_path / "a.json")) is None
    assert read_entry(str(tmp_path)) is None


class TestWhatItHolds:
    """The file has its bytes, but for the header and for what other shards decide."""

    def entry(self, content, late=()):
        import hashlib

        blank = bytearray(content[4:])
        for start, stop in late:
            blank[start - 4 : stop - 4] = bytes(stop - start)
        return ENTRY._replace(size=len(content), sha256=hashlib.sha256(blank).hexdigest(), late=late)

    @given(st.binary(min_size=5, max_size=40), st.data())
    def test_is_every_byte_behind_the_header_that_is_not_late(self, tmp_path_factory, content, data):
        position = data.draw(st.integers(0, len(content) - 1))
        start = data.draw(st.integers(4, len(content)))
        stop = data.draw(st.integers(start, len(content)))
        file = tmp_path_factory.mktemp("held") / "shard"
        other = bytearray(content)
        other[position] ^= 255
        file.write_bytes(other)
        is_free = position < 4 or start <= position < stop
        assert self.entry(content, [(start, stop)]).holds(str(file)) == is_free

    def test_is_no_file_of_another_length_or_none(self, tmp_path):
        file = tmp_path / "shard"
        assert not self.entry(b"header").holds(str(file))
        file.write_bytes(b"header!")
        assert not self.entry(b"header").holds(str(file))
        file.write_bytes(b"header")
        assert self.entry(b"header").holds(str(file))
