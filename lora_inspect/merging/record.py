"""What a merged file records of how it was made: the base, the adapters with their hashes, settings and options."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.hashes import MODEL_HASH, file_sha256
from lora_inspect.files.input_file import InputFile
from lora_inspect.matching.orientation import spell_answer
from lora_inspect.maths import dora
from lora_inspect.maths.scaling import RANK_STABILISED, STANDARD
from lora_inspect.merging.options import MergeOptions
from lora_inspect.merging.plan import MergePlan
from lora_inspect.merging.rounding import STOCHASTIC
from lora_inspect.merging.working import working_types
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.metadata.merge_record import (
    ADAPTERS,
    BASE,
    CONFIG,
    EARLIER,
    FILE,
    FOLDED_IN,
    HEADER,
    OPTIONS,
    SETTINGS,
    SHA256,
    earlier_records,
)
from lora_inspect.reading.metadata.output_metadata import describe_file
from lora_inspect.reading.model.settings import spell_settings
from lora_inspect.version import __version__

# The options that are recorded under names of the command line, or with the adapters, or that change nothing.
_SPELLED = (
    *("dtype", "touched_dtype", "only", "choice", "transposed", "dora_rule", "allow_unmatched", "settings"),
    *("weights", "hash_base"),
)


# What stands in a record for the hash of a file that has yet to be read.
_NO_HASH = "0" * 64


def recorded(
    plan: MergePlan,
    progress: Progress = silent,
    beside: Callable[[], None] = lambda: None,
    hash_base: bool | None = None,
) -> str:
    """The record of a merge as JSON. `beside` is done while a thread of its own reads the adapters for their hashes.

    `progress` is told of the bytes of the base where that is read for its hash too, which `hash_base` says in the place
    of the plan: without it the hashes are left blank. Raises LoraInspectError where a file is not the one any more that
    was planned with.
    """
    with ThreadPoolExecutor(1) as pool:
        hashes = [pool.submit(_hashes, adapter.checkpoint) for adapter, _ in plan.adapters]
        beside()
        base = base_record(plan.base, plan.options.hash_base if hash_base is None else hash_base, progress)
        if plan.options.hash_base and hash_base is False:
            base[SHA256] = _by_name(plan.base, dict.fromkeys(plan.base.files, _NO_HASH))
        adapters = [
            {**_adapter(plan, adapter), **own.result()} for (adapter, _), own in zip(plan.adapters, hashes, strict=True)
        ]
    record: dict[str, Any] = {"version": __version__, BASE: base, ADAPTERS: adapters}
    if folded_in := _working_types(plan):
        record[FOLDED_IN] = folded_in
    if options := _options(plan):
        record[OPTIONS] = options
    if earlier := earlier_records(plan.base.metadata):
        record[EARLIER] = earlier
    return json.dumps(record, separators=(",", ":"))


def with_base_hashes(record: str, base: Checkpoint, hashes: Mapping[str, str]) -> str:
    """The record with those of the base's files in the place of blank ones, which takes as many bytes."""
    said = json.loads(record)
    said[BASE][SHA256] = _by_name(base, hashes)
    return json.dumps(said, separators=(",", ":"))


def base_record(base: Checkpoint, with_hash: bool, progress: Progress = silent) -> dict[str, Any]:
    """What tells a base from others: its name, its size and element types, the hash of its header, that of its bytes.

    The header is all that stands before the tensors. Of a sharded base its hash is over the headers of all files, and
    the files have their hashes by name.
    """
    header = hashlib.sha256()
    for file in base.files:
        starts = (info.start for info in base.tensors.values() if info.file == file)
        with InputFile(file, base.inputs[file]) as source:
            header.update(source.read(0, min(starts, default=base.inputs[file].bytes)))
    dtypes: dict[str, int] = {}
    for info in base.tensors.values():
        dtypes[info.dtype] = dtypes.get(info.dtype, 0) + 1
    record = {FILE: describe_file(base.path), "bytes": base.bytes, "dtypes": dtypes, HEADER: header.hexdigest()}
    return {**record, SHA256: _of_files(base, progress)} if with_hash else record


def _hashes(checkpoint: Checkpoint) -> dict[str, Any]:
    """Those of an adapter's bytes, of the config beside it, and the one of its tensors that its metadata have."""
    found: dict[str, Any] = {SHA256: _of_files(checkpoint)}
    if checkpoint.config_path:
        found[CONFIG] = file_sha256(checkpoint.config_path, checkpoint.inputs[checkpoint.config_path])
    if MODEL_HASH in checkpoint.metadata:
        found[MODEL_HASH] = checkpoint.metadata[MODEL_HASH]
    return found


def _of_files(checkpoint: Checkpoint, progress: Progress = silent) -> str | dict[str, str]:
    """The hash of the one file, or those of several by their names."""
    return _by_name(checkpoint, {f: file_sha256(f, checkpoint.inputs[f], progress) for f in checkpoint.files})


def _by_name(checkpoint: Checkpoint, hashes: Mapping[str, str]) -> str | dict[str, str]:
    named = {os.path.basename(file): hashes[file] for file in checkpoint.files}
    return next(iter(named.values())) if len(named) == 1 else named


def _adapter(plan: MergePlan, adapter: Adapter) -> Mapping[str, Any]:
    source: dict[str, Any] = {
        FILE: describe_file(adapter.checkpoint.path),
        "multiplier": adapter.settings.multipliers(),
    }
    if said := spell_settings(adapter.settings):
        source[SETTINGS] = said
    rules = {RANK_STABILISED if c.rslora else STANDARD for c in adapter.contributions if not c.algorithm.replaces}
    source["scale"] = " and ".join(sorted(rules))
    if adapter.dora.value:
        source["dora_multiplier"] = plan.options.dora_rule or _default_rule(adapter.contributions)
    return source


def _default_rule(contributions: Iterable[Any]) -> str:
    return next((c.magnitude.spelling.multiplier for c in contributions if c.magnitude), dora.INSIDE)


def _working_types(plan: MergePlan) -> dict[str, str]:
    """What changed weights are folded in, by the element type that they are written in."""
    changed = [plan.base.tensors[name] for name, folds in plan.folds.items() if any(fold.multiplier for fold in folds)]
    return working_types((info.dtype, plan.storage.types.get(info.name, info.dtype)) for info in changed)


def _options(plan: MergePlan) -> dict[str, Any]:
    """The options of the command line that a merge was made with, as far as they were given.

    Those that are not spelled here stand under their own names, so that nobody undoes what he does not know.
    """
    options = plan.options
    said = {
        "dtype": options.dtype,
        "touched_dtype": options.touched_dtype,
        "only": list(options.only),
        "include": list(options.choice.include),
        "exclude": list(options.choice.exclude),
        "transposed": [spell_answer(glob, stored).split()[-1] for glob, stored in options.transposed.items()],
        "dora_multiplier": options.dora_rule,
        "rounding": None if options.seed is None else STOCHASTIC,
        "seed": options.seed,
        "allow_unmatched": options.allow_unmatched,
        "allow_partial_dora": options.settings.allow_partial_dora,
    }
    others = {one.name: getattr(options, one.name) for one in fields(options) if one.name not in _SPELLED}
    defaults = MergeOptions()
    return {name: value for name, value in said.items() if value} | {
        name: value for name, value in others.items() if value != getattr(defaults, name)
    }
