"""The header of one file: what is read, and every rule of the format that is checked."""

import json
import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from strategies import metadata, names, shapes, tensor_plans

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.safetensors.header import TensorInfo, count_elements, read_header
from lora_inspect.files.safetensors.writer import encode_header
from lora_inspect.files.strict_json import HEADER_BYTES


def one(dtype="F32", shape=(2,), offsets=(0, 8), **more):
    return {"a": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}}


def test_reads_what_the_library_writes(tmp_path):
    import torch

    file = str(tmp_path / "a.safetensors")
    tensors = {"b": torch.ones(2, 3, dtype=torch.bfloat16), "a": torch.zeros(()), "none": torch.zeros(0, 4)}
    save_file(tensors, file, {"format": "pt", "é": "日本"})
    found, about = read_header(file)
    assert about == {"format": "pt", "é": "日本"}
    assert {name: (info.dtype, info.shape) for name, info in found.items()} == {
        "a": ("F32", ()),
        "b": ("BF16", (2, 3)),
        "none": ("F32", (0, 4)),
    }
    assert max(info.stop for info in found.values()) == os.path.getsize(file)
    assert all(info.file == file for info in found.values())


@given(plans=tensor_plans, about=metadata)
def test_what_is_written_is_read_back(tmp_path_factory, plans, about):
    file = str(tmp_path_factory.mktemp("header") / "a.safetensors")
    content = encode_header(plans, about)
    with open(file, "wb") as handle:
        handle.write(content + bytes(sum(plan.nbytes for plan in plans)))
    found, read = read_header(file)
    assert read == about
    assert {(info.name, info.dtype, info.shape) for info in found.values()} == set(plans)
    assert {info.name: info.nbytes for info in found.values()} == {plan.name: plan.nbytes for plan in plans}
    position = len(content)
    for info in found.values():
        assert info.start == position
        position = info.stop


@given(shape=shapes, name=names)
def test_numel_counts_the_elements(shape, name):
    info = TensorInfo(name, "U8", tuple(shape), "a", 8, 8 + count_elements(shape))
    assert info.numel == len(list(_indices(shape)))
    assert info.nbytes == info.numel


def _indices(shape):
    if not shape:
        return [()]
    return [(i, *rest) for i in range(shape[0]) for rest in _indices(shape[1:])]


WELL_FORMED = {
    "no tensors": ({}, b""),
    "metadata null": ({"__metadata__": None, **one()}, bytes(8)),
    "spare fields": (one(more=1), bytes(8)),
    "empty tensor": (one(shape=(0, 3), offsets=(0, 0)), b""),
    "scalar": (one(shape=(), offsets=(0, 4)), bytes(4)),
}


@pytest.mark.parametrize(("header", "body"), WELL_FORMED.values(), ids=WELL_FORMED)
def test_odd_but_well_formed_files_are_read(header, body, write_safetensors):
    file = write_safetensors({}, header=json.dumps(header).encode() + b"  ")
    file.write_bytes(file.read_bytes() + body)
    found, about = read_header(str(file))
    assert sorted(found) == sorted(header.keys() - {"__metadata__"})
    assert about == {}


