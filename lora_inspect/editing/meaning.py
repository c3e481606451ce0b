"""The meaning of a file as facts to compare: an edit of metadata must leave them the same.

A change of meaning is reported, refused, or narrowed down to the keys that cause it, without a trial of each key.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lora_inspect.codecs.record import FORMATS_KEY
from lora_inspect.editing.edit import MetadataChange, applied
from lora_inspect.errors import LoraInspectError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.files.safetensors.edit_in_place import Headed
from lora_inspect.maths.dora import OF_BASE
from lora_inspect.programs import PROGRAMS
from lora_inspect.programs.verdict import judge_each
from lora_inspect.reading.file_info import ADAPTER, FileInfo, inspect_adapter
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.model.evidence import ERROR, RsloraReading
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.scale.dora_evidence import NORMS_KEY
from lora_inspect.reading.scale.scale_records import FoldedScales
from lora_inspect.sentences import listed, shortened, some

# By topic, and in it by what the fact is of: a module, a program, or the file itself.
Meaning = Mapping[str, Mapping[str, Any]]

# Without it, transformers refuses the weights of a model.
_FORMAT_KEY = "format"
_PROGRAMS = "the result"
# What the name of a file may say of it, and what is told in words that its path is among.
_OF_NAME = ("the expert", "the open questions", "reading", _PROGRAMS)
_FILE = ""
_ABSENT = object()
_NOTHING = "nothing"


def meaning(checkpoint: Checkpoint, settings: Settings = Settings()) -> Meaning:  # noqa: B008 (frozen)
    """Return how lora-inspect and the known programs read a file; for an unreadable one only the reason."""
    try:
        info = inspect_adapter(checkpoint, settings)
    except LoraInspectError as error:
        return {"reading": {_FILE: str(error)}}
    return {
        **_of_file(info),
        **_of_modules(info),
        _PROGRAMS: dict(_of_programs(info)) if info.kind == ADAPTER else {},
    }


def differences(before: Meaning, after: Meaning) -> list[str]:
    """Describe each topic that differs: its meaning before and after."""
    return [
        _clause(topic, before.get(topic, {}), after.get(topic, {}))
        for topic in dict.fromkeys((*before, *after))
        if before.get(topic, {}) != after.get(topic, {})
    ]


def under_any_name(meant: Meaning) -> Meaning:
    """Return the part of a meaning that does not depend on the file's name."""
    return {topic: facts for topic, facts in meant.items() if topic not in _OF_NAME}


def with_metadata(checkpoint: Checkpoint, file: str, metadata: Mapping[str, str]) -> Checkpoint:
    """The checkpoint as if one of its files had this metadata."""
    by_file = {**checkpoint.file_metadata, file: dict(metadata)}
    whole = {key: value for found in by_file.values() for key, value in found.items()}
    return checkpoint._replace(file_metadata=by_file, metadata=whole)


def _of_file(info: FileInfo) -> dict[str, dict[str, Any]]:
    adapter, metadata = info.adapter, info.checkpoint.metadata
    facts = {
        "the kind of file": info.kind,
        "the architecture": " or ".join(candidate.architecture.title for candidate in info.candidates),
        "the expert": info.expert and info.expert.name,
        "the naming scheme": adapter.scheme,
        "RS-LoRA": _rule(adapter.rslora),
        "DoRA": f"{_answer(adapter.dora.value)}, {adapter.dora.axis} {adapter.dora.norms}",
        "the base of its magnitudes": metadata.get(NORMS_KEY) if adapter.dora.norms == OF_BASE else None,
        "the tensors that belong to nothing": adapter.unclaimed,
        "the errors in it": sorted({problem.code for problem in adapter.problems if problem.severity == ERROR}),
        "the formats of its weights": metadata.get(FORMATS_KEY),
        "the format by which transformers loads it": metadata.get(_FORMAT_KEY),
    }
    return {topic: {_FILE: value} for topic, value in facts.items()}


def _of_modules(info: FileInfo) -> dict[str, dict[str, Any]]:
    """The facts of each contribution, by its module and its place among those of the module."""
    folded = FoldedScales(info.checkpoint.metadata)
    facts: dict[str, dict[str, Any]] = {}
    for name, module in info.adapter.modules.items():
        for number, contribution in enumerate(module.contributions):
            own = f"{name} ({number + 1})" if number else name
            for topic, value in _of_contribution(contribution, folded):
                facts.setdefault(topic, {})[own] = _comparable(value)
        facts.setdefault("the layer", {})[name] = module.path
    return facts


def _of_contribution(contribution: Contribution, folded: FoldedScales) -> Iterator[tuple[str, Any]]:
    magnitude = contribution.magnitude
    yield "the algorithm", contribution.algorithm.title
    yield "the rank", contribution.rank
    yield "the alpha", contribution.alpha
    yield "the scale", folded.scale_before(contribution.module.key, contribution.scale)
    yield "the scale that programs apply", contribution.scale
    yield "the scale rule", contribution.rslora
    yield "the magnitude", magnitude and (magnitude.axis, magnitude.spelling.norms)
    yield "the rows", contribution.rows
    yield "the orientation", contribution.fan_in_fan_out
    yield "the settings", dict(contribution.settings)
    yield "the open questions", contribution.unsettled
    yield "the base's residual", (contribution.residual, contribution.on_residual)


