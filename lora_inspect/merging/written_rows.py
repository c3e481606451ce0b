"""How the rows of a weight become what the output holds: what each way of storing weights is asked for."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.header import TensorInfo
from lora_inspect.merging.links import Fold
from lora_inspect.records import NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from lora_inspect.maths.chain import Link
    from lora_inspect.maths.tensor_reader import RowBlocks

# What is computed of a block of the folded weight: (first row, rows), which stay as they are.
Measured = Callable[[int, "Tensor"], Any]
# Goes over the folded weight once, and adds up what is computed of the blocks, in their order: (measure, add).
Pass = Callable[[Measured, Callable[[Any, Any], Any]], Any]


class Coded(NamedTuple):
    """Rows as they are written: `codes` are contiguous, in the element type of the output.

    `beside` is what has to be known of these rows for another tensor of the output, such as their scales.
    """

    codes: "Tensor"
    beside: Any = None


class Encoder(Protocol):
    """Makes what is written from the rows of one folded weight; several threads use it at the same time.

    What it makes depends on the weight, its name and the rows alone, never on who computes them or when. Blocks of rows
    begin at multiples of `aligned`.
    """

    aligned: int

    def prepared(self, over_all: Pass) -> "Encoder":
        """The encoder that has seen what it needs of the whole folded weight, which mostly is nothing."""

    def encoded(self, rows: "Tensor", first: int, memory: "RowBlocks") -> Coded:
        """The rows from `first` on, rounded once, in `memory` that is used again; LoraInspectError for what cannot be.

        The rows are not needed any more then.
        """

    def decoded(self, coded: Coded, first: int) -> "Tensor":
        """What the codes stand for, in the working type."""

    def again(self, beside: Sequence[Any]) -> "Encoder | None":
        """What all rows have to be written with once more, where that shows when they are done; mostly None.

        `beside` is that of all blocks in order, here and below.
        """

    def others(self, beside: Sequence[Any]) -> Iterable[tuple[str, "Tensor"]]:
        """The other tensors that come with the weight, by name, whole."""


class Witness(Protocol):
    """Looks at the rows of one weight while they are written; several threads use it at the same time."""

    def seen(self, first: int, base: "Tensor", terms: Sequence[Sequence["Link"]], written: "Tensor") -> Any:
        """What is to be known of a block: rows of the base, decoded, and the same as they were written.

        `terms` are the settled changes of each adapter, in the order in which they are folded. The rows may be changed.
        """

    def add(self, one: Any, other: Any) -> Any:
        """Two blocks' together; blocks come in their order."""

    def done(self, name: str, total: Any) -> None:
        """What all blocks of a weight gave, once it is written whole."""


class Rounded:
    """The encoder for plain floats: every number is rounded to the nearest one of the type."""

    aligned = 1

    def __init__(self, info: TensorInfo, folds: Sequence[Fold], dtype: str) -> None:
        self._info, self._folds, self._dtype = info, folds, dtype

    def prepared(self, over_all: Pass) -> Encoder:
        """Each number is rounded by itself."""
        return self

    def encoded(self, rows: "Tensor", first: int, memory: "RowBlocks") -> Coded:
        """The rows in the type; raises LoraInspectError where a number is not finite there."""
        rounded = memory.rounded(rows, self._dtype)
        if self._folds:
            check_finite(rounded, self._info, self._folds[-1], self._dtype)
        else:
            _check_cast(rows, rounded, self._info, self._dtype)
        return Coded(rounded)

    def decoded(self, coded: Coded, first: int) -> "Tensor":
        """The numbers in the type that the weight was folded in."""
        from lora_inspect.maths.tensor_reader import working_dtype

        return coded.codes.to(working_dtype(self._info))

    def again(self, beside: Sequence[Any]) -> None:
        """Nothing depends on other rows."""

    def others(self, beside: Sequence[Any]) -> Iterable[tuple[str, "Tensor"]]:
        """None."""
        return ()


def check_finite(values: "Tensor", info: TensorInfo, fold: Fold, dtype: str) -> None:
    """Raises LoraInspectError where a folded weight, as it is written in `dtype`, is not finite."""
    from lora_inspect.maths.tensor_reader import first_non_finite

    value = first_non_finite(values)
    if value is None:
        return
    module, source = fold.contribution.module.key, fold.adapter.checkpoint.path
    raise LoraInspectError(
        f"{source}: folding {module} into {info.name} gives {value} in {dtype}; lower the multiplier, choose another "
        "--dtype, or repair the file that holds non-finite numbers."
    )


def _check_cast(block: "Tensor", rounded: "Tensor", info: TensorInfo, dtype: str) -> None:
    """What is not finite in the base (masks, padding) stays so; what only the cast makes infinite is an error."""
    from lora_inspect.maths.tensor_reader import first_overflow

    value = first_overflow(block, rounded)
    if value is not None:
        raise LoraInspectError(
            f"{info.file}: {info.name} holds {value:g}, which is inf in {dtype}; choose another --dtype, or none."
        )
