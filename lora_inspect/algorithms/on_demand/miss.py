"""MiSS of PEFT, first called Bone: one small matrix that all shards of a row's inputs share.

A shard is r neighbouring inputs. Of a block B of shape (r, out) row i of the weight gets column i of B in every shard,
also in a last one that is narrower. With `init_weights="mini"`, and a block (r, mini_r) that repeats along the outputs,
it gets column i modulo mini_r. `init_weights="bat"` has a matrix (r, r) for each block of r rows, and each tile V of
the weight becomes V + V @ B + B. Shapes identify the last one, and `adapter_config.json` the mini one. PEFT's forward
and its merge are the same, and it has no multipliers. The functions use tensor methods only. Source: the `MissLayer` of
PEFT 0.21, Kang & Yin 2024.
"""

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors
from lora_inspect.maths.change import Change


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shape of the block (r, out or mini_r), or None."""
    block = shapes["block"]
    if len(block) != 2 or 0 in block:
        return f"a block {list(block)} is neither (r, outputs) nor (blocks, r, r)"
    return None


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (out, None): the columns are unknown."""
    return shapes["block"][1], None


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    rank, rows = shapes["block"]
    if _is_linear(weight) and weight[0] == rows and rank <= weight[1]:
        return None
    return f"changes a Linear weight of {rows} rows and of at least {rank} columns"


def misfit_of_mini(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    rank, period = shapes["block"]
    if _is_linear(weight) and weight[0] % period == 0 and rank <= weight[1]:
        return None
    return f"changes a Linear weight of a multiple of {period} rows and of at least {rank} columns"


def variant(around: Surroundings) -> Algorithm:
    """Return the mini form if the config says so, else the usual one."""
    return MINI if around.config is not None and around.config.get("init_weights") == "mini" else DEFAULT


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the block in every shard."""
    return Tiled(tensors["block"].transpose(0, 1).contiguous())


def check_bat(shapes: Shapes) -> str | None:
    """Return the problem with the shape of the blocks (out / r, r, r), or None."""
    block = shapes["block"]
    if len(block) != 3 or 0 in block or block[1] != block[2]:
        return f"a block {list(block)} is neither (r, outputs) nor (blocks, r, r)"
    return None


def shape_of_bat(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (out, None): the columns are unknown."""
    count, size, _ = shapes["block"]
    return count * size, None


def misfit_of_bat(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    count, size, _ = shapes["block"]
    if _is_linear(weight) and weight[0] == count * size and weight[1] % size == 0:
        return None
    return f"changes tiles of {size} rows and columns of a Linear weight of {count * size} rows"


def change_of_bat(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the tiles of each block of rows."""
    return TurnedTiles(tensors["block"])


def _is_linear(weight: tuple[int, ...]) -> bool:
    """Return True for a Linear weight: PEFT has MiSS only for Linear layers."""
    return len(weight) > 1 and prod(weight[2:]) == 1


_of_peft = partial(
    Algorithm,
    dialects={"peft": {"block": ".miss_block"}},
    marks=("block",),
    transposed=False,
    blends=False,
    has_alpha=False,
    peft_type="MISS",
)
MINI = _of_peft(
    name="miss_mini",
    title="MiSS with init_weights mini",
    equation="W + the block's column of each row, repeated, in all of its shards",
    writers="PEFT",
    formula=Formula(check, lambda shapes: (None, None), misfit_of_mini, rank=lambda shapes: None, change=change),
)
DEFAULT = _of_peft(
    name="miss",
    title="MiSS",
    equation="W + the block's column of each row in all of its shards",
    writers="PEFT",
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change),
    variant=variant,
)
BAT = _of_peft(
    name="miss_bat",
    title="MiSS with init_weights bat",
    equation="of each tile V: V + V @ B + B",
    writers="PEFT",
    formula=Formula(
        check_bat,
        shape_of_bat,
        misfit_of_bat,
        rank=lambda shapes: None,
        change=change_of_bat,
        together=lambda shapes: shapes["block"][1],
    ),
    multiplies=True,
)
# The first one that fits the shapes is taken, and says itself where it is another one.
ALGORITHMS = (DEFAULT, MINI, BAT)


@dataclass(frozen=True, slots=True)
class Tiled(Change):
    """W + multiplier · delta, where delta[row, column] = tile[row % period, column % rank].

    `tile` is (period, rank). A last shard that is narrower than the others gets the first columns of the tile.
    """

    tile: Any
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Add the tile to each shard of the rows."""
        period, rank = self.tile.shape
        own = self.tile[[row % period for row in range(first, first + rows.shape[0])]] * multiplier
        whole = rows.shape[1] - rows.shape[1] % rank
        rows[:, :whole].unflatten(1, (-1, rank)).add_(own.unsqueeze(1))
        rows[:, whole:].add_(own[:, : rows.shape[1] - whole])


@dataclass(frozen=True, slots=True)
class TurnedTiles(Change):
    """Each (rank, rank) tile V of the weight becomes V + multiplier · (V @ B + B), with one B per block of rows.

    `blocks` B are (out / rank, rank, rank).
    """

    blocks: Any

    @property
    def together(self) -> int:
        """The rows of a block."""
        size: int = self.blocks.shape[-1]
        return size

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Change whole blocks of rows."""
        size, columns = self.together, rows.shape[1]
        own = self.blocks[first // size : (first + rows.shape[0]) // size]
        # (block, row, shard, column): the rows of a block and its shards are multiplied by the same matrix.
        tiles = rows.reshape(own.shape[0], size, columns // size, size)
        change = (tiles.flatten(1, 2) @ own).view_as(tiles) + own.unsqueeze(2)
        rows.add_(change.reshape(rows.shape), alpha=multiplier)
