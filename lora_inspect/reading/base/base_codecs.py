"""A base with decoded weights: the codec of each weight, and the weight that its codes mean.

The codec follows from the element type, the tensors next to it, and statements of the file. Weights have their names
and shapes also if the codes have others: several numbers share a byte in some codecs, and all experts of a layer a
tensor of another name. Decoding works on a block of rows at a time.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lora_inspect.codecs import CODECS, plain, plain_fp8, scale_weight, storing
from lora_inspect.codecs.record import (
    FORMAT,
    FORMATS_KEY,
    MARKER,
    BadSetting,
    Codec,
    CodedTensor,
    CodeLayout,
    NotRead,
    UnknownCodec,
)
from lora_inspect.errors import AmbiguousError, DamagedError, LoraInspectError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint, open_model
from lora_inspect.files.input_file import InputFile
from lora_inspect.files.safetensors.dtypes import FP8, PLAIN_FLOATS
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.files.strict_json import parse_json
from lora_inspect.reading.base.quantisation import (
    activations_beside,
    quantisation_settings,
    scale_beside,
    settings_beside,
)

if TYPE_CHECKING:
    from lora_inspect.maths.tensors import Decode

_WEIGHT = "weight"
# No tensor that describes codes is larger.
_DESCRIPTION_BYTES = 64 << 10
# How many names a prefix of a model in a larger file is made of, at most.
_PREFIX_SEGMENTS = 8


class CodedWeight(NamedTuple):
    """A weight of a base and its codec.

    `info` is its tensor, in the shape of the weight. `beside` are the tensors that decode it, by their names in the
    module. `settings` are the names of the tensors that are obsolete once the weight is decoded.
    """

    info: TensorInfo
    codec: Codec
    layout: CodeLayout
    beside: Mapping[str, TensorInfo] = MappingProxyType({})
    settings: tuple[str, ...] = ()

    @property
    def is_decoded(self) -> bool:
        """True if its codes have to be decoded into the numbers of the weight."""
        return self.codec.decode is not None

    @property
    def decode(self) -> "Decode | None":
        """The function that makes blocks of it from the values of its codes; None where those are plain numbers."""
        return None if self.info.dtype in PLAIN_FLOATS else decoder(self)


class Description(NamedTuple):
    """The JSON about the codes of a module, and the name of that JSON."""

    said: Mapping[str, Any]
    said_by: str


class BaseCodecs:
    """The codecs of the tensors of one base; metadata about all of them is read once."""

    def __init__(self, base: Checkpoint) -> None:
        self._base = base

    def of(self, info: TensorInfo) -> CodedWeight:
        """Return the tensor with its codec.

        Raises UnknownCodec for codes of an unknown kind. Raises LoraInspectError if the tensors next to it are missing,
        contradict it or do not match the shape of its weight.
        """
        if info.dtype in PLAIN_FLOATS:
            if scale := scale_beside(info.name, self._base.tensors):
                raise self._unknown(info, f"{scale} scales it")
            return plain_weight(info)
        info = self._base.codes.get(info.name, info)
        if not storing(info.dtype):
            raise UnknownCodec(
                self._base.path,
                f"{info.name} is stored as {info.dtype}, and lora-inspect does not know these codes",
                "use an F32, F16 or BF16 version of the base",
            )
        return self._codes(info)

    def markers_of(self, weight: str) -> list[str]:
        """Return the tensors that say that all weights below their own place, with `weight`, are scaled."""
        segments = weight.split(".")[:-1][:_PREFIX_SEGMENTS]
        names = (".".join([*segments[:end], MARKER]) for end in range(len(segments) + 1))
        return [name for name in names if name in self._base.tensors]

    def layers(self, file: str) -> dict[str, Any]:
        """Return the metadata entries of one file of the base by module path; some paths have no prefix."""
        text = self._base.file_metadata[file].get(FORMATS_KEY)
        if text is None:
            return {}
        try:
            layers = parse_json(text)["layers"]
        except (ValueError, TypeError, KeyError):
            layers = None
        if not isinstance(layers, dict):
            raise DamagedError(
                file, f"its metadata {FORMATS_KEY} is not a JSON object with `layers`", "fetch the file again"
            )
        return layers

    def described_path(self, weight: str) -> str | None:
        """Return the metadata's name of a weight's module: its path with or without a prefix; None if it has none."""
        segments = weight.split(".")[:-1]
        paths = (".".join(segments[start:]) for start in range(min(len(segments), _PREFIX_SEGMENTS)))
        return next((path for path in paths if path in self._layers), None)

    def _codes(self, info: TensorInfo) -> CodedWeight:
        tensors = self._base.tensors
        for codec in storing(info.dtype):
            if codec.ending and info.name.endswith(codec.ending):
                name = info.name.removesuffix(codec.ending)
                settings = self._beside(name, codec)
                if settings.keys() >= codec.settings.keys() and self._has_types(codec, settings):
                    return self._coded(info, codec, settings, None)
            if codec.alone:
                return self._coded(info, codec, {}, None)
        module = info.name.removesuffix(_WEIGHT)
        beside = settings_beside(info.name, tensors)
        if module == info.name or module[-1:] not in ("", "."):
            if beside:
                raise self._unknown(info, f"{beside[0]} scales it")
            return self._without_settings(info, None)
        kinds = [codec for codec in storing(info.dtype) if not codec.ending]
        known = {f"{module}{name}" for codec in kinds for name in codec.names} | {f"{module}{FORMAT}"}
        if unknown := [name for name in beside if name not in known]:
            raise self._unknown(info, f"{unknown[0]} scales it")
        description = self._described(module)
        if description:
            kinds = self._of_format(info, description, kinds)
        complete = [
            codec for codec in kinds if codec.settings and all(f"{module}{n}" in tensors for n in codec.settings)
        ]
        own = {codec.name: self._beside(module, codec) for codec in complete}
        fitting = [codec for codec in complete if self._has_types(codec, own[codec.name])]
        if complete and not fitting:
            name, scale = next(iter(own[complete[0].name].items()))
            raise self._unknown(info, f"{module}{name} of {scale.dtype} scales it")
        if len(fitting) > 1:
            first, second = (next(iter(own[codec.name].values())).name for codec in fitting[:2])
            raise AmbiguousError(
                self._base.path, f"{info.name} has two scales, {first} and {second}", "remove the one that is wrong"
            )
        if fitting:
            return self._coded(info, fitting[0], own[fitting[0].name], description)
        if said_by := description.said_by if description else self._marker_of(info):
            named = [name for codec in kinds for name in codec.settings] if description else [scale_weight.CODEC.name]
            scales = dict.fromkeys(f"{module}{name}" for name in named)
            raise DamagedError(
                info.file,
                f"{said_by} says that {info.name} is scaled, but there is no {' or '.join(scales)}",
                "fetch the base again",
            )
        return self._without_settings(info, tuple(activations_beside(info.name, tensors)))

    def _without_settings(self, info: TensorInfo, settings: tuple[str, ...] | None) -> CodedWeight:
        if info.dtype not in FP8:
            raise self._unknown(info, f"{info.dtype} without a scale")
        return CodedWeight(info, plain_fp8.CODEC, CodeLayout(info.shape, info.dtype), settings=settings or ())

    def _beside(self, module: str, codec: Codec) -> dict[str, TensorInfo]:
        tensors = self._base.tensors
        return {name: tensors[f"{module}{name}"] for name in codec.names if f"{module}{name}" in tensors}

    def _has_types(self, codec: Codec, beside: Mapping[str, TensorInfo]) -> bool:
        return all(info.dtype in codec.names[name] for name, info in beside.items())

    def _coded(
        self, info: TensorInfo, codec: Codec, beside: Mapping[str, TensorInfo], description: Description | None
    ) -> CodedWeight:
        found = CodedTensor(info, beside, description.said if description else {}, self._read)
        try:
            layout = codec.layout(found)
        except NotRead as why:
            raise self._unknown(info, str(why)) from None
        if layout is None:
            scale = next(iter(beside.values()))
            raise RefusedError(
                scale.file,
                f"{scale.name} has shape {list(scale.shape)}, which does not match {info.name} of shape "
                f"{list(info.shape)}",
                "use an F32, F16 or BF16 version of the base",
            )
        tensors = self._base.tensors
        names = [*(one.name for one in beside.values()), f"{info.name.removesuffix(_WEIGHT)}{FORMAT}"]
        names += activations_beside(info.name, tensors)
        settings = tuple(name for name in names if name in tensors)
        weight = info._replace(name=info.name.removesuffix(codec.ending), shape=layout.shape)
        return CodedWeight(weight, codec, layout, beside, settings)

    def _of_format(self, info: TensorInfo, description: Description, kinds: Sequence[Codec]) -> list[Codec]:
        """Return the codecs with the name that JSON gives the codes; raises LoraInspectError if there are none."""
        named = description.said["format"]
        stored = {
            codec.formats[named] for codec in CODECS.values() if isinstance(named, str) and named in codec.formats
        }
        if not stored:
            raise self._unknown(info, f"{description.said_by} says {named!r}")
        if info.dtype not in stored:
            raise DamagedError(
                info.file,
                f"{info.name} is stored as {info.dtype}, but {description.said_by} says {named!r}",
                "fetch the base again",
            )
        return [codec for codec in kinds if codec.formats.get(named) == info.dtype]

    def _described(self, module: str) -> Description | None:
        """Return the description of the codes of a weight's module; that in the metadata comes first, as in ComfyUI."""
        if path := self.described_path(module):
            return _description(self._layers[path], f"metadata {FORMATS_KEY}", self._base.path)
        info = self._base.tensors.get(f"{module}{FORMAT}")
        if info is None:
            return None
        if info.dtype != "U8" or info.nbytes > _DESCRIPTION_BYTES:
            return _description(None, info.name, info.file)
        text = self._read(info)
        try:
            described = parse_json(text)
        except ValueError:
            described = None
        return _description(described, info.name, info.file)

    def _read(self, info: TensorInfo) -> bytes:
        with InputFile(info.file, info.identity) as source:
            return bytes(source.read(info.start, info.nbytes))

    @cached_property
    def _layers(self) -> Mapping[str, Any]:
        return {path: layer for file in self._base.files for path, layer in self.layers(file).items()}

    def _marker_of(self, info: TensorInfo) -> str | None:
        """Return the tensor that says that all matrices and kernels of this part of the base are scaled."""
        if len(info.shape) < 2:
            return None
        return next(iter(self.markers_of(info.name)), None)

    def _unknown(self, info: TensorInfo, why: str) -> UnknownCodec:
        return UnknownCodec(
            self._base.path,
            f"lora-inspect cannot read the quantisation of {info.name} ({why})",
            "use an F32, F16 or BF16 version of the base",
        )


