"""Ranges of two tensors compared, with pieces that end within them."""

import pytest

import lora_inspect.files.hashes as home
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.hashes import are_same_bytes
from lora_inspect.files.safetensors.header import read_header


@pytest.fixture
def tensors(write_safetensors, monkeypatch):
    monkeypatch.setattr(home, "_PIECE", 4)

    def write(one, other):
        files = [
            write_safetensors({"t": ("U8", (len(data),), bytes(data))}, name=f"{at}.safetensors")
            for at, data in enumerate((one, other))
        ]
        return [read_header(str(file))[0]["t"] for file in files]

    return write


def test_every_byte_of_a_range_counts(tensors):
    data = bytes(range(10))
    for at in range(10):
        other = bytearray(data)
        other[at] ^= 1
        one, two = tensors(data, other)
        assert not are_same_bytes(one, two, [(0, 0, 10)])
        assert are_same_bytes(one, two, [(0, 0, at), (at + 1, at + 1, 9 - at)])
        assert not are_same_bytes(one, two, [(0, 0, at), (at, at, 10 - at)])


def test_ranges_are_at_other_places(tensors):
    one, two = tensors(b"abcdefgh", b"efghabcd")
    assert are_same_bytes(one, two, [(0, 4, 4), (4, 0, 4)])
    assert not are_same_bytes(one, two, [(0, 0, 4)])
    assert are_same_bytes(one, two, [])


def test_a_file_that_changed_is_named(tensors, tmp_path):
    one, two = tensors(b"abcd", b"abcd")
    (tmp_path / "1.safetensors").write_bytes(b"another")
    with pytest.raises(LoraInspectError, match=r"1\.safetensors: it changed while it was read"):
        are_same_bytes(one, two, [(0, 0, 4)])
