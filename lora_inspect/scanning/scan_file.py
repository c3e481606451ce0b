"""The short account of one file among many: its kind and the advised action.

An adapter is in one of four states; notes describe its oddities in the fewest true words.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_inspect.algorithms.record import WEIGHT
from lora_inspect.errors import kind_of, of_system
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.system import without_collecting
from lora_inspect.programs import PROGRAMS
from lora_inspect.programs.record import Program
from lora_inspect.programs.verdict import (
    LOST,
    NO_MODELS,
    NOT_THERE,
    NOTHING,
    OTHER,
    PARTLY,
    REFUSED,
    SAME,
    STRENGTH,
    UNJUDGED,
    WRONG,
    Verdict,
    concerned,
    is_lost,
    judge_unread,
    needs_fix,
    verdicts_on,
)
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.file_info import ADAPTER, FileInfo, inspect
from lora_inspect.reading.keys.groups import group_equal
from lora_inspect.reading.metadata.sidecars import trigger_words_of
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.model.evidence import ERROR, Problem
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.problems import PROBLEMS
from lora_inspect.reading.scale.scale_records import FOLDED_KEY, FoldedScales
from lora_inspect.reading.scale.scales import OPTIONS
from lora_inspect.scanning.duplicates import DataSection, data_section, scale_runs
from lora_inspect.scanning.trainings import TrainingState, training_state
from lora_inspect.sentences import Result, bounded, brief, listed

# FINE: its meaning is settled, and every program known here that loads it makes that of it. CONVERT: a program that
# loads it makes something else of it, or none of those that know its model loads it. ANSWER: it leaves something open
# that an option settles. INFO_ONLY: no option makes it an adapter that can be merged or converted.
FINE, CONVERT, INFO_ONLY, ANSWER = "fine", "need convert", "info only", "need an answer"
STATES = (FINE, CONVERT, INFO_ONLY, ANSWER)
# In the place of a program's verdict on a file whose meaning is open or damaged.
OPEN = "open"

# What is no program that people load files in for use: an older version of one, a way of its own that has to be asked
# for, scripts that merge, training, and servers whose mistakes no conversion mends in most files.
_ASIDE = (
    *("comfyui-0.3.64", "lycoris", "lycoris-merge", "musubi-networks", "sd-scripts-flux-merge"),
    *("ai-toolkit", "onetrainer", "nunchaku-compose", "wanvideo-unmerged"),
    *("ollama", "tgi"),
)
# Those that most people know are named first.
_FIRST = ("comfyui", "diffusers", "forge", "a1111", "peft", "llama-cpp", "vllm")
_NOT_LOADED = (*UNJUDGED, REFUSED, NOTHING)
_UNTRIED = ("nobody has tried a program on such names", "nobody has tried a program", "untried")
# The errors that an option settles, and that option; what waits for several has a line of its own.
_SETTLED = {
    "scale-unknown": "",
    "formula-unknown": "",
    "dora-partial": "DoRA on only some layers: --allow-partial-dora",
    "setting-contradicts": "",
}
_PACKING = "expert_packing"
_SHORT = {entry.code: entry.short for entry in PROBLEMS}
_HINTS = ("dora-stripped", "mixed-schemes", "config-damaged", "unclaimed", "rslora-hint")


def state_of(info: FileInfo, programs: Iterable[Program]) -> tuple[str, tuple[str, ...]]:
    """Return the state of an adapter by its verdicts in `programs`, and a note with shorter forms of it.

    There is no note where there is nothing to say.
    """
    adapter = info.adapter
    errors = [problem for problem in adapter.problems if problem.severity == ERROR]
    waits_for = adapter.open
    if lasting := next((one for one in errors if not _is_settled(one, waits_for)), None):
        return INFO_ONLY, _note(lasting, adapter)
    if errors:
        return ANSWER, _question(errors[0], waits_for)
    verdicts = [one for one in verdicts_on(adapter, info.candidates, programs) if one.program.name not in _ASIDE]
    wrong = sorted((one for one in verdicts if _is_wrong(one)), key=_place)
    if wrong:
        return CONVERT, _difference(wrong)
    meant = concerned(verdicts, info.candidates)
    if is_lost(meant, info.candidates):
        return CONVERT, _nothing([one.program.title for one in meant if one.verdict in NOT_THERE])
    loaded = any(one.verdict not in _NOT_LOADED for one in verdicts)
    if verdicts and not loaded and all(one.verdict not in UNJUDGED for one in verdicts):
        return CONVERT, ("no program that lora-inspect knows loads it", "no known program loads it", "loaded nowhere")
    hints = [problem for problem in adapter.problems if problem.code in _HINTS]
    if hints:
        return FINE, _note(hints[0], adapter)
    return FINE, () if loaded else _untried([one.program.title for one in meant if one.verdict in NOT_THERE])


def _untried(without: Sequence[str]) -> tuple[str, ...]:
    """Describe that no program is known to load the file: those `without` it do not, and others were not tried."""
    if not without:
        return _UNTRIED
    return (f"not in {listed(without)}, and untried elsewhere", f"not in {without[0]}")


def _nothing(titles: Sequence[str]) -> tuple[str, ...]:
    """Describe that some programs load nothing."""
    first, *others = titles
    more = f"{first} and {len(others)} more load nothing of it" if others else f"{first} loads nothing of it"
    told = [f"{listed(titles, 'and')} load nothing of it"] if len(titles) == 2 else []
    return (*told, more, f"nothing in {first}")


class InProgram(NamedTuple):
    """The verdict of a program on a file, and a note on it with shorter forms.

    The verdict is `OPEN` where the file leaves something open that decides, or is damaged.
    """

    verdict: str
    notes: tuple[str, ...]

    @property
    def is_wrong(self) -> bool:
        """True if the file is certainly wrong in the program."""
        return self.verdict not in (SAME, *UNJUDGED, OPEN)


def in_program(info: FileInfo, state: str, notes: tuple[str, ...], name: str, programs: Iterable[Program]) -> InProgram:
    """Return the verdict of the program `name` on an adapter; `notes` explain its `state`."""
    if state in (INFO_ONLY, ANSWER):
        return InProgram(OPEN, notes)
    verdicts = verdicts_on(info.adapter, info.candidates, programs)
    found = next((one for one in verdicts if one.program.name == name), None)
    found = found or judge_unread(info.candidates, PROGRAMS[name])
    says = found.says
    if found.verdict in UNJUDGED:
        short = "no such models" if found.verdict == NO_MODELS else found.verdict
        return InProgram(found.verdict, (f"{found.verdict}: {says}", short))
    told = {
        SAME: ("loads correctly",),
        PARTLY: (f"loads in part: {says}", "loads in part"),
        NOTHING: (says.removeprefix("it "), "loads nothing"),
        REFUSED: (f"stops with an error: {says}", "stops with an error", "refused"),
    }.get(found.verdict)
    return InProgram(found.verdict, told or _words(found))


def _is_settled(problem: Problem, waits_for: Sequence[str]) -> bool:
    """Return True if an option removes the error."""
    if problem.code == "formula-unknown":
        return _PACKING in waits_for
    return problem.code in _SETTLED and (problem.code != "scale-unknown" or bool(waits_for))


def _question(problem: Problem, waits_for: Sequence[str]) -> tuple[str, ...]:
    if problem.code == "formula-unknown":
        return ("packing of experts unknown: --expert-packing", "packing: --expert-packing", "packing unknown")
    if problem.code != "scale-unknown":
        return (_SETTLED[problem.code] or problem.message, problem.code)
    options = listed([OPTIONS[name] for name in waits_for if name in OPTIONS])
    names = ", ".join(option.split()[0] for option in OPTIONS.values() if option in options)
    return (f"scale unknown: {options}", f"scale unknown: {names}", "scale unknown")


def _note(problem: Problem, adapter: Adapter) -> tuple[str, ...]:
    if problem.code == "unclaimed":
        count = len(adapter.unknown)
        return (f"{count} tensor{'s' if count > 1 else ''} of no known algorithm", f"{count} unclaimed")
    if problem.code == "algorithm-unsupported":
        titles = listed(list(Counter(c.algorithm.title for c in adapter.contributions if c.algorithm.formula is None)))
        return (f"{titles} is only recognised", "only recognised") if titles else (problem.message, "only recognised")
    return _SHORT.get(problem.code) or (problem.message, problem.code)


def _is_wrong(verdict: Verdict) -> bool:
    return verdict.verdict not in _NOT_LOADED and needs_fix(verdict)


def _place(verdict: Verdict) -> int:
    name = verdict.program.name
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)


def _difference(wrong: Sequence[Verdict]) -> tuple[str, ...]:
    """Describe the effect in the first program, with the number of others that have the same."""
    first = wrong[0]
    same = [one.program.title for one in wrong if (one.verdict, one.factor) == (first.verdict, first.factor)]
    long, short = _words(first)
    told = [f"{long} in {listed(same)}"] if len(same) < 3 else []
    more = f" and {len(same) - 1} more" if len(same) > 1 else ""
    return (*told, f"{long} in {same[0]}{more}", f"{long} in {same[0]}", f"{short} in {same[0]}")


def _words(verdict: Verdict) -> tuple[str, str]:
    """Describe a program's effect on the file, in full and in fewer letters."""
    if verdict.verdict == STRENGTH and verdict.factor is not None:
        if len(verdict.factors) > 1:
            return "other strengths", "other scales"
        times = f"{verdict.factor:.3g}"
        return "half as strong" if verdict.factor == 0.5 else f"{times} times as strong", f"x{times}"
    return {
        LOST: ("DoRA lost", "no DoRA"),
        WRONG: ("DoRA wrong", "DoRA wrong"),
        OTHER: ("another change", "other change"),
        PARTLY: ("loaded in part", "in part"),
    }.get(verdict.verdict, (verdict.verdict, verdict.verdict))


