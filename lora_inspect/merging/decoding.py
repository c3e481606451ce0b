"""What of a base is decoded on its way to the output, and what then says nothing any more and is left out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.dtypes import FP8
from lora_inspect.maths import codecs
from lora_inspect.reading.coded_weights import BaseCodecs, CodedWeight, UnknownCodec
from lora_inspect.reading.quantisation import quantisation_settings

if TYPE_CHECKING:
    from lora_inspect.maths.tensor_reader import Decode

# The largest number that each kind of code stands for.
_LARGEST = {"F8_E4M3": 448.0, "F8_E5M2": 57344.0}


@dataclass(frozen=True, slots=True)
class Decoding:
    """The weights that are decoded, by name, and what only said how.

    `dropped` are the names of tensors that are left out of the output. `metadata` has, by file, that of the files whose
    metadata changes.
    """

    weights: Mapping[str, CodedWeight] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def plan_decoding(base: Checkpoint) -> Decoding:
    """Finds every fp8 tensor whose codec is known; those of others stay as they are.

    Raises LoraInspectError where what stands beside one is missing, contradicts it or does not fit it.
    """
    base_codecs = BaseCodecs(base)
    settings = quantisation_settings(base.tensors)
    weights: dict[str, CodedWeight] = {}
    for info in base.tensors.values():
        if info.dtype not in FP8 or info.name in settings:
            continue
        try:
            weights[info.name] = base_codecs.of(info)
        except UnknownCodec:
            continue
    dropped = {name for weight in weights.values() for name in weight.settings}
    for marker in base_codecs.markers:
        if any(name.startswith(marker.removesuffix(codecs.MARKER)) for name in weights):
            dropped.add(marker)
    return Decoding(weights, frozenset(dropped), _metadata(base, base_codecs, weights))


def _metadata(
    base: Checkpoint, base_codecs: BaseCodecs, weights: Mapping[str, CodedWeight]
) -> dict[str, dict[str, str]]:
    """The metadata of each file that describes one of the `weights`, without that; the key goes with its last layer."""
    described = {path for name in weights for path in base_codecs.described_paths(name)}
    changed: dict[str, dict[str, str]] = {}
    for file, metadata in base.file_metadata.items():
        if not weights or codecs.FORMATS_KEY not in metadata:
            continue
        layers = base_codecs.layers(file)
        left = {path: layer for path, layer in layers.items() if path not in described}
        if len(left) == len(layers):
            continue
        changed[file] = {key: value for key, value in metadata.items() if key != codecs.FORMATS_KEY}
        if left:
            others = json.loads(metadata[codecs.FORMATS_KEY])
            changed[file][codecs.FORMATS_KEY] = json.dumps({**others, "layers": left})
    return changed


def decoder(weight: CodedWeight) -> "Decode":
    """Makes blocks of the weight from the values of its codes; raises LoraInspectError where they are no numbers."""
    scale = _scale(weight)

    def decode(block: Any, first: int) -> None:
        if block.sum().isnan() and block.isnan().any():
            row = first + int(block.isnan().any(1).nonzero()[0])
            raise LoraInspectError(
                f"{weight.info.file}: {weight.info.name} holds codes in row {row} that stand for no number (NaN); "
                "fetch the base again."
            )
        if scale is not None:
            rows = scale[first : first + block.shape[0]] if scale.dim() else scale
            block.copy_(codecs.decoded(block, rows))

    return decode


def _scale(weight: CodedWeight) -> Any:
    """The scale in the working type and in the shape that it is taken in, or None where there is none."""
    from lora_inspect.maths.tensor_reader import load, working_dtype

    if weight.scale is None:
        return None
    scale = load(weight.scale).to(working_dtype(weight.info)).reshape(weight.scale_shape)
    if not (scale * _LARGEST[weight.info.dtype]).isfinite().all():
        raise LoraInspectError(
            f"{weight.scale.file}: {weight.scale.name} holds a number that is not finite or too large to scale "
            f"{weight.info.name}; fetch the base again."
        )
    return scale