# name -> (header, body, a word of the sentence)
MALFORMED = {
    "not JSON": (b"{not json", b"", "not JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not JSON"),
    "nested beyond reason": (b'{"a":' + b"[" * 100_000, b"", "entry of a"),
    "fields nested beyond reason": (b'{"a":{"b":' + b"[" * 100_000, b"", "not JSON"),
    "a list": (b"[1, 2]", b"", "not a JSON object"),
    "a string": (b'"text"', b"", "not a JSON object"),
    "metadata with numbers": (json.dumps({"__metadata__": {"a": 1}, **one()}), bytes(8), "__metadata__"),
    "metadata a list": (json.dumps({"__metadata__": [], **one()}), bytes(8), "__metadata__"),
    "metadata false": (json.dumps({"__metadata__": False, **one()}), bytes(8), "__metadata__"),
    "half a surrogate": (r'{"\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}', bytes(8), "Unicode"),
    "half a surrogate in metadata": (r'{"__metadata__": {"a": "\udfff"}}', b"", "Unicode"),
    "unknown dtype": (json.dumps(one(dtype="F128")), bytes(8), "a has the unknown dtype 'F128'"),
    "dtype a number": (json.dumps(one(dtype=32)), bytes(8), "a has the unknown dtype 32"),
    "negative shape": (json.dumps(one(shape=(-2,))), bytes(8), "of a has something else than whole numbers"),
    "float shape": (json.dumps(one(shape=(2.0,))), bytes(8), "of a has something else than whole numbers"),
    "true as a shape": (json.dumps(one(shape=(True, 2))), bytes(8), "of a has something else than whole numbers"),
    "shape a number": (json.dumps({"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}), bytes(8), "entry of a"),
    "no shape": (json.dumps({"a": {"dtype": "F32", "data_offsets": [0, 8]}}), bytes(8), "entry of a"),
    "entry a list": (json.dumps({"a": [1]}), bytes(8), "entry of a"),
    "entry null": (json.dumps({"a": None}), bytes(8), "entry of a"),
    "three offsets": (json.dumps(one(offsets=(0, 4, 8))), bytes(8), "entry of a"),
    "offsets backwards": (json.dumps(one(offsets=(8, 0))), bytes(8), "a has -8 bytes"),
    "product beyond 64 bits": (json.dumps(one(shape=(2**40, 2**40))), bytes(8), "a has 8 bytes"),
    "dimension beyond 64 bits": (json.dumps(one(shape=(10**4000, 10**4000))), bytes(8), "not JSON"),
    "product of thousands of digits": (json.dumps(one(shape=(2**62,) * 2000)), bytes(8), "a has 8 bytes"),
    "half a byte": (json.dumps(one(dtype="F4", shape=(3,), offsets=(0, 1))), bytes(1), "a has 1 bytes"),
    "too few bytes": (json.dumps(one(offsets=(0, 4))), bytes(4), "a has 4 bytes"),
    "overlap": (json.dumps({**one(), "b": one(offsets=(4, 12))["a"]}), bytes(12), "b overlaps"),
    "same range twice": (json.dumps({**one(), "b": one()["a"]}), bytes(8), "overlaps"),
    "a hole": (json.dumps({**one(), "b": one(offsets=(12, 20))["a"]}), bytes(20), "b leaves a hole"),
    "a hole at the start": (json.dumps(one(offsets=(4, 12))), bytes(12), "a leaves a hole"),
    "trailing bytes": (json.dumps(one()), bytes(9), "longer than its header says"),
    "missing bytes": (json.dumps(one()), bytes(7), "truncated"),
}  # fmt: skip


@pytest.mark.parametrize(("header", "body", "says"), MALFORMED.values(), ids=MALFORMED)
def test_a_broken_header_is_refused_by_name(header, body, says, write_safetensors):
    header = header if isinstance(header, bytes) else header.encode()
    file = write_safetensors({}, header=header)
    file.write_bytes(file.read_bytes() + body)
    with pytest.raises(LoraInspectError, match="^" + str(file)) as refused:
        read_header(str(file))
    assert says in str(refused.value)
    with pytest.raises(SafetensorError), safe_open(file, "np"):
        pass  # the reference reader refuses it too, so the rule is the format's


@pytest.mark.parametrize("length", [HEADER_BYTES + 1, 2**63, 2**64 - 1, 1000])
def test_a_header_longer_than_the_file_or_the_limit_is_refused(length, tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(LoraInspectError, match=f"announce a header of {length} bytes"):
        read_header(str(file))


def test_a_header_of_640_bytes_is_not_taken_for_a_pickle(write_safetensors):
    header = json.dumps(one()).encode().ljust(0x280)
    file = write_safetensors({"a": ("F32", (2,), 1.0)}, header=header)
    assert file.read_bytes()[:2] == b"\x80\x02"
    assert list(read_header(str(file))[0]) == ["a"]


@given(st.text(min_size=1, max_size=10))
def test_a_refusal_is_one_line_whatever_the_names_are(text):
    assert len(str(LoraInspectError(f"a{text}b")).splitlines()) == 1