# What is more than that of a file is made of its reading, as by `lora_inspect.reporting.file_record.as_json`.
Record = Callable[[FileInfo], dict[str, Any]]

# What people call the variants of LoRA; other algorithms have their own titles.
_LORA = ("lora", "mlx", "lora_embedding", "lora_embedding_along_tokens", "lora_experts", "mlx_experts")
_FULL = {"full": "full", "saved": "full", "set_weight": "full", "norm": "norms"}


@dataclass(frozen=True, slots=True, repr=False)
class ScannedFile(Result):
    """The short account of one checkpoint of a folder.

    `kind` is "adapter", "base" or "other"; it is empty for an unreadable file, and `error` is then the reason.
    `architectures` are the names of all families that match, `model` is their name for people. `types` are the kinds of
    change, the commonest first: "LoRA", "RS-LoRA", "DoRA", "LoHa". `scales` has None for an unknown scale. `codes` are
    those of its problems. `state` is one of `STATES`, empty for a file that is no adapter; `notes` give the reason or
    anything odd, each the same in fewer words than the one before it. `modified` is the time of its last change in
    seconds. `in_programs` are the verdicts of the programs that were asked for, by name. `duplicate_of` is the path of
    the original with the same tensors at the same scales. `record` is the additional record of a caller. `section` is
    for the search for such files; the results of a scan have none. `trigger_words` are those of the metadata or of a
    sidecar. `training` is the state of a training that an adapter is by its name, its metadata and its modules.
    """

    path: str
    kind: str = ""
    architectures: tuple[str, ...] = ()
    model: str = ""
    types: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    scales: tuple[float | None, ...] = ()
    bytes: int = 0
    modified: float = 0.0
    modules: int = 0
    trainer: str | None = None
    schemes: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    state: str = ""
    notes: tuple[str, ...] = ()
    in_programs: Mapping[str, InProgram] = field(default_factory=dict)
    section: DataSection | None = None
    duplicate_of: str | None = None
    record: dict[str, Any] | None = None
    error: Exception | None = None
    trigger_words: tuple[str, ...] = ()
    training: TrainingState | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the record of the file for the folder's JSON, next to the account."""
        if self.error:
            says = of_system(self.error, self.path) if isinstance(self.error, OSError) else self.error
            return {"path": self.path, "error": str(says), "code": kind_of(self.error).code}
        return {**(self.record or {"path": self.path, "kind": self.kind}), **self.in_folder()}

    def in_folder(self) -> dict[str, Any]:
        """Return the fields that the record of a file has among others."""
        return {
            "state": self.state or None,
            "numbers_read": self.numbers_read,
            "note": self.note,
            "duplicate_of": self.duplicate_of,
            "training_group": self.training.group if self.training else None,
        }

    def __repr__(self) -> str:
        said = [f"path={brief(self.path)}", f"kind={self.kind!r}", f"model={brief(self.model)}"]
        said += [f"types={brief(list(self.types))}", f"modules={self.modules}", f"state={self.state!r}"]
        said += [f"numbers_read={self.numbers_read}", f"note={brief(self.note)}"]
        return bounded("ScannedFile", [*said, f"error={brief(str(self.error or ''))}"])

    @property
    def numbers_read(self) -> bool:
        """False: a scan reads headers, alphas and flags, so that the numbers of a fine file may be damaged."""
        return False

    @property
    def is_other_model(self) -> bool:
        """Return True for a model that no adapter is for, such as a VAE."""
        return self.kind not in ("", ADAPTER) and bool(self.model) and not self.architectures

    @property
    def note(self) -> str:
        """The note in full; empty for nothing to say."""
        return self.notes[0] if self.notes else ""


