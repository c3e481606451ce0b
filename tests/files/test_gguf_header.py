"""The header of a GGUF adapter: what is read of what the library writes, and everything that is refused."""

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFType, GGUFWriter
from gguf_files import OF_ADAPTERS, UINT32, entry, header, number, pair, string, text, write_adapter
from hypothesis import given
from hypothesis import strategies as st

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.gguf.gguf_reader import read_gguf
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.tensors import load

A, B = "blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"


def bytes_of(info: TensorInfo) -> bytes:
    return Path(info.file).read_bytes()[info.start : info.stop]


@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=5),
    half=st.booleans(),
    alpha=st.floats(width=32, allow_nan=False, allow_infinity=False).filter(bool),
)
def test_reads_what_the_library_writes(tmp_path_factory, shapes, half, alpha):
    dtype = np.float16 if half else np.float32
    tensors = {
        f"blk.{at}.attn_q.weight.lora_a": np.arange(rows * columns, dtype=dtype).reshape(rows, columns)
        for at, (rows, columns) in enumerate(shapes)
    }
    file = write_adapter(tmp_path_factory.mktemp("gguf") / "a.gguf", tensors, alpha)
    found, metadata, _, where = read_gguf(file)
    assert {name: info.shape for name, info in found.items()} == {name: v.shape for name, v in tensors.items()}
    assert {info.dtype for info in found.values()} == {"F16" if half else "F32"}
    for name, values in tensors.items():
        assert bytes_of(found[name]) == values.tobytes()
    assert where is not None
    assert struct.unpack("<f", bytes_of(where)) == (np.float32(alpha),)
    assert float(metadata["adapter.lora.alpha"]) == np.float32(alpha)
    assert [tensor.name for tensor in GGUFReader(file).tensors] == list(found)


