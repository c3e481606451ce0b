"""Weights that were cast to eight bits, without a scale."""

from collections.abc import Mapping, Sequence
from typing import Any

from lora_inspect.codecs.record import Codec, CodeLayout, Encoding, Extremes, NoCode
from lora_inspect.codecs.scaled import REACH
from lora_inspect.files.safetensors.dtypes import FP8


def _prepared(tensors: Mapping[str, Any], layout: CodeLayout) -> str:
    """Return the element type of the codes."""
    stored: str = layout.detail
    return stored


class _Cast(Encoding):
    """The nearest code of each number; nothing is settled."""

    def __init__(self, stored: str) -> None:
        self._reach = REACH[stored]

    def extremes(self, rows: Any, first: int) -> Extremes:
        """Return the extremes of all the rows."""
        return Extremes(rows.amax(), rows.amin())

    def settled(self, seen: Extremes, first: int) -> None:
        """Raise NoCode if a number has no nearest code."""
        for value in (seen.largest.item(), seen.smallest.item()):
            if not self._reach.least < value < self._reach.most:
                raise NoCode(value)

    def numbers(self, rows: Any, settled: None, first: int) -> None:
        """Do nothing: the rows are the numbers."""

    def weight(self, numbers: Any, settled: None, first: int) -> None:
        """Do nothing: the numbers are the weight."""

    def settings(self, settled: Sequence[None]) -> dict[str, Any]:
        """Return no settings."""
        return {}


CODEC = Codec(
    "plain_fp8",
    "fp8",
    FP8,
    layout=lambda found: CodeLayout(found.codes.shape, found.codes.dtype),
    prepared=_prepared,
    encoding=_Cast,
)
