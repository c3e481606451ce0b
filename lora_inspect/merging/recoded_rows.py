"""Rows of a folded weight as codes of the format in which the base has it."""

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

from lora_inspect.codecs.record import Encoding, NoCode
from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.merging.encode import Coded, Encoder
from lora_inspect.merging.fold_chain import Fold
from lora_inspect.reading.base.base_codecs import CodedWeight, prepared

if TYPE_CHECKING:
    from torch import Tensor

    from lora_inspect.codecs.record import Extremes
    from lora_inspect.maths.rounding import StochasticRounding
    from lora_inspect.maths.tensors import RowBlocks


class _Beside(NamedTuple):
    """What is known of a block of rows: the largest and smallest numbers in it, and with what it was encoded."""

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
        """With the scales of the base; raises LoraInspectError where these are no numbers."""
        assert self._weight.codec.encoding, "only what goes both ways is planned to be written so"
        return Recoded(self._weight, self._folds, self._rounding, self._weight.codec.encoding(prepared(self._weight)))

    def encoded(self, rows: "Tensor", first: int, memory: "RowBlocks") -> Coded:
        """The nearest codes, or those by `rounding`; raises LoraInspectError for a number that none stands for."""
        seen = self._encoding.extremes(rows, first)
        settled = self._settled(seen, first) if self._shared is None else self._shared
        self._encoding.numbers(rows, settled, first)
        if self._rounding:
            rows = self._rounding.rounded(rows, self._weight.info.dtype, first * rows.shape[1])
        return Coded(memory.rounded(rows, self._weight.info.dtype), _Beside(seen, settled))

    def decoded(self, coded: Coded, first: int) -> "Tensor":
        """What the codes stand for."""
        from lora_inspect.maths.tensors import numbers_of

        rows = numbers_of(coded.codes, coded.codes.new_empty(0).float().new_empty(coded.codes.shape))
        self._encoding.weight(rows, coded.beside.settled, first)
        return rows

    def again(self, beside: Sequence[_Beside]) -> Encoder | None:
        """The encoder with the scale that all rows together need, where it is another than the one they have."""
        if self._weight.layout.together or self._shared is not None or not beside:
            return None
        settled = self._settled(reduce(lambda one, other: one.joined(other), (own.seen for own in beside)), 0)
        if all(own.settled.equal(settled) for own in beside):
            return None
        return Recoded(self._weight, self._folds, self._rounding, self._encoding, settled)

    def others(self, beside: Sequence[_Beside]) -> Iterable[tuple[str, "Tensor"]]:
        """The scales, as the base has them."""
        settings = self._encoding.settings([own.settled for own in beside])
        return [(self._weight.beside[name].name, tensor) for name, tensor in settings.items()]

    def _settled(self, seen: "Extremes", first: int) -> Any:
        try:
            return self._encoding.settled(seen, first)
        except NoCode as lost:
            fold = self._folds[-1]
            raise LoraInspectError(
                f"{fold.adapter.checkpoint.path}: folding {fold.contribution.module.key} into {self._weight.info.name} "
                f"gives {lost.value:g}, which {self._weight.info.dtype} has no code for; lower the multiplier, choose "
                "another element type with --dtype or --touched-dtype, or repair the file that holds such numbers."
            ) from None
