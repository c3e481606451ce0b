"""Whether a base weight can take a change: its element type, what quantises it, and its shape."""

from lora_inspect.algorithms.weight_shapes import other_than
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.dtypes import PLAIN_FLOATS
from lora_inspect.matching.orientation import covered_shape
from lora_inspect.matching.place import Placed
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.identify import adapter_candidates, base_candidates, described, may_be_one
from lora_inspect.reading.quantisation import scale_beside


def check_place(placed: Placed, adapter: Adapter, base: Checkpoint) -> None:
    """Raises LoraInspectError where the contribution cannot be folded into its place."""
    contribution, place = placed
    target = place.target
    if target.dtype not in PLAIN_FLOATS:
        raise LoraInspectError(
            f"{base.path}: {target.name} is stored as {target.dtype}, codes that a delta cannot be added to; "
            "merge into an F32, F16 or BF16 version of the base."
        )
    if scale := scale_beside(target.name, base.tensors):
        raise LoraInspectError(
            f"{base.path}: {target.name} is quantised ({scale} scales it), so no delta can be added to it; "
            "merge into an F32, F16 or BF16 version of the base."
        )
    module = adapter.modules[contribution.module.key]
    name = module.name.key
    if contribution.rows is None:
        wrong = contribution.formula.misfit(contribution.shapes, place.shape)
        ours = f"{name} {wrong}"
    else:
        covered = covered_shape(module)
        wrong = other_than(covered, place._replace(rows=None).shape)
        ours = f"the slices of {name} cover {list(covered)}"
    if wrong:
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: {ours}, but {target.name} of {base.path} has {list(target.shape)}; "
            f"{_difference(adapter, base)}."
        )


def _difference(adapter: Adapter, base: Checkpoint) -> str:
    """Why shapes do not fit, where the names and widths tell it."""
    ours, theirs = adapter_candidates(adapter), base_candidates(base)
    if ours and theirs and not may_be_one(ours, theirs):
        return f"this is an adapter of {described(ours)} on a base of {described(theirs)}"
    return "the adapter is for another model or size"
