"""Whether a base weight can take a change: the codec that it is stored in, and its shape."""

from lora_inspect.algorithms.lora import other_than
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.matching.orientation import covered_shape
from lora_inspect.matching.placement import Placed
from lora_inspect.maths.dora import INPUT
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_codecs import BaseCodecs
from lora_inspect.reading.identify import adapter_candidates, base_candidates, described, may_be_one


def check_place(placed: Placed, adapter: Adapter, base: Checkpoint, base_codecs: BaseCodecs) -> None:
    """Raises LoraInspectError where the contribution cannot be folded into the place."""
    contribution, place, _ = placed
    target = place.target
    base_codecs.of(target)
    module = adapter.modules[contribution.module.key]
    name = module.name.key
    if contribution.rows is None:
        wrong = contribution.formula.misfit(contribution.shapes, placed.whole)
        ours = f"{name} {wrong}"
    else:
        covered = tuple(size or 0 for size in covered_shape(module))
        wrong = other_than(covered, place._replace(runs=None).shape)
        ours = f"the slices of {name} cover {list(covered)}"
    if wrong:
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: {ours}, but {target.name} of {base.path} has "
            f"{list(base.tensors[target.name].shape)}; {_difference(adapter, base)}."
        )
    placed.check_groups()
    magnitude = contribution.magnitude
    # Factors of a flattened kernel do not tell how many inputs there are.
    if magnitude and magnitude.axis == INPUT and magnitude.info.numel != place.shape[1]:
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: {magnitude.info.name} is a magnitude of {magnitude.info.numel} inputs, but "
            f"{target.name} of {base.path} has {place.shape[1]}; {_difference(adapter, base)}."
        )


def _difference(adapter: Adapter, base: Checkpoint) -> str:
    """Why shapes do not fit, where the names and widths tell it."""
    ours, theirs = adapter_candidates(adapter), base_candidates(base)
    if ours and theirs and not may_be_one(ours, theirs):
        return f"this is an adapter of {described(ours)} on a base of {described(theirs)}"
    return "the adapter is for another model or size"
