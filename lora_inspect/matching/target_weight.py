"""Whether a base weight can take a change: its element type, what quantises it, and its shape."""

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.dtypes import PLAIN_FLOATS
from lora_inspect.files.header import TensorInfo
from lora_inspect.matching.orientation import covered_shape
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.contribution import Contribution
from lora_inspect.reading.identify import adapter_candidates, base_candidates, described, may_be_one
from lora_inspect.reading.quantisation import scale_beside


def check_target(contribution: Contribution, target: TensorInfo, adapter: Adapter, base: Checkpoint) -> None:
    """Raises LoraInspectError where the oriented contribution cannot be added to the weight."""
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
    shape = contribution.shape if contribution.rows is None else covered_shape(module)
    stored = shape[::-1] if contribution.transposed else shape
    if _squeeze(stored) == _squeeze(target.shape):
        return
    name = module.name.key
    ours = f"{name} changes a weight of" if contribution.rows is None else f"the slices of {name} cover"
    raise LoraInspectError(
        f"{adapter.checkpoint.path}: {ours} {list(shape)}, but {target.name} of {base.path} has {list(target.shape)}; "
        f"{_difference(adapter, base)}."
    )


def _squeeze(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Out and in features and the kernel without trailing ones: a 1x1 convolution is a Linear."""
    end = len(shape)
    while end > 2 and shape[end - 1] == 1:
        end -= 1
    return shape[:end]


def _difference(adapter: Adapter, base: Checkpoint) -> str:
    """Why shapes do not fit, where the names and widths tell it."""
    ours, theirs = adapter_candidates(adapter), base_candidates(base)
    if ours and theirs and not may_be_one(ours, theirs):
        return f"this is an adapter of {described(ours)} on a base of {described(theirs)}"
    return "the adapter is for another model or size"
