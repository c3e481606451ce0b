"""A change that a small network makes of the weight itself: that of PEANuT. Tensor methods alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lora_inspect.maths.change import Blocks, Change, LowRank, Transposed, summed_products


@dataclass(frozen=True, slots=True)
class SeenByNetwork(Change):
    """W + scale · B f(A W), with `down` A (r, out) and `up` B (out, r), and a network f of each column of A W.

    f is `activation`, then as many `encoders` (r, r) and `decoders` (r, r) as there are, each with it after them; what
    went into the last encoder is added to what comes out of the first decoder, and so on.
    """

    down: Any
    up: Any
    encoders: Sequence[Any]
    decoders: Sequence[Any]
    activation: Callable[[Any], Any]
    scale: float
    together: int = 1

    def settled(self, blocks: Blocks, multiplier: float) -> Change:
        """What the network makes of the whole weight, which is a product of thin matrices with B."""
        hidden = self.activation(summed_products(self.down, blocks))
        kept = []
        for encoder in self.encoders:
            kept.append(hidden)
            hidden = self.activation(encoder @ hidden)
        for decoder in self.decoders:
            hidden = self.activation(decoder @ hidden) + kept.pop()
        return LowRank(self.up, hidden, self.scale)

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Raises ValueError: it has to see the whole weight first."""
        raise ValueError("the change is not settled yet")

    def transposed(self) -> Change:
        """The weight is turned round first."""
        return Transposed(self)
