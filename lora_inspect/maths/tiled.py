"""Changes that every shard of a row's entries has in common, as MiSS makes them. Tensor methods alone.

A shard is `rank` neighbouring columns of the weight. Source: Kang & Yin 2024 (MiSS, first called Bone).
"""

from dataclasses import dataclass
from typing import Any

from lora_inspect.maths.change import Change


@dataclass(frozen=True, slots=True)
class Tiled(Change):
    """W + multiplier · delta, where delta[row, column] = tile[row % period, column % rank].

    `tile` is (period, rank). A last shard that is narrower than the others gets the first columns of the tile.
    """

    tile: Any
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Adds the tile to each shard of the rows."""
        period, rank = self.tile.shape
        own = self.tile[[row % period for row in range(first, first + rows.shape[0])]] * multiplier
        whole = rows.shape[1] - rows.shape[1] % rank
        rows[:, :whole].unflatten(1, (-1, rank)).add_(own.unsqueeze(1))
        rows[:, whole:].add_(own[:, : rows.shape[1] - whole])


@dataclass(frozen=True, slots=True)
class TurnedTiles(Change):
    """Each (rank, rank) tile V of the weight becomes V + multiplier · (V @ B + B), with one B for each block of rows.

    `blocks` B are (out / rank, rank, rank).
    """

    blocks: Any

    @property
    def together(self) -> int:
        """The rows of a block."""
        size: int = self.blocks.shape[-1]
        return size

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Changes whole blocks of rows."""
        size, columns = self.together, rows.shape[1]
        own = self.blocks[first // size : (first + rows.shape[0]) // size]
        # (block, row, shard, column): the rows of a block and its shards are multiplied by the same matrix.
        tiles = rows.reshape(own.shape[0], size, columns // size, size)
        change = (tiles.flatten(1, 2) @ own).view_as(tiles) + own.unsqueeze(2)
        rows.add_(change.reshape(rows.shape), alpha=multiplier)
