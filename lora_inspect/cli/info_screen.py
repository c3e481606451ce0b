"""The screen of one file: what it is first, then what is wrong, what programs make of it, and where it comes from."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lora_inspect.cli.info_headline import few, file_line, headline, span
from lora_inspect.cli.info_programs import lines_of_programs
from lora_inspect.cli.sheet import Line, Sheet
from lora_inspect.cli.terminal import BOLD, DOUBTFUL, FAINT, WRONG
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.maths.packed_factors import PACKINGS
from lora_inspect.ops.info import outlook_of
from lora_inspect.programs.verdict import Verdict
from lora_inspect.reading.file_info import FileInfo
from lora_inspect.reading.metadata.provenance import noted_trigger
from lora_inspect.reading.model.evidence import ERROR, NOTE, WARNING
from lora_inspect.reading.model.settings import spell_argument
from lora_inspect.reading.scale.scale_records import FOLDED_KEY
from lora_inspect.shell import command_line, operand

# The columns of the parts of an adapter and of a base, and what stands in each.
_ADAPTED = ("part", "modules", "rank", "scale", "parameters")
_WHOLE = ("part", "tensors", "parameters")
_CELLS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "part": lambda part: str(part["title"]),
    "modules": lambda part: f"{part['modules']:,}",
    "tensors": lambda part: f"{part['tensors']:,}",
    "rank": lambda part: span(part["ranks"]),
    "scale": lambda part: span(part["scales"]),
    "parameters": lambda part: f"{part['parameters']:,}",
}


class _Setting(NamedTuple):
    """What settles something that a file leaves open: a name, a value as an example, and which one is right."""

    name: str
    value: str
    means: str


_SETTINGS = {
    "alpha": _Setting("alpha", "N", "N: the alpha of the training"),
    "rslora": _Setting("rslora", "no", "yes if it trained RS-LoRA"),
    "expert_packing": _Setting("expert-packing", PACKINGS[0], f"or {' or '.join(PACKINGS[1:])}"),
}
# What stands above the lines in which a file may say anything.
_ITS_WORDS = "The file says of itself:"
# How many of them a screen has: tags, parts, merges, and problems of one severity.
_MOST_TAGS, _MOST_PARTS, _MOST_MERGES, _MOST_PROBLEMS = 6, 12, 12, 12
_MARKS = {ERROR: ("!!", WRONG), WARNING: ("!", DOUBTFUL), NOTE: ("-", FAINT)}


def screen(
    sheet: Sheet, info: FileInfo, record: Mapping[str, Any], verdicts: Sequence[Verdict] | None, why: bool
) -> Iterator[Line]:
    """The lines of a file that was read, of its record and of what programs make of it; `why` shows all evidence."""
    yield from sheet.sentence(headline(info, record), BOLD)
    yield from sheet.sentence(file_line(record))
    yield from _parts(sheet, record["components"])
    yield from _problems(sheet, record["problems"], (ERROR, WARNING))
    if info.adapter.open:
        yield from _settling(sheet, info.adapter.open, record["path"])
    if outlook := outlook_of(info, verdicts, record["fix"]):
        path = spell_argument(record["path"], info.adapter.settings)
        yield from lines_of_programs(sheet, outlook, path, list(record["scales"]), record["fix"], info)
    yield from _problems(sheet, record["problems"], (NOTE,))
    yield from _evidence(sheet, info, record, why)
    if told := list(_origin(sheet, record)):
        yield from sheet.sentence(_ITS_WORDS, FAINT)
        yield from told


def _settling(sheet: Sheet, settings: Sequence[str], path: str) -> Iterator[Line]:
    """The command that gives what the file leaves open, with a value of each in it, and what the values are."""
    said = ",".join(f"{_SETTINGS[one].name}={_SETTINGS[one].value}" for one in settings)
    yield from sheet.row_of_command("settle with", command_line(["lora-inspect", "info", f"{operand(path)}:{said}"]))
    yield from sheet.row("", "; ".join(_SETTINGS[one].means for one in settings), FAINT)


def _parts(sheet: Sheet, parts: Mapping[str, Mapping[str, Any]]) -> Iterator[Line]:
    """A row for each part: what changes it in an adapter, what there is of it in a base."""
    adapted = any(part["modules"] for part in parts.values())
    headers = _ADAPTED if adapted else _WHOLE
    rows = [[_CELLS[header](part) for header in headers] for part in parts.values()]
    if rows:
        yield from sheet.table(rows[:_MOST_PARTS], headers)
    if len(rows) > _MOST_PARTS:
        yield from sheet.row("", f"{len(rows) - _MOST_PARTS:,} more parts: --json", FAINT)


def _problems(sheet: Sheet, problems: Sequence[Mapping[str, Any]], severities: Sequence[str]) -> Iterator[Line]:
    for severity in severities:
        mark, look = _MARKS[severity]
        found = [problem for problem in problems if problem["severity"] == severity]
        for problem in found[:_MOST_PROBLEMS]:
            yield from sheet.sentence(f"{problem['message']}.", look, mark)
        if len(found) > _MOST_PROBLEMS:
            yield from sheet.sentence(f"{len(found) - _MOST_PROBLEMS:,} more: --json", look, mark)


def _origin(sheet: Sheet, record: Mapping[str, Any]) -> Iterator[Line]:
    """What the metadata say of where it comes from, a row each."""
    merges = record["merged"]
    if len(merges) > _MOST_MERGES:
        yield from sheet.row("merged", f"{len(merges) - _MOST_MERGES:,} earlier merges: --json", FAINT)
    for merge in merges[-_MOST_MERGES:]:
        adapters = [f"{sheet.cut(one['file'])}{_strength(one['multiplier'])}" for one in merge["adapters"]]
        into = f" into {sheet.cut(merge['base'])}" if merge["base"] else ""
        yield from sheet.row("merged", f"{few(adapters, 'and', _MOST_TAGS) or 'adapters that are not named'}{into}")
    name = os.path.splitext(os.path.basename(os.path.normpath(record["path"])))[0]
    if record["title"] and record["title"] != name:
        yield from sheet.row("title", record["title"])
    if record["base"]:
        yield from sheet.row("base", record["base"])
    if record["trigger_words"]:
        words = [sheet.cut(word) for word in record["trigger_words"]]
        yield from sheet.row("trigger", few(words, "and", _MOST_TAGS))
    for note in record["notes"]:
        if noted_trigger(note):
            continue
        yield from sheet.row("note", note)
    if record["tags"]:
        yield from sheet.row("tags", _tags(sheet, record["tags"], record["training"].get("images")))
    if facts := list(_training(record["training"])):
        yield from sheet.row("trained", ", ".join(facts))


def _strength(multiplier: float | Mapping[str, float] | None) -> str:
    """The strength of an adapter that was merged, where it is not plainly 1."""
    if isinstance(multiplier, Mapping):
        return f" at {few([f'{name}={number:g}' for name, number in multiplier.items()])}"
    return "" if multiplier in (None, 1) else f" at {multiplier:g}"


def _tags(sheet: Sheet, tags: Mapping[str, int], images: int | None) -> str:
    """The commonest tags with the share of images that have them; the number where that is not known."""
    first = [(sheet.cut(tag), count) for tag, count in list(tags.items())[:_MOST_TAGS]]
    if images and all(count <= images for _, count in first):
        return ", ".join(f"{tag} {count / images:.0%}" for tag, count in first)
    return ", ".join(f"{tag} ({count:,})" for tag, count in first)


def _training(facts: Mapping[str, Any]) -> Iterator[str]:
    if "steps" in facts:
        yield f"{facts['steps']:,} steps"
    epoch, epochs = facts.get("epoch"), facts.get("epochs")
    if epoch and epochs and epoch != epochs:
        yield f"epoch {epoch:,} of {epochs:,}"
    elif epoch or epochs:
        yield f"{epoch or epochs:,} epochs"
    if "images" in facts:
        yield f"{facts['images']:,} images"
    if "resolution" in facts:
        yield facts["resolution"]
    if "batch_size" in facts:
        yield f"batch {facts['batch_size']:,}"
    if "learning_rate" in facts:
        yield f"learning rate {facts['learning_rate']:g}"
    for fact in ("optimizer", "date"):
        if fact in facts:
            yield facts[fact]


def _evidence(sheet: Sheet, info: FileInfo, record: Mapping[str, Any], why: bool) -> Iterator[Line]:
    """All evidence where it is asked for, else the deciding one for what is not as everybody would expect."""
    evidence = record["evidence"]
    subjects = {"rslora": "RS-LoRA", "dora": "DoRA"}
    if why:
        for item in evidence:
            subject = subjects.get(item["about"], item["about"])
            yield from sheet.sentence(f"why {subject}: {item['says']} [{_place(item, record)}]")
        return
    shown = {}
    for about, subject in _surprises(info).items():
        found = [item for item in evidence if item["about"] == about]
        if found:
            # What would settle the architecture is said last, and what is in the factors after what else makes scales.
            shown[subject] = found[-1] if about in ("architecture", "scale") else found[0]
    others = len(evidence) - len(shown)
    for number, (subject, item) in enumerate(shown.items(), 1):
        more = f" ({others} more reason{'s' if others > 1 else ''}: --why)" if others and number == len(shown) else ""
        yield from sheet.sentence(f"why {subject}: {item['says']} [{_place(item, record)}]{more}", FAINT)


def _place(item: Mapping[str, str], record: Mapping[str, Any]) -> str:
    """Where the evidence stands; of a file beside this one the name alone."""
    folder, name = os.path.split(item["where"])
    own = os.path.normpath(record["path"])
    return name if name and folder and folder in (own, os.path.dirname(own)) else item["where"]


def _surprises(info: FileInfo) -> dict[str, str]:
    """What wants a reason, by what evidence is about: its name here."""
    adapter = info.adapter
    found = {}
    differs = adapter.rslora.value is None and any(contribution.rslora for contribution in adapter.contributions)
    if adapter.rslora.value or differs or adapter.rslora.source == "conflict":
        found["rslora"] = "RS-LoRA"
    if adapter.dora.value or adapter.dora.source == "conflict":
        found["dora"] = "DoRA"
    if FOLDED_KEY in info.checkpoint.metadata:
        found["scale"] = "the scale"
    if info.expert:
        found["expert"] = info.expert.name or "no expert"
    if len(info.candidates) > 1:
        found["architecture"] = few([candidate.architecture.title for candidate in info.candidates], "or")
    return found
