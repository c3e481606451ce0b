"""The storage of a merged base: decoded weights, weights in their own format, and statements that become void.

The config.json next to a base states how its weights are stored; the output gets the statements that are true of it.
"""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_inspect.codecs import stored_types
from lora_inspect.codecs.record import BY_CONFIG, FORMATS_KEY, NOWHERE, UnknownCodec
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.base_folder import SideFiles
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.json_files import read_json
from lora_inspect.files.safetensors.dtypes import BITS, FP8, PLAIN_FLOATS
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.base.base_codecs import BaseCodecs, CodedWeight
from lora_inspect.reading.base.quantisation import has_codes, quantisation_settings

# Where transformers and diffusers say how the weights of a folder are to be read.
CONFIG = "config.json"
QUANTIZATION = "quantization_config"
# By the method: what lists the modules whose weights are no codes. Source: transformers' quantisation configs.
_LEFT_OUT = {
    "fp8": "modules_to_not_convert",
    "fbgemm_fp8": "modules_to_not_convert",
    "mxfp4": "modules_to_not_convert",
    "bitsandbytes": "llm_int8_skip_modules",
    "compressed-tensors": "ignore",
}
# What the type of the weights is called, by versions of transformers, and how it is spelled there.
_TYPE_KEYS = ("torch_dtype", "dtype")
_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
_FP8_TYPES = ("float8_e4m3fn", "float8_e5m2")


def read_config(side_files: SideFiles) -> dict[str, Any] | None:
    """Return the config next to a base; None if there is none, or no JSON object."""
    identity = side_files.copied.get(CONFIG)
    if identity is None:
        return None
    config, _ = read_json(os.path.join(side_files.root, CONFIG), identity)
    return config if isinstance(config, dict) else None


def without_codes(config: Mapping[str, Any], decoded: Collection[str], codes_stay: bool) -> dict[str, Any] | None:
    """Return a folder's config after `decoded` modules lost their codes; without quantization unless `codes_stay`.

    None if its method has no known way to exclude a few modules.
    """
    said = config.get(QUANTIZATION)
    if not decoded or said is None:
        return dict(config)
    if not codes_stay:
        return {key: value for key, value in config.items() if key != QUANTIZATION}
    method = said.get("quant_method") if isinstance(said, dict) else None
    key = _LEFT_OUT.get(method) if isinstance(method, str) else None
    known = said.get(key) or [] if key else None
    if not isinstance(known, list):
        return None
    return {**config, QUANTIZATION: {**said, key: [*known, *(name for name in decoded if name not in known)]}}


