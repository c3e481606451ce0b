"""The adapters that a merged file records, found among those that are named, with the settings that they had."""

from collections.abc import Sequence
from typing import Any

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.files.hashes import file_sha256
from lora_inspect.files.safetensors.dtypes import PLAIN_FLOATS
from lora_inspect.matching.orientation import parse_answers
from lora_inspect.maths.dora import MULTIPLIER_RULES
from lora_inspect.merging.options import MergeOptions
from lora_inspect.reading.chosen_modules import Choice
from lora_inspect.reading.metadata.merge_record import MergedAdapter, MergeRecord, merge_records
from lora_inspect.reading.metadata.output_metadata import describe_file
from lora_inspect.reading.metadata.provenance import MERGED_KEY
from lora_inspect.reading.model.settings import Settings, parse_settings, spell_settings
from lora_inspect.sentences import listed

# The options that are known to decide what a merge wrote.
_TEXTS, _LISTS, _FLAGS = (
    ("dtype", "touched_dtype", "dora_multiplier", "rounding"),
    ("only", "include", "exclude", "transposed"),
    ("allow_unmatched", "allow_partial_dora", "accept_loss"),
)
# What stochastic rounding was drawn by, where it was asked for.
SEED = "seed"

# What no cast is for.
_NEVER_CAST = {"BOOL", "I64", "I32", "I16"}
# The hashes of an adapter's files, and that of the config beside them.
_Hashes = tuple[list[str], str | None]


def last_record(merged: Checkpoint) -> MergeRecord:
    """The last merge into a model; LoraInspectError where none is recorded that could be undone."""
    records = merge_records(merged.metadata)
    if not records:
        raise LoraInspectError(
            f"{merged.path}: it records no merge of lora-inspect ({MERGED_KEY}), so nothing says what to undo; fetch "
            "the base itself."
        )
    last = records[-1]
    others = (merge_records(metadata)[-1:] for metadata in merged.file_metadata.values())
    if any(found != [last] for found in others):
        raise LoraInspectError(
            f"{merged.path}: its files do not all record the same merge, so they are of several; fetch it again."
        )
    has_hashes = last.base is not None and last.adapters and all(one.sha256 for one in last.adapters)
    if not has_hashes or not last.is_whole:
        raise LoraInspectError(
            f"{merged.path}: its record of a merge is of an earlier version or damaged, and does not say what base and "
            "adapters there were, by their hashes; fetch the base itself."
        )
    if last.is_estimated:
        raise LoraInspectError(
            f"{merged.path}: a merge into it was undone with --accept-unproved, so its numbers may be others than "
            "those of the merge before, and nothing of that can be proved; fetch the base itself."
        )
    return last


def recorded_cast(record: MergeRecord) -> str | None:
    """The element type that weights were cast to where the base may have had another one; None where it had that."""
    types = [record.options.get(name) for name in ("dtype", "touched_dtype")]
    cast = next((one for one in types if one is not None), None)
    before = set(record.base.dtypes if record.base else ()) - _NEVER_CAST
    return None if cast is None or before == {cast} else str(cast)


def recorded_options(record: MergeRecord, path: str) -> MergeOptions:
    """The options of the merge into the base itself; LoraInspectError for what is none that is known."""
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
        raise LoraInspectError(
            f"{path}: it was merged with {wrong[0]}, which this version cannot undo; use the version {record.version}, "
            "or fetch the base itself."
        )
    return MergeOptions(
        dtype=said.get("dtype"),
        touched_dtype=said.get("touched_dtype"),
        only=tuple(said.get("only", ())),
        transposed=answers,
        allow_unmatched=bool(said.get("allow_unmatched")),
        dora_rule=rule,
        settings=Settings(allow_partial_dora=bool(said.get("allow_partial_dora"))),
        choice=Choice(tuple(said.get("include", ())), tuple(said.get("exclude", ()))),
    )


def recorded_adapters(
    record: MergeRecord, path: str, named: Sequence[tuple[str, Settings]]
) -> list[tuple[str, Settings]]:
    """Those of the `named` adapters that were merged, in the order of the merge and with its settings.

    Raises LoraInspectError where one of them was not merged, or not with the settings on its path, and where one that
    was merged is not there. `path` is that of the merged model.
    """
    opened = [(open_checkpoint(adapter), own) for adapter, own in named]
    hashes = [_hashes(checkpoint) for checkpoint, _ in opened]
    left = list(range(len(opened)))
    found: list[tuple[str, Settings]] = []
    for one in record.adapters:
        at = next((number for number in left if hashes[number] == (sorted(one.sha256.values()), one.config)), None)
        if at is None:
            raise LoraInspectError(_missing(one, path, [(opened[number][0], hashes[number]) for number in left]))
        left.remove(at)
        checkpoint, own = opened[at]
        settings = _settings(one, path)
        if own != Settings() and own != settings:
            said = spell_settings(settings)
            raise LoraInspectError(
                f"{checkpoint.path}: it was merged with {said or 'no settings'}, and {spell_settings(own)} is on its "
                "path; leave that out."
            )
        found.append((checkpoint.path, settings))
    if left:
        raise LoraInspectError(
            f"{opened[left[0]][0].path}: {path} records no merge of it, only of "
            f"{listed([one.file for one in record.adapters])}; leave it out."
        )
    return found


def _missing(one: MergedAdapter, path: str, left: Sequence[tuple[Checkpoint, _Hashes]]) -> str:
    digest = next(iter(one.sha256.values()))
    for checkpoint, (own, _) in left:
        if own == sorted(one.sha256.values()):
            return (
                f"{checkpoint.path}: its adapter_config.json is not the one that it was merged with; fetch that again."
            )
        if describe_file(checkpoint.path) == one.file:
            return (
                f"{checkpoint.path}: it is not the file of that name that was merged into {path}, whose SHA-256 is "
                f"{digest}; find that one."
            )
    return f"{path}: {one.file} (SHA-256 {digest}) was merged into it and is not named; name all that were merged."


def _hashes(checkpoint: Checkpoint) -> _Hashes:
    files = sorted(file_sha256(file, checkpoint.inputs[file]) for file in checkpoint.files)
    config = checkpoint.config_path
    return files, file_sha256(config, checkpoint.inputs[config]) if config else None


def _settings(one: MergedAdapter, path: str) -> Settings:
    try:
        settings = parse_settings(one.settings) if one.settings else Settings()
    except ValueError:
        raise LoraInspectError(
            f"{path}: its record of {one.file} has settings that are none ({one.settings}); fetch the base itself."
        ) from None
    if one.multiplier != settings.multipliers():
        raise LoraInspectError(
            f"{path}: its record of {one.file} has a multiplier that is not that of its settings; fetch the base "
            "itself."
        )
    return settings


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
