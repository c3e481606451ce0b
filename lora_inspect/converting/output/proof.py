"""The proof of a conversion: its output, read anew, changes every module as the input does.

What was written is opened and read as any file is before it appears, so that whatever was lost on the way, in the
factors, the names, the metadata or the config, shows.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from lora_inspect.converting.output.compared import FactorCache, Runs, Term, relative_distance
from lora_inspect.converting.output.compared_experts import expert_distance
from lora_inspect.converting.steps.base_change import Landed
from lora_inspect.converting.steps.carried_scale import EXACT
from lora_inspect.converting.steps.dora_delta import true_change
from lora_inspect.converting.steps.found_changes import WholeChanges
from lora_inspect.converting.steps.other_norms import other_magnitude
from lora_inspect.converting.steps.scaled_factors import read_factor
from lora_inspect.converting.target.target_layout import Destination, Source
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.maths.dora import OUTPUT
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.reading.model.settings import Settings


@dataclass(slots=True)
class Proof:
    """Compares the output of `targets` with the `adapter` that it is made of, when it is called with its path.

    `stated` are the relative errors that the conversion itself states, by module, None where it cannot. `landed` are
    the changes that a base tells, `remeasured` the modules whose magnitudes are over other norms by one, and `changes`
    what it tells of modules that are differences in the output. `keeps_magnitudes` says whether those of the others are
    in the output. `output` is the path that sentences name. `modules` and `max_relative_error` are what was found.
    """

    adapter: Adapter
    targets: Sequence[Destination]
    landed: Mapping[str, Landed]
    remeasured: Mapping[str, Landed]
    changes: WholeChanges
    stated: Mapping[str, float | None]
    keeps_magnitudes: bool
    output: str
    modules: int = 0
    max_relative_error: float = 0.0
    _read: FactorCache = field(default_factory=FactorCache)

    def __call__(self, path: str) -> None:
        """Raises LoraInspectError where a module is missing or changed by more than what is stated."""
        written = self._opened(path)
        names = {target.module.name.key for target in self.targets}
        if wrong := sorted(names.symmetric_difference(written.modules)):
            raise self._defect(f"{wrong[0]} {'is missing' if wrong[0] in names else 'is no module of it'}")
        if lost := [key for key in self.adapter.beside if key not in written.checkpoint.tensors]:
            raise self._defect(f"{lost[0]} is missing")
        for target in self.targets:
            key = target.module.name.key
            found, stated = self._relative_error(target, written.modules[key]), self.stated[key] or 0.0
            # The margin is what the rounding of one number to float32 may cost; a NaN is no proof.
            if not found <= stated + EXACT:
                raise self._defect(f"{key} differs by {found:.3g} of its change, and {stated:.3g} is what it may")
            self.max_relative_error = max(self.max_relative_error, found)
            self.modules += 1

    def _opened(self, path: str) -> Adapter:
        """The output as a reader has it who is told nothing but what no file can say."""
        told = Settings(allow_partial_dora=self.adapter.settings.allow_partial_dora)
        try:
            written = read_adapter(open_checkpoint(path), told)
            written.refuse()
        except LoraInspectError as error:
            raise self._defect(f"reading it says “{str(error).replace(path, self.output)}”") from error
        return written

    def _defect(self, what: str) -> LoraInspectError:
        return LoraInspectError(
            f"{self.output}: what was to be written is not what {self.adapter.checkpoint.path} says, as {what}; this "
            "is a defect of lora-inspect, and nothing is left behind: report it, or use --no-verify to write it all "
            "the same."
        )

    def _relative_error(self, target: Destination, written: Module) -> float:
        """The largest of the module's parameters and magnitudes."""
        of_experts = [c for c in written.contributions if c.algorithm.experts]
        if target.experts or of_experts:
            return expert_distance(target, (of_experts or written.contributions)[0], self._read).share
        ones, others = defaultdict[str, list[Term]](list), defaultdict[str, list[Term]](list)
        for source in target.sources:
            whole = self.changes.get(source.module.name.key)
            for parameter, change in whole.items() if whole else ():
                runs = tuple(source.runs.each()) if source.runs else None
                ones[parameter].append(Term(change.first, runs, change.matrix()))
            for contribution in () if whole else source.module.contributions:
                ones[contribution.algorithm.parameter].append(self._term(contribution, source))
        for contribution in written.contributions:
            runs = _runs(contribution, None)
            others[contribution.algorithm.parameter].append(Term(contribution._replace(magnitude=None), runs))
        if ones.keys() != others.keys():
            return float("inf")
        errors = [relative_distance(terms, others[parameter], self._read) for parameter, terms in ones.items()]
        return max((*errors, self._magnitude_error(target, written)))

    def _term(self, contribution: Contribution, source: Source) -> Term:
        own = self.landed.get(contribution.module.key)
        runs = _runs(contribution, source)
        if own and own.contribution is contribution:
            change = true_change(own).double()
            return Term(contribution, runs, change.T if own.is_turned else change)
        return Term(contribution._replace(magnitude=None), runs)

    def _magnitude_error(self, target: Destination, written: Module) -> float:
        found = [c.magnitude for c in written.contributions if c.magnitude]
        meant = [
            (c, c.magnitude, source.runs)
            for source in target.sources
            for c in source.module.contributions
            if c.magnitude and self.keeps_magnitudes and c.module.key not in self.landed.keys() | self.changes.keys()
        ]
        if not found and not meant:
            return 0.0
        if len(found) != 1 or {magnitude.axis for _, magnitude, _ in meant} != {found[0].axis}:
            return float("inf")
        values = read_factor(found[0].info).values.flatten()
        due = torch.zeros_like(values)
        for contribution, magnitude, runs in meant:
            if contribution.module.key in self.remeasured:
                # As the output itself says whose norms it is over.
                own = other_magnitude(self.remeasured[contribution.module.key], found[0].spelling)
            elif magnitude.spelling.norms == found[0].spelling.norms:
                own = read_factor(magnitude.info).values.flatten()
            else:
                return float("inf")
            for first, last, at in runs.each() if runs and magnitude.axis == OUTPUT else [(0, own.shape[0], 0)]:
                if last > due.shape[0]:
                    return float("inf")
                due[first:last] = own[at : at + last - first]
        return float((values - due).norm() / due.norm()) if due.any() else float(values.any())


def _runs(contribution: Contribution, source: Source | None) -> Runs | None:
    """The rows of the module that a contribution of the source changes, and which of its own rows these are."""
    moved = tuple(source.runs.each()) if source and source.runs else None
    if contribution.rows is None:
        return moved
    start, stop = contribution.rows
    if moved is None:
        return ((start, stop, 0),)
    cut = (
        (first + max(at, start) - at, first + min(at + last - first, stop) - at, max(at, start) - start)
        for first, last, at in moved
    )
    return tuple((first, last, at) for first, last, at in cut if first < last)
