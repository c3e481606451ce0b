"""What the shards of one merge are made of: what they have to have in common to be parts of the same output."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lora_inspect.errors import LoraInspectError
from lora_inspect.escape import shortened
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.input_file import InputFile
from lora_inspect.merging.plan import MergePlan
from lora_inspect.reading.metadata.merge_record import ADAPTERS, BASE, CONFIG, FILE, HEADER, OPTIONS, SHA256
from lora_inspect.sentences import listed

# Pieces of so many bytes are looked at, at least so many of a base and so many of each file, from its first tensor to
# its last: models of one shape have the same header, and may differ in some of their weights alone.
_PIECE, _PIECES, _OF_EACH = 4096, 128, 8
_NUMBERS, _WEIGHTS, _VERSION = "numbers", "weights", "version"
# What decides whether an output is written, not what is in it.
_DECIDES = "accept_loss"
_OPTION = "an option"
_WORDS = {
    FILE: "the name",
    "bytes": "the size in bytes",
    "dtypes": "the number of tensors by type",
    HEADER: "the hash of the header",
    _NUMBERS: "the hash of samples of the numbers",
    SHA256: "the SHA-256",
    CONFIG: "the SHA-256 of the config",
    _VERSION: "the version of lora-inspect",
}


def made_of(plan: MergePlan, record: str) -> dict[str, Any]:
    """All that decides what the shards hold: the `record` of the merge, and what it does not tell."""
    said = json.loads(record)
    options = {name: value for name, value in said.get(OPTIONS, {}).items() if name != _DECIDES}
    base = {**said[BASE], _NUMBERS: _sampled(plan.base)}
    return {**said, BASE: base, OPTIONS: options, _WEIGHTS: _folded(plan)}


def digest(parts: Mapping[str, Any]) -> str:
    """The hash of a record, in whatever order it is."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def check_same(theirs: Mapping[str, Any], ours: Mapping[str, Any], where: str) -> None:
    """Raises LoraInspectError, which names the first difference, where what is found at `where` is of another merge."""
    if said := difference(theirs, ours):
        raise LoraInspectError(
            f"{where}: it is of another merge: {said}; give the command that made it, choose "
            "another output, or remove the folder."
        )


def difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """The first difference between what other shards and ours are made of, in words; None where there is none."""
    if theirs == ours:
        return None
    there, here = _files(theirs), _files(ours)
    if there != here:
        return f"the adapters are {listed(there) or 'others'} there and {listed(here)} here"
    pairs: list[tuple[str, Any, Any]] = [
        ("", {_VERSION: theirs.get(_VERSION)}, {_VERSION: ours[_VERSION]}),
        (" of the base", theirs.get(BASE), ours[BASE]),
    ]
    adapters = zip(here, theirs.get(ADAPTERS) or [], ours[ADAPTERS], strict=False)
    pairs += [(f" of the adapter {file}", said, own) for file, said, own in adapters]
    pairs += [(_OPTION, theirs.get(OPTIONS), ours[OPTIONS]), ("", _rest(theirs), _rest(ours))]
    different = next((pair for pair in pairs if pair[1] != pair[2]), None)
    if different is None:
        return "other weights are changed, or by other numbers"
    owner, said, own = different
    said = said if isinstance(said, dict) else {}
    name = next(name for name in (*own, *said) if said.get(name) != own.get(name))
    what = f"--{name.replace('_', '-')}" if owner == _OPTION else f"{_WORDS.get(name, f'the {name}')}{owner}"
    return f"{what} is {_told(said.get(name))} there and {_told(own.get(name))} here"


def _rest(parts: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parts.items() if name not in (BASE, ADAPTERS, OPTIONS, _WEIGHTS)}


def _told(value: Any) -> str:
    return "not given" if value is None else shortened(value if isinstance(value, str) else json.dumps(value))


def _files(parts: Mapping[str, Any]) -> list[str]:
    adapters = parts.get(ADAPTERS)
    return [shortened(str(one[FILE])) for one in adapters] if isinstance(adapters, list) else []


def _sampled(base: Checkpoint) -> str:
    """The hash of some bytes of each file."""
    found, count = hashlib.sha256(), max(_OF_EACH, _PIECES // max(len(base.files), 1))
    for file in base.files:
        size = base.inputs[file].bytes
        start = min((info.start for info in base.tensors.values() if info.file == file), default=size)
        last = max(size - _PIECE, start)
        places = sorted({start + (last - start) * number // (count - 1) for number in range(count)})
        with InputFile(file, base.inputs[file]) as source:
            for place in places:
                found.update(source.read(place, min(_PIECE, size - place)))
    return found.hexdigest()


def _folded(plan: MergePlan) -> str:
    """The hash of what is folded where and how strongly, and of how it is stored then."""
    numbers = {id(adapter): number for number, (adapter, _) in enumerate(plan.adapters)}
    folds = {
        name: [(numbers[id(fold.adapter)], fold.contribution.module.key, fold.multiplier) for fold in own]
        for name, own in plan.folds.items()
    }
    storage = plan.storage
    codecs = {name: weight.codec.name for name, weight in {**storage.decoded, **storage.recoded}.items()}
    stored = {"codecs": codecs, "types": dict(storage.types), "dropped": sorted(storage.dropped)}
    return hashlib.sha256(json.dumps([folds, stored], sort_keys=True).encode()).hexdigest()
