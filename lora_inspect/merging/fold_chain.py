"""The chain of changes to fold into a weight, with their factors, and the element type of the fold.

The type keeps the error of the arithmetic far below the rounding of the output.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lora_inspect.errors import DamagedError, LoraInspectError
from lora_inspect.files.safetensors.dtypes import BITS
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.matching.placement import Placement
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_codecs import CodedWeight, decoder
from lora_inspect.reading.model.contribution import Contribution

if TYPE_CHECKING:
    import torch

    from lora_inspect.maths.change import Change, Link, Read
    from lora_inspect.maths.tensors import Decode, RowBlocks
    from lora_inspect.merging.factor_reader import FactorReader


@dataclass(frozen=True, slots=True)
class Fold:
    """One contribution in its place, with the multiplier and the source that it comes with."""

    placed: Placement
    multiplier: float
    adapter: Adapter

    @property
    def contribution(self) -> Contribution:
        """The contribution that is folded."""
        return self.placed.contribution


@dataclass(frozen=True, slots=True)
class LinkReader:
    """A reader of the factors of folds; `decoded` are the base's weights that are stored as codes, by name.

    The computation uses the type `working`; None means the type in which the weight is read.
    """

    blocks: "RowBlocks"
    factors: "FactorReader"
    decoded: Mapping[str, CodedWeight]
    working: "torch.dtype | None" = None

    def links(self, fold: Fold, read: "Read", rule: str | None) -> "Iterator[Link]":
        """Yield the change of one contribution, after that of its initialisation if it was taken from the base.

        `read` reads the weight of the base; `rule` is the rule for DoRA, None for the file's own.
        """
        from lora_inspect.maths.change import settled

        if fold.placed.has_residual:
            yield from settled([(fold.placed.residual(), 1.0)], read)
        yield self._change(fold, rule), fold.multiplier

    def _change(self, fold: Fold, rule: str | None) -> "Change":
        from lora_inspect.maths.tensors import working_dtype

        placed = fold.placed
        dtype = self.working or working_dtype(placed.place.target)
        factors = partial(self.factors.read, dtype=dtype, is_needed_again=not placed.is_alone)

        def blocks(info: TensorInfo) -> "Iterator[tuple[int, torch.Tensor]]":
            return self.blocks.read(info, decode=decode_of(info, self.decoded), working=dtype)

        return placed.read_change(factors, blocks, dtype, rule)


def decode_of(info: TensorInfo, decoded: Mapping[str, CodedWeight]) -> "Decode | None":
    """Return the function that decodes the weight; None if it is not one of `decoded`."""
    return decoder(decoded[info.name]) if info.name in decoded else None


def no_numbers_of_a_change(info: TensorInfo, fold: Fold) -> LoraInspectError:
    """Return the error for a change with numbers that no factorisation accepts."""
    return DamagedError(
        fold.adapter.checkpoint.path,
        f"folding {fold.contribution.module.key} into {info.name} involves a matrix that lora-inspect cannot "
        "invert or decompose",
        "repair the file that holds numbers too large for that, or not finite",
    )


SINGLE, DOUBLE = "F32", "F64"
_MOST_BITS_OF_SINGLE = 16


def working_type(read: str, written: str) -> str:
    """Return the type in which a weight of type `read` is folded to be `written` in the same or another type.

    In float32 a sum is off by more than its last rounding if its terms are larger than the sum, so a float32 output is
    folded in float64.
    """
    return DOUBLE if read == DOUBLE or BITS[written] > _MOST_BITS_OF_SINGLE else SINGLE


def working_types(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the coarsest type in which weights are folded, by the element type of the output.

    `pairs` are (read, written), as `working_type` takes them.
    """
    found: dict[str, str] = {}
    for read, written in sorted(set(pairs)):
        found[written] = SINGLE if found.get(written) == SINGLE else working_type(read, written)
    return dict(sorted(found.items()))


def recorded_type(written: str, recorded: Mapping[str, str]) -> str:
    """Return the coarsest type in which a merge can have folded a weight that is `written` in a type, by its record."""
    return recorded.get(written, DOUBLE if written == DOUBLE else SINGLE)
