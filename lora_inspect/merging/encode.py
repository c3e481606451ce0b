"""Encoders: rows of a weight in the form of the output.

Each way of storing weights has an encoder. One writes rows of a folded weight as codes of the base's format.
"""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any, Protocol

from lora_inspect.codecs.record import Encoding, NoCode
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.merging.fold_chain import Fold
from lora_inspect.reading.base.base_codecs import CodedWeight, prepared

if TYPE_CHECKING:
    from torch import Tensor

    from lora_inspect.codecs.record import Extremes
    from lora_inspect.maths.rounding import StochasticRounding
    from lora_inspect.maths.share import RowObserver, StepSums
    from lora_inspect.maths.tensors import RowBlocks


class Coded(NamedTuple):
    """Rows as they are written: `codes` are contiguous, in the element type of the output.

    `beside` are facts about these rows that another tensor of the output needs, such as their scales.
    """

    codes: "Tensor"
    beside: Any = None


class Encoder(Protocol):
    """An encoder of the rows of one folded weight for the output; several threads use it at the same time.

    The result depends only on the weight, its name and the rows, never on the thread or the time. Blocks of rows begin
    at multiples of `aligned`.
    """

    aligned: int

    def prepared(self) -> "Encoder":
        """Return an encoder that has read the other tensors that it needs; most need none."""

    def encoded(self, rows: "Tensor", first: int, memory: "RowBlocks") -> Coded:
        """Return the rows from `first` on, rounded once, in reused `memory`; LoraInspectError if there is no code.

        `rows` may be overwritten.
        """

    def decoded(self, coded: Coded, first: int) -> "Tensor":
        """Return the numbers that the codes represent, in any type of floats."""

    def again(self, beside: Sequence[Any]) -> "Encoder | None":
        """Return the encoder to write all rows with again, if the finished rows require it; mostly None.

        `beside` has the facts of all blocks in order, here and below.
        """

    def others(self, beside: Sequence[Any]) -> Iterable[tuple[str, "Tensor"]]:
        """Return the other tensors that come with the weight, by name, whole."""


class Witness(Protocol):
    """An observer of the rows of one weight while they are written; several threads use it at the same time."""

    def look(self, rows: "Tensor", first: int) -> "RowObserver | None":
        """Look at a block of the decoded base from the row `first` on; return None if it need not be looked at.

        The look then sees the block behind the changes of each adapter, and as it was written.
        """

    def done(self, sums: "StepSums | None") -> None:
        """Receive the sum of all looks at a weight, added up in the order of the blocks."""


class Rounded:
    """The encoder for plain floats: every number is rounded to the nearest one of the type, or by `rounding`."""

    aligned = 1

    def __init__(
        self, info: TensorInfo, folds: Sequence[Fold], dtype: str, rounding: "StochasticRounding | None" = None
    ) -> None:
        self._info, self._folds, self._dtype, self._rounding = info, folds, dtype, rounding

    def prepared(self) -> Encoder:
        """Return the encoder itself: each number is rounded separately."""
        return self

    def encoded(self, rows: "Tensor", first: int, memory: "RowBlocks") -> Coded:
        """Return the rows in the type; raises LoraInspectError if a number is not finite there."""
        if self._rounding:
            rows = self._rounding.rounded(rows, self._dtype, first * rows.shape[1])
        rounded = memory.rounded(rows, self._dtype)
        if self._folds:
            check_finite(rounded, self._info, self._folds[-1], self._dtype)
        else:
            _check_cast(rows, rounded, self._info, self._dtype)
        return Coded(rounded)

    def decoded(self, coded: Coded, first: int) -> "Tensor":
        """Return the codes, which are the numbers."""
        return coded.codes

    def again(self, beside: Sequence[Any]) -> None:
        """Return None: nothing depends on other rows."""

    def others(self, beside: Sequence[Any]) -> Iterable[tuple[str, "Tensor"]]:
        """Return no tensor."""
        return ()


def check_finite(values: "Tensor", info: TensorInfo, fold: Fold, dtype: str) -> None:
    """Raise LoraInspectError if a folded weight, as it is written in `dtype`, is not finite."""
    from lora_inspect.maths.tensors import first_non_finite

    value = first_non_finite(values)
    if value is None:
        return
    module, source = fold.contribution.module.key, fold.adapter.checkpoint.path
    raise RefusedError(
        source,
        f"folding {module} into {info.name} gives {value} in {dtype}",
        "lower the multiplier, choose another --dtype, or repair the file that holds non-finite numbers",
    )


