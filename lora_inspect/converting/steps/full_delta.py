"""The step that writes all that a module changes as differences of its parameters, computed as they are written."""

from collections.abc import Sequence
from functools import partial
from math import prod

import torch

from lora_inspect.architectures.rows import Runs
from lora_inspect.converting.output.output_tensors import SpelledModule
from lora_inspect.converting.steps.found_changes import WholeChanges
from lora_inspect.converting.steps.growth import Growth
from lora_inspect.converting.steps.part import Part
from lora_inspect.converting.steps.whole_changes import WholeChange
from lora_inspect.converting.target.asked_full import DIFFERENCES
from lora_inspect.converting.target.key_names import factor_key
from lora_inspect.converting.target.target_layout import Destination
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.safetensors.writer import Computed, Content, TensorPlan
from lora_inspect.maths.tensors import to_bytes

# A change and where its rows are in that of the output: (first row, row behind the last one, first row of the change).
Rows = tuple[WholeChange, tuple[tuple[int, int, int], ...]]
# What rounding a number to float32 costs of it at most.
_ROUNDING = 2.0**-24


def spell_differences(target: Destination, changes: WholeChanges, growth: Growth) -> SpelledModule:
    """The module with a difference in float32 for every parameter that its sources change.

    Raises LoraInspectError where the sources change other parameters each, and where the output grows too much.
    """
    own = [changes[source.module.name.key] for source in target.sources]
    if any(one.keys() != own[0].keys() for one in own):
        names = " and ".join(source.module.name.key for source in target.sources)
        first = target.sources[0].module.contributions[0]
        raise LoraInspectError(
            f"{next(iter(first.factors.values())).file}: {names} become one layer in the output, and some of them "
            "change a parameter that the others do not; keep the layout, or merge it."
        )
    parts, contents = [], []
    for parameter in own[0]:
        rows = [_rows(one[parameter], runs) for one, (_, runs) in zip(own, target.sources, strict=True)]
        shape = (target.rows or rows[0][0].shape[0], *rows[0][0].shape[1:])
        first = rows[0][0].first
        key = factor_key(target.module, first, DIFFERENCES[parameter], "difference")
        plan = TensorPlan(key, "F32", shape)
        growth.take(plan.nbytes, f"the full difference of {first.module.key}")
        contents.append(Content(plan, Computed(partial(_computed, rows, shape))))
        origin = first._replace(alpha=None, magnitude=None)
        parts.append(Part(origin, DIFFERENCES[parameter], {}, 1.0, replaced=True, error=_ROUNDING))
    return SpelledModule(target.module, tuple(parts), tuple(contents))


def _rows(change: WholeChange, runs: Runs | None) -> Rows:
    return change, tuple(runs.each()) if runs else ((0, change.shape[0], 0),)


def _computed(rows: Sequence[Rows], shape: tuple[int, ...]) -> bytes:
    whole = torch.zeros(shape[0], prod(shape[1:]), dtype=torch.float32, device="cpu")
    for change, runs in rows:
        matrix = change.matrix()
        for first, last, source in runs:
            whole[first:last] = matrix[source : source + last - first]
    return to_bytes(whole, "F32")
