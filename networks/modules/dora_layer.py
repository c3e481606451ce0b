"""DoRA's magnitude of one Linear, and the gain that it makes of it.

Source: Liu et al. 2024 (DoRA). The norm is held constant in the backward pass, as the paper's section 4.3 proposes.

Notices that a base was exchanged for another in the middle of training, which DoRA's magnitudes are not made for.
"""

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_inspect.maths import dora

from ..kernels.base_weight import squares_and_products
from ..kernels.half_precision import is_traced

logger = logging.getLogger(__name__)

# Sums of the same squares differ by less on every device and in every order; those of another model by far more.
_TOLERANCE = 1e-5

_EXCHANGED = (
    "DoRA: the weights of the base changed since training began, as when the two models of Wan 2.2 take "
    "turns. The magnitudes started as the row norms of the first base, and impose them on the rows of the "
    "second: its outputs change by more than the training. Train one network for each base, or without "
    "use_dora"
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


class Norms(NamedTuple):
    """The squared row norms (out,) of W, and the row norms (out,) of W with a change in it."""

    base_squares: Tensor
    combined: Tensor


class DoRALayer(nn.Module):
    """The magnitude, in the state dict `dora_layer.weight` of shape (out,), float32 whatever the base's dtype.

    `initialised` says whether it holds more than the ones that it is created with.
    """

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(out_features, dtype=torch.float32, device="cpu"))
        self.initialised = False
        self._start: Tensor | None = None
        self.watch = BaseWatch()

    def initialise(self, base: nn.Module, up: Tensor, down: Tensor, scale: float) -> None:
        """Sets the magnitude to the norms that `gain` divides by, so that every gain is 1.

        Raises ValueError while the base's weight is on the meta device.
        """
        self.start(base, partial(self._norms, base, up, down, scale))

    @torch.no_grad()
    def start(self, base: nn.Module, norms: Callable[[], Norms]) -> None:
        """`initialise` for any change; `norms` are asked for once the base is known to have a weight."""
        if base.weight.is_meta:
            raise ValueError("DoRA needs the weights of the base, which are not loaded yet (device meta)")
        self.weight.copy_(norms().combined)
        self._start = self.weight.detach().clone()
        self.initialised = True

    def gain(self, base: nn.Module, up: Tensor, down: Tensor, scale: float) -> Tensor:
        """magnitude / norm (out,): what each output of W + scale · up @ down is multiplied by."""
        return self.gain_of(base, self._norms(base, up, down, scale), up)

    def gain_of(self, base: nn.Module, norms: Norms, zero: Tensor) -> Tensor:
        """`gain` for any change; `zero` is the factor that is zero before the first step."""
        squares, norm = norms
        if not is_traced():
            self._follow_base(norm, zero)
            if torch.is_grad_enabled():
                self._watch_base(base, squares)
        gain: Tensor = dora.gain(self.weight, norm)
        return gain

    def norm(self, base: nn.Module, up: Tensor, down: Tensor, scale: float) -> Tensor:
        """The row norms (out,) of W + scale · up @ down, in float32 or better, without a gradient."""
        return self._norms(base, up, down, scale).combined

    @torch.no_grad()
    def _norms(self, base: nn.Module, up: Tensor, down: Tensor, scale: float) -> Norms:
        """Those of W + scale · up @ down.

        Both anew each time: trainers swap, cast and overwrite a weight in ways that leave no trace, and W has to be
        read anyhow, for W @ downᵀ.
        """
        weight: Any = base.weight
        dtype = torch.promote_types(torch.float32, up.dtype)
        if weight.dtype == torch.float64:
            dtype = torch.float64
        # Autocast would compute these products in half precision, float32 operands or not.
        with torch.autocast(weight.device.type, enabled=False):
            up, down = up.to(weight.device, dtype).flatten(1), down.to(weight.device, dtype).flatten(1)
            squares, base_down = squares_and_products(base, down)
            norm: Tensor = dora.norm_from_square(dora.expanded_squared_norm(squares, base_down, up, down, scale))
        return Norms(squares, norm)

    @torch.no_grad()
    def _follow_base(self, norm: Tensor, zero: Tensor) -> None:
        """Starts again from a base that was changed after `initialise` and before the first step.

        Trainers cast the base to fp8 after `apply_to`. Training has to begin at the model as it then is.
        """
        if self._start is None:
            return
        if zero.any() or not torch.equal(self._start.to(self.weight), self.weight):
            self._start = None
        elif not torch.equal(norm.to(self.weight), self.weight):
            self.weight.copy_(norm)
            self._start = self.weight.detach().clone()

    def _watch_base(self, base: nn.Module, squares: Tensor) -> None:
        if self._start is None:
            self.watch.check(base, squares)
        else:
            self.watch.begin(base, squares)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "weight" in state_dict:
            self.initialised, self._start = True, None