def _check_cast(block: "Tensor", rounded: "Tensor", info: TensorInfo, dtype: str) -> None:
    """Raise LoraInspectError for a number that only the cast makes infinite; the base may hold infinite masks."""
    from lora_inspect.maths.tensors import first_overflow

    value = first_overflow(block, rounded)
    if value is not None:
        raise RefusedError(
            info.file, f"{info.name} holds {value:g}, which is inf in {dtype}", "choose another --dtype, or none"
        )


class _Beside(NamedTuple):
    """The facts about a block of rows: its largest and smallest numbers, and the parameters of its encoding."""

    seen: "Extremes"
    settled: Any


class Recoded:
    """The encoder for the codes of a base, with its own scales where the folded rows fit, else with fresh ones.

    Where all rows share a scale, it is the base's at first. When the whole weight is written it shows whether that
    held; if not, all of it is written `again` with the scale that it needs.
    """

    def __init__(
        self,
        weight: CodedWeight,
        folds: Sequence[Fold],
        rounding: "StochasticRounding | None" = None,
        encoding: Encoding | None = None,
        shared: Any = None,
    ) -> None:
        self._weight, self._folds, self._rounding = weight, folds, rounding
        self._prepared, self._shared = encoding, shared
        self.aligned = weight.layout.together or 1

    @property
    def _encoding(self) -> Encoding:
        assert self._prepared, "it is used only once it is prepared"
        return self._prepared

    def prepared(self) -> Encoder:
        """Return an encoder with the scales of the base; LoraInspectError if these are no numbers."""
        assert self._weight.codec.encoding, "only what goes both ways is planned to be written so"
        return Recoded(self._weight, self._folds, self._rounding, self._weight.codec.encoding(prepared(self._weight)))

    def encoded(self, rows: "Tensor", first: int, memory: "RowBlocks") -> Coded:
        """Return the nearest codes, or those of `rounding`; LoraInspectError for a number that no code represents."""
        seen = self._encoding.extremes(rows, first)
        settled = self._settled(seen, first) if self._shared is None else self._shared
        self._encoding.numbers(rows, settled, first)
        if self._rounding:
            rows = self._rounding.rounded(rows, self._weight.info.dtype, first * rows.shape[1])
        return Coded(memory.rounded(rows, self._weight.info.dtype), _Beside(seen, settled))

    def decoded(self, coded: Coded, first: int) -> "Tensor":
        """Return the numbers that the codes represent."""
        from lora_inspect.maths.tensors import numbers_of

        rows = numbers_of(coded.codes, coded.codes.new_empty(0).float().new_empty(coded.codes.shape))
        self._encoding.weight(rows, coded.beside.settled, first)
        return rows

    def again(self, beside: Sequence[_Beside]) -> Encoder | None:
        """Return the encoder with the scale that all rows together need; None if they have it."""
        if self._weight.layout.together or self._shared is not None or not beside:
            return None
        settled = self._settled(reduce(lambda one, other: one.joined(other), (own.seen for own in beside)), 0)
        if all(own.settled.equal(settled) for own in beside):
            return None
        return Recoded(self._weight, self._folds, self._rounding, self._encoding, settled)

    def others(self, beside: Sequence[_Beside]) -> Iterable[tuple[str, "Tensor"]]:
        """Return the scales, as the base has them."""
        settings = self._encoding.settings([own.settled for own in beside])
        return [(self._weight.beside[name].name, tensor) for name, tensor in settings.items()]

    def _settled(self, seen: "Extremes", first: int) -> Any:
        try:
            return self._encoding.settled(seen, first)
        except NoCode as lost:
            fold = self._folds[-1]
            raise RefusedError(
                fold.adapter.checkpoint.path,
                f"folding {fold.contribution.module.key} into {self._weight.info.name} gives {lost.value:g}, "
                f"but {self._weight.info.dtype} has no code for that",
                "lower the multiplier, choose another element type with --dtype or --changed-dtype, or repair the "
                "file that holds such numbers",
            ) from None
