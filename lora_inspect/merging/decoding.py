"""What of a base is decoded on its way to the output, and what then says nothing any more and is left out."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.base_folder import SideFiles
from lora_inspect.files.checkpoint import Checkpoint, read_json
from lora_inspect.files.dtypes import FP8
from lora_inspect.maths import codecs
from lora_inspect.reading.coded_weights import BaseCodecs, CodedWeight, UnknownCodec
from lora_inspect.reading.quantisation import has_codes, quantisation_settings

if TYPE_CHECKING:
    from lora_inspect.maths.tensor_reader import Decode

# Where transformers and diffusers say how the weights of a folder are to be read.
CONFIG, _CONFIG_KEY = "config.json", "quantization_config"
# The largest number that each kind of code stands for.
_LARGEST = {"F8_E4M3": 448.0, "F8_E5M2": 57344.0}


@dataclass(frozen=True, slots=True)
class Decoding:
    """The weights that are decoded, by name, and what only said how.

    `dropped` are the names of tensors that are left out of the output. `metadata` has, by file, that of the files whose
    metadata changes. `config` is the config of a folder as it then is, where that changes.
    """

    weights: Mapping[str, CodedWeight] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None

    @property
    def said(self) -> list[str]:
        """What is left out, by name: tensors, keys of the metadata, and the part of the config."""
        metadata = [codecs.FORMATS_KEY] if self.metadata else []
        return [*sorted(self.dropped), *metadata, *([] if self.config is None else [f"{CONFIG}: {_CONFIG_KEY}"])]

    @property
    def side_files(self) -> dict[str, Mapping[str, Any]]:
        """The JSON files beside the weights that change, by name."""
        return {} if self.config is None else {CONFIG: self.config}


def plan_decoding(base: Checkpoint, side_files: SideFiles) -> Decoding:
    """Finds every fp8 tensor whose codec is known; those of others stay as they are.

    `side_files` are what lies beside the base; a config there says nothing of codes any more where none stay.

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
    dropped |= {marker for name in weights for marker in base_codecs.markers_of(name)}
    stay = has_codes(info for name, info in base.tensors.items() if name not in weights.keys() | dropped)
    config = None if stay or not weights else _config(side_files)
    return Decoding(weights, frozenset(dropped), _metadata(base, base_codecs, weights), config)


def _config(side_files: SideFiles) -> dict[str, Any] | None:
    """The config of a folder without what it says of codes, or None where it says nothing of them."""
    identity = side_files.copied.get(CONFIG)
    if identity is None:
        return None
    config, _ = read_json(os.path.join(side_files.root, CONFIG), identity)
    if not isinstance(config, dict) or _CONFIG_KEY not in config:
        return None
    return {key: value for key, value in config.items() if key != _CONFIG_KEY}


def _metadata(
    base: Checkpoint, base_codecs: BaseCodecs, weights: Mapping[str, CodedWeight]
) -> dict[str, dict[str, str]]:
    """The metadata of each file that describes one of the `weights`, without that; the key goes with its last layer."""
    described = {base_codecs.described_path(name) for name in weights}
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
