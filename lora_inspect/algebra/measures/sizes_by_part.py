"""The sizes of an adapter's changes by part and block, without a library for numbers until they are measured."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lora_inspect.architectures.detection import Detection
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.pipeline import adapter_parts
from lora_inspect.sentences import Result

if TYPE_CHECKING:
    from lora_inspect.algebra.measures.change_sizes import ChangeSize, MeasuredChanges, UnmeasuredModule


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
        """Return the size of the modules together."""
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
        """Return the numbers as JSON has them."""
        return {
            "modules": self.modules,
            "norm": self.norm,
            "sigma_1": self.sigma_1,
            "relative_norm": self.relative_norm,
        }


@dataclass(frozen=True, slots=True, repr=False)
class SizesByPart(Result):
    """The sizes of an adapter's modules, of its parts, and of the blocks of each part in their order.

    `base` is the path of the model of the weights' norms, None without one. `titles` are the common names of the parts.
    `left_out` are modules with no size of their change, with the reasons.
    """

    base: str | None
    sizes: "list[ChangeSize]"
    parts: dict[str, PartSize]
    blocks: dict[str, dict[str, PartSize]]
    titles: dict[str, str]
    left_out: "list[UnmeasuredModule]"

    @property
    def without_weight(self) -> list[str]:
        """The modules that have a size but no weight in the base."""
        return [one.key for one in self.sizes if one.weight_norm is None] if self.base else []

    def to_dict(self) -> dict[str, Any]:
        """Return the field `norms` of the record that `check --tensors --json` prints."""
        return {
            "base": self.base,
            **PartSize.of(self.sizes).to_dict(),
            "parts": parts_to_dict(self.parts, self.blocks),
            "left_out": [{"module": one.key, "reason": one.reason} for one in self.left_out],
        }


class HasDict(Protocol):
    """A measure that JSON can hold."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by their names in JSON."""
        ...


def parts_to_dict(
    parts: Mapping[str, HasDict], blocks: Mapping[str, Mapping[str, HasDict]]
) -> dict[str, dict[str, Any]]:
    """Return the field `parts` of a record: the measure of each part, and in `blocks` those of its blocks."""
    return {
        name: {**part.to_dict(), "blocks": {block: own.to_dict() for block, own in blocks[name].items()}}
        for name, part in parts.items()
    }


def by_part(
    found: "MeasuredChanges", adapter: Adapter, families: Sequence[Detection], base: str | None = None
) -> dict[str, Any]:
    """Return the fields of a `SizesByPart`, of an adapter that may be of these families."""
    from lora_inspect.algebra.measures.change_sizes import by_block

    blocks = by_block(found.sizes)
    return {
        "base": base,
        "sizes": found.sizes,
        "parts": {name: PartSize.of(one for own in parts.values() for one in own) for name, parts in blocks.items()},
        "blocks": {name: {block: PartSize.of(own) for block, own in parts.items()} for name, parts in blocks.items()},
        "titles": titles_of(adapter, families),
        "left_out": found.left_out,
    }


def titles_of(adapter: Adapter, families: Sequence[Detection]) -> dict[str, str]:
    """Return, by component, the common names of the parts of an adapter that may be of these families."""
    return {part.component: part.title for part in adapter_parts(adapter, families)}
