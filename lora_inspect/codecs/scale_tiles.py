"""The order in which matrix units of processors take the scales of blocks: in tiles of 128 rows and 4 blocks.

A matrix of scales is padded to whole tiles, which follow one another row of tiles by row of tiles. In a tile row
32·j + i has its four scales at 16·i + 4·j: rows 32 apart are neighbours. Source: cuBLAS, "1D block scaling factors".
"""

from typing import Any

ROWS, COLUMNS = 128, 4
_LANES = 32


def padded(rows: int, columns: int) -> tuple[int, int]:
    """The shape in which the scales of so many rows and blocks in a row are stored."""
    return rows + -rows % ROWS, columns + -columns % COLUMNS


def scales_of_rows(tiles: Any, first: int, stop: int, columns: int) -> Any:
    """The scales (stop - first, columns) of the rows from `first` on, from all of them as they are stored."""
    across = (columns + COLUMNS - 1) // COLUMNS
    above, below = first // ROWS, (stop + ROWS - 1) // ROWS
    taken = tiles.reshape(-1, across, _LANES, ROWS // _LANES, COLUMNS)[above:below]
    rows = taken.permute(0, 3, 2, 1, 4).reshape((below - above) * ROWS, across * COLUMNS)
    return rows[first - above * ROWS : stop - above * ROWS, :columns]
