"""DoRA's magnitude of one Linear, and the gain that it makes of it.

Source: Liu et al. 2024 (DoRA). The norm is held constant in the backward pass, as the paper's section 4.3 proposes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lora_inspect import dora

from .base_weight import fingerprint, squared_row_norms, times_transposed


class DoRALayer(nn.Module):
    """The magnitude, in the state dict `dora_layer.weight` of shape (out,), float32 whatever the base's dtype.

    `initialised` says whether it holds more than the ones that it is created with.
    """

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(out_features))
        self.initialised = False
        self._start: Tensor | None = None
        self._squares: Tensor | None = None
        self._squares_of: tuple[Any, ...] | None = None

    @torch.no_grad()
    def initialise(self, base: nn.Module, up: Tensor, down: Tensor, scale: float) -> None:
        """Sets the magnitude to the norms that `gain` divides by, so that every gain is 1.

        Raises ValueError while the base's weight is on the meta device.
        """
        if base.weight.is_meta:
            raise ValueError("DoRA needs the weights of the base, which are not loaded yet (device meta)")
        self.weight.copy_(self.norm(base, up, down, scale))
        self._start = self.weight.detach().clone()
        self.initialised = True

    def gain(self, base: nn.Module, up: Tensor, down: Tensor, scale: float) -> Tensor:
        """magnitude / norm (out,): what each output of W + scale · up @ down is multiplied by."""
        squares = self._squares
        norm = self.norm(base, up, down, scale)
        if self._start is not None and self._squares is not squares:
            self._follow_base(norm, up)
        gain: Tensor = dora.gain(self.weight, norm)
        return gain

    @torch.no_grad()
    def norm(self, base: nn.Module, up: Tensor, down: Tensor, scale: float) -> Tensor:
        """The row norms (out,) of W + scale · up @ down, in float32 or better, without a gradient.

        The product W @ downᵀ is the only one whose size grows with W; the norms of W itself are kept.
        """
        weight: Any = base.weight
        dtype = torch.promote_types(torch.float32, up.dtype)
        if weight.dtype == torch.float64:
            dtype = torch.float64
        # Autocast would compute these products in half precision, float32 operands or not.
        with torch.autocast(weight.device.type, enabled=False):
            up, down = up.to(weight.device, dtype).flatten(1), down.to(weight.device, dtype).flatten(1)
            expanded = dora.expanded_squared_norm(
                self._base_squares(base, dtype), times_transposed(base, down), up, down, scale
            )
            norm: Tensor = dora.norm_from_square(expanded)
        return norm

    def _base_squares(self, base: nn.Module, dtype: torch.dtype) -> Tensor:
        """The squared row norms of W, computed anew when its fingerprint is another."""
        if torch.compiler.is_compiling():  # a compiled graph has no storage to tell by
            return squared_row_norms(base, dtype)
        current = (*fingerprint(base), dtype)
        if self._squares is None or self._squares_of != current:
            self._squares, self._squares_of = squared_row_norms(base, dtype), current
        return self._squares

    @torch.no_grad()
    def _follow_base(self, norm: Tensor, up: Tensor) -> None:
        """Starts again from a base that was changed after `initialise` and before the first step.

        Trainers cast the base to fp8 after `apply_to`. Training has to begin at the model as it then is.
        """
        assert self._start is not None
        if up.any() or not torch.equal(self._start.to(self.weight), self.weight):
            self._start = None
        elif not torch.equal(norm, self.weight):
            self.weight.copy_(norm)
            self._start = self.weight.detach().clone()

    def forget_base(self) -> None:
        """Drops what is kept of the base's weight, for changes that leave no trace in its version."""
        self._squares = None

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "weight" in state_dict:
            self.initialised, self._start = True, None
        self.forget_base()
