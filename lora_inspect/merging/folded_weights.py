"""One file of a base on its way to the output: each weight with its changes folded in, or its bytes as they are."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.dtypes import PLAIN_FLOATS
from lora_inspect.files.header import TensorInfo
from lora_inspect.files.input_file import Identity
from lora_inspect.files.writer import TensorPlan, Writer, in_file_order
from lora_inspect.merging.links import Fold, LinkReader, decode_of, no_numbers_of_a_change
from lora_inspect.progress import Progress
from lora_inspect.reading.coded_weights import CodedWeight

if TYPE_CHECKING:
    from lora_inspect.maths.tensor_reader import RowBlocks
    from lora_inspect.merging.factor_reader import FactorReader

# A block of rows that stays in the second-level cache while it is folded: 4 MB in float32.
BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True, slots=True)
class Folding:
    """What becomes of a base: its folds by tensor name, the element type of the output, the rule for DoRA.

    `dtype` is a safetensors name; None keeps the base's. Tensors of the names `uncast` keep theirs in any case; those
    that are `decoded` are codes in the base. `dora_rule` is None where each file's own rule holds.
    """

    folds: Mapping[str, Sequence[Fold]]
    uncast: Collection[str] = ()
    dtype: str | None = None
    dora_rule: str | None = None
    decoded: Mapping[str, CodedWeight] = field(default_factory=dict)

    def output(self, info: TensorInfo) -> TensorPlan:
        """What is written for a tensor of the base."""
        is_cast = info.name in self.decoded or (info.dtype in PLAIN_FLOATS and info.name not in self.uncast)
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
    LoraInspectError where a result is not finite or cannot be computed, where something has the name, and where one of
    the `inputs` is not the file any more that was read.
    """
    from torch.linalg import LinAlgError  # type: ignore[attr-defined]

    from lora_inspect.maths.tensor_reader import RowBlocks
    from lora_inspect.merging.factor_reader import FactorReader

    blocks, factors = RowBlocks(BLOCK_ELEMENTS), FactorReader()
    by_name = {info.name: info for info in infos}
    plans = in_file_order(folding.output(info) for info in by_name.values())
    with Writer(output, plans, metadata, inputs, force) as writer:
        progress(0)
        for target in plans:
            info = by_name[target.name]
            folds = [fold for fold in folding.folds.get(info.name, ()) if fold.multiplier != 0]
            if not folds and target.dtype == info.dtype:
                writer.copy(info)
            else:
                try:
                    writer.write(info.name, _folded_rows(info, folds, folding, target.dtype, blocks, factors))
                except LinAlgError as error:
                    raise no_numbers_of_a_change(info, folds[-1]) from error
            progress(info.nbytes)
    return Counter(target.dtype for target in plans)


def _folded_rows(
    info: TensorInfo,
    folds: Sequence[Fold],
    folding: Folding,
    dtype: str,
    blocks: "RowBlocks",
    factors: "FactorReader",
) -> Iterator[memoryview]:
    """The rows of a weight with every change folded in, in the order of the `folds`, rounded once, as bytes."""
    from lora_inspect.maths.chain import folded, settled

    # The parameter of all experts of a layer is changed as a matrix.
    decode = decode_of(info, folding.decoded)
    read = partial(blocks.read, folds[0].placed.place.target if folds else info, decode=decode)
    reader = LinkReader(blocks, factors, folding.decoded)
    links = settled([link for fold in folds for link in reader.links(fold, read, folding.dora_rule)], read)
    for _, block in folded(links, read):
        data, rounded = blocks.bytes_of(block, dtype)
        if folds:
            _check_finite(rounded, info, folds[-1], dtype)
        else:
            _check_cast(block, rounded, info, dtype)
        yield data


def _check_finite(rounded: Any, info: TensorInfo, fold: Fold, dtype: str) -> None:
    from lora_inspect.maths.tensor_reader import first_non_finite

    value = first_non_finite(rounded)
    if value is None:
        return
    module, source = fold.contribution.module.key, fold.adapter.checkpoint.path
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
