"""A tensor of each element type goes through merge and convert as it is, and the library reads it there."""

import json
import random
import re
from functools import cache

import pytest
from adapters import base, loras
from safetensors import SafetensorError, deserialize

from lora_inspect.files.safetensors.dtypes import BITS, FP8, PLAIN_FLOATS
from lora_inspect.files.safetensors.header import read_header

# As many elements as fill whole bytes in every type.
ELEMENTS = 12


def content(dtype):
    return random.Random(dtype).randbytes(ELEMENTS * BITS[dtype] // 8)


def stored(dtype):
    return {f"kept.{dtype}": (dtype, (3, 4), content(dtype))}


def bytes_of(path, name):
    info = read_header(str(path))[0][name]
    return info.dtype, list(info.shape), path.read_bytes()[info.start : info.stop]


@cache
def known_types():
    """The types that the installed library knows, as it lists them where one is unknown."""
    header = json.dumps({"a": {"dtype": "?", "shape": [], "data_offsets": [0, 0]}}).encode()
    with pytest.raises(SafetensorError, match="unknown variant") as refused:
        deserialize(len(header).to_bytes(8, "little") + header)
    return set(re.findall("`([A-Z0-9_]+)`", str(refused.value)))


def test_every_type_of_the_library_is_known():
    assert len(known_types()) >= 12
    assert known_types() <= BITS.keys()


CASES = [
    (verb, dtype, options)
    for dtype in BITS
    for verb, options in (("merge", ()), ("merge", ("--dtype", "fp16")), ("convert", ()))
    if not (options and dtype in PLAIN_FLOATS | FP8)  # --dtype casts these
]


@pytest.mark.parametrize(("verb", "dtype", "options"), CASES)
def test_a_tensor_of_each_type_is_copied(verb, dtype, options, run, write_safetensors, tmp_path):
    out, name = tmp_path / "out.safetensors", f"kept.{dtype}"
    if verb == "convert":
        inputs = (write_safetensors({**loras(), **stored(dtype)}),)
    else:
        model = write_safetensors({**base(), **stored(dtype)}, name="base.safetensors")
        inputs = (model, write_safetensors(loras()))
    done = run(verb, *inputs, "-o", out, *options)
    assert done.status == 0, done
    assert bytes_of(out, name) == (dtype, [3, 4], content(dtype))
    if dtype in known_types():
        found = dict(deserialize(out.read_bytes()))[name]
        assert (found["dtype"], found["shape"], bytes(found["data"])) == (dtype, [3, 4], content(dtype))


def test_tensors_of_all_types_stand_in_one_file(run, write_safetensors, tmp_path):
    tensors = {name: tensor for dtype in BITS for name, tensor in stored(dtype).items()}
    model = write_safetensors({**base(), **tensors}, name="base.safetensors")
    out = tmp_path / "out.safetensors"
    assert run("merge", model, write_safetensors(loras()), "-o", out).status == 0
    for dtype in BITS:
        assert bytes_of(out, f"kept.{dtype}") == (dtype, [3, 4], content(dtype))
    assert run("info", model, "--json").json["dtypes"] == {**dict.fromkeys(BITS, 1), "F32": 4}


@pytest.mark.parametrize("dtype", ["F128", "f32", "I4", "F8_E4M3FN", ""])
def test_an_unknown_type_is_named(dtype, run, write_safetensors):
    header = json.dumps({"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, 8]}}).encode()
    path = write_safetensors({"a": ("F32", (2,), 0)}, header=header)
    assert f"a has the unknown dtype {dtype!r}" in run("info", path).refusal
