"""Measurement, weight by weight, of each adapter in a merged model, with findings."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.input_file import check_unchanged
from lora_inspect.maths.torch_threads import load_torch
from lora_inspect.merging.options import MergeOptions
from lora_inspect.merging.plan import MergePlan, plan_merge
from lora_inspect.merging.resized_embeddings import with_rows
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.base.base_codecs import open_weights
from lora_inspect.reading.model.settings import Settings
from lora_inspect.sentences import Result
from lora_inspect.verifying.models import Model, check_kinds, check_names

if TYPE_CHECKING:
    from lora_inspect.verifying.findings import VerifyFinding
    from lora_inspect.verifying.measure import Weighed

# What is called for a verification stands here.
__all__ = ["MergeOptions", "VerifyPlan", "VerifyResult", "plan_verify", "verify"]

# How many weights show whether the two models stand in each other's place.
_LOOKED_AT = 3


@dataclass(frozen=True, slots=True)
class VerifyPlan:
    """The expected content of a merged model, from headers: the plan of the merge, and both models."""

    merge: MergePlan
    merged: Model
    base: Model

    @property
    def notes(self) -> list[str]:
        """Sentences on the adapters and their targets."""
        return [note for note in self.merge.notes if note not in self.merge.tied]

    @property
    def bytes(self) -> int:
        """The bytes of the base, the total that `verify` passes to its progress."""
        return sum(info.nbytes for info in self.base.tensors.values())


@dataclass(frozen=True, slots=True, repr=False)
class VerifyResult(Result):
    """The shares of adapters in a merged model, and its findings.

    `modules` are the shares by weight and adapter, `share` those over all weights; None if there is none or it cannot
    be measured. `noise` and `module_noise` bound the effect of rounding on them. `residual` is the unexplained
    difference over the size of the expected one, for all weights together; `residuals` are those of each weight.
    `missing` are modules that have nothing of an adapter. `unexpected` are tensors that no adapter changes and that
    differ, with the difference. `absent` are tensors only in the base, `extra` those only in the merged model. `ok` is
    true if no finding is an error. `notes` are sentences on the adapters and their targets.
    """

    ok: bool
    share: dict[str, float | None]
    noise: dict[str, float | None]
    residual: float | None
    missing: list[str]
    findings: "list[VerifyFinding]"
    modules: dict[str, dict[str, float | None]]
    module_noise: dict[str, dict[str, float | None]]
    residuals: dict[str, float | None]
    unexpected: dict[str, str]
    absent: list[str]
    extra: list[str]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `verify --json` prints."""
        return {
            "schema": "lora-inspect/verify/1",
            "ok": self.ok,
            "share": self.share,
            "noise": self.noise,
            "residual": self.residual,
            "missing": self.missing,
            "findings": [{**asdict(finding), "modules": list(finding.modules)} for finding in self.findings],
            "modules": self.modules,
            "module_noise": self.module_noise,
            "residuals": self.residuals,
            "unexpected": self.unexpected,
            "absent": self.absent,
            "extra": self.extra,
        }


def plan_verify(
    merged_path: str, base_path: str, adapters: Sequence[tuple[str, Settings]], options: MergeOptions
) -> VerifyPlan:
    """Read headers; raise LoraInspectError if anything prevents it, as `plan_merge` does."""
    merged, base = open_checkpoint(merged_path), open_weights(base_path)
    check_kinds(merged, base)
    # Every weight is compared as numbers, codes of the base too.
    plan = plan_merge(base_path, adapters, replace(options, dtype="F32"))
    resized = with_rows(plan.base, plan.resized)
    check_names(merged, resized, plan.folds)
    return VerifyPlan(plan, Model(merged), Model(resized))