def plain_weight(info: TensorInfo) -> CodedWeight:
    """Return a tensor of floats as the weight itself."""
    return CodedWeight(info, plain.CODEC, CodeLayout(info.shape))


def _description(described: Any, said_by: str, file: str) -> Description:
    if not isinstance(described, dict) or "format" not in described:
        raise DamagedError(file, f"{said_by} is not a JSON object with a `format`", "fetch the base again")
    return Description(described, said_by)


def open_weights(path: str) -> Checkpoint:
    """Open a model, also a GGUF file. Raises LoraInspectError for anything else."""
    return with_weights(open_model(path))


def with_weights(base: Checkpoint) -> Checkpoint:
    """Return the base with weights instead of their codes; its `codes` then has the codes.

    Codes with errors stay as they are stored, since only code that needs them reports the errors.
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


def decoder(weight: CodedWeight) -> "Decode":
    """Return the function that decodes blocks of the weight from codes. Raises LoraInspectError for invalid numbers."""
    from numpy import errstate

    from lora_inspect.maths.tensors import Decode

    codec, state = weight.codec, prepared(weight)

    def decode(codes: Any, first: int, into: Any) -> None:
        if codec.decode:
            # What is no number is named below.
            with errstate(all="ignore"):
                codec.decode(codes, state, first, into)
        if into.sum().isnan() and into.isnan().any():
            row = first + int(into.isnan().any(1).nonzero()[0])
            raise DamagedError(
                weight.info.file,
                f"{weight.info.name} holds codes in row {row} that mean no number (NaN)",
                "fetch the base again",
            )

    return Decode(decode, weight.layout.unit, weight.layout.part)


def prepared(weight: CodedWeight) -> Any:
    """Return the codec's `prepared` result for a weight. Raises LoraInspectError if a tensor next to it is invalid."""
    from lora_inspect.maths.tensors import load_as_it_is

    try:
        tensors = {name: load_as_it_is(info) for name, info in weight.beside.items()}
        return weight.codec.prepared(tensors, weight.layout)
    except BadSetting as bad:
        info = weight.beside[bad.name]
        raise DamagedError(info.file, f"{info.name} {bad.what} {weight.info.name}", "fetch the base again") from None
