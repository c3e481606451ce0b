"""The account of a conversion: its input, its error, and remarks for the readers of its output.

An output for a program is judged once more by the program's rules.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_inspect import programs
from lora_inspect.algorithms.record import WEIGHT, Algorithm
from lora_inspect.architectures.detection import Detection
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.discovery import ADAPTER_CONFIG
from lora_inspect.maths.dora import SPELLINGS
from lora_inspect.programs.adapter_view import View
from lora_inspect.programs.record import READ, Program
from lora_inspect.programs.verdict import (
    LOST,
    REFUSED,
    SAME,
    UNJUDGED,
    WRONG,
    Verdict,
    judge_each,
    judge_view,
    needs_fix,
)
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.identify import adapter_candidates, with_paths
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reading.peft.peft_config import EMBEDDED_KEY, is_peft_config
from lora_inspect.reading.scale.scale_records import TRAINED_SCALE
from lora_inspect.schemes.peft import PEFT

if TYPE_CHECKING:
    from lora_inspect.converting.output.output_tensors import SpelledModule
    from lora_inspect.converting.target.target_layout import Destination


def reading(adapter: Adapter) -> dict[str, Any]:
    """Return the facts of the input: its names, algorithms, rules and ranks."""
    names = sorted({contribution.algorithm.name for contribution in adapter.contributions})
    magnitudes = [contribution.magnitude for contribution in adapter.contributions]
    return {
        "scheme": adapter.scheme,
        "algorithm": "+".join(names),
        "rslora": adapter.rslora.value,
        "dora": adapter.dora.value,
        "norms": adapter.dora.norms,
        "multiplier": rules(magnitude and magnitude.spelling.suffix for magnitude in magnitudes),
        "ranks": counted(c.rank for c in adapter.contributions if c.rank is not None),
        "bytes": adapter.checkpoint.bytes,
    }


def rules(suffixes: Iterable[str | None]) -> str | None:
    """Return the rule by which readers of magnitudes with these suffixes apply a multiplier."""
    found = sorted({SPELLINGS[suffix].multiplier for suffix in suffixes if suffix})
    return " and ".join(found) or None


def norms(modules: "Iterable[SpelledModule]") -> str | None:
    """Return the norms that the magnitudes of outputs are over, or None if there are none."""
    return next((module.norms for module in modules if module.norms), None)


def counted(ranks: Iterable[int]) -> dict[str, int]:
    """Return the number of modules of each rank, the commonest first."""
    return {str(rank): count for rank, count in Counter(ranks).most_common()}


def above_rank(file: str, modules: "Mapping[str, SpelledModule]", limit: int | None) -> Iterator[str]:
    """Yield a note if modules of the output have a higher rank than the requested one."""
    above = {key: module.rank for key, module in modules.items() if limit and (module.rank or 0) > limit}
    if above:
        key = max(above, key=lambda one: above[one] or 0)
        yield (
            f"{file}: {len(above)} of {len(modules)} modules get a rank above --rank {limit} ({key}: "
            f"{above[key]}); existing LoRA keeps its rank, and changes that join in one module add up their "
            "ranks."
        )


def is_exact(errors: Mapping[str, float | None]) -> bool:
    """Return True if no module lost more than the rounding of a float32."""
    from lora_inspect.converting.steps.carried_scale import EXACT

    return all(error is not None and error <= EXACT for error in errors.values())


def dropped(adapter: Adapter, modules: "Mapping[str, SpelledModule]") -> tuple[str, ...]:
    """Return the keys of the input that no tensor of the output carries the meaning of."""
    flags = [module.rslora_flag.name for module in adapter.modules.values() if module.rslora_flag]
    return (*adapter.flags, *flags, *(key for module in modules.values() for key in module.dropped))


def multiplier_remark(source: Mapping[str, Any], target: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a remark if readers of the magnitude's new spelling apply multipliers other than 1 differently."""
    if not target["dora"] or source["multiplier"] == target["multiplier"]:
        return ()
    return (
        f"programs apply a multiplier other than 1 differently to the output: {source['multiplier']} in the "
        f"input, {target['multiplier']} in the output",
    )


def trained_otherwise(adapter: Adapter) -> tuple[str, ...]:
    """Return the notes on a trained scale that differs from the file's; a converted file no longer shows it."""
    return tuple(problem.message for problem in adapter.problems if problem.code == TRAINED_SCALE)


