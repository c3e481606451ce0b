"""GGPO: noise on the weights in training, which keeps it away from sharp minima.

The weight (out, in, *kernel) of an adapted layer gets new noise P in each forward of a training. The entries of row i
have the standard deviation (sigma · N_i + beta · G_i²) / sqrt(out). N_i is the norm of the row with the adapter's
change, and G_i that of its gradient.

Sources: Chang et al. 2025 (LoRA-GGPO), in the form of `LoRAModule` of networks/lora_flux.py in sd-scripts. Its random
draws are repeated, so that a seed gives the same training.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora_inspect.maths import dora

from ..kernels.base_weight import true_weight
from .base_forward import CONVOLUTIONS, convolve_as, is_transposed, linear_sizes, weight_shape

NO_SLICES = "ggpo_sigma and ggpo_beta cannot be combined with split_qkv and split_dims; leave one of the two pairs out"
_SAMPLED_ROWS = 1000


class Perturbation:
    """The noise of one layer, with the row norms that it follows.

    All norms are (out, 1), and None before their first update. `weight_norms` are those of the change without its
    scale, `combined_norms` those of the base with the change, and `gradient_norms` those of the gradient of the weight.
    """

    def __init__(self, base: nn.Module, sigma: float, beta: float) -> None:
        """Estimate the mean row norm of the base from up to 1000 rows, drawn at random.

        Raises UnknownValues for codes of an unknown rule.
        """
        self.sigma, self.beta = sigma, beta
        self.weight_norms: Tensor | None = None
        self.combined_norms: Tensor | None = None
        self.gradient_norms: Tensor | None = None
        self._base_norm = _mean_row_norm(base)

    @torch.no_grad()
    def update_norms(self, up: Tensor, down: Tensor) -> None:
        """Take the norms of the rows of up (out, rank, 1…) @ down (rank, in, *kernel)."""
        with torch.autocast(up.device.type, enabled=False):
            squares = dora.product_squared_norm(up.flatten(1).float(), down.flatten(1).float()).clamp(min=0.0)[:, None]
            self.weight_norms = squares.sqrt()
            self.combined_norms = (self._base_norm.to(squares) ** 2 + squares).sqrt()

    @torch.no_grad()
    def update_gradient_norms(self, up: Any, down: Any, scale: float) -> None:
        """Take the norms of the rows of the gradient of the weight, from those of the parameters `up` and `down`.

        The gradient is scale · (up @ grad(down) + grad(up) @ down), in the half precision of the device's autocast.
        Without both gradients the norms stay.
        """
        if up.grad is None or down.grad is None:
            return
        with torch.autocast(up.device.type):
            from_down = up.flatten(1) @ down.grad.flatten(1)
            from_up = up.grad.flatten(1) @ down.flatten(1)
            self.gradient_norms = torch.norm(scale * (from_down + from_up), dim=1, keepdim=True)

    @torch.no_grad()
    def output(self, base: Any, input: Tensor, factor: Tensor) -> Tensor | None:
        """Return the output of a new P for `input`, without a gradient; None until both norms exist.

        P is drawn on the device of `factor`, in its dtype.
        """
        if self.combined_norms is None or self.gradient_norms is None:
            return None
        sizes = linear_sizes(base)
        shape = weight_shape(base) if sizes is None else sizes[::-1]
        deviations = (self.sigma * self.combined_norms + self.beta * self.gradient_norms**2) / math.sqrt(shape[0])
        noise = torch.randn(shape, dtype=factor.dtype, device=factor.device)
        noise.mul_(deviations.to(factor.device).view(-1, *[1] * (len(shape) - 1)))
        if not torch.is_autocast_enabled(input.device.type):
            input = input.to(noise.dtype)
        return convolve_as(base, input, noise) if isinstance(base, CONVOLUTIONS) else input @ noise.t()


def _mean_row_norm(base: nn.Module) -> Tensor:
    """Return the mean norm () of up to 1000 rows of the base's weight, in float32 on the CPU."""
    weight = true_weight(base, torch.float32).flatten(1)
    rows = weight.t() if is_transposed(base) else weight
    chosen = torch.randperm(rows.shape[0], dtype=torch.long, device="cpu")[:_SAMPLED_ROWS]
    norms: Tensor = torch.linalg.vector_norm(rows[chosen.to(rows.device)], dim=1)
    return norms.mean().cpu()


def mean_norms(perturbations: Iterable[Perturbation], name: str) -> Tensor | None:
    """Return the mean over the rows of the norms called `name`, (modules, 1); None before the first update."""
    norms: Sequence[Tensor] = [
        norm for perturbation in perturbations if (norm := getattr(perturbation, name)) is not None
    ]
    if not norms:
        return None
    return torch.stack([norm.mean(dim=0).to(norms[0].device) for norm in norms])
