"""The account of a finished or planned merge, as `merge --json` prints it, for one process or several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_inspect.matching.orientation import Orientation, in_record
from lora_inspect.merging.plan import MergePlan
from lora_inspect.merging.retention import AdapterRetention, notes_on
from lora_inspect.merging.retention import in_record as in_kept_record
from lora_inspect.sentences import Result


@dataclass(frozen=True, slots=True, repr=False)
class MergeResult(Result):
    """The account of a merge.

    `dtype_counts` counts tensors of the output by element type. `decoded` are the weights that are codes in the base
    and floats in the output; `recoded` are changed weights that are codes of the same format in both. `dropped` are the
    tensors, metadata keys and part of a config that gave the meaning of these codes.

    `files_copied` and `left_behind` are the other files of a folder, by paths relative to it. `unmatched` are keys
    without a target that were left out. `left_out` counts the modules of components outside `only`. `excluded` are, by
    adapter, the modules that `include` and `exclude` removed. `embeddings` are keys that change no weight.

    `orientations` give for each weight how the base stores it. `order_matters` are the weights that another order of
    the adapters would leave different. `dora_multiplier` is the rule by which a multiplier other than 0 and 1 acted on
    DoRA. `notes` are sentences on settings that were not needed, on surprises, and on leftovers of other runs next to
    the output. `kept` gives how much of each adapter the output keeps. `seed` is that of stochastic rounding, None for
    the nearest number.
    """

    output: str
    modules_merged: int
    tensors_copied: int
    multipliers: dict[str, float | dict[str, float]]
    dtype_counts: dict[str, int]
    decoded: tuple[str, ...]
    recoded: tuple[str, ...]
    dropped: tuple[str, ...]
    unmatched: tuple[str, ...]
    files_copied: tuple[str, ...]
    left_behind: tuple[str, ...]
    seconds: float
    bytes: int
    orientations: dict[str, Orientation] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    excluded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    embeddings: tuple[str, ...] = ()
    order_matters: tuple[str, ...] = ()
    dora_multiplier: str | None = None
    notes: tuple[str, ...] = ()
    kept: tuple[AdapterRetention, ...] = ()
    seed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `merge --json` prints."""
        record: dict[str, Any] = {
            "schema": "lora-inspect/merge/1",
            "output": self.output,
            "modules_merged": self.modules_merged,
            "tensors_copied": self.tensors_copied,
            "multipliers": self.multipliers,
            "dtype_counts": self.dtype_counts,
            "decoded": list(self.decoded),
            "recoded": list(self.recoded),
            "dropped": list(self.dropped),
            "unmatched": list(self.unmatched),
            "files_copied": list(self.files_copied),
            "left_behind": list(self.left_behind),
            "seconds": self.seconds,
            "bytes": self.bytes,
        }
        if self.dora_multiplier:
            record["dora_multiplier"] = self.dora_multiplier
        return record | {
            "orientation": in_record(self.orientations),
            "left_out": self.left_out,
            "excluded": {path: list(keys) for path, keys in self.excluded.items()},
            "embeddings": list(self.embeddings),
            "order_matters": list(self.order_matters),
            **in_kept_record(self.kept, self.seed),
        }


def planned_record(plan: MergePlan, output: str | None) -> dict[str, Any]:
    """Return the record of a merge that is planned and not made, to `output` where that is known."""
    return {
        "schema": "lora-inspect/merge-plan/1",
        "output": output,
        "modules_merged": plan.modules,
        "tensors_copied": plan.tensors_copied,
        "multipliers": plan.multipliers,
        "decoded": list(plan.storage.decoded),
        "recoded": list(plan.storage.recoded),
        "dropped": plan.storage.left_out,
        "unmatched": list(plan.unmatched),
        "files_copied": list(plan.side_files.copied),
        "left_behind": list(plan.side_files.left_behind),
        "targets": {name: [fold.contribution.module.key for fold in folds] for name, folds in plan.folds.items()},
        "dry_run": True,
        "orientation": in_record(plan.orientations),
        "left_out": plan.left_out,
        "excluded": {path: list(keys) for path, keys in plan.excluded.items()},
        "embeddings": plan.embeddings,
        "order_matters": plan.order_matters,
    }


def result_of(
    plan: MergePlan,
    output: str,
    counts: Mapping[str, int],
    kept: Sequence[AdapterRetention],
    notes: Sequence[str],
    seconds: float,
    size: int,
) -> MergeResult:
    """Return the result of a merge with a complete `output`.

    `counts` are its tensors by element type, `notes` are sentences on files found next to it, `size` is the total size.
    """
    seed = plan.options.seed
    return MergeResult(
        output=output,
        modules_merged=plan.modules,
        tensors_copied=plan.tensors_copied,
        multipliers=plan.multipliers,
        dtype_counts=dict(counts),
        decoded=tuple(plan.storage.decoded),
        recoded=tuple(plan.storage.recoded),
        dropped=tuple(plan.storage.left_out),
        unmatched=plan.unmatched,
        files_copied=tuple(plan.side_files.copied),
        left_behind=plan.side_files.left_behind,
        seconds=round(seconds, 3),
        bytes=size,
        orientations=plan.orientations,
        left_out=plan.left_out,
        excluded=plan.excluded,
        embeddings=tuple(plan.embeddings),
        order_matters=tuple(plan.order_matters),
        dora_multiplier=", ".join(sorted(plan.dora_rules)) or None,
        notes=(*plan.notes, *notes, *notes_on(kept, seed)),
        kept=tuple(kept),
        seed=seed,
    )
