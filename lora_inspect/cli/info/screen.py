"""The screen of one file: its kind first, then problems, programs and origin.

The first lines give kind, model, rank and scale, others the verdicts of programs and the command that fixes the file.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from lora_inspect.cli.terminal import BOLD, DOUBTFUL, FAINT, RIGHT, WRONG, Line, Sheet
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.maths.scaling import PACKINGS
from lora_inspect.programs.verdict import (
    LOST,
    MOST_ASKED,
    NOT_THERE,
    PARTLY,
    SAME,
    STRENGTH,
    UNJUDGED,
    UNTESTED,
    Verdict,
    VerdictGroup,
    group_verdicts,
    is_lost,
    popularity,
)
from lora_inspect.reading.file_info import FileInfo
from lora_inspect.reading.headline import headline, span
from lora_inspect.reading.metadata.provenance import noted_trigger
from lora_inspect.reading.model.evidence import ERROR, NOTE, WARNING
from lora_inspect.reading.model.settings import spell_argument
from lora_inspect.reading.scale.scale_records import FOLDED_KEY
from lora_inspect.reporting.file_record import Outlook, outlook_of
from lora_inspect.sentences import few, size_in_words
from lora_inspect.shell import command_line, operand


def file_line(record: Mapping[str, Any]) -> str:
    """Return the file's name, size, element types and writer."""
    path = os.path.normpath(record["path"])
    dtypes: dict[str, None] = {}
    for part in record["components"].values():
        dtypes |= dict.fromkeys(part["dtypes"])
    stored = ", ".join(dtypes or record["dtypes"])
    trainer, scheme = record["trainer"] or "", record["scheme"] or ""
    # Some programs have names of their own.
    names = f"{scheme} keys" if scheme and not trainer.lower().startswith(scheme) else ""
    by = ", ".join(word for word in (trainer, names) if word)
    sized = ", ".join(word for word in (size_in_words(record["bytes"]), stored) if word)
    return " - ".join(word for word in (os.path.basename(path) or path, sized, by) if word)


# How many programs a line names.
_MOST_PROGRAMS = 6
_IN_WORDS = {0.5: "half as strong", 2.0: "twice as strong"}
_BASE = " --base BASE "


def lines_of_programs(
    sheet: Sheet, outlook: Outlook, path: str, scales: Sequence[str], fix: str | None, info: FileInfo
) -> Iterator[Line]:
    """Yield a sentence for each error in programs, then the programs that load the file, then the others.

    Each program appears once. `scales` are those of the modules. `fix` is the command that fixes every wrong scale, if
    one is known. `path` is the file as the user named it.
    """
    groups = group_verdicts(outlook.verdicts)
    wrong = [one for one in groups if one.verdict not in (SAME, *NOT_THERE, *UNJUDGED)]
    right = [one for one in groups if one.verdict == SAME]
    lost, unknown = _titles(groups, NOT_THERE), _titles(groups, (UNTESTED,))
    nothing_loaded = not outlook.is_open and is_lost(outlook.verdicts, info.candidates)
    if nothing_loaded:
        yield from sheet.sentence(f"{_load(lost)} nothing of it, so it has no effect there.", WRONG, "!!")
    for one in wrong:
        is_told = one.verdict == PARTLY and not one.silent
        is_fixed = one.verdict == STRENGTH and bool(fix)
        yield from sheet.sentence(_sentence(one, scales, is_fixed), *((DOUBTFUL, "!") if is_told else (WRONG, "!!")))
        if is_fixed and fix:
            yield from sheet.command(fix)
    if outlook.fix and (nothing_loaded or wrong):
        needs = ", with the model's own weights as BASE" if _BASE in outlook.fix.command else ""
        yield from sheet.fix(f"For {outlook.fix.title}{needs}:", outlook.fix.command)
    for one in sorted(right, key=lambda one: bool(one.says)):
        yield from _right(sheet, one, outlook.is_open, info)
    if lost and not nothing_loaded:
        yield from sheet.row("not in", few(lost, most=_MOST_PROGRAMS))
        if outlook.fix and not wrong:
            yield from sheet.row_of_command("fix with", outlook.fix.command)
    if said := _most_popular(outlook, info):
        unknown = [title for title in unknown if not title.startswith(MOST_ASKED)]
        yield from sheet.row(MOST_ASKED, said)
    if unknown:
        yield from sheet.row("not tried in", few(unknown, most=_MOST_PROGRAMS), FAINT)
    if outlook.is_open:
        return
    if lost or any(one.verdict != STRENGTH or not fix for one in wrong):
        yield from sheet.row_of_command("details", _every_verdict(path))


