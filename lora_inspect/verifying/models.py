"""MERGED beside BASE: the same names and shapes, and the codecs of both."""

from collections.abc import Collection, Iterable, Mapping
from functools import cached_property

from lora_inspect.codecs import stored_types
from lora_inspect.codecs.record import UnknownCodec
from lora_inspect.errors import RefusedError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.safetensors.dtypes import PLAIN_FLOATS
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.near_names import nearest_name
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.base.base_codecs import BaseCodecs, CodedWeight, plain_weight
from lora_inspect.reading.base.quantisation import quantisation_settings
from lora_inspect.reading.file_info import ADAPTER, kind_of


class Model:
    """One of the two models: its tensors, and the tensors that only say how codes are read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.settings = quantisation_settings(checkpoint.tensors)
        self._codecs = BaseCodecs(checkpoint)

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Tensors by name, without those that only say how codes of a known codec are read."""
        decoded = {
            name
            for info in self.checkpoint.tensors.values()
            if info.dtype not in PLAIN_FLOATS and (weight := self.coded(info))
            for name in (*weight.settings, *self._codecs.markers_of(info.name))
        }
        return {name: info for name, info in self.checkpoint.tensors.items() if name not in decoded}

    def coded(self, info: TensorInfo) -> CodedWeight | None:
        """A tensor of numbers with its codec, or None for one of whole numbers or of codes that are not known."""
        if info.name in self.settings or info.dtype not in stored_types():
            return None
        if info.dtype in PLAIN_FLOATS:
            return plain_weight(info)
        try:
            return self._codecs.of(info)
        except UnknownCodec:
            return None

    def weight(self, info: TensorInfo) -> CodedWeight:
        """A tensor that is changed, with its codec; raises LoraInspectError where that is not known."""
        return self._codecs.of(info)


def check_kinds(merged: Checkpoint, base: Checkpoint) -> None:
    """Raises LoraInspectError where one of the two models is an adapter."""
    for checkpoint, name in ((merged, "MERGED"), (base, "BASE")):
        if kind_of(read_adapter(checkpoint))[0] == ADAPTER:
            raise RefusedError(
                checkpoint.path,
                "it is an adapter, not a model",
                f"name the merged model first, then its base, then the adapters (it is in the place of {name})",
            )


def check_names(merged: Checkpoint, base: Checkpoint, changed: Collection[str]) -> None:
    """Raises LoraInspectError where MERGED has none of the `changed` weights of BASE, or one in another shape."""
    there = [name for name in changed if name in merged.tensors]
    if changed and not there:
        first = next(iter(changed))
        near = nearest_name(first, _similar_names(first, merged.tensors))
        hint = f"the most similar name in it is {near}" if near else "no name in it is similar"
        raise RefusedError(
            merged.path,
            f"it has none of the {len(changed)} weights of {base.path} that the adapters change, such as "
            f"{first} ({hint})",
            "give a merged model and a base of the same layout",
        )
    for name in there:
        if merged.tensors[name].shape != base.tensors[name].shape:
            raise RefusedError(
                merged.path,
                f"{name} has shape {list(merged.tensors[name].shape)}, but {list(base.tensors[name].shape)} in "
                f"{base.path}",
                "give the base that it was merged from",
            )


def _similar_names(name: str, names: Iterable[str]) -> list[str]:
    """The names that end as `name` does, or all where none does; only so many of them are compared."""
    leaf = ".".join(name.split(".")[-2:])
    return [other for other in names if other.endswith(leaf)] or list(names)
