"""The step that makes one pair of factors of the slices of a fused layer, as loaders do not know numbered ones.

Slices that share down factors stack their up factors at no cost; others stand in blocks, each with columns of its own.
"""

from collections.abc import Sequence

from lora_inspect.architectures.rows import Runs
from lora_inspect.converting.steps.growth import Growth
from lora_inspect.converting.steps.part import Part
from lora_inspect.converting.steps.split_fuse import Piece, stack
from lora_inspect.converting.target.key_names import FACTORS


def fuse_slices(parts: Sequence[Part], carrier: str, growth: Growth) -> Sequence[Part]:
    """One part in the place of a split layer's slices; what is whole stays as it is.

    Its scale is 1 where readers know none, else the largest of the slices' own. Raises LoraInspectError where
    `growth` refuses the size, before the blocks are made.
    """
    slices = [(part, part.origin.rows) for part in parts if part.origin.rows is not None]
    if not slices:
        return parts
    whole = [part for part in parts if part.origin.rows is None]
    pieces = [Piece(part, Runs(start, stop - start)) for part, (start, stop) in slices]
    return [stack(pieces, slices[-1][1][1], 1.0 if carrier == FACTORS else None, growth), *whole]