def _right(sheet: Sheet, one: VerdictGroup, is_open: bool, info: FileInfo) -> Iterator[Line]:
    names = few(one.titles, most=_MOST_PROGRAMS)
    on = f", for the {info.expert.name} model" if info.expert and info.expert.name else ""
    if is_open:
        yield from sheet.row("loads in", f"{names}{on}; the scale is unknown until alpha is given")
    else:
        needs = f": {one.says}" if one.says else ""
        yield from sheet.row("works in", f"{names}, at multiplier 1{on}{needs}", RIGHT)


def _most_popular(outlook: Outlook, info: FileInfo) -> str:
    """Return sentences on the most common program if its verdict gives none."""
    own: list[Verdict] = [one for one in outlook.verdicts if one.program.title == MOST_ASKED]
    if not own:
        return (
            "not known to load adapters of such a model"
            if info.candidates
            else "not tested, as the adapter's model is not known"
        )
    return f"{own[0].verdict}: {own[0].says}" if all(one.verdict in UNJUDGED for one in own) else ""


def _titles(groups: Sequence[VerdictGroup], verdicts: Sequence[str]) -> list[str]:
    return sorted((title for one in groups if one.verdict in verdicts for title in one.titles), key=popularity)


def _every_verdict(path: str) -> str:
    return command_line(["lora-inspect", "compat", operand(path)])


def _load(titles: Sequence[str]) -> str:
    return f"{few(titles, most=_MOST_PROGRAMS)} {'loads' if len(titles) == 1 else 'load'}"


def _sentence(one: VerdictGroup, scales: Sequence[str], is_fixed: bool) -> str:
    names = few(one.titles, most=_MOST_PROGRAMS)
    is_one = len(one.titles) == 1
    strength = _multipliers(one.factors, scales) if one.factors else ""
    if one.verdict == STRENGTH:
        ways = [f"load it with multiplier {one.multiplier:g}"] if one.multiplier else []
        ways += ["convert the file:"] if is_fixed else []
        way = " or ".join(ways)
        way = f" {way[:1].upper()}{way[1:]}{'' if is_fixed else '.'}" if ways else ""
        return f"{names} {'applies' if is_one else 'apply'} {strength}.{way}"
    strength = f"; {'it applies' if is_one else 'they apply'} {strength}" if strength else ""
    if one.verdict == LOST:
        return f"{names} {'ignores' if is_one else 'ignore'} the DoRA part, so the result will differ{strength}."
    if one.verdict == PARTLY:
        return f"{names} {'loads' if is_one else 'load'} a part of it: {one.says}{strength}."
    says = one.says.removeprefix("it ")
    if says == one.says:
        return f"{names}: {says}{strength}."
    return f"{names} {says}{strength}." if is_one else f"{names}: each {says}{strength}."


def _multipliers(factors: Sequence[float], scales: Sequence[str]) -> str:
    """Return the applied scale, and its ratio to the trained one."""
    if len(factors) > 1:
        return f"{min(factors):g} to {max(factors):g} times the right scale"
    words = f"{_IN_WORDS.get(factors[0], f'{factors[0]:.3g} times as strong')} as trained"
    return f"{float(scales[0]) * factors[0]:.4g}: {words}" if len(scales) == 1 else f"it {words}"


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
    """A setting that answers an open question: its name, an example value, and the right one."""

    name: str
    value: str
    means: str


