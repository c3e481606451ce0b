"""The record of a merge in the merged file: base, adapters with their hashes, settings and options.

The recorded adapters of a merged file are found among the named ones, with the settings that they had.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

from lora_inspect.errors import DamagedError, RefusedError
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.files.hashes import MODEL_HASH, file_sha256
from lora_inspect.files.input_file import InputFile
from lora_inspect.files.safetensors.dtypes import PLAIN_FLOATS
from lora_inspect.matching.orientation import parse_answers, spell_answer
from lora_inspect.maths import dora
from lora_inspect.maths.dora import MULTIPLIER_RULES
from lora_inspect.maths.scaling import RANK_STABILISED, STANDARD
from lora_inspect.merging.fold_chain import working_types
from lora_inspect.merging.options import STOCHASTIC, UNRECORDED, MergeOptions
from lora_inspect.merging.plan import MergePlan
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.ambiguous_options import ModuleFilter
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
    MergedAdapter,
    MergeRecord,
    earlier_records,
    merge_records,
)
from lora_inspect.reading.metadata.output_metadata import describe_file
from lora_inspect.reading.metadata.provenance import MERGED_KEY
from lora_inspect.reading.model.settings import Settings, parse_settings, spell_settings
from lora_inspect.sentences import listed
from lora_inspect.version import __version__

# The options that are recorded under names of the command line, and those that are not recorded as options.
_SPELLED = (
    *("dtype", "changed_dtype", "only", "choice", "transposed", "dora_rule", "allow_unmatched", "settings"),
    *UNRECORDED,
)

# Options that records have under an earlier name.
RECORDED_AS = {"allow_loss": "accept_loss", "changed_dtype": "touched_dtype"}

# What stands in a record for the hash of a file that has yet to be read.
_NO_HASH = "0" * 64


def recorded(
    plan: MergePlan,
    progress: Progress = silent,
    beside: Callable[[], None] = lambda: None,
    hash_base: bool | None = None,
) -> str:
    """Return the record of a merge as JSON; `beside` runs while a thread reads the adapters for their hashes.

    `progress` receives the bytes of the base if its hash is computed. `hash_base` overrides the plan: False leaves the
    hashes blank. Raises LoraInspectError if a file has changed since the plan was made.
    """
    with ThreadPoolExecutor(1) as pool:
        hashes = [pool.submit(_recorded_hashes, adapter.checkpoint) for adapter, _ in plan.adapters]
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
    """Return the record with the base files' hashes in place of blank ones of the same length."""
    said = json.loads(record)
    said[BASE][SHA256] = _by_name(base, hashes)
    return json.dumps(said, separators=(",", ":"))


def base_record(base: Checkpoint, with_hash: bool, progress: Progress = silent) -> dict[str, Any]:
    """Return the identity of a base: its name, size and element types, and the hashes of its header and its bytes.

    The header is all that precedes the tensors. For a sharded base its hash covers the headers of all files, and the
    hashes of the files are listed by name.
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


def _recorded_hashes(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the hashes of an adapter's bytes, of the config next to it, and the one in its metadata."""
    found: dict[str, Any] = {SHA256: _of_files(checkpoint)}
    if checkpoint.config_path:
        found[CONFIG] = file_sha256(checkpoint.config_path, checkpoint.inputs[checkpoint.config_path])
    if MODEL_HASH in checkpoint.metadata:
        found[MODEL_HASH] = checkpoint.metadata[MODEL_HASH]
    return found


def _of_files(checkpoint: Checkpoint, progress: Progress = silent) -> str | dict[str, str]:
    """Return the hash of the one file, or those of several by their names."""
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
    """Return the types in which changed weights are folded, by the element type of the output."""
    changed = [plan.base.tensors[name] for name, folds in plan.folds.items() if any(fold.multiplier for fold in folds)]
    return working_types((info.dtype, plan.storage.types.get(info.name, info.dtype)) for info in changed)


