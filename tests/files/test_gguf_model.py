"""Headers of GGUF models, against what the library writes and reads, and files that are none in their own names."""

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader
from gguf_files import entry, header, string, text, write_adapter, write_model
from hypothesis import given
from hypothesis import strategies as st

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.gguf.gguf_format import QUANTISED, TENSOR_TYPES
from lora_inspect.files.gguf.gguf_reader import read_gguf_model

ARRAY, INT32, UINT16 = 9, 5, 2
# Left out are those in which no weights are stored.
STORED = [kind for kind in GGMLQuantizationType if kind.name not in ("Q8_1", "Q8_K", "Q1_0")]


def blocks(kind, rows=2, columns=512, seed=0):
    """Drawn bytes of whole blocks."""
    block, size = GGML_QUANT_SIZES[kind]
    return np.random.default_rng(seed).integers(0, 256, (rows, columns // block * size), dtype=np.uint8), kind


def shape_key(name, sizes, kind=INT32):
    values = b"".join(size.to_bytes(4, "little", signed=True) for size in sizes)
    return text(f"comfy.gguf.orig_shape.{name}") + b"".join(
        number.to_bytes(size, "little") for number, size in ((ARRAY, 4), (kind, 4), (len(sizes), 8))
    ) + values  # fmt: skip


@pytest.mark.parametrize("kind", STORED, ids=lambda kind: kind.name)
def test_every_type_that_the_library_names_has_its_size(tmp_path, kind):
    known = TENSOR_TYPES[int(kind)]
    assert (known.name, (known.block, known.bytes)) == (kind.name, GGML_QUANT_SIZES[kind])
    assert (kind.name in QUANTISED) == (known.block > 1)
    if known.block == 1:
        return
    tensors = {"a.weight": blocks(kind), "a.bias": (np.ones(4, np.float32), None)}
    model = read_gguf_model(write_model(tmp_path / "m.gguf", tensors))
    info = model.tensors["a.weight"]
    assert (info.dtype, info.shape) == (kind.name, (2, 512))
    read = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "m.gguf").tensors}
    assert (info.start, info.nbytes) == (read["a.weight"].data_offset, read["a.weight"].n_bytes)
    assert model.metadata["general.architecture"] == "flux"


SHAPES = {"in.weight": (32, 16, 3, 3)}


def test_a_tensor_in_other_rows_has_the_shape_of_the_model(tmp_path):
    rows = (np.zeros((18, 256), np.float32), None)
    path = write_model(tmp_path / "m.gguf", {"in.weight": rows, "out.weight": rows}, "sdxl", SHAPES)
    model = read_gguf_model(path)
    assert {name: info.shape for name, info in model.tensors.items()} == {
        "in.weight": (32, 16, 3, 3),
        "out.weight": (18, 256),
    }
    assert not [key for key in model.metadata if "orig_shape" in key]


def test_a_kernel_of_three_dimensions_has_five(tmp_path):
    path = write_model(tmp_path / "m.gguf", {"patch.weight": (np.zeros((8, 4, 1, 2, 2), np.float32), None)}, "wan")
    assert read_gguf_model(path).tensors["patch.weight"].shape == (8, 4, 1, 2, 2)


OF_FLUX = string("general.architecture", "flux")
ONE = [entry("a.weight", (4, 2))]
REFUSED = {
    "names of llama.cpp": (
        header([string("general.architecture", "llama")], [entry("blk.0.attn_q.weight", (4, 2))], 32),
        ("of llama.cpp (general.architecture llama), as blk.0.attn_q.weight shows", "in another order"),
    ),
    "blocks of an encoder": (header([], [entry("enc.blk.0.attn_q.weight", (4, 2))], 32), ("cpp, as enc.blk.0.attn_q",)),
    "an embedding of tokens": (header([], [entry("token_embd.weight", (4, 2))], 32), ("as token_embd.weight shows",)),
    "a tokenizer": (header([string("tokenizer.ggml.model", "gpt2")], ONE, 32), ("as tokenizer.ggml.model shows",)),
    "another type": (header([string("general.type", "mmproj")], ONE, 32), ("of the type mmproj, not a model",)),
    "a part": (
        header([text("split.count") + (UINT16).to_bytes(4, "little") + b"\3\0"], ONE, 32),
        ("one of 3 parts of a GGUF model",),
    ),
    "another number of entries": (
        header([shape_key("a.weight", (3, 3))], ONE, 32), ("[3, 3], not a shape of 8 numbers",)),
    "a negative size": (header([shape_key("a.weight", (-2, -4))], ONE, 32), ("is [-2, -4], not a shape of 8 numbers",)),
    "a shape of text": (header([string("comfy.gguf.orig_shape.a.weight", "8")], ONE, 32), ("is 8, not a shape of 8",)),
    "six dimensions": (
        header([OF_FLUX], [entry("a.weight", (1, 1, 1, 1, 2, 4))], 32),
        ("has 6 dimensions, but lora-inspect reads 1 to 5",)),
    "an unknown type": (header([OF_FLUX], [entry("a.weight", (4, 2), kind=99)], 32), ("type 99", ".safetensors")),
    "another version": (header([OF_FLUX], ONE, 32, version=9), ("version 9", "use the .safetensors version")),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_in_one_sentence(tmp_path, name):
    content, words = REFUSED[name]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(LoraInspectError) as refused:
        read_gguf_model(str(path))
    said = str(refused.value)
    assert said.startswith(f"{path}: ")
    assert said.endswith(".")
    assert all(word in said for word in words), said


def test_an_adapter_is_no_model(tmp_path):
    path = write_adapter(tmp_path / "a.gguf", {"x.weight.lora_a": np.zeros((2, 4), np.float32)})
    with pytest.raises(LoraInspectError, match="of the type adapter, not a model"):
        read_gguf_model(path)


def test_names_of_the_model_that_hold_a_block_are_its_own(tmp_path):
    names = ("double_blocks.0.img_attn.qkv.weight", "blocks.0.ffn.0.weight", "x.blk.weight", "a.token_embd.weight")
    path = write_model(tmp_path / "m.gguf", {name: (np.zeros((2, 4), np.float32), None) for name in names})
    assert list(read_gguf_model(path).tensors) == list(names)


@given(st.data())
def test_a_changed_byte_is_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("gguf")
    content = bytearray(header([OF_FLUX, shape_key("a.weight", (2, 2, 2))], ONE, 32))
    content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "m.gguf"
    path.write_bytes(content)
    try:
        read_gguf_model(str(path))
    except LoraInspectError as refused:
        assert str(refused).startswith(str(path))  # noqa: PT017
