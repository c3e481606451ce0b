"""One file of a base on its way to the output: each weight with its changes folded in, or its bytes as they are."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.dtypes import PLAIN_FLOATS
from lora_inspect.files.header import TensorInfo
from lora_inspect.files.input_file import Identity
from lora_inspect.files.writer import TensorPlan, Writer, in_file_order
from lora_inspect.progress import Progress
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.contribution import Contribution

# A block of rows that stays in the second-level cache while it is folded: 4 MB in float32.
BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Change:
    """One contribution with the strength and the source that it comes with."""

    contribution: Contribution
    multiplier: float
    adapter: Adapter


@dataclass(frozen=True, slots=True)
class Folding:
    """What becomes of a base: its changes by tensor name, the element type of the output, the rule for DoRA.

    `dtype` is a safetensors name; None keeps the base's. Tensors of the names `uncast` keep theirs in any case.
    `dora_rule` is None where each file's own rule holds.
    """

    changes: Mapping[str, Sequence[Change]]
    uncast: Collection[str] = ()
    dtype: str | None = None
    dora_rule: str | None = None

    def output(self, info: TensorInfo) -> TensorPlan:
        """What is written for a tensor of the base."""
        is_cast = info.dtype in PLAIN_FLOATS and info.name not in self.uncast
        return TensorPlan(info.name, self.dtype if self.dtype and is_cast else info.dtype, info.shape)


def write_folded(
    output: str,
    infos: Iterable[TensorInfo],
    folding: Folding,
    metadata: Mapping[str, str],
    progress: Progress,
    inputs: Mapping[str, Identity] | None = None,
    force: bool = False,
) -> Counter[str]:
    """Writes the tensors of one file of the base to `output` and returns how many there are of each element type.

    `progress` is told the bytes of each tensor that is done. With `force` the file replaces one of its name. Raises
    LoraInspectError where a result is not finite, where something has the name, and where one of the `inputs` is not
    the file any more that was read.
    """
    from lora_inspect.maths.tensor_reader import RowBlocks

    blocks = RowBlocks(BLOCK_ELEMENTS)
    by_name = {info.name: info for info in infos}
    plans = in_file_order(folding.output(info) for info in by_name.values())
    with Writer(output, plans, metadata, inputs, force) as writer:
        progress(0)
        for target in plans:
            info = by_name[target.name]
            changes = [change for change in folding.changes.get(info.name, ()) if change.multiplier != 0]
            if not changes and target.dtype == info.dtype:
                writer.copy(info)
            else:
                writer.write(info.name, _folded_rows(info, changes, folding.dora_rule, target.dtype, blocks))
            progress(info.nbytes)
    return Counter(target.dtype for target in plans)


def _folded_rows(
    info: TensorInfo, changes: Sequence[Change], dora_rule: str | None, dtype: str, blocks: Any
) -> Iterator[memoryview]:
    """The rows of a weight with every change folded in, rounded once, as bytes in order."""
    from lora_inspect.maths.tensor_reader import working_dtype

    folds = [_load_fold(change, dora_rule, working_dtype(info)) for change in changes]
    for position, fold in enumerate(folds):
        if fold.needs_norm_pass:
            for start, block in blocks.read(info):
                for earlier in folds[:position]:
                    earlier.apply(block, start)
                fold.observe(block, start)
    for start, block in blocks.read(info):
        for fold in folds:
            fold.apply(block, start)
        data, rounded = blocks.bytes_of(block, dtype)
        if changes:
            _check_finite(rounded, info, changes[-1], dtype)
        else:
            _check_cast(block, rounded, info, dtype)
        yield data


def _load_fold(change: Change, rule: str | None, dtype: Any) -> Any:
    from lora_inspect.maths.fold import Fold
    from lora_inspect.maths.tensor_reader import load

    contribution = change.contribution
    tensors = {role: load(info).to(dtype) for role, info in contribution.factors.items()}
    if contribution.magnitude:
        tensors["magnitude"] = load(contribution.magnitude.info).to(dtype)
    return Fold.of(contribution, tensors, change.multiplier, rule)


def _check_finite(rounded: Any, info: TensorInfo, change: Change, dtype: str) -> None:
    from lora_inspect.maths.tensor_reader import first_non_finite

    value = first_non_finite(rounded)
    if value is None:
        return
    module, source = change.contribution.module.key, change.adapter.checkpoint.path
    raise LoraInspectError(
        f"{source}: folding {module} into {info.name} gives {value} in {dtype}; lower the multiplier, choose another "
        "--dtype, or repair the file that holds non-finite numbers."
    )


def _check_cast(block: Any, rounded: Any, info: TensorInfo, dtype: str) -> None:
    """What is not finite in the base (masks, padding) stays so; what only the cast makes infinite is an error."""
    from lora_inspect.maths.tensor_reader import first_overflow

    value = first_overflow(block, rounded)
    if value is not None:
        raise LoraInspectError(
            f"{info.file}: {info.name} holds {value:g}, which is inf in {dtype}; choose another --dtype, or none."
        )