def configs(adapter: Adapter, written: Mapping[str, str], has_config: bool) -> tuple[str, ...]:
    """Return notes on the configs that the output leaves out, as its tensors give rank and scale.

    `written` is the output's metadata, and `has_config` is True if a config is next to its tensors.
    """
    checkpoint = adapter.checkpoint
    gone = [EMBEDDED_KEY] if EMBEDDED_KEY in checkpoint.metadata and EMBEDDED_KEY not in written else []
    if adapter.scheme == PEFT.name and checkpoint.config and not has_config and is_peft_config(checkpoint.config):
        gone.append(ADAPTER_CONFIG)
    return tuple(f"the output leaves out {name} of the input, as its tensors give rank and scale" for name in gone)


def without_biases(
    targets: "Sequence[Destination]", modules: "Mapping[str, SpelledModule]", biased: Collection[str]
) -> Iterator[str]:
    """Yield the modules of the output that have sources with left-out biases."""
    for target in targets:
        if target.module.name.key in modules and any(source.module.name.key in biased for source in target.sources):
            yield target.module.name.key


def unchanged(targets: "Sequence[Destination]", modules: "Mapping[str, SpelledModule]") -> Iterator[str]:
    """Yield a note for each module that is not in the output because it equals the base."""
    for target in targets:
        if target.module.name.key not in modules:
            names = " and ".join(source.module.name.key for source in target.sources)
            yield f"{names} is the same as in the base, so the output leaves it out"


def titles(algorithms: Iterable[Algorithm]) -> tuple[str, ...]:
    """Return the titles of the algorithms that change a weight, or of all if none does."""
    known = list(algorithms)
    own = [algorithm for algorithm in known if algorithm.parameter == WEIGHT and not algorithm.replaces]
    return tuple(sorted({algorithm.title for algorithm in own or known}))


_OTHER_PROGRAM = (
    "choose --algorithm lora if it is of another algorithm, or choose another program (nothing was written)"
)


class WrittenOutput(NamedTuple):
    """An output as programs see it, and its families."""

    view: View
    families: Sequence[Detection]

    @classmethod
    def of(cls, path: str, settings: Settings, written: Adapter | None = None) -> "WrittenOutput":
        """Return the output at `path`, which is read unless it is `written`.

        Of the `settings` of the input, those count that no file can hold.
        """
        own = Settings(allow_partial_dora=settings.allow_partial_dora, architecture=settings.architecture)
        adapter = read_adapter(open_checkpoint(path), own) if written is None else written._replace(settings=own)
        families = adapter_candidates(adapter)
        return cls(View(with_paths(adapter, families)), families)

    def judge(self, program: Program) -> Verdict:
        """Return the verdict of a program on it."""
        return judge_view(self.view, self.families, program)


def right_programs(adapter: Adapter) -> list[Program]:
    """Return the programs that apply the meaning of the adapter, in the order of their names."""
    families = adapter_candidates(adapter)
    known = sorted(programs.PROGRAMS.values(), key=lambda program: program.name)
    verdicts = judge_each(with_paths(adapter, families), families, known)
    return [verdict.program for verdict in verdicts if verdict.verdict == SAME]


@dataclass(slots=True)
class ProgramCheck:
    """A judge of an output by the rules of the `program`, called with its path; `output` is its name.

    `remarks` are the unknown facts, and the errors in magnitudes that the user kept. `way_out` ends the sentence on a
    certain error. A refusal is a remark too if the user accepted it.
    """

    program: Program
    output: str
    options: ConvertOptions
    way_out: str = _OTHER_PROGRAM
    accepts_refusal: bool = False
    remarks: list[str] = field(default_factory=list)

    def __call__(self, path: str) -> None:
        """Raise LoraInspectError if the program would certainly apply another change."""
        self.check(WrittenOutput.of(path, self.options.settings))

    def check(self, written: WrittenOutput) -> None:
        """Raise LoraInspectError if the program would certainly apply another change."""
        verdict = written.judge(self.program)
        program = f"{self.program.title} {self.program.version}"
        reason = f" ({verdict.says})" if verdict.says else ""
        if self.options.keep_dora and verdict.verdict in (LOST, WRONG):
            self.remarks.append(
                f"{program} does not apply its magnitudes as they were trained: {verdict.verdict}{reason}"
            )
        elif self.accepts_refusal and verdict.verdict == REFUSED:
            self.remarks.append(f"{program} refuses it{reason}")
        elif needs_fix(verdict):
            raise RefusedError(
                self.output,
                f"{program} would read it wrongly: {verdict.verdict}{reason}",
                self.way_out,
            )
        elif verdict.by == READ:
            self.remarks.append(f"according to its code, {program} reads it correctly; no run has confirmed that")
        elif verdict.verdict in UNJUDGED:
            self.remarks.append(f"lora-inspect does not know how {program} reads it: {verdict.says}")
