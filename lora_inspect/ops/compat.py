"""The verdicts of all programs that load adapters on one file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_inspect import programs
from lora_inspect.architectures.detection import Detection
from lora_inspect.converting.fixes import find_fixes
from lora_inspect.converting.steps.base_change import find_base_changes
from lora_inspect.errors import RefusedError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.system import without_collecting
from lora_inspect.matching.match import match
from lora_inspect.programs.record import Program
from lora_inspect.programs.verdict import (
    LOST,
    NO_MODELS,
    NOTHING,
    PARTLY,
    REFUSED,
    SAME,
    UNJUDGED,
    UNTESTED,
    WRONG,
    Verdict,
    judge_each,
    needs_fix,
)
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.base.base_codecs import open_weights
from lora_inspect.reading.file_info import ADAPTER, kind_of
from lora_inspect.reading.identify import adapter_candidates, with_paths
from lora_inspect.reading.model.evidence import ERROR
from lora_inspect.reading.model.settings import Settings, spell_argument
from lora_inspect.reading.scale.scales import OPTIONS
from lora_inspect.sentences import Result, listed
from lora_inspect.shell import operand


@dataclass(frozen=True, slots=True)
class JudgedProgram:
    """A program that loads adapters: its name for `--for`, its title, and the versions that were looked at.

    `ran` is the day of the last run of its code on files, or of the reading of its source if it did not run.
    """

    name: str
    title: str
    version: str
    ran: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class Judgement(Result):
    """The verdict of a program on a file, without the file.

    It has the facts of `lora_inspect.programs.verdict.Verdict`. `factors` counts the modules by their factor: the
    applied scale over the right one. `ignored` are the keys that the program ignores. `has_models` is True if the
    program has models of the file's family, and None for a file of no known family with an unknown verdict. `installed`
    has the packages of the program that are installed here in another version than the verdict is of.
    """

    program: JudgedProgram
    verdict: str
    factor: float | None
    factors: dict[float, int]
    silent: bool
    ignored: tuple[str, ...]
    says: str
    by: str
    error: float | None
    fix: str | None
    has_models: bool | None = True
    installed: dict[str, str] = field(default_factory=dict)

    @property
    def needs_fix(self) -> bool:
        """True if the file is certainly wrong in the program."""
        return self.verdict not in (SAME, *UNJUDGED)

    @classmethod
    def of(cls, one: Verdict, families: Sequence[Detection] = ()) -> "Judgement":
        """Return the judgement of a verdict on a file that may be of the families."""
        has_models = None if one.verdict in UNJUDGED and not families else one.verdict != NO_MODELS
        program = JudgedProgram(one.program.name, one.program.title, one.program.version, one.program.ran)
        said = (one.silent, one.ignored, one.says, one.by, one.error, one.fix)
        installed = other_versions(one.program.distributions) if has_models else {}
        return cls(program, one.verdict, one.factor, dict(one.factors), *said, has_models, installed)


def other_versions(distributions: Mapping[str, str]) -> dict[str, str]:
    """Return the packages installed here in other versions than these, with the version; it imports none."""
    found: dict[str, str] = {}
    if distributions:
        from importlib.metadata import PackageNotFoundError, version

        for name, known in distributions.items():
            try:
                installed: str | None = version(name)  # None where its metadata is damaged
            except PackageNotFoundError:
                continue
            if installed and installed.partition("+")[0] != known:
                found[name] = installed
    return found


@dataclass(frozen=True, slots=True, repr=False)
class CompatResult(Result):
    """The path of the adapter, and every program's judgement, in the order of their titles."""

    path: str
    verdicts: tuple[Judgement, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `compat --json` prints."""
        return {
            "schema": "lora-inspect/compat/1",
            "path": self.path,
            "programs": [
                {
                    "name": one.program.name,
                    "title": one.program.title,
                    "versions": one.program.version,
                    "ran": one.program.ran,
                    "verdict": one.verdict,
                    "factors": {f"{factor:g}": modules for factor, modules in one.factors.items()},
                    "silent": one.silent,
                    "ignored": list(one.ignored),
                    "says": one.says,
                    "by": one.by,
                    "error": one.error,
                    "fix": one.fix,
                    "has_models": one.has_models,
                    "installed": dict(one.installed),
                }
                for one in self.verdicts
            ],
        }


def compat(
    path: str,
    named: str | None = None,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    base: str | None = None,
    progress: Progress = silent,
) -> CompatResult:
    """Judge how every program, or only the `named` one, applies the adapter at `path`.

    With the base model at `base`, commands that need one name it, and the error of lost or wrong DoRA is computed;
    `progress` counts modules. If only the scale is unknown, and no base is given, verdicts say what programs load, and
    those that depend on the scale are "not tested". Raises LoraInspectError if the file is no adapter, if more of its
    meaning is open, and for an unknown program.
    """
    asked = _requested_programs(named)
    # Each program's view of the file has as many objects as the file, and leaves hardly any cycle behind.
    if base is None:
        with without_collecting():
            return _result(*_judged(path, asked, settings))
    with without_collecting():
        adapter, families, verdicts = _judged(path, asked, settings, base)
    return _result(adapter, families, _with_errors(adapter, base, verdicts, progress))


def _result(adapter: Adapter, families: Sequence[Detection], verdicts: Iterable[Verdict]) -> CompatResult:
    return CompatResult(adapter.checkpoint.path, tuple(Judgement.of(one, families) for one in verdicts))


def _judged(
    path: str, asked: Iterable[Program], settings: Settings, base: str | None = None
) -> tuple[Adapter, Sequence[Detection], list[Verdict]]:
    """Return the adapter at `path`, its families, and the verdicts of the programs with the commands that fix it."""
    kind, adapter = kind_of(read_adapter(open_checkpoint(path), settings))
    if kind != ADAPTER:
        raise RefusedError(path, "it is no adapter, so no program loads it as one", "name an adapter")
    if base is None and (loading := _judge_loading(adapter, asked)):
        return adapter, adapter_candidates(adapter), loading
    adapter.refuse()
    families = adapter_candidates(adapter)
    adapter = with_paths(adapter, families)
    given = spell_argument(operand(path), settings)
    found = list(judge_each(adapter, families, asked))
    fixes = find_fixes(adapter, given, [one.program for one in found if needs_fix(one)], base)
    verdicts = [one._replace(fix=fixes.get(one.program.name)) for one in found]
    return adapter, families, verdicts


# Two answers to the questions that an open scale waits for: alpha and RS-LoRA.
_SCALES = ((1.0, False), (0.75, True))
# Verdicts that say what a program loads, whatever the scale is.
_OF_LOADING = (PARTLY, NOTHING, REFUSED, *UNJUDGED)


def _judge_loading(adapter: Adapter, asked: Iterable[Program]) -> list[Verdict] | None:
    """Return the verdicts on an adapter of unknown scale, or None if the scale is known or more than that is wrong.

    A verdict that two scales share and that says what a program loads holds for any scale. The others are UNTESTED.
    """
    if not adapter.is_scale_open:
        return None
    of_scales = []
    for alpha, rslora in _SCALES:
        settled = read_adapter(adapter.checkpoint, adapter.settings_with(alpha, rslora))
        if any(problem.severity == ERROR for problem in settled.problems):
            return None
        families = adapter_candidates(settled)
        of_scales.append(list(judge_each(with_paths(settled, families), families, asked)))
    options = listed([OPTIONS[name] for name in adapter.open], "and")
    unknown = f"it depends on the scale, which is unknown; give {options}"
    return [
        first._replace(factor=None, factors={})
        if first.verdict == second.verdict and first.verdict in _OF_LOADING
        else Verdict(first.program, UNTESTED, says=unknown)
        for first, second in zip(*of_scales, strict=True)
    ]


def _with_errors(adapter: Adapter, base: str, verdicts: Sequence[Verdict], progress: Progress) -> list[Verdict]:
    """Return the verdicts with the error of each program's DoRA on this base."""
    wrong = {one.program.name: one.taken for one in verdicts if one.verdict in (LOST, WRONG)}
    if not wrong and not any(one.fix and "--base" in one.fix for one in verdicts):
        raise RefusedError(
            adapter.checkpoint.path,
            "lora-inspect knows no program that applies its magnitudes differently, so --base has nothing to do",
            "leave it out",
        )
    from lora_inspect.maths.torch_threads import load_torch

    weights = open_weights(base)
    base_changes = find_base_changes(adapter, weights, match(adapter, weights))
    load_torch()
    from lora_inspect.converting.output.proof import dora_errors

    errors = dora_errors(base_changes, wrong, progress)
    return [one._replace(error=errors.get(one.program.name)) for one in verdicts]


def _requested_programs(named: str | None) -> list[Program]:
    known = sorted(programs.PROGRAMS.values(), key=lambda one: (one.title.lower(), one.name))
    if named is None:
        return known
    found = [one for one in known if one.name == named]
    if not found:
        names = listed([one.name for one in known], "and")
        raise RefusedError(f"lora-inspect knows no program called {named}; choose from {names}.")
    return found
