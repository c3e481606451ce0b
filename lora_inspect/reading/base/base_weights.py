"""A base with the weights that its codes stand for: under their names and in their shapes, wherever codes have others.

Several numbers share a byte in some codecs, and all experts of a layer a tensor of another name: what lands in a base
lands in the weights.
"""

from contextlib import suppress

from lora_inspect.codecs import storing
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint, open_model
from lora_inspect.files.safetensors.dtypes import PLAIN_FLOATS
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.base.base_codecs import BaseCodecs
from lora_inspect.reading.base.quantisation import quantisation_settings


def open_weights(path: str) -> Checkpoint:
    """The view of a model, a GGUF file as well; raises LoraInspectError for whatever is none."""
    return with_weights(open_model(path))


def with_weights(base: Checkpoint) -> Checkpoint:
    """The same base with weights in the place of their codes, which `codes` then has.

    What is wrong with codes is for those to say who need them: they stay as they are stored.
    """
    base_codecs, settings = BaseCodecs(base), quantisation_settings(base.tensors)
    tensors: dict[str, TensorInfo] = {}
    codes: dict[str, TensorInfo] = {}
    for name, info in base.tensors.items():
        weight = info
        if info.dtype not in PLAIN_FLOATS and name not in settings and storing(info.dtype):
            with suppress(LoraInspectError):
                weight = base_codecs.of(info).info
        if weight != info:
            codes[weight.name] = info
        tensors[weight.name] = weight
    return base._replace(tensors=tensors, codes=codes) if codes else base