def _comparable(value: Any) -> Any:
    """A fact that equals itself, as a number that is none does not."""
    if isinstance(value, dict):
        return {name: _comparable(one) for name, one in value.items()}
    return str(value) if isinstance(value, float) and math.isnan(value) else value


def _of_programs(info: FileInfo) -> Iterator[tuple[str, Any]]:
    if any(problem.severity == ERROR for problem in info.adapter.problems):
        return
    for one in judge_each(info.adapter, info.candidates, PROGRAMS.values()):
        strength = f" at {one.factor:g} times the strength" if one.factor not in (None, 1.0) else ""
        ignored = f", {len(one.ignored)} keys ignored" if one.ignored else ""
        yield f"{one.program.title} {one.program.version}", f"{one.verdict}{strength}{ignored}"


def _clause(topic: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    names = dict.fromkeys((*before, *after))
    others = [name for name in names if before.get(name, _ABSENT) != after.get(name, _ABSENT)]
    name = others[0]
    of = f" of {shortened(name)}" if name else ""
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return f"{topic}{of}{more} from {_shown(before.get(name))} to {_shown(after.get(name))}"


def _rule(reading: RsloraReading) -> str:
    """Describe the scale rule and whether the file states it; programs guess a rule that it does not state."""
    stated = "stated" if reading.settled else reading.source
    return f"{_answer(reading.value)} ({stated}{', with a hint of it' if reading.hint else ''})"


def _answer(value: bool | None) -> str:
    return "unknown" if value is None else ("yes" if value else "no")


def _shown(value: Any) -> str:
    """Format a fact; of several facts those that are present."""
    if isinstance(value, (tuple, list)):
        return listed([_shown(one) for one in value if one not in (None, "", False)]) or _NOTHING
    if isinstance(value, bool):
        return _answer(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    return _NOTHING if value in (None, "", {}) else shortened(str(value))


class MeaningChanges(NamedTuple):
    """Edits that together keep the meaning, and edits that each change it when added to these."""

    harmless: list[str]
    deciding: list[str]


def tell_apart(changes: Sequence[str], keeps: Callable[[Sequence[str]], bool]) -> MeaningChanges:
    """Tells changes apart by whether `keeps` says that the meaning stays under several of them.

    It is asked some twice the logarithm of their number for each one that decides.
    """
    told = MeaningChanges([], [])
    waiting = [list(changes)] if changes else []
    while waiting:
        part = waiting.pop()
        if keeps([*told.harmless, *part]):
            told.harmless.extend(part)
        elif len(part) == 1:
            told.deciding.extend(part)
        else:
            half = len(part) // 2
            waiting += [part[half:], part[:half]]
    return told


def settled_meaning(
    checkpoint: Checkpoint, headed: Headed, made: Sequence[MetadataChange], allowed: bool
) -> tuple[str, ...]:
    """The changes of the file's meaning by the edit, in clauses; LoraInspectError where one is not allowed.

    It is always allowed to name one of the families that the file may be of.
    """
    if not made:
        return ()
    changed = with_metadata(checkpoint, headed.file, applied(headed.metadata, made))
    found = differences(meaning(checkpoint), meaning(changed))
    if found and not allowed and not _settles_family(checkpoint, changed):
        keys = some(deciding_keys(checkpoint, headed, made) or [one.key for one in made], 3)
        raise RefusedError(
            headed.file,
            f"{keys} decides how the file is read, and the edit would change {_few(found)}",
            "leave it out, or add --allow-meaning-change",
        )
    return tuple(found)


def _settles_family(before: Checkpoint, after: Checkpoint) -> bool:
    """Return True if the edit does no more than name one of the families that the file may be of."""
    families, named = (
        {one.architecture.name for one in inspect_adapter(checkpoint).candidates} for checkpoint in (before, after)
    )
    if len(named) != 1 or not named < families:
        return False
    return meaning(before, Settings(architecture=next(iter(named)))) == meaning(after)


def check_elsewhere(checkpoint: Checkpoint, headed: Headed, metadata: Mapping[str, str], written: str) -> None:
    """Raise LoraInspectError where a copy with this metadata would be read differently, without its config.

    A single shard is not such a copy.
    """
    if len(checkpoint.files) > 1:
        return
    meant = meaning(with_metadata(checkpoint, headed.file, metadata))
    found = differences(under_any_name(meant), under_any_name(meaning(open_checkpoint(written))))
    if found:
        raise RefusedError(
            headed.file,
            f"files next to it decide how it is read, and the place of the output would change {_few(found)}",
            "name an output in the same folder, or copy the folder and leave -o out",
        )


def deciding_keys(checkpoint: Checkpoint, headed: Headed, made: Sequence[MetadataChange]) -> list[str]:
    """The keys of those changes that make another meaning, each beside all of the others that make none."""
    before, by_key = meaning(checkpoint), {one.key: one for one in made}

    def keeps(keys: Sequence[str]) -> bool:
        changed = applied(headed.metadata, [by_key[key] for key in keys])
        return meaning(with_metadata(checkpoint, headed.file, changed)) == before

    return tell_apart(list(by_key), keeps).deciding


def _few(clauses: Sequence[str], count: int = 3) -> str:
    more = len(clauses) - count
    return listed([*clauses[:count], *([f"{more} more"] if more > 0 else [])])