def test_reads_bfloat16(tmp_path):
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    stored = np.array([[0x3F80, 0xC000]], np.uint16)
    writer.add_tensor(A, stored.view(np.uint8), raw_dtype=GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    info = read_gguf(str(tmp_path / "a.gguf")).tensors[A]
    assert (info.dtype, info.shape) == ("BF16", (1, 2))
    assert load(info).tolist() == [[1.0, -2.0]]


def test_metadata_are_text(tmp_path):
    more = {"general.name": "日本", "general.tags": ["lora", "é"], "general.numbers": [1, 2]}
    file = write_adapter(tmp_path / "a.gguf", pair("blk.0.attn_q", 4, 4, 2), alpha=0.5, **more)
    metadata = read_gguf(file).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["general.name"] == "日本"
    assert metadata["general.tags"] == '["lora", "é"]'
    assert metadata["general.numbers"] == "[1, 2]"
    assert metadata["adapter.lora.alpha"] == "0.5"


@pytest.mark.parametrize("alpha", [None, 0.0, -0.0])
def test_no_alpha_is_none(tmp_path, alpha):
    assert read_gguf(write_adapter(tmp_path / "a.gguf", {}, alpha)).alpha is None


def test_a_factor_of_rank_1_that_ggml_wrote_is_a_matrix(tmp_path):
    entries = [entry(A, [8], 0, 0), entry("blk.0.attn_norm.weight", [8], 0, 32)]
    found = read(tmp_path, header(entries=entries, data=64)).tensors
    assert found[A].shape == (1, 8)
    assert found["blk.0.attn_norm.weight"].shape == (8,)


def test_the_alignment_is_what_the_header_says(tmp_path):
    values = [*OF_ADAPTERS, number("general.alignment", UINT32, "I", 8)]
    content = header(values, [entry(A, [1, 1], 0, 0), entry(B, [1, 1], 0, 8)], data=12, alignment=8)
    found = read(tmp_path, content).tensors
    assert [len(content) - info.start for info in found.values()] == [12, 4]


def test_quantised_tensors_have_their_size(tmp_path):
    found = read(tmp_path, header(entries=[entry(A, [64, 2], 8, 0)], data=160)).tensors
    assert (found[A].dtype, found[A].shape, found[A].nbytes) == ("Q8_0", (2, 64), 4 * 34)


ONE = [entry(A, [2, 2])]
REFUSED = {
    "model": (
        header([string("general.type", "model")]),
        ["a GGUF model, not an adapter", "give it to merge", "as the BASE"],
    ),
    "a model by its tokens": (
        header([string("tokenizer.ggml.model", "gpt2")], counts=(0, 900)),
        ["a GGUF model, not an adapter"],
    ),
    "nothing says it": (header([string("adapter.type", "lora")]), ["a GGUF model, not an adapter"]),
    "mmproj": (header([string("general.type", "mmproj")]), ["of the type mmproj", "only adapters"]),
    "control vector": (header([OF_ADAPTERS[0], string("adapter.type", "other")]), ["adapter.type is other", "lora"]),
    "no kind of adapter": (header(OF_ADAPTERS[:1]), ["adapter.type is missing, not lora"]),
    "aLoRA": (
        header([*OF_ADAPTERS, text("adapter.alora.invocation_tokens") + struct.pack("<IIQI", 9, 4, 1, 7)]),
        ["aLoRA", "changes no weight"],
    ),
    "version 1": (header(version=1), ["version 1", "convert_lora_to_gguf.py"]),
    "version 0": (header(version=0), ["version 0"]),
    "big-endian": (header(version=3 << 24), ["big-endian"]),
    "many tensors": (header(counts=(10**9, 2)), ["tensors"]),
    "many keys": (header(counts=(0, 10**9)), ["1,000,000,000 keys"]),
    "more keys than there are": (header(counts=(0, 90)), ["twice"]),
    "more tensors than there are": (header(counts=(90, 2)), ["0 dimensions"]),
    "a string beyond the file": (header([struct.pack("<Q", 1 << 62)]), ["beyond the end"]),
    "a long key": (header([text(b"a" * 70_000)]), ["70,000 bytes"]),
    "no UTF-8": (header([string("general.name", b"\xff")]), ["not UTF-8"]),
    "a type of no value": (header([*OF_ADAPTERS, text("a") + struct.pack("<I", 99)]), ["unknown type 99"]),
    "a list of lists": (header([*OF_ADAPTERS, text("a") + struct.pack("<IIQ", 9, 9, 1) + bytes(40)]), ["type 9"]),
    "a list beyond the file": (header([*OF_ADAPTERS, text("a") + struct.pack("<IIQ", 9, 0, 1 << 62)]), ["beyond"]),
    "a key twice": (header([*OF_ADAPTERS, *OF_ADAPTERS]), ["general.type twice"]),
    "alpha is no float32": (header([*OF_ADAPTERS, number("adapter.lora.alpha", UINT32, "I", 8)]), ["not a float32"]),
    "alpha is a string": (header([*OF_ADAPTERS, string("adapter.lora.alpha", "8")]), ["not a float32"]),
    "odd alignment": (header([*OF_ADAPTERS, number("general.alignment", UINT32, "I", 24)]), ["not a power of two"]),
    "no alignment": (header([*OF_ADAPTERS, number("general.alignment", UINT32, "I", 0)]), ["not a power of two"]),
    "true is no alignment": (header([*OF_ADAPTERS, number("general.alignment", 7, "?", True)]), ["not a power of two"]),
    "no dimension": (header(entries=[entry(A, [])]), ["0 dimensions"]),
    "many dimensions": (header(entries=[entry(A, [1] * 5)]), ["5 dimensions"]),
    "a billion dimensions": (header(entries=[text(A) + struct.pack("<I", 10**9)]), ["1000000000 dimensions"]),
    "an unknown element type": (header(entries=[entry(A, [2, 2], 77)], data=16), ["type 77", "--outtype f32"]),
    "broken blocks": (header(entries=[entry(A, [33, 2], 8)], data=96), ["blocks of 32"]),
    "a huge shape": (header(entries=[entry(A, [1 << 62, 1 << 62])]), ["beyond 63 bits"]),
    "a far place": (header(entries=[entry(A, [2, 2], 0, 1 << 63)]), ["beyond 63 bits"]),
    "a hole": (header(entries=[entry(A, [2, 2], 0, 32)], data=64), ["leaves a hole"]),
    "an overlap": (header(entries=[entry(A, [2, 2]), entry(B, [2, 2])], data=64), ["overlaps"]),
    "a tensor twice": (header(entries=[entry(A, [2, 2]), entry(A, [2, 2], 0, 32)], data=64), ["twice"]),
    "truncated": (header(entries=ONE, data=15), ["truncated"]),
    "too long": (header(entries=ONE, data=33), ["longer than its header"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_in_one_sentence(tmp_path, name):
    content, words = REFUSED[name]
    with pytest.raises(LoraInspectError) as refused:
        read(tmp_path, content)
    said = str(refused.value)
    assert said.startswith(str(tmp_path / "a.gguf"))
    assert all(word in said for word in words), said
    assert said.endswith(".")
    assert "\n" not in said


def test_what_the_library_writes_for_other_machines_is_named(tmp_path):
    writer = GGUFWriter(tmp_path / "a.gguf", "llama", endianess=GGUFEndian.BIG)
    writer.add_type(GGUFType.ADAPTER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(LoraInspectError, match="big-endian"):
        read_gguf(str(tmp_path / "a.gguf"))


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path):
    whole = Path(write_adapter(tmp_path / "whole.gguf", pair("blk.0.attn_q", 4, 8, 2))).read_bytes()
    last = max(info.stop for info in read_gguf(str(tmp_path / "whole.gguf")).tensors.values())
    for length in range(4, last):
        with pytest.raises(LoraInspectError):
            read(tmp_path, whole[:length])
    assert read(tmp_path, whole[:last]).tensors


@given(at=st.integers(4, 260), byte=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused(tmp_path_factory, at, byte):
    folder = tmp_path_factory.mktemp("gguf")
    content = bytearray(Path(write_adapter(folder / "whole.gguf", pair("blk.0.attn_q", 4, 8, 2))).read_bytes())
    content[at] = byte
    try:
        found = read(folder, bytes(content))
    except LoraInspectError:
        return
    assert all(0 <= info.start <= info.stop <= len(content) for info in found.tensors.values())


@pytest.mark.parametrize("name", ["a.gguf", "a.safetensors", "a.bin", "a"])
def test_a_checkpoint_is_opened_by_its_first_bytes(tmp_path, name):
    file = write_adapter(tmp_path / name, pair("blk.0.attn_q", 4, 8, 2), alpha=3.0)
    checkpoint = open_checkpoint(file)
    assert list(checkpoint.tensors) == [A, B]
    assert checkpoint.alpha is not None
    assert checkpoint.numbers([checkpoint.alpha.name]) == {"adapter.lora.alpha": 3.0}


def written(folder: Path, content: bytes) -> Path:
    file = folder / "a.gguf"
    file.write_bytes(content)
    return file


def read(folder: Path, content: bytes):
    return read_gguf(str(written(folder, content)))
