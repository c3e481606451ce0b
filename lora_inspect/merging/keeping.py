"""Gathers what the output keeps of each adapter, while its weights are written."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_inspect.files.dtypes import BITS
from lora_inspect.files.header import TensorInfo
from lora_inspect.maths.looked_rows import FEW_BITS, looked_rows
from lora_inspect.merging.kept import KeptAdapter, KeptWeight, worst_of
from lora_inspect.merging.links import Fold
from lora_inspect.merging.working import working_type

if TYPE_CHECKING:
    from torch import Tensor

    from lora_inspect.maths.kept_shares import Kept
    from lora_inspect.maths.kept_sums import KeptSums, Look


class WeightWitness:
    """Looks at the blocks of one weight; several threads use it at the same time.

    `read` is the weight as it is folded, in the shape of its rows, and `dtype` what it is written in.
    """

    def __init__(self, read: TensorInfo, folds: Sequence[Fold], dtype: str) -> None:
        self.name, self.dtype = read.name, dtype
        self.adapters = list(dict.fromkeys(fold.adapter.checkpoint.path for fold in folds))
        self.is_sampled = BITS[dtype] > FEW_BITS
        self._working = working_type(read.dtype, dtype)
        self._rows, self._entries = read.shape[0] if read.shape else 1, read.numel
        self._sums: KeptSums | None = None

    def look(self, rows: "Tensor", first: int) -> "Look | None":
        """Looks at a block that nothing is folded into yet; None where it has no row that is looked at."""
        from lora_inspect.maths.kept_sums import Look

        spans = looked_rows(self._rows, first, len(rows)) if self.is_sampled else [(first, first + len(rows))]
        return Look(spans, rows, first, len(self.adapters)) if spans else None

    def done(self, sums: "KeptSums | None") -> None:
        """Takes the sums over all blocks, in their order."""
        self._sums = sums

    def kept(self) -> "Kept | None":
        """What shares come from, None for a weight without entries."""
        from lora_inspect.maths.kept_shares import kept_in

        return kept_in(self._sums, self._entries, self._working) if self._sums else None


class Keeping:
    """What the output keeps of the `adapters`, by their paths, over all weights that are looked at."""

    def __init__(self, adapters: Sequence[str]) -> None:
        self._adapters = list(adapters)
        self._witnesses: list[WeightWitness] = []

    def witness(self, read: TensorInfo, folds: Sequence[Fold], dtype: str) -> WeightWitness:
        """What looks at one weight; weights come in the order in which they are added up."""
        witness = WeightWitness(read, folds, dtype)
        self._witnesses.append(witness)
        return witness

    def adapters(self) -> list[KeptAdapter]:
        """How much is kept of each adapter, once all weights are written."""
        from lora_inspect.maths.kept_shares import nothing_kept
        from lora_inspect.maths.untold_shares import REASONS

        whole = nothing_kept(len(self._adapters))
        worst: dict[str, tuple[KeptWeight, ...]] = dict.fromkeys(self._adapters, ())
        sampled: set[str] = set()
        for one in self._witnesses:
            kept = one.kept()
            if kept is None:
                continue
            whole.add(kept, [self._adapters.index(path) for path in one.adapters])
            sampled.update(one.adapters if one.is_sampled else ())
            for path, share in zip(one.adapters, kept.shares(), strict=True):
                if share.value is not None:
                    worst[path] = worst_of([*worst[path], KeptWeight(one.name, share.value, one.dtype)])
        return [
            KeptAdapter(
                path=path,
                share=share.value,
                noise=share.noise,
                why=REASONS.get(share.why, ""),
                is_sampled=path in sampled,
                worst=worst[path],
            )
            for path, share in zip(self._adapters, whole.shares(), strict=True)
        ]
