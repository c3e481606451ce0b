"""Which codec each weight of a base is stored in: its element type, what stands beside it, and what the file says."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.dtypes import FP8, PLAIN_FLOATS
from lora_inspect.files.header import TensorInfo
from lora_inspect.files.input_file import InputFile
from lora_inspect.files.json_text import parse_json
from lora_inspect.maths import codecs
from lora_inspect.maths.codecs import Codec
from lora_inspect.reading.quantisation import activations_beside, scale_beside, settings_beside
from lora_inspect.records import NamedTuple

_WEIGHT = "weight"
_FORMAT_BYTES = 64 << 10
# How many names a prefix of a model in a larger file is made of, at most.
_PREFIX_SEGMENTS = 8


class UnknownCodec(LoraInspectError):
    """A tensor is codes whose meaning is not known here."""


class CodedWeight(NamedTuple):
    """A tensor of a base and its codec.

    `scale` is what its codes are multiplied by, and `scale_shape` the shape in which `codecs.decoded` takes that.
    `settings` are the names of the tensors that say nothing once the weight is decoded.
    """

    info: TensorInfo
    codec: Codec
    scale: TensorInfo | None = None
    scale_shape: tuple[int, ...] = ()
    settings: tuple[str, ...] = ()


class BaseCodecs:
    """The codecs of the tensors of one base; what concerns all of them is read once."""

    def __init__(self, base: Checkpoint) -> None:
        self._base = base

    def of(self, info: TensorInfo) -> CodedWeight:
        """The tensor with its codec.

        Raises UnknownCodec where its numbers are codes of another kind, and LoraInspectError where what stands beside
        it is missing, contradicts it or fits no weight of its shape.
        """
        if info.dtype in PLAIN_FLOATS:
            if scale := scale_beside(info.name, self._base.tensors):
                raise self._unknown(info, f"{scale} scales it")
            return CodedWeight(info, codecs.PLAIN)
        if info.dtype not in FP8:
            raise UnknownCodec(
                f"{self._base.path}: {info.name} is stored as {info.dtype}, codes whose meaning is not known "
                "here; use an F32, F16 or BF16 version of the base."
            )
        return self._fp8(info)

    def markers_of(self, weight: str) -> list[str]:
        """The tensors that say of all weights below their own place, that of `weight` too, that they are scaled."""
        segments = weight.split(".")[:-1][:_PREFIX_SEGMENTS]
        names = (".".join([*segments[:end], codecs.MARKER]) for end in range(len(segments) + 1))
        return [name for name in names if name in self._base.tensors]

    def layers(self, file: str) -> dict[str, Any]:
        """What the metadata of one file of the base says of its modules, by their paths, some without a prefix."""
        text = self._base.file_metadata[file].get(codecs.FORMATS_KEY)
        if text is None:
            return {}
        try:
            layers = parse_json(text)["layers"]
        except (ValueError, TypeError, KeyError):
            layers = None
        if not isinstance(layers, dict):
            raise LoraInspectError(
                f"{file}: its metadata {codecs.FORMATS_KEY} is no JSON object of `layers`; fetch the file again."
            )
        return layers

    def _fp8(self, info: TensorInfo) -> CodedWeight:
        tensors = self._base.tensors
        module = info.name.removesuffix(_WEIGHT)
        beside = settings_beside(info.name, tensors)
        if module == info.name or module[-1:] not in ("", "."):
            if beside:
                raise self._unknown(info, f"{beside[0]} scales it")
            return CodedWeight(info, codecs.PLAIN_FP8)
        known = {f"{module}{setting}" for setting in codecs.SETTINGS}
        if unknown := [name for name in beside if name not in known]:
            raise self._unknown(info, f"{unknown[0]} scales it")
        said_by = self._check_format(info, module)
        scales = [(codec, f"{module}{codec.scale}") for codec in codecs.SCALED if f"{module}{codec.scale}" in tensors]
        if len(scales) > 1:
            raise LoraInspectError(
                f"{self._base.path}: {info.name} has two scales, {scales[0][1]} and {scales[1][1]}; remove the one "
                "that is not meant."
            )
        if scales:
            return self._scaled(info, module, *scales[0])
        if said_by := said_by or self._marker_of(info):
            raise LoraInspectError(
                f"{info.file}: {said_by} says that {info.name} is scaled, but there is no "
                f"{' or '.join(f'{module}{codec.scale}' for codec in codecs.SCALED)}; fetch the base again."
            )
        return CodedWeight(info, codecs.PLAIN_FP8, settings=tuple(activations_beside(info.name, tensors)))

    def _scaled(self, info: TensorInfo, module: str, codec: Codec, name: str) -> CodedWeight:
        scale = self._base.tensors[name]
        if scale.dtype not in PLAIN_FLOATS:
            raise self._unknown(info, f"{name} of {scale.dtype} scales it")
        shape = codec.scale_shape(info.shape, scale.shape)
        if shape is None:
            raise LoraInspectError(
                f"{scale.file}: {name} has shape {list(scale.shape)}, which does not fit {info.name} of shape "
                f"{list(info.shape)}; use an F32, F16 or BF16 version of the base."
            )
        settings = [name, f"{module}{codecs.FORMAT}", *activations_beside(info.name, self._base.tensors)]
        return CodedWeight(info, codec, scale, shape, tuple(s for s in settings if s in self._base.tensors))

    def _check_format(self, info: TensorInfo, module: str) -> str | None:
        """What names the format of the weight, where something does; errors where it is another than that of fp8."""
        named = self._format(module)
        if named is None:
            return None
        name, said_by = named
        stored = codecs.FORMATS.get(name) if isinstance(name, str) else None
        if stored is None:
            raise self._unknown(info, f"{said_by} says {name!r}")
        if stored != info.dtype:
            raise LoraInspectError(
                f"{info.file}: {info.name} is stored as {info.dtype}, but {said_by} says {name!r}; fetch the base "
                "again."
            )
        return said_by

    def _format(self, module: str) -> tuple[Any, str] | None:
        """The format of a module's weight, and what names it: the metadata first, as ComfyUI has it."""
        if path := self.described_path(module):
            return _format_in(self._layers[path], f"metadata {codecs.FORMATS_KEY}", self._base.path)
        info = self._base.tensors.get(f"{module}{codecs.FORMAT}")
        if info is None:
            return None
        if info.dtype != "U8" or info.nbytes > _FORMAT_BYTES:
            return _format_in(None, info.name, info.file)
        with InputFile(info.file, info.identity) as source:
            content = source.read(info.start, info.nbytes)
        try:
            described = parse_json(content)
        except ValueError:
            described = None
        return _format_in(described, info.name, info.file)

    def described_path(self, weight: str) -> str | None:
        """What the metadata calls the module of a weight: its path, or what a prefix leaves of it; None without one."""
        segments = weight.split(".")[:-1]
        paths = (".".join(segments[start:]) for start in range(min(len(segments), _PREFIX_SEGMENTS)))
        return next((path for path in paths if path in self._layers), None)

    @cached_property
    def _layers(self) -> Mapping[str, Any]:
        return {path: layer for file in self._base.files for path, layer in self.layers(file).items()}

    def _marker_of(self, info: TensorInfo) -> str | None:
        """What says that all matrices and kernels of this part of the base are scaled."""
        if len(info.shape) < 2:
            return None
        return next(iter(self.markers_of(info.name)), None)

    def _unknown(self, info: TensorInfo, why: str) -> UnknownCodec:
        return UnknownCodec(
            f"{self._base.path}: {info.name} is quantised ({why}) in a way that is not read here; "
            "use an F32, F16 or BF16 version of the base."
        )


def _format_in(described: Any, said_by: str, file: str) -> tuple[Any, str]:
    if not isinstance(described, dict) or "format" not in described:
        raise LoraInspectError(f"{file}: {said_by} is no JSON object with a `format`; fetch the base again.")
    return described["format"], said_by