def _options(plan: MergePlan) -> dict[str, Any]:
    """Return the options of a merge's command line, as far as they were given.

    Options without a spelling here keep their own names, so that no version undoes options that it does not know.
    """
    options = plan.options
    said = {
        "dtype": options.dtype,
        "touched_dtype": options.changed_dtype,
        "only": list(options.only),
        "include": list(options.choice.include),
        "exclude": list(options.choice.exclude),
        "transposed": [spell_answer(glob, stored).split()[-1] for glob, stored in options.transposed.items()],
        "dora_multiplier": options.dora_rule,
        "rounding": None if options.seed is None else STOCHASTIC,
        "seed": options.seed,
        "allow_unmatched": options.allow_unmatched,
        RESIZED: list(plan.resized),
        "allow_partial_dora": options.settings.allow_partial_dora,
    }
    defaults = type(options)()
    others = [one.name for one in fields(options) if one.name not in _SPELLED]
    return {name: value for name, value in said.items() if value} | {
        RECORDED_AS.get(name, name): value
        for name in others
        if (value := getattr(options, name)) != getattr(defaults, name)
    }


# The tensors that got the size of an adapter's.
RESIZED = "resized"
# The options that are known to decide what a merge wrote.
_TEXTS, _LISTS, _FLAGS = (
    ("dtype", "touched_dtype", "dora_multiplier", "rounding"),
    ("only", "include", "exclude", "transposed", RESIZED),
    ("allow_unmatched", "allow_partial_dora", "accept_loss"),
)
# What stochastic rounding was drawn by, where it was asked for.
SEED = "seed"

# What no cast is for.
_NEVER_CAST = {"BOOL", "I64", "I32", "I16"}
# The hashes of an adapter's files, and that of the config beside them.
_Hashes = tuple[list[str], str | None]


def last_record(merged: Checkpoint) -> MergeRecord:
    """Return the last merge into a model; LoraInspectError if none is recorded that could be undone."""
    records = merge_records(merged.metadata)
    if not records:
        raise RefusedError(
            merged.path,
            f"it records no merge by lora-inspect ({MERGED_KEY}), so there is nothing to undo",
            "fetch the base itself",
        )
    last = records[-1]
    others = (merge_records(metadata)[-1:] for metadata in merged.file_metadata.values())
    if any(found != [last] for found in others):
        raise DamagedError(merged.path, "its files record different merges", "fetch it again")
    has_hashes = last.base is not None and last.adapters and all(one.sha256 for one in last.adapters)
    if not has_hashes or not last.is_whole:
        raise DamagedError(
            merged.path,
            "its record of the merge is damaged or from an earlier version, and lacks the hashes of the base "
            "and the adapters",
            "fetch the base itself",
        )
    if last.is_estimated:
        raise RefusedError(
            merged.path,
            "an earlier unmerge with --allow-ambiguous may have left numbers that differ from those before "
            "that merge, so nothing can be proved",
            "fetch the base itself",
        )
    return last


def recorded_cast(record: MergeRecord) -> str | None:
    """Return the type to which weights were cast, if the base may have had another one; else None."""
    types = [record.options.get(name) for name in ("dtype", "touched_dtype")]
    cast = next((one for one in types if one is not None), None)
    before = set(record.base.dtypes if record.base else ()) - _NEVER_CAST
    return None if cast is None or before == {cast} else str(cast)


def recorded_options(record: MergeRecord, path: str) -> MergeOptions:
    """Return the options of the merge into the base itself; LoraInspectError for an unknown or invalid one."""
    said = record.options
    wrong = [name for name in said if name not in (*_TEXTS, *_LISTS, *_FLAGS, SEED)]
    wrong += [name for name in _TEXTS if not isinstance(said.get(name, ""), str)]
    wrong += [name for name in _LISTS if not _is_list_of_texts(said.get(name, []))]
    wrong += [name for name in _FLAGS if not isinstance(said.get(name, False), bool)]
    rule = said.get("dora_multiplier")
    wrong += [name for name in ("dtype", "touched_dtype") if said.get(name) not in (None, *PLAIN_FLOATS)]
    wrong += ["dora_multiplier"] if rule is not None and rule not in MULTIPLIER_RULES else []
    try:
        answers = parse_answers(said.get("transposed", [])) if not wrong else {}
    except ValueError:
        wrong.append("transposed")
    if wrong:
        raise RefusedError(
            path,
            f"it was merged with {wrong[0]}, which this version cannot undo",
            f"use the version {record.version}, or fetch the base itself",
        )
    return MergeOptions(
        dtype=said.get("dtype"),
        changed_dtype=said.get("touched_dtype"),
        only=tuple(said.get("only", ())),
        transposed=answers,
        allow_unmatched=bool(said.get("allow_unmatched")),
        dora_rule=rule,
        settings=Settings(allow_partial_dora=bool(said.get("allow_partial_dora"))),
        choice=ModuleFilter(tuple(said.get("include", ())), tuple(said.get("exclude", ()))),
    )