def verify(plan: VerifyPlan, progress: Progress = silent) -> VerifyResult:
    """Read both models once, a block of rows at a time, and twice or more the weights that no share explains.

    `progress` gets the bytes of each finished tensor of the base. Raises LoraInspectError if a change is not finite or
    cannot be computed, or a file changed since the plan.
    """
    load_torch()
    from lora_inspect.verifying.findings import difference
    from lora_inspect.verifying.measure import Weigher

    weigher = Weigher(plan.merged, plan.base, plan.merge.storage.coded, plan.merge.options.dora_rule)
    weighed: list[Weighed] = []
    unexpected: dict[str, str] = {}
    untouched, absent = 0, []
    progress(0)
    for name, info in plan.base.tensors.items():
        folds = plan.merge.folds.get(name, ())
        other = plan.merged.tensors.get(name)
        if other is None:
            absent.append(name)
        elif any(fold.multiplier for fold in folds):
            weighed.append(weigher.weighed(info, folds))
        else:
            untouched += 1
            what = difference(plan.base, info, plan.merged, other, weigher.blocks)
            if what and info.shape == other.shape and folds:
                found = weigher.weighed(info, folds)
                weighed += [found] if found.instead else []
                what = None if found.instead else what
            if what:
                unexpected[name] = what
        progress(info.nbytes)
    swapped = _are_swapped(plan, weighed)
    check_unchanged(plan.merge.inputs | plan.merged.checkpoint.inputs)
    return _result(plan, weighed, unexpected, untouched, absent, swapped)


def _are_swapped(plan: VerifyPlan, weighed: "Sequence[Weighed]") -> bool:
    """Return True if the first weights show that the base and MERGED are swapped."""
    from lora_inspect.verifying.measure import Weigher

    told = [weight for weight in weighed if not any(weight.shares.why)]
    if not told or not all(value < 0 for weight in told for value in weight.shares.values):
        return False
    weigher = Weigher(plan.base, plan.merged, {}, plan.merge.options.dora_rule)
    found = [weigher.weighed(plan.base.tensors[one.name], plan.merge.folds[one.name]) for one in told[:_LOOKED_AT]]
    return all(one.is_explained and min(one.shares.values) > 0 for one in found)


def _result(
    plan: VerifyPlan,
    weighed: "Sequence[Weighed]",
    unexpected: dict[str, str],
    untouched: int,
    absent: list[str],
    swapped: bool,
) -> VerifyResult:
    from lora_inspect.maths.share import NOT_FINITE
    from lora_inspect.verifying.findings import (
        MISSING,
        OPPOSITE,
        SWAPPED,
        about_models,
        about_shares,
        about_weights,
        adapter_shares,
        equal_adapter_findings,
    )
    from lora_inspect.verifying.shares import pooled

    adapters = [adapter.checkpoint.path for adapter, _ in plan.merge.adapters]
    total = pooled([(w.shares, [adapters.index(term.adapter) for term in w.terms]) for w in weighed], len(adapters))
    told = adapter_shares(weighed, adapters)
    extra = [name for name in plan.merged.tensors if name not in plan.base.checkpoint.tensors]
    broken = [w.name for w in weighed if NOT_FINITE in w.shares.why]
    of_shares = list(about_shares(told, total))
    if swapped:
        # A sum with the opposite sign is the sum of models in each other's place; of DoRA one of both explains it.
        is_explained = all(weight.is_explained for weight in weighed)
        of_weights = [*(one for one in of_shares if one.code == OPPOSITE and is_explained), SWAPPED]
    else:
        of_weights = [*of_shares, *equal_adapter_findings(weighed), *about_weights(weighed)]
    findings = [*of_weights, *about_models(unexpected, untouched, absent, extra, broken)]
    modules = {name: dict.fromkeys(_adapters_of(plan, name), None) for name in plan.merge.folds}
    noise = {name: dict(shares) for name, shares in modules.items()}
    for weight in weighed:
        for number, term in enumerate(weight.terms):
            if not weight.shares.why[number]:
                modules[weight.name][term.adapter] = weight.shares.values[number]
                noise[weight.name][term.adapter] = weight.shares.noise[number]
    told_of_all = [not why for why in total.why]
    return VerifyResult(
        ok=not any(finding.is_error for finding in findings),
        share={a: total.values[n] if told_of_all[n] else None for n, a in enumerate(adapters)},
        noise={a: total.noise[n] if told_of_all[n] else None for n, a in enumerate(adapters)},
        residual=total.residual,
        missing=list(dict.fromkeys(unit.label for one in told for unit in one.of(MISSING))),
        findings=findings,
        modules=modules,
        module_noise=noise,
        residuals={weight.name: weight.shares.residual for weight in weighed},
        unexpected=unexpected,
        absent=absent,
        extra=extra,
        notes=tuple(plan.notes),
    )


def _adapters_of(plan: VerifyPlan, name: str) -> list[str]:
    return [fold.adapter.checkpoint.path for fold in plan.merge.folds[name]]
