"""What is written as GGUF is what the library reads, complete or not at all."""

import os
import struct

import numpy as np
import pytest
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.gguf.gguf_reader import read_gguf
from lora_inspect.files.gguf.gguf_writer import write_gguf
from lora_inspect.files.input_file import identify
from lora_inspect.files.safetensors.writer import Content, TensorPlan, renamed

WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}


def content(name, dtype="F32", shape=(2, 3), start=0):
    size = WIDTHS[dtype] * int(np.prod(shape))
    return Content(TensorPlan(name, dtype, tuple(shape)), bytes((start + at) % 256 for at in range(size)))


def value_of(reader, key):
    return reader.fields[key].contents()


@given(
    described=st.lists(
        st.tuples(st.sampled_from(sorted(WIDTHS)), st.lists(st.integers(1, 6), min_size=1, max_size=4)), max_size=6
    ),
    alpha=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
def test_the_library_reads_what_is_written(tmp_path_factory, described, alpha):
    file = str(tmp_path_factory.mktemp("gguf") / "a.gguf")
    contents = [content(f"blk.{at}.x", dtype, shape, at) for at, (dtype, shape) in enumerate(described)]
    write_gguf(file, "qwen3", alpha, contents, {"lora_inspect.note": "日本"})
    reader = GGUFReader(file)
    assert value_of(reader, "general.architecture") == "qwen3"
    assert value_of(reader, "general.type") == "adapter"
    assert value_of(reader, "adapter.type") == "lora"
    assert value_of(reader, "lora_inspect.note") == "日本"
    assert struct.pack("<f", value_of(reader, "adapter.lora.alpha")) == struct.pack("<f", alpha)
    assert [tensor.name for tensor in reader.tensors] == [one.plan.name for one in contents]
    for tensor, one in zip(reader.tensors, contents, strict=True):
        assert tuple(reversed(tensor.shape.tolist())) == one.plan.shape
        assert tensor.tensor_type.name == one.plan.dtype
        assert tensor.data.tobytes() == one.source
        assert tensor.data_offset % 32 == 0
    assert os.path.getsize(file) % 32 == 0


def test_what_is_written_is_read_back(tmp_path):
    file = str(tmp_path / "a.gguf")
    contents = [
        content("blk.0.attn_q.weight.lora_a", "F16", (2, 5)),
        content("blk.0.attn_q.weight.lora_b", "BF16", (7, 2)),
    ]
    write_gguf(file, "llama", 0.1, contents)
    tensors, metadata, _, alpha = read_gguf(file)
    assert {name: (info.dtype, info.shape) for name, info in tensors.items()} == {
        one.plan.name: (one.plan.dtype, one.plan.shape) for one in contents
    }
    assert metadata["general.architecture"] == "llama"
    assert alpha is not None
    assert float(metadata["adapter.lora.alpha"]) == np.float32(0.1)


def test_ranges_of_inputs_are_copied(tmp_path):
    source, copy = str(tmp_path / "source.gguf"), str(tmp_path / "copy.gguf")
    write_gguf(source, "llama", 1.0, [content("a", shape=(3, 3)), content("b", shape=(5, 1), start=9)])
    infos = read_gguf(source).tensors
    write_gguf(copy, "llama", 1.0, [renamed(infos["b"], "x"), renamed(infos["a"], "y")], {}, {source: identify(source)})
    found = {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(copy).tensors}
    assert found == {"x": content("b", shape=(5, 1), start=9).source, "y": content("a", shape=(3, 3)).source}


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ([Content(TensorPlan("a", "F64", (1,)), bytes(8))], "a is F64"),
        ([Content(TensorPlan("a", "F32", ()), bytes(4))], "0 dimensions"),
        ([content("a", shape=(1, 1, 1, 1, 1))], "5 dimensions"),
        ([content("a" * 64)], "longer than the 63 bytes"),
        ([content("é" * 32)], "longer than the 63 bytes"),
        ([content("a"), content("a")], "both have the name a"),
    ],
)  # fmt: skip
def test_what_the_format_has_no_place_for_is_refused_and_nothing_is_left(tmp_path, contents, words):
    with pytest.raises(LoraInspectError, match=words):
        write_gguf(str(tmp_path / "a.gguf"), "llama", 1.0, contents)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_kept_without_force(tmp_path):
    file = tmp_path / "a.gguf"
    file.write_bytes(b"mine")
    with pytest.raises(LoraInspectError, match="--force"):
        write_gguf(str(file), "llama", 1.0, [content("a")])
    assert file.read_bytes() == b"mine"
    write_gguf(str(file), "llama", 1.0, [content("a")], force=True)
    assert [tensor.name for tensor in GGUFReader(file).tensors] == ["a"]


def test_an_input_that_changed_meanwhile_is_refused(tmp_path):
    source, copy = tmp_path / "source.gguf", tmp_path / "copy.gguf"
    write_gguf(str(source), "llama", 1.0, [content("a")])
    infos, _, identity, _ = read_gguf(str(source))
    os.utime(source, ns=(1, 1))
    with pytest.raises(LoraInspectError, match="changed while it was read"):
        write_gguf(str(copy), "llama", 1.0, [renamed(infos["a"], "a")], {}, {str(source): identity})
    assert not copy.exists()


@pytest.mark.parametrize("key", ["general.type", "adapter.type", "general.architecture", "adapter.lora.alpha"])
def test_what_the_format_says_itself_is_no_metadata(tmp_path, key):
    with pytest.raises(ValueError, match=key):
        write_gguf(str(tmp_path / "a.gguf"), "llama", 1.0, [], {key: "x"})
