"""What the programs make of a file, in a few lines of its screen, with the command that mends it."""

from collections.abc import Iterator, Sequence

from lora_inspect.cli.info_headline import few
from lora_inspect.cli.sheet import Line, Sheet
from lora_inspect.cli.terminal import DOUBTFUL, FAINT, RIGHT, WRONG
from lora_inspect.ops.info import Outlook
from lora_inspect.programs.verdict import (
    LOST,
    MOST_ASKED,
    NOT_THERE,
    PARTLY,
    SAME,
    STRENGTH,
    UNKNOWN,
    Alike,
    Verdict,
    asked,
    group_verdicts,
)
from lora_inspect.reading.file_info import FileInfo
from lora_inspect.shell import command_line, operand

# How many programs a line names.
_MOST = 6
_IN_WORDS = {0.5: "half as strong", 2.0: "twice as strong"}
_BASE = " --base BASE "


def lines_of_programs(
    sheet: Sheet, outlook: Outlook, path: str, scales: Sequence[str], fix: str | None, info: FileInfo
) -> Iterator[Line]:
    """What is wrong in which programs, a sentence each, then the programs that the file works in, and does not.

    Each program stands in one place. `scales` are those of the modules, `fix` the command that mends every wrong
    strength, where one is known, and `path` what the user called the file.
    """
    groups = group_verdicts(outlook.verdicts)
    wrong = [one for one in groups if one.verdict not in (SAME, *NOT_THERE, UNKNOWN)]
    right = [one for one in groups if one.verdict == SAME]
    lost, unknown = _titles(groups, NOT_THERE), _titles(groups, (UNKNOWN,))
    is_lost = _is_lost(outlook, info)
    if is_lost:
        yield from sheet.sentence(f"{_load(lost)} nothing of it.", WRONG, "!!")
    for one in wrong:
        is_told = one.verdict == PARTLY and not one.silent
        mends = one.verdict == STRENGTH and bool(fix)
        yield from sheet.sentence(_sentence(one, scales, mends), *((DOUBTFUL, "!") if is_told else (WRONG, "!!")))
        if mends and fix:
            yield from sheet.command(fix)
    if outlook.fix and (is_lost or wrong):
        needs = ", with the model's own weights as BASE" if _BASE in outlook.fix.command else ""
        yield from sheet.mending(f"For {outlook.fix.title}{needs}:", outlook.fix.command)
    for one in sorted(right, key=lambda one: bool(one.says)):
        yield from _right(sheet, one, outlook.is_open, info)
    if lost and not is_lost:
        yield from sheet.row("not in", few(lost, most=_MOST))
        if outlook.fix and not wrong:
            yield from sheet.row_of_command("mend with", outlook.fix.command)
    if said := _of_most_asked(outlook, info):
        unknown = [title for title in unknown if not title.startswith(MOST_ASKED)]
        yield from sheet.row(MOST_ASKED, said)
    if unknown:
        yield from sheet.row("not tried in", few(unknown, most=_MOST), FAINT)
    if outlook.is_open:
        return
    if lost or any(one.verdict != STRENGTH or not fix for one in wrong):
        yield from sheet.row_of_command("details", _every_verdict(path))


def _is_lost(outlook: Outlook, info: FileInfo) -> bool:
    """Whether programs that are there for such a model, and are asked about most, have nothing of the file."""
    one = outlook.decisive
    if one is None or one.verdict not in NOT_THERE or outlook.is_open:
        return False
    families = {family.architecture.name for family in info.candidates}
    return any(not families.isdisjoint(loader.families) for loader in one.consumer.reads)


def _right(sheet: Sheet, one: Alike, is_open: bool, info: FileInfo) -> Iterator[Line]:
    names = few(one.titles, most=_MOST)
    on = f", for the {info.expert.name} model" if info.expert and info.expert.name else ""
    if is_open:
        yield from sheet.row("loads in", f"{names}{on}; how strongly is unknown until alpha is given")
    else:
        needs = f": {one.says}" if one.says else ""
        yield from sheet.row("works in", f"{names}, at strength 1{on}{needs}", RIGHT)


def _of_most_asked(outlook: Outlook, info: FileInfo) -> str:
    """What is to be said of the program that people ask about most where its verdict says nothing."""
    own: list[Verdict] = [one for one in outlook.verdicts if one.consumer.title == MOST_ASKED]
    if not own:
        return (
            "not known to load adapters of such a model"
            if info.candidates
            else "unknown, as it is not known here which model this is for"
        )
    return f"unknown: {own[0].says}" if all(one.verdict == UNKNOWN for one in own) else ""


def _titles(groups: Sequence[Alike], verdicts: Sequence[str]) -> list[str]:
    return sorted((title for one in groups if one.verdict in verdicts for title in one.titles), key=asked)


def _every_verdict(path: str) -> str:
    return command_line(["lora-inspect", "compat", operand(path)])


def _load(titles: Sequence[str]) -> str:
    return f"{few(titles, most=_MOST)} {'loads' if len(titles) == 1 else 'load'}"


def _sentence(one: Alike, scales: Sequence[str], mends: bool) -> str:
    names = few(one.titles, most=_MOST)
    is_one = len(one.titles) == 1
    strength = _strength(one.factors, scales) if one.factors else ""
    if one.verdict == STRENGTH:
        ways = [f"set strength {one.strength:g} there"] if one.strength else []
        ways += ["convert the file:"] if mends else []
        way = " or ".join(ways)
        way = f" {way[:1].upper()}{way[1:]}{'' if mends else '.'}" if ways else ""
        return f"{names} {'applies' if is_one else 'apply'} {strength}.{way}"
    strength = f", and {'applies' if is_one else 'apply'} {strength}" if strength else ""
    if one.verdict == LOST:
        return f"{names} {'ignores' if is_one else 'ignore'} the DoRA part{strength}."
    if one.verdict == PARTLY:
        return f"{names} {'loads' if is_one else 'load'} a part of it: {one.says}{strength}."
    says = one.says.removeprefix("it ")
    if says == one.says:
        return f"{names}: {says}{strength}."
    return f"{names} {says}{strength}." if is_one else f"{names}: each {says}{strength}."


def _strength(factors: Sequence[float], scales: Sequence[str]) -> str:
    """The scale that is applied, and what it is to the one of the training."""
    if len(factors) > 1:
        return f"{min(factors):g} to {max(factors):g} times what is right"
    words = f"{_IN_WORDS.get(factors[0], f'{factors[0]:.3g} times as strong')} as trained"
    return f"{float(scales[0]) * factors[0]:.4g}: {words}" if len(scales) == 1 else f"it {words}"
