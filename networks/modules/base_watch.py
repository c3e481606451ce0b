"""Notices that a base was exchanged for another in the middle of training, which DoRA's magnitudes are not made for."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# Sums of the same squares differ by less on every device and in every order; those of another model by far more.
_TOLERANCE = 1e-5

_EXCHANGED = (
    "DoRA: the weights of the base are others than those that training began with, as when the two models of Wan 2.2 "
    "take turns. The magnitudes started as the row norms of the first, and give them to the rows of the second: its "
    "outputs change by more than what is learned. Train one network for each base, or without use_dora"
)


class Notice:
    """Whether the layers of one network have said it."""

    def __init__(self) -> None:
        self.given = False


class BaseWatch:
    """The squared row norms of the base that training began with. Says once, in a training step, that they changed."""

    def __init__(self) -> None:
        self.notice = Notice()
        self._squares: Tensor | None = None
        self._weight = 0

    def begin(self, base: nn.Module, squares: Tensor) -> None:
        """Takes the base as the one that training begins with."""
        self._squares, self._weight = squares, id(base.weight)

    def check(self, base: nn.Module, squares: Tensor) -> None:
        """Compares the base with the first one; a base that is itself trained may change."""
        weight: Any = base.weight
        if self.notice.given or weight.requires_grad:
            return
        if self._squares is None:
            self.begin(base, squares)
            return
        # Elsewhere than on the CPU a comparison waits for the device, so it needs an occasion: another parameter.
        if squares.device.type != "cpu" and id(weight) == self._weight:
            return
        self._weight = id(weight)
        if not torch.allclose(squares, self._squares.to(squares), rtol=_TOLERANCE, atol=0.0, equal_nan=True):
            self.notice.given = True
            logger.warning(_EXCHANGED)


def share_notice(watches: Iterable[BaseWatch]) -> None:
    """Makes these say it once between them."""
    notice = Notice()
    for watch in watches:
        watch.notice = notice