def scan_file(
    path: str,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    record: Record | None = None,
    programs: Sequence[str] = (),
) -> ScannedFile:
    """Read one file, for some programs by their names; any failure is its `error`."""
    try:
        with without_collecting():
            return _account_of(path, settings, record, programs)
    except Exception as error:  # one file that cannot be read leaves the others of the folder their rows
        return ScannedFile(path, error=error)


def _account_of(path: str, settings: Settings, record: Record | None, programs: Sequence[str]) -> ScannedFile:
    # All that was read is gone before garbage is looked for again.
    info = inspect(path, settings)
    return _account(path, info, record(info) if record else None, programs)


def _account(path: str, info: FileInfo, record: dict[str, Any] | None, programs: Sequence[str]) -> ScannedFile:
    adapter, checkpoint = info.adapter, info.checkpoint
    modules = group_equal(adapter.modules)
    changes = Counter(modules.likeness.numbers)
    kinds = [(change, changes[number]) for number, first in enumerate(modules.firsts) for change in first.contributions]
    scales = {c.scale for c, _ in kinds if c.has_scale}
    if FOLDED_KEY in checkpoint.metadata:
        folded = FoldedScales(checkpoint.metadata)
        scales = {folded.scale_before(c.module.key, c.scale) for c in adapter.contributions if c.has_scale}
    # A record has the verdicts of all, which are judged together with these.
    judged = [one for name, one in PROGRAMS.items() if record is not None or name not in _ASIDE or name in programs]
    state, notes = state_of(info, judged) if info.kind == ADAPTER else ("", ())
    asked = {name: in_program(info, state, notes, name, judged) for name in programs if info.kind == ADAPTER}
    files = checkpoint.files or (checkpoint.path,)
    ranks = tuple(sorted({c.rank for c, _ in kinds if c.rank}))
    is_adapter = info.kind == ADAPTER
    return ScannedFile(
        path=path,
        kind=info.kind,
        architectures=tuple(dict.fromkeys(candidate.architecture.name for candidate in info.candidates)),
        model=" or ".join(map(str, info.candidates)) or info.other_model or "",
        types=_types(kinds),
        ranks=ranks,
        scales=tuple(sorted(scales, key=lambda scale: (scale is None, scale or 0.0))),
        bytes=checkpoint.bytes,
        modified=max((checkpoint.inputs[file].modified for file in files if file in checkpoint.inputs), default=0)
        / 1e9,
        modules=len(adapter.modules),
        trainer=adapter.trainer,
        trigger_words=trigger_words_of(checkpoint.metadata, info.sidecars)[0] if is_adapter else (),
        training=training_state(path, adapter, ranks) if is_adapter else None,
        schemes=tuple(dict.fromkeys(first.name.scheme for first in modules.firsts)),
        codes=tuple(dict.fromkeys(problem.code for problem in adapter.problems)),
        state=state,
        notes=notes,
        in_programs=asked,
        section=data_section(checkpoint, scale_runs(adapter.contributions)),
        record=record,
    )


def _types(changes: Iterable[tuple[Contribution, int]]) -> tuple[str, ...]:
    """Return the kinds of change of weights; of other parameters only if no weight is changed.

    `changes` are pairs of a change and the number of equal ones.
    """
    counts: Counter[str] = Counter()
    beside: Counter[str] = Counter()
    for one, number in changes:
        is_main = one.algorithm.parameter == WEIGHT and not one.algorithm.beside and one.algorithm.name not in _FULL
        (counts if is_main else beside)[_type(one)] += number
    return tuple(name for name, _ in (counts or beside).most_common())


def _type(contribution: Contribution) -> str:
    name = contribution.algorithm.name
    title = "LoRA" if name in _LORA else _FULL.get(name, contribution.algorithm.title)
    if title == "LoRA" and contribution.rslora:
        title = "RS-LoRA"
    if contribution.magnitude:
        return {"LoRA": "DoRA", "RS-LoRA": "RS-DoRA"}.get(title, f"{title}+DoRA")
    return title