def recorded_adapters(
    record: MergeRecord, path: str, named: Sequence[tuple[str, Settings]]
) -> list[tuple[str, Settings]]:
    """Return the `named` adapters that were merged, in the order of the merge and with its settings.

    Raises LoraInspectError where one of them was not merged, or not with the settings on its path, and where one that
    was merged is not there. `path` is that of the merged model.
    """
    opened = [(open_checkpoint(adapter), own) for adapter, own in named]
    hashes = [_hashes_to_find(checkpoint) for checkpoint, _ in opened]
    left = list(range(len(opened)))
    matched: list[int | None] = []
    for one in record.adapters:
        at = next((number for number in left if hashes[number] == (sorted(one.sha256.values()), one.config)), None)
        matched.append(at)
        if at is not None:
            left.remove(at)
    found: list[tuple[str, Settings]] = []
    for one, at in zip(record.adapters, matched, strict=True):
        settings = _settings(one, path)
        if at is None:
            near = None if left else _path_beside(one, path)
            if near is None:
                raise RefusedError(_missing(one, path, [(opened[number][0], hashes[number]) for number in left]))
            found.append((near, settings))
            continue
        checkpoint, own = opened[at]
        if own != Settings() and own != settings:
            said = spell_settings(settings)
            raise RefusedError(
                checkpoint.path,
                f"it was merged with {said or 'no settings'}, but its path says {spell_settings(own)}",
                "leave these settings out",
            )
        found.append((checkpoint.path, settings))
    if left:
        raise RefusedError(
            opened[left[0]][0].path,
            f"{path} records no merge of it, only of {listed([one.file for one in record.adapters])}",
            "leave it out",
        )
    return found


def _path_beside(one: MergedAdapter, path: str) -> str | None:
    """Return the path of the adapter that was merged, under its recorded name in the folder of the model at `path`."""
    near = os.path.join(os.path.dirname(path), one.file)
    if os.path.basename(one.file) != one.file or not os.path.exists(near):
        return None
    is_it = _hashes_to_find(open_checkpoint(near)) == (sorted(one.sha256.values()), one.config)
    return near if is_it else None


def _missing(one: MergedAdapter, path: str, left: Sequence[tuple[Checkpoint, _Hashes]]) -> str:
    digest = next(iter(one.sha256.values()))
    for checkpoint, (own, _) in left:
        if own == sorted(one.sha256.values()):
            return (
                f"{checkpoint.path}: its adapter_config.json is not the one that it was merged with; fetch that again."
            )
        if describe_file(checkpoint.path) == one.file:
            return (
                f"{checkpoint.path}: the file of that name that was merged into {path} has the SHA-256 "
                f"{digest}, but this one differs; find that file."
            )
    return f"{path}: {one.file} (SHA-256 {digest}) was merged into it, but is not named; name all merged adapters."


def _hashes_to_find(checkpoint: Checkpoint) -> _Hashes:
    files = sorted(file_sha256(file, checkpoint.inputs[file]) for file in checkpoint.files)
    config = checkpoint.config_path
    return files, file_sha256(config, checkpoint.inputs[config]) if config else None


def _settings(one: MergedAdapter, path: str) -> Settings:
    try:
        settings = parse_settings(one.settings) if one.settings else Settings()
    except ValueError:
        raise RefusedError(
            path, f"its record of {one.file} has invalid settings ({one.settings})", "fetch the base itself"
        ) from None
    if one.multiplier != settings.multipliers():
        raise RefusedError(
            path, f"its record of {one.file} has a multiplier that contradicts its settings", "fetch the base itself"
        )
    return settings


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
