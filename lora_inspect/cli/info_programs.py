"""What the programs make of a file, in a few lines of its screen, with the command that mends it."""

from collections.abc import Iterator, Sequence

from lora_inspect.cli.info_headline import few
from lora_inspect.cli.sheet import Line, Sheet
from lora_inspect.cli.terminal import DOUBTFUL, FAINT, RIGHT, WRONG
from lora_inspect.consumers.outlook import Alike, alike
from lora_inspect.consumers.verdict import LOST, NOTHING, PARTLY, REFUSED, SAME, STRENGTH, UNKNOWN, Verdict
from lora_inspect.shell import command_line

# Those that people ask about most come first.
_ASKED_MOST = ("ComfyUI", "AUTOMATIC1111", "Forge", "diffusers", "PEFT")
# How many programs a line names.
_MOST = 6
_IN_WORDS = {0.5: "half as strong", 2.0: "twice as strong"}


def lines_of_programs(
    sheet: Sheet, verdicts: Sequence[Verdict], path: str, scales: Sequence[str], fix: str | None
) -> Iterator[Line]:
    """What is wrong in which programs, a sentence each, then the programs that the file works in, and does not.

    `scales` are those of the modules, `fix` the command that mends every wrong strength, where one is known, and `path`
    what the user called the file.
    """
    groups = alike(sorted(verdicts, key=_asked))
    wrong = [one for one in groups if one.verdict not in (SAME, NOTHING, REFUSED, UNKNOWN)]
    right = [one for one in groups if one.verdict == SAME]
    lost, unknown = (_titles(groups, which) for which in ((NOTHING, REFUSED), (UNKNOWN,)))
    for one in wrong:
        is_told = one.verdict == PARTLY and not one.silent
        yield from sheet.sentence(_sentence(one, scales), *((DOUBTFUL, "!") if is_told else (WRONG, "!!")))
        if one.verdict == STRENGTH and fix:
            yield from sheet.command(fix)
    for one in sorted(right, key=lambda one: bool(one.says)):
        names = few(one.titles, most=_MOST)
        yield from sheet.row("works in", f"{names}: {one.says}" if one.says else names, RIGHT)
    if not right and not wrong:
        yield from sheet.row("works in", "no program that it was tried in" if lost else "not known")
    if lost:
        yield from sheet.row("not in", few(lost, most=_MOST))
    if unknown:
        yield from sheet.row("not tried in", few(unknown, most=_MOST), FAINT)
    is_open = any(one.verdict != STRENGTH or not fix for one in wrong) or (lost and not right and not wrong)
    if lost or is_open:
        yield from sheet.row_of_command("next" if is_open else "why not", _every_verdict(path))


def _titles(groups: Sequence[Alike], verdicts: Sequence[str]) -> list[str]:
    return sorted((title for one in groups if one.verdict in verdicts for title in one.titles), key=_place)


def _every_verdict(path: str) -> str:
    return command_line(["lora-inspect", "compat", f"./{path}" if path.startswith("-") else path])


def _asked(verdict: Verdict) -> int:
    return _place(verdict.consumer.title)


def _place(title: str) -> int:
    return next((at for at, name in enumerate(_ASKED_MOST) if title.startswith(name)), len(_ASKED_MOST))


def _sentence(one: Alike, scales: Sequence[str]) -> str:
    names = few(one.titles, most=_MOST)
    is_one = len(one.titles) == 1
    strength = _strength(one.factors, scales) if one.factors else ""
    if one.verdict == STRENGTH:
        return f"{names} {'applies' if is_one else 'apply'} {strength}."
    strength = f", and {'applies' if is_one else 'apply'} {strength}" if strength else ""
    if one.verdict == LOST:
        return f"{names} {'makes' if is_one else 'make'} plain LoRA of the DoRA, without its magnitudes{strength}."
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
