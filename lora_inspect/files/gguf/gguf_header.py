"""The header of a GGUF file that holds a LoRA adapter, as llama.cpp reads it. Standard library only.

The header says alpha once for all modules.
"""

from collections.abc import Mapping

from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.gguf.gguf_format import (
    ADAPTER,
    ADAPTER_TYPE_KEY,
    ALPHA_KEY,
    ARCHITECTURE_KEY,
    FLOAT32,
    INVOCATION_KEY,
    LORA,
    MODEL,
    MOST_DIMENSIONS,
    TYPE_KEY,
)
from lora_inspect.files.gguf.gguf_metadata import AGAIN, OF_TOKENS, Value, as_text
from lora_inspect.files.gguf.gguf_reader import Expected, read_contents
from lora_inspect.files.input_file import Identity, InputFile
from lora_inspect.files.safetensors.header import TensorInfo


class GgufHeader(NamedTuple):
    """Tensors in file order, metadata as text, which file it was, and where the alpha of all modules stands.

    `alpha` is None where there is none, or 0: llama.cpp multiplies by 1 then.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    identity: Identity
    alpha: TensorInfo | None


def read_gguf(file: str) -> GgufHeader:
    """The header of an adapter; raises LoraInspectError for a model, and for what llama.cpp would not read."""

    def expect(key: str, values: Mapping[str, Value]) -> None:
        if key.startswith(OF_TOKENS) or (key == TYPE_KEY and values[key].value != ADAPTER):
            raise _no_adapter(file, values)

    with InputFile(file) as source:
        anew = "convert the adapter anew with convert_lora_to_gguf.py of llama.cpp, with --outtype f32"
        values, tensors = read_contents(source, Expected(expect, MOST_DIMENSIONS, anew))
        _check_adapter(file, values)
        alpha = values.get(ALPHA_KEY)
        return GgufHeader(
            tensors,
            {key: as_text(found.value) for key, found in values.items()},
            source.identity,
            _alpha(file, alpha, source.identity) if alpha else None,
        )


def _no_adapter(file: str, values: Mapping[str, Value]) -> LoraInspectError:
    """The error for a file that is something else, as its metadata says."""
    kind = values.get(TYPE_KEY)
    if kind is None or kind.value == MODEL:
        said = values.get(ARCHITECTURE_KEY)
        of = f" of the architecture {as_text(said.value)}" if said else ""
        return LoraInspectError(
            f"{file}: it is a GGUF model{of} and no adapter; merge takes one for pictures or videos as its BASE, with "
            "--dtype bf16, and a language model has to be its .safetensors version."
        )
    return LoraInspectError(
        f"{file}: it is a GGUF file of the type {as_text(kind.value)}, and of these only adapters are read; use the "
        ".safetensors version of the model."
    )


def _check_adapter(file: str, values: dict[str, Value]) -> None:
    """Raises LoraInspectError where the metadata is not that of an adapter whose change is known."""
    if TYPE_KEY not in values:
        raise _no_adapter(file, values)
    kind = values.get(ADAPTER_TYPE_KEY)
    if kind is None or kind.value != LORA:
        says = as_text(kind.value) if kind else "missing"
        raise LoraInspectError(f"{file}: it is a GGUF adapter whose {ADAPTER_TYPE_KEY} is {says}, not {LORA}.")
    if INVOCATION_KEY in values:
        raise LoraInspectError(
            f"{file}: it is an aLoRA adapter ({INVOCATION_KEY}), which acts from an invocation token on and is no "
            "change of a weight; use it with llama.cpp."
        )


def _alpha(file: str, found: Value, identity: Identity) -> TensorInfo | None:
    """Where the number stands; None for 0."""
    if found.type != FLOAT32:
        raise LoraInspectError(f"{file}: its {ALPHA_KEY} is {as_text(found.value)}, no float32; {AGAIN}.")
    return TensorInfo(ALPHA_KEY, "F32", (), file, found.start, found.start + 4, identity) if found.value else None
