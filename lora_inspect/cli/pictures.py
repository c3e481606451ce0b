"""Small pictures of numbers in a table: bars and sparklines of block characters, for a terminal that shows them."""

import math
import sys
from collections.abc import Sequence

from lora_inspect.cli.terminal import spelled

# The heights of a sparkline, and the widths of the last column of a bar, in eighths.
_HEIGHTS = "▁▂▃▄▅▆▇█"
_WIDTHS = " ▏▎▍▌▋▊▉"
_FULL = "█"
# A sparkline goes from 1 down to a thousandth.
_DECADES = 3.0


def can_draw() -> bool:
    """Return True for a terminal with an encoding of the characters; a pipe gets numbers."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return is_terminal and spelled(_HEIGHTS + _WIDTHS) == _HEIGHTS + _WIDTHS


def sparkline(ratios: Sequence[float], columns: int) -> str:
    """Return the course of falling ratios between 1 and 0, on a logarithmic scale.

    It is at most `columns` wide.
    """
    count = min(columns, len(ratios))
    last = len(ratios) - 1
    return "".join(_height(ratios[round(at * last / max(1, count - 1))]) for at in range(count))


def _height(ratio: float) -> str:
    share = 1.0 + math.log10(ratio) / _DECADES if ratio > 0.0 else 0.0
    return _HEIGHTS[round(max(0.0, min(1.0, share)) * (len(_HEIGHTS) - 1))]


def bar(share: float, columns: int) -> str:
    """Return a bar for a share of `columns`, padded with blanks."""
    eighths = round(max(0.0, min(1.0, share)) * columns * len(_WIDTHS))
    whole, rest = divmod(eighths, len(_WIDTHS))
    return (_FULL * whole + (_WIDTHS[rest] if rest else "")).ljust(columns)
