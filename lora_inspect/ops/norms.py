"""The size of the change of an adapter, by part and block, and modules whose size is unusual."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_inspect.errors import RefusedError
from lora_inspect.files.input_file import check_unchanged
from lora_inspect.matching.orientation import UNANSWERED, Answers
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.file_info import ADAPTER, FileInfo
from lora_inspect.sentences import Result

if TYPE_CHECKING:
    from lora_inspect.algebra.measures.change_sizes import ChangeSize, UnmeasuredModule
    from lora_inspect.algebra.measures.unusual_sizes import DeadModule, SmallScale, Spike, UnusualModule


@dataclass(frozen=True, slots=True)
class PartSize:
    """The size of some modules together: those of a part, of a block of it, or all of them.

    `norm` is the root of the sum of their squared norms, and `sigma_1` the largest singular value of any of them.
    `relative_norm` is the norm over that of the weights, of the modules with a weight in the base; None without any.
    """

    modules: int
    norm: float
    sigma_1: float | None
    relative_norm: float | None

    @classmethod
    def of(cls, sizes: "Iterable[ChangeSize]") -> "PartSize":
        """The size of the modules together."""
        own = list(sizes)
        on_base = [(one.norm, one.weight_norm) for one in own if one.weight_norm is not None]
        weight = math.hypot(*(weight for _, weight in on_base))
        return cls(
            modules=len(own),
            norm=math.hypot(*(one.norm for one in own)),
            sigma_1=max((one.sigma_1 for one in own if one.sigma_1 is not None), default=None),
            relative_norm=math.hypot(*(norm for norm, _ in on_base)) / weight if weight else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON has them."""
        return {
            "modules": self.modules,
            "norm": self.norm,
            "sigma_1": self.sigma_1,
            "relative_norm": self.relative_norm,
        }


@dataclass(frozen=True, slots=True, repr=False)
class NormsResult(Result):
    """The sizes of an adapter's modules, of its parts, and of the blocks of each part in their order.

    `base` is the path of the model whose weights the norms are compared with, None without one. `left_out` are modules
    whose change has no size, with the reasons. `notes` are sentences on settings that were not needed.
    """

    base: str | None
    sizes: "list[ChangeSize]"
    parts: dict[str, PartSize]
    blocks: dict[str, dict[str, PartSize]]
    spikes: "list[Spike]"
    dead: "list[DeadModule]"
    small_scales: "list[SmallScale]"
    unusual: "UnusualModule | None"
    left_out: "list[UnmeasuredModule]"
    notes: tuple[str, ...] = ()

    @property
    def without_weight(self) -> list[str]:
        """The modules that have a size but no weight in the base."""
        return [one.key for one in self.sizes if one.weight_norm is None] if self.base else []

    def to_dict(self) -> dict[str, Any]:
        """The field `norms` of the record that `info --norms --json` prints."""
        return {
            "base": self.base,
            **PartSize.of(self.sizes).to_dict(),
            "parts": {
                name: {**part.to_dict(), "blocks": {block: own.to_dict() for block, own in self.blocks[name].items()}}
                for name, part in self.parts.items()
            },
            "layers": [
                {**_record(one), "shape": list(one.shape), "relative_norm": one.relative_norm} for one in self.sizes
            ],
            "spikes": [_record(one) for one in self.spikes],
            "dead": [_record(one) for one in self.dead],
            "small_scales": [
                {"modules": list(one.keys), "rank": one.rank, "alpha": one.alpha, "scale": one.scale,
                 "ratio": one.ratio}
                for one in self.small_scales
            ],
            "unusual": self.unusual and {**_record(self.unusual), "ratio": self.unusual.ratio},
            "left_out": [_record(one) for one in self.left_out],
        }  # fmt: skip


def _record(one: "ChangeSize | Spike | DeadModule | UnusualModule | UnmeasuredModule") -> dict[str, Any]:
    """The fields of a record, with the key of its module under the name that `module_list` has for it."""
    fields = one._asdict()
    return {"module": fields.pop("key"), **fields}


def norms(
    info: FileInfo,
    base: str | None = None,
    transposed: Answers = UNANSWERED,
    progress: Progress = silent,
) -> NormsResult:
    """Measure the changes of an adapter that was read; `progress` is told of the bytes of its factors.

    With the model at `base`, norms are compared with those of its weights; `transposed` tells how it stores square
    weights whose orientation nothing else shows. Raises LoraInspectError for a file that is no adapter or whose meaning
    is open, and where the adapter does not fit the base.
    """
    from lora_inspect.algebra.measures import change_sizes, unusual_sizes

    adapter, path = info.adapter, info.checkpoint.path
    if info.kind != ADAPTER:
        raise RefusedError(path, "it is no adapter, so it has no change to measure", "name an adapter")
    adapter.refuse()
    weights = None if base is None else change_sizes.changes_of_base(adapter, base, transposed)
    found = change_sizes.measured_changes(adapter, weights, progress)
    check_unchanged(info.checkpoint.inputs | (weights.inputs if weights else {}))
    parts = change_sizes.by_block(found.sizes)
    return NormsResult(
        base=base,
        sizes=found.sizes,
        parts={name: PartSize.of(one for own in blocks.values() for one in own) for name, blocks in parts.items()},
        blocks={name: {block: PartSize.of(own) for block, own in blocks.items()} for name, blocks in parts.items()},
        spikes=unusual_sizes.spikes(found.sizes),
        dead=unusual_sizes.dead(found.sizes),
        small_scales=unusual_sizes.small_scales(found.sizes),
        unusual=unusual_sizes.unusual(found.sizes),
        left_out=found.left_out,
        notes=tuple(weights.notes) if weights else (),
    )