_SETTINGS = {
    "alpha": _Setting("alpha", "N", "N: the alpha of the training"),
    "rslora": _Setting("rslora", "no", "yes if the training used RS-LoRA"),
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
    """Yield the lines of a readable file, its record and the verdicts of programs.

    `why` shows all evidence.
    """
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
    yield from _beside(sheet, record)
    if told := list(_origin(sheet, record)):
        yield from sheet.sentence(_ITS_WORDS, FAINT)
        yield from told


def _settling(sheet: Sheet, settings: Sequence[str], path: str) -> Iterator[Line]:
    """Return the command with a value for each open setting, and the meaning of the values."""
    said = ",".join(f"{_SETTINGS[one].name}={_SETTINGS[one].value}" for one in settings)
    yield from sheet.row_of_command("settle with", command_line(["lora-inspect", "info", f"{operand(path)}:{said}"]))
    yield from sheet.row("", "; ".join(_SETTINGS[one].means for one in settings), FAINT)


def _parts(sheet: Sheet, parts: Mapping[str, Mapping[str, Any]]) -> Iterator[Line]:
    """Yield a row for each part: its changes in an adapter, its content in a base."""
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
    """Return the origin that the metadata state, a row each."""
    merges = record["merged"]
    if len(merges) > _MOST_MERGES:
        yield from sheet.row("merged", f"{len(merges) - _MOST_MERGES:,} earlier merges: --json", FAINT)
    for merge in merges[-_MOST_MERGES:]:
        adapters = [f"{sheet.cut(one['file'])}{_applied_multiplier(one['multiplier'])}" for one in merge["adapters"]]
        into = f" into {sheet.cut(merge['base'])}" if merge["base"] else ""
        yield from sheet.row("merged", f"{few(adapters, 'and', _MOST_TAGS) or 'adapters that are not named'}{into}")
    if made := record["combined"]:
        yield from sheet.row("made by", _making(sheet, made))
    for field, text in _named(sheet, record).items():
        if not any(field in one["fields"] for one in record["sidecars"]):
            yield from sheet.row(field.partition("_")[0], text)
    for note in record["notes"]:
        if noted_trigger(note):
            continue
        yield from sheet.row("note", note)
    if record["tags"]:
        yield from sheet.row("tags", _tags(sheet, record["tags"], record["training"].get("images")))
    if facts := list(_training(record["training"])):
        yield from sheet.row("trained", ", ".join(facts))


def _named(sheet: Sheet, record: Mapping[str, Any]) -> dict[str, str]:
    """Return the title, the base and the trigger words as the screen has them, by their fields."""
    name = os.path.splitext(os.path.basename(os.path.normpath(record["path"])))[0]
    words = few([sheet.cut(word) for word in record["trigger_words"]], "and", _MOST_TAGS)
    found = {"title": record["title"], "base": record["base"], "trigger_words": words}
    return {field: text for field, text in found.items() if text and (field, text) != ("title", name)}


def _beside(sheet: Sheet, record: Mapping[str, Any]) -> Iterator[Line]:
    """Return the facts that only a sidecar states, a row each with its name, and the sidecars with a problem."""
    named = _named(sheet, record)
    for one in record["sidecars"]:
        for field in filter(named.get, one["fields"]):
            yield from sheet.row(field.partition("_")[0], f"{named[field]} ({one['file']})")
        if one["problem"]:
            yield from sheet.sentence(f"{one['file']} is ignored: {one['problem']}.", FAINT)


def _applied_multiplier(multiplier: float | Mapping[str, float] | None) -> str:
    """Return the multiplier of a merged adapter, unless it is 1."""
    if isinstance(multiplier, Mapping):
        return f" at {few([f'{name}={number:g}' for name, number in multiplier.items()])}"
    return "" if multiplier in (None, 1) else f" at {multiplier:g}"


def _making(sheet: Sheet, made: Mapping[str, Any]) -> str:
    """Return the verb that made an adapter of others, with its rule, its inputs and its error."""
    rule = f" --method {sheet.cut(made['method'])}" if made["method"] else ""
    rule += "".join(f" --{name.replace('_', '-')} {value:.12g}" for name, value in made["rule"].items())
    named = [sheet.cut(f"{one['file']}:{one['settings']}".rstrip(":")) for one in made["inputs"]]
    inputs = few(named, "and", _MOST_TAGS) or "files that are not named"
    error = f"; error {made['error']:.3g}" if made["error"] else ""
    return f"{sheet.cut(made['verb'])}{rule} of {inputs}{error}"


def _tags(sheet: Sheet, tags: Mapping[str, int], images: int | None) -> str:
    """Return the commonest tags with their share of the images; without that, with their number."""
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
    """Return all evidence on request, else the deciding evidence for anything unusual."""
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
    """Return the place of the evidence; for another file of the folder only its name."""
    folder, name = os.path.split(item["where"])
    own = os.path.normpath(record["path"])
    return name if name and folder and folder in (own, os.path.dirname(own)) else item["where"]


def _surprises(info: FileInfo) -> dict[str, str]:
    """Return the unusual facts that need a reason, each under the name of its evidence."""
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
