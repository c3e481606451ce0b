"""What of a base is decoded on its way to the output, and what then says nothing any more and is left out."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_inspect.codecs import stored_types
from lora_inspect.codecs.descriptions import FORMATS_KEY
from lora_inspect.codecs.record import UnknownCodec
from lora_inspect.files.base_folder import SideFiles
from lora_inspect.files.checkpoint import Checkpoint, read_json
from lora_inspect.files.dtypes import PLAIN_FLOATS
from lora_inspect.reading.coded_weights import BaseCodecs, CodedWeight
from lora_inspect.reading.quantisation import has_codes, quantisation_settings

# Where transformers and diffusers say how the weights of a folder are to be read.
CONFIG, _CONFIG_KEY = "config.json", "quantization_config"


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
        metadata = [FORMATS_KEY] if self.metadata else []
        return [*sorted(self.dropped), *metadata, *([] if self.config is None else [f"{CONFIG}: {_CONFIG_KEY}"])]

    @property
    def side_files(self) -> dict[str, Mapping[str, Any]]:
        """The JSON files beside the weights that change, by name."""
        return {} if self.config is None else {CONFIG: self.config}


def plan_decoding(base: Checkpoint, side_files: SideFiles) -> Decoding:
    """Finds every tensor of codes whose codec is known; those of others stay as they are.

    `side_files` are what lies beside the base; a config there says nothing of codes any more where none stay.

    Raises LoraInspectError where what stands beside one is missing, contradicts it or does not fit it.
    """
    base_codecs = BaseCodecs(base)
    settings = quantisation_settings(base.tensors)
    codes = stored_types() - PLAIN_FLOATS
    weights: dict[str, CodedWeight] = {}
    for info in base.tensors.values():
        if info.dtype not in codes or info.name in settings:
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
        if not weights or FORMATS_KEY not in metadata:
            continue
        layers = base_codecs.layers(file)
        left = {path: layer for path, layer in layers.items() if path not in described}
        if len(left) == len(layers):
            continue
        changed[file] = {key: value for key, value in metadata.items() if key != FORMATS_KEY}
        if left:
            others = json.loads(metadata[FORMATS_KEY])
            changed[file][FORMATS_KEY] = json.dumps({**others, "layers": left})
    return changed
