"""The header of a GGUF file that holds a model for pictures or videos, in its own names. Standard library only.

ComfyUI-GGUF and stable-diffusion.cpp keep the names of the original. llama.cpp has names of its own and stores the rows
of some weights in another order, so that a language model from such a file is no model under its own names.
"""

import re
from collections.abc import Mapping

from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.gguf.gguf_format import (
    ARCHITECTURE_KEY,
    ARRAY,
    MODEL,
    MOST_DIMENSIONS_OF_PICTURES,
    SHAPE_KEY,
    SHARDS_KEY,
    TYPE_KEY,
)
from lora_inspect.files.gguf.gguf_metadata import AGAIN, OF_TOKENS, Value, as_text
from lora_inspect.files.gguf.gguf_reader import Expected, read_contents
from lora_inspect.files.input_file import Identity, InputFile
from lora_inspect.files.safetensors.header import TensorInfo, count_elements

_OTHER_VERSION = "use the .safetensors version of the model"
# Blocks and the embedding of tokens as llama.cpp calls them.
_OF_LLAMA_CPP = re.compile(r"(?:^|\.)blk\.\d|^token_embd\.")


class GgufModel(NamedTuple):
    """Tensors in file order and in the shapes of the model, metadata as text, and which file it was."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    identity: Identity


def read_gguf_model(file: str) -> GgufModel:
    """The header of a model; raises LoraInspectError for one that has not its own names, and for what is none."""

    def expect(key: str, values: Mapping[str, Value]) -> None:
        if key.startswith(OF_TOKENS):
            raise _of_llama_cpp(file, values, key)
        if key == TYPE_KEY and values[key].value != MODEL:
            raise LoraInspectError(
                f"{file}: it is a GGUF file of the type {as_text(values[key].value)}, and no model; {_OTHER_VERSION}."
            )
        if key == SHARDS_KEY and values[key].value != 1:
            raise LoraInspectError(
                f"{file}: it is one of {as_text(values[key].value)} parts of a GGUF model, which are not read as one; "
                f"{_OTHER_VERSION}."
            )

    with InputFile(file) as source:
        values, tensors = read_contents(source, Expected(expect, MOST_DIMENSIONS_OF_PICTURES, _OTHER_VERSION))
        if named := next(filter(_OF_LLAMA_CPP.search, tensors), None):
            raise _of_llama_cpp(file, values, named)
        metadata = {key: as_text(found.value) for key, found in values.items() if not key.startswith(SHAPE_KEY)}
        shaped = {name: info._replace(shape=_shape(info, values)) for name, info in tensors.items()}
        return GgufModel(shaped, metadata, source.identity)


def _of_llama_cpp(file: str, values: Mapping[str, Value], named: str) -> LoraInspectError:
    said = values.get(ARCHITECTURE_KEY)
    what = f" ({ARCHITECTURE_KEY} {as_text(said.value)})" if said else ""
    return LoraInspectError(
        f"{file}: it is a GGUF file of llama.cpp{what}, as {named} shows, which has other names than the model and "
        "the rows of some weights in another order; merge into the .safetensors version and convert the result."
    )


def _shape(info: TensorInfo, values: Mapping[str, Value]) -> tuple[int, ...]:
    """The shape that the tensor has in the model."""
    said = values.get(f"{SHAPE_KEY}{info.name}")
    if said is None:
        return info.shape
    sizes = said.value if said.type == ARRAY else None
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        sizes = [-1]
    if count_elements(sizes) != info.numel:
        raise LoraInspectError(
            f"{info.file}: its {SHAPE_KEY}{info.name} is {as_text(said.value)}, no shape of {info.numel} numbers; "
            f"{AGAIN}."
        )
    return tuple(sizes)
