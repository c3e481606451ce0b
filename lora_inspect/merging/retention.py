"""Gathers what the output keeps of each adapter, while its weights are written."""

import struct
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import BITS
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.looked_rows import FEW_BITS, looked_rows
from lora_inspect.merging.fold_chain import Fold
from lora_inspect.merging.kept import KeptAdapter, KeptWeight, worst_of
from lora_inspect.merging.working import working_type

if TYPE_CHECKING:
    from torch import Tensor

    from lora_inspect.maths.retained_share import Kept, KeptSums, Look


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
        from lora_inspect.maths.retained_share import Look

        spans = looked_rows(self._rows, first, len(rows)) if self.is_sampled else [(first, first + len(rows))]
        return Look(spans, rows, first, len(self.adapters)) if spans else None

    def done(self, sums: "KeptSums | None") -> None:
        """Takes the sums over all blocks, in their order."""
        self._sums = sums

    def kept(self) -> "Kept | None":
        """What shares come from, None for a weight without entries."""
        from lora_inspect.maths.retained_share import kept_in

        return kept_in(self._sums, self._entries, self._working) if self._sums else None


class SeenWeight(NamedTuple):
    """What was seen of one weight, written in `dtype`: `kept` is of the `adapters`, which are numbers."""

    name: str
    dtype: str
    is_sampled: bool
    adapters: tuple[int, ...]
    kept: "Kept"

    def in_record(self) -> list[Any]:
        """As JSON has it, to the last bit."""
        numbers = [number for sums in self.kept for number in sums.flatten().tolist()]
        packed = struct.pack(f"<{len(numbers)}d", *numbers)
        return [self.name, self.dtype, self.is_sampled, list(self.adapters), b64encode(packed).decode()]

    @classmethod
    def of_record(cls, record: Sequence[Any]) -> "SeenWeight":
        """What `in_record` gave; raises ValueError, TypeError or LookupError for anything else."""
        import torch

        from lora_inspect.maths.retained_share import Kept

        name, dtype, is_sampled, adapters, packed = record
        count = len(adapters)
        sizes = [count, count * count, count * count, count, count]
        if dtype not in BITS or not all(type(one) is int and one >= 0 for one in adapters):
            raise ValueError(f"{record[:4]} is no weight that was seen")
        found = struct.unpack(f"<{sum(sizes)}d", b64decode(packed, validate=True))
        numbers = torch.tensor(found, dtype=torch.float64, device="cpu")
        along, gram, scatter, left, unsure = torch.split(numbers, sizes)
        square = (count, count)
        kept = Kept(along, gram.reshape(square), scatter.reshape(square), left, unsure)
        return cls(str(name), dtype, bool(is_sampled), tuple(adapters), kept)


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

    def seen(self) -> Iterator[SeenWeight]:
        """What was seen of each weight, in their order, once all are written."""
        number = {path: number for number, path in enumerate(self._adapters)}
        for one in self._witnesses:
            if kept := one.kept():
                yield SeenWeight(
                    one.name, one.dtype, one.is_sampled, tuple(number[path] for path in one.adapters), kept
                )


def kept_of(adapters: Sequence[str], seen: Iterable[SeenWeight]) -> list[KeptAdapter]:
    """How much is kept of each of the `adapters`, by their paths, in all weights that were seen."""
    from lora_inspect.maths.retained_share import REASONS, nothing_kept

    whole = nothing_kept(len(adapters))
    worst: list[tuple[KeptWeight, ...]] = [()] * len(adapters)
    sampled: set[int] = set()
    for one in seen:
        whole.add(one.kept, one.adapters)
        sampled.update(one.adapters if one.is_sampled else ())
        for number, share in zip(one.adapters, one.kept.shares(), strict=True):
            if share.value is not None:
                worst[number] = worst_of([*worst[number], KeptWeight(one.name, share.value, one.dtype)])
    return [
        KeptAdapter(
            path=path,
            share=share.value,
            noise=share.noise,
            why=REASONS.get(share.why, ""),
            is_sampled=number in sampled,
            worst=worst[number],
        )
        for number, (path, share) in enumerate(zip(adapters, whole.shares(), strict=True))
    ]