def with_type(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return the config with another element type of the weights, a name of safetensors, wherever it has one."""
    changed = dict(config)
    for key, value in config.items():
        if key in _TYPE_KEYS and _is_type(value):
            changed[key] = _TYPES[dtype]
        elif isinstance(value, dict) and key.endswith("_config") and key != QUANTIZATION:
            changed[key] = with_type(value, dtype)
    return changed


def _is_type(value: Any) -> bool:
    return isinstance(value, str) and value.removeprefix("torch.") in (*_TYPES.values(), *_FP8_TYPES)


class RequestedDtypes(NamedTuple):
    """The requested element types, by safetensors' names: of `every` floating tensor, or of the `touched` ones.

    Without either, all keep their stored types.
    """

    every: str | None = None
    touched: str | None = None


@dataclass(frozen=True, slots=True)
class Storage:
    """The storage of the output of a quantised base, by the names of weights.

    `decoded` weights are floats in the output, `recoded` ones are codes of the same format; `seen` are codes that the
    changes only read. `types` has the element type of each tensor that gets another one. `dropped` are tensors that are
    left out of the output. `metadata` has the new metadata of each file that changes them. `config` is the new config
    of a folder if it changes, and `unsaid` the parts that it leaves out.
    """

    decoded: Mapping[str, CodedWeight] = field(default_factory=dict)
    recoded: Mapping[str, CodedWeight] = field(default_factory=dict)
    seen: Mapping[str, CodedWeight] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    unsaid: tuple[str, ...] = ()

    @property
    def coded(self) -> dict[str, CodedWeight]:
        """All weights that are read as codes."""
        return {**self.seen, **self.recoded, **self.decoded}

    def titles(self, names: Iterable[str]) -> Counter[str]:
        """Return the number of the named weights in each format of codes, by its title in messages."""
        return Counter(self.coded[name].codec.title for name in names)

    @property
    def rewritten(self) -> set[str]:
        """The scales and other tensors that are rewritten with the codes."""
        return {info.name for weight in self.recoded.values() for info in weight.beside.values()}

    @property
    def awaited(self) -> set[str]:
        """The files with tensors that weights of other files decide, so that they are complete behind those."""
        weights = self.recoded.values()
        return {own.file for weight in weights for own in weight.beside.values() if own.file != weight.info.file}

    @property
    def left_out(self) -> list[str]:
        """The names of all that is left out: tensors, keys of the metadata, and parts of the config."""
        metadata = [FORMATS_KEY] if self.metadata else []
        return [*sorted(self.dropped), *metadata, *(f"{CONFIG}: {part}" for part in self.unsaid)]

    @property
    def side_files(self) -> dict[str, Mapping[str, Any]]:
        """The JSON files next to the weights that change, by name."""
        return {} if self.config is None else {CONFIG: self.config}


def plan_storage(
    base: Checkpoint,
    side_files: SideFiles,
    asked: RequestedDtypes,
    changed: Collection[str],
    seen: Iterable[TensorInfo],
) -> Storage:
    """Plan the storage of every tensor with codes that are read; unknown codecs stay unchanged.

    `side_files` are the files next to the base. `changed` are the names of the weights that change, `seen` the tensors
    that the changes read. Raises LoraInspectError if the scales of codes are missing, contradict them or do not match
    them, and if a weight would need a format that is only read.
    """
    base_codecs = BaseCodecs(base)
    settings = quantisation_settings(base.tensors)
    wanted = base.tensors if asked.every else {name: base.tensors[name] for name in changed}
    found = _known(base_codecs, (info for name, info in wanted.items() if name not in settings))
    also = _known(base_codecs, seen)
    decoded = found if asked != RequestedDtypes() else {}
    recoded = {} if decoded else found
    for weight in recoded.values():
        _check_written(base, weight)
    dropped = {name for weight in decoded.values() for name in weight.settings}
    left = {name: info for name, info in base.tensors.items() if name not in dropped and name not in decoded}
    dropped |= _markers(base_codecs, decoded, left)
    stored = read_config(side_files)
    config = _config(stored, side_files.root, asked, decoded, [i for name, i in left.items() if name not in dropped])
    unsaid = () if not stored or config is None else tuple(key for key in stored if key not in config)
    if asked != RequestedDtypes():
        stay = _known(base_codecs, (info for name, info in left.items() if name not in settings))
        _check_mixed(base, decoded, stay, lists_others=config is not None and QUANTIZATION in config)
    _check_held(base, left.values())
    types = _types(asked, wanted, decoded, settings)
    return Storage(
        decoded,
        recoded,
        also,
        types,
        frozenset(dropped),
        _metadata(base, base_codecs, decoded),
        config,
        unsaid,
    )


def _known(base_codecs: BaseCodecs, infos: Iterable[TensorInfo]) -> dict[str, CodedWeight]:
    """Return the tensors that are codes of a known codec, by name."""
    codes = stored_types() - PLAIN_FLOATS
    found: dict[str, CodedWeight] = {}
    for info in infos:
        if info.dtype in codes:
            try:
                found[info.name] = base_codecs.of(info)
            except UnknownCodec:
                continue
    return found


def _check_written(base: Checkpoint, weight: CodedWeight) -> None:
    if weight.codec.encoding is None:
        alone = "" if weight.codec.mixes == NOWHERE else ", or only the changed weights with --changed-dtype bf16"
        raise RefusedError(
            base.path,
            f"{weight.info.name} is stored as {weight.codec.title}, which lora-inspect reads but does not write",
            f"choose the element type of the output, for instance with --dtype bf16{alone}",
        )


def _check_mixed(
    base: Checkpoint, decoded: Mapping[str, CodedWeight], stay: Mapping[str, CodedWeight], lists_others: bool
) -> None:
    """Raise LoraInspectError if programs would read decoded weights as codes, like others of their codec."""
    staying = {weight.codec.name: name for name, weight in stay.items()}
    for name, weight in decoded.items():
        mixes = weight.codec.mixes
        if weight.codec.name in staying and (mixes == NOWHERE or (mixes == BY_CONFIG and not lists_others)):
            raise RefusedError(
                base.path,
                f"{name} would be floats next to {staying[weight.codec.name]} in {weight.codec.title}, but "
                "programs read all such layers of a file as codes",
                "choose the element type of the output, for instance with --dtype bf16",
            )


def _check_held(base: Checkpoint, left: Iterable[TensorInfo]) -> None:
    """Raise LoraInspectError for a tensor that would stay in an element type that the output cannot have."""
    for info in left:
        if info.dtype not in BITS:
            raise RefusedError(
                base.path,
                f"{info.name} is stored as {info.dtype}, which a .safetensors file cannot hold",
                "choose the element type of the output, for instance with --dtype bf16",
            )


def _types(
    asked: RequestedDtypes,
    wanted: Mapping[str, TensorInfo],
    decoded: Mapping[str, CodedWeight],
    settings: Collection[str],
) -> dict[str, str]:
    """Return the element type of every tensor that is cast or decoded."""
    dtype = asked.every or asked.touched
    if dtype is None:
        return {}
    floats = {name for name, info in wanted.items() if info.dtype in PLAIN_FLOATS and name not in settings}
    return dict.fromkeys([*decoded, *floats], dtype)


def _markers(base_codecs: BaseCodecs, decoded: Mapping[str, CodedWeight], left: Mapping[str, TensorInfo]) -> set[str]:
    """Return the markers of scaled weights below them that have no such weight left."""
    markers = {marker for name in decoded for marker in base_codecs.markers_of(name)}
    codes = [name for name, info in left.items() if info.dtype in FP8 and info.name not in markers]
    return markers - {marker for name in codes for marker in base_codecs.markers_of(name)}


def _config(
    config: Mapping[str, Any] | None,
    root: str,
    asked: RequestedDtypes,
    decoded: Mapping[str, CodedWeight],
    left: Iterable[TensorInfo],
) -> Mapping[str, Any] | None:
    """Return the new config of a folder, or None if it does not change."""
    if config is None or asked == RequestedDtypes():
        return None
    modules = [name.removesuffix(".weight") for name in decoded]
    changed = without_codes(config, modules, has_codes(left))
    if changed is None and asked.touched:
        raise RefusedError(
            root,
            f"lora-inspect does not know how its {CONFIG} says in {QUANTIZATION} that only some weights are codes",
            "give --dtype instead of --changed-dtype to decode all of them",
        )
    changed = dict(config) if changed is None else changed
    if asked.every:
        changed = with_type(changed, asked.every)
    return None if changed == config else changed


def _metadata(
    base: Checkpoint, base_codecs: BaseCodecs, decoded: Mapping[str, CodedWeight]
) -> dict[str, dict[str, str]]:
    """Return the changed metadata of each file without its decoded layers; the key goes with its last layer."""
    described = {base_codecs.described_path(name) for name in decoded}
    changed: dict[str, dict[str, str]] = {}
    for file, metadata in base.file_metadata.items():
        if not decoded or FORMATS_KEY not in metadata:
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
