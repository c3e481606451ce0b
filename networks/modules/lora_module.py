"""LoRA on Linear layers and convolutions, including RS-LoRA and DoRA, and its initial factors.

Sources: Hu et al. 2021 (LoRA), Kalajdzievski 2023 (rsLoRA), Liu et al. 2024 (DoRA).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_inspect.algorithms import lora
from lora_inspect.maths import dora
from lora_inspect.maths.low_rank import GRAM, product_norm

from ..kernels import fused_lora
from ..kernels.base_weight import is_plain
from ..kernels.coded_weight import device_of, is_coded
from ..kernels.fused_lora import fused_gain, fused_linear
from ..kernels.half_precision import is_traced
from ..network_args import KAIMING, ORTHOGONAL
from .adapter_module import AdapterModule
from .base_forward import CONVOLUTIONS, check_dora, linear_sizes, weight_shape
from .dora_layer import DoRALayer
from .masks import RankMask, drop_ranks, is_training_step
from .perturbation import NO_SLICES, Perturbation

# Where factors are before a trainer moves them, whatever it has chosen for what it makes itself: a seed draws the same
# numbers, and under the device meta there would be none.
_PLACE: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
_CONVOLUTIONS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def linear_factors(in_features: int, sizes: Sequence[int], rank: int) -> tuple[list[nn.Linear], list[nn.Linear]]:
    """Return down (rank, in) and up (size, rank) for each slice of the output.

    They are drawn in the order of sd-scripts and musubi-tuner: all down, all up, and then all down again.
    """
    downs = [nn.Linear(in_features, rank, bias=False, **_PLACE) for _ in sizes]
    ups = [nn.Linear(rank, size, bias=False, **_PLACE) for size in sizes]
    for down, up in zip(downs, ups, strict=True):
        start(down, up)
    return downs, ups


def conv_factors(base: Any, rank: int) -> tuple[nn.Module, nn.Module]:
    """Return down (rank, in/groups, *kernel), which moves over the input as `base`, and up (out, rank, 1…)."""
    convolution = _CONVOLUTIONS[len(base.kernel_size) - 1]
    down = convolution(
        base.in_channels // base.groups,
        rank,
        base.kernel_size,
        base.stride,
        base.padding,
        base.dilation,
        padding_mode=base.padding_mode,
        bias=False,
        **_PLACE,
    )
    up = convolution(rank, base.out_channels, 1, bias=False, **_PLACE)
    start(down, up)
    down.groups = up.groups = base.groups
    return down, up


def start(down: Any, up: Any) -> None:
    """Set `down` to random values and `up` to zero, so that training begins at the base.

    Source: Hu et al. 2021.
    """
    nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    nn.init.zeros_(up.weight)


@torch.no_grad()
def start_orthogonal(down: Any, up: Any) -> None:
    """Set both factors of a Linear to random values with up @ down = 0.

    Their rows and columns span halves of the rank. Source: `orthogonal_init` of PEFT. Raises ValueError for an odd
    rank.
    """
    rank, in_features = down.weight.shape
    if rank % 2:
        raise ValueError(f"init_lora_weights=orthogonal needs an even rank, but it is {rank}")
    basis = torch.linalg.qr(torch.randn(rank, rank, dtype=torch.float64, device="cpu")).Q
    left = torch.randn(up.weight.shape[0], rank // 2, dtype=torch.float64, device="cpu")
    right = torch.randn(rank // 2, in_features, dtype=torch.float64, device="cpu")
    up.weight.copy_(left @ basis[1::2] / 10)
    down.weight.copy_(basis[0::2].t() @ right / 10)


class FactorPair(NamedTuple):
    """One down and up, as modules."""

    down: Any
    up: Any


class LoRAModule(AdapterModule):
    """y = W x + b + multiplier · scale · up(down(x)).

    With DoRA each row is scaled by magnitude / ‖V‖, but not the bias.

    State dict: `lora_down.weight` (rank, in, *kernel), `lora_up.weight` (out, rank, 1…), `alpha` (), and with DoRA
    `dora_layer.weight` (out,). With `split_dims` the output features fall into slices with factors of their own,
    `lora_down.{i}.weight` and `lora_up.{i}.weight`.

    DoRA is for nn.Linear, and with `dora_conv` for convolutions, which have output channels as rows. It excludes
    split_dims, dropout and rank_dropout. Elsewhere it stays off, and `dora_disabled_reason` gives the reason.

    With a `rank_mask` the timestep decides which ranks act: in training steps, and in evaluation mode if one is set.

    With `ggpo_sigma` and `ggpo_beta` the output has the noise of a `Perturbation` in training mode, for a whole layer.
    """

    options = frozenset(
        {
            "use_rslora",
            "use_dora",
            "dora_conv",
            "use_tlora",
            "loraplus_lr_ratio",
            "loraplus_unet_lr_ratio",
            "loraplus_text_encoder_lr_ratio",
            "ggpo_sigma",
            "ggpo_beta",
            "init_lora_weights",
            "split_dims",
            "split_qkv",
        }
    )

    def __init__(
        self,
        lora_name: str,
        org_module: nn.Module,
        multiplier: float = 1.0,
        lora_dim: int = 4,
        alpha: float | Tensor | None = 1,
        dropout: float | None = None,
        rank_dropout: float | None = None,
        module_dropout: float | None = None,
        split_dims: Sequence[int] | None = None,
        use_rslora: bool = False,
        use_dora: bool = False,
        init_lora_weights: str = KAIMING,
        dora_conv: bool = False,
        rank_mask: RankMask | None = None,
        ggpo_sigma: float | None = None,
        ggpo_beta: float | None = None,
    ) -> None:
        dropouts = (dropout, rank_dropout, module_dropout)
        super().__init__(lora_name, org_module, multiplier, lora_dim, alpha, *dropouts, use_rslora=use_rslora)
        self.split_dims = list(split_dims) if split_dims else None
        self.rank_mask = rank_mask
        if rank_mask is not None:
            self._check_mask(use_dora, init_lora_weights)
            rank_mask.ranks.add(lora_dim)
        self._build_factors(org_module)
        self._start_factors(init_lora_weights)
        self.dora_disabled_reason = self._find_dora_obstacle(org_module, dora_conv) if use_dora else None
        self.use_dora = use_dora and self.dora_disabled_reason is None
        if self.use_dora:
            check_dora(lora_name, org_module)
            self.dora_layer = DoRALayer(weight_shape(org_module)[0])
        self.perturbation: Perturbation | None = None
        if ggpo_sigma is not None and ggpo_beta is not None:
            self.perturbation = self._create_perturbation(org_module, ggpo_sigma, ggpo_beta)

    def _build_factors(self, base: Any) -> None:
        # Negative: the rank axis is the last after a Linear, and stands before the positions after a convolution.
        self._rank_axis = -1
        self._groups = 1
        if isinstance(base, CONVOLUTIONS):
            if self.split_dims:
                raise ValueError(f"{self.lora_name}: split_dims are for Linear layers, not for {type(base).__name__}")
            self._rank_axis -= len(base.kernel_size)
            self._groups = base.groups
            self.lora_down, self.lora_up = conv_factors(base, self.lora_dim)
            return
        sizes = linear_sizes(base)
        if sizes is None:
            raise ValueError(f"{self.lora_name}: a {type(base).__name__} is neither a Linear nor a convolution")
        in_features, out_features = sizes
        if not self.split_dims:
            [self.lora_down], [self.lora_up] = linear_factors(in_features, [out_features], self.lora_dim)
            return
        if sum(self.split_dims) != out_features:
            raise ValueError(f"{self.lora_name}: split_dims {self.split_dims} do not add up to {out_features}")
        self.lora_down, self.lora_up = map(nn.ModuleList, linear_factors(in_features, self.split_dims, self.lora_dim))

    def _start_factors(self, init_lora_weights: str) -> None:
        """Set the factors by the option; they are kaiming already, and convolutions stay so."""
        if init_lora_weights not in (KAIMING, ORTHOGONAL):
            raise ValueError(f"{self.lora_name}: init_lora_weights={init_lora_weights} is for a PissaModule")
        if init_lora_weights == ORTHOGONAL and not self._is_convolution:
            for down, up in self.factors:
                start_orthogonal(down, up)

    def _check_mask(self, use_dora: bool, init_lora_weights: str) -> None:
        if use_dora:
            raise ValueError(
                f"{self.lora_name}: use_tlora cannot be combined with use_dora, as its norm covers all ranks; "
                "leave one of them out"
            )
        if init_lora_weights == ORTHOGONAL:
            raise ValueError(
                f"{self.lora_name}: use_tlora cannot be combined with init_lora_weights=orthogonal, as its "
                "factors cancel only where all ranks act; leave it out, or start from pissa"
            )

    def _create_perturbation(self, base: nn.Module, sigma: float, beta: float) -> Perturbation:
        if self.split_dims:
            raise ValueError(f"{self.lora_name}: {NO_SLICES}")
        if device_of(base).type == "meta":
            raise ValueError(
                f"{self.lora_name}: ggpo_sigma and ggpo_beta need the base's weights, which are not loaded yet"
            )
        with self.naming_unknown_values("ggpo_sigma"):
            return Perturbation(base, sigma, beta)

    @property
    def _is_convolution(self) -> bool:
        return self._rank_axis != -1

    def _find_dora_obstacle(self, base: nn.Module, dora_conv: bool) -> str | None:
        is_linear = isinstance(base, nn.Linear) or (linear_sizes(base) is not None and is_coded(base))
        if not (is_linear or (dora_conv and self._is_convolution)):
            return "non-Linear"
        if self.split_dims:
            return "split_dims"
        if self.dropout:
            return "dropout"
        return "rank_dropout" if self.rank_dropout else None

    @property
    def factors(self) -> list[FactorPair]:
        """The pairs of layers, one for each slice of the output."""
        if isinstance(self.lora_down, nn.ModuleList) and isinstance(self.lora_up, nn.ModuleList):
            return [FactorPair(down, up) for down, up in zip(self.lora_down, self.lora_up, strict=True)]
        return [FactorPair(self.lora_down, self.lora_up)]

    def apply_to(self) -> None:
        """Wrap the base's forward, and give DoRA its magnitude unless one was loaded."""
        if self.org_forward is not None:
            return
        base = self.org_module
        if self.use_dora and not self.dora_layer.initialised:
            down, up = self.factors[0]
            with self.naming_unknown_values("use_dora"):
                self.dora_layer.initialise(base, up.weight, down.weight, self._inner_scale())
        super().apply_to()

    def adapted(self, input: Tensor) -> Tensor:
        """Return the output with the change, and in training mode with the noise of GGPO, in the base's dtype."""
        output = self._changed(input)
        if self.perturbation is None or not self.training:
            return output
        noise = self.perturbation.output(self.org_module, input, next(self.parameters()))
        return output if noise is None else (output + noise).to(output.dtype)

    def _changed(self, input: Tensor) -> Tensor:
        """Return the output with the change, computed in the wider dtype and rounded once to the base's."""
        base = self.org_module
        autocast = torch.is_autocast_enabled(input.device.type)
        if self._base_is_plain and not autocast:
            weight: Tensor = base.weight
            if input.dtype == weight.dtype and is_plain(weight):
                return self._adapted_plain(input, weight, base.bias)
        assert self.org_forward is not None
        output = self.org_forward(input)
        change = self._change(input, cast=not autocast)
        if not self.use_dora:
            return (output + change).to(output.dtype)
        # Over the positions of a convolution's output, which stand behind its channels.
        per_output = (-1, *[1] * (-1 - self._rank_axis))
        gain = self._gain(input.dtype).view(per_output)
        bias = None if base.bias is None else base.bias.view(per_output)
        combine = fused_lora.scaled_sum if is_traced() else fused_gain
        return combine(output, change, gain, bias)

    def _adapted_plain(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        tokens = input.reshape(-1, input.shape[-1])
        gain = self._gain() if self.use_dora else None
        if self._is_one_product and not is_traced():
            down, up = self.factors[0]
            dtype = torch.promote_types(torch.float32, weight.dtype)
            scale = self.scale * self.multiplier
            output = fused_linear(tokens, weight, bias, down.weight.to(dtype), up.weight.to(dtype), scale, gain)
            return output.view(*input.shape[:-1], output.shape[-1])
        # Dropout of whole ranks is per sample, so it has to see the samples' axis.
        products = [
            fused_lora.FusedProduct(self._hidden(input, down, cast=True).reshape(-1, up.weight.shape[1]), up.weight)
            for down, up in self.factors
        ]
        if gain is not None:
            output = fused_lora.dora_linear(tokens, weight, bias, products, gain)
        else:
            output = fused_lora.lora_linear(tokens, weight, bias, products)
        return output.view(*input.shape[:-1], output.shape[-1])

    @property
    def _is_one_product(self) -> bool:
        is_dropping = bool(self.dropout or self.rank_dropout) and self.is_dropping
        return not self.split_dims and not is_dropping and not self._is_masked

    @property
    def _is_masked(self) -> bool:
        """True if the timestep decides which ranks act.

        In a trainer's samples all ranks act, since they show the result of other programs with its files.
        """
        if self.rank_mask is None:
            return False
        return is_training_step() if self.training else self.rank_mask.is_set

    def _change(self, input: Tensor, cast: bool) -> Tensor:
        """Return the scaled change of the output, in the adapter's dtype."""
        changes = [up(self._hidden(input, down, cast)) for down, up in self.factors]
        return changes[0] if len(changes) == 1 else torch.cat(changes, dim=-1)

    def _hidden(self, input: Tensor, down: Any, cast: bool) -> Tensor:
        """Return down(input) with its dropouts and the scale.

        It is the smallest tensor that can take the scale.
        """
        if cast and input.is_floating_point() and input.dtype != down.weight.dtype:
            input = input.to(down.weight.dtype)
        if self._groups == 1:
            hidden: Tensor = down(input)
        else:
            # Every group of inputs meets the same `down`, so that up @ down is the delta of the grouped weight.
            weight = down.weight.repeat(self._groups, *[1] * (down.weight.dim() - 1))
            hidden = down._conv_forward(input, weight, None)
        if (self.dropout or self.rank_dropout) and self.is_dropping:
            if self.dropout:
                hidden = F.dropout(hidden, self.dropout)
            if self.rank_dropout:
                hidden = drop_ranks(hidden, self.rank_dropout, self._rank_axis)
        if self.rank_mask is not None and self._is_masked:
            hidden = self.rank_mask.masked(hidden, self.lora_dim, self._rank_axis)
        return hidden * (self.scale * self.multiplier)

    def _gain(self, dtype: torch.dtype | None = None) -> Tensor:
        """Return the gain of this step; `dtype` is that of the input of a base that is no plain Linear."""
        down, up = self.factors[0]
        product = None if dtype is None else self.base_product_in(dtype)
        return self.dora_layer.gain(self.org_module, up.weight, down.weight, self._inner_scale(), product)

    def _inner_scale(self) -> float:
        return self.scale * dora.inner_multiplier(self.multiplier, dora.INSIDE)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the up factors as "plus", the magnitude as "dora", and the down factors as ""."""
        groups = {"": list(self.lora_down.parameters()), "plus": list(self.lora_up.parameters())}
        if self.use_dora:
            groups["dora"] = list(self.dora_layer.parameters())
        return groups

    @torch.no_grad()
    def update_norms(self) -> None:
        """Give the noise of GGPO the row norms of the factors; in evaluation mode, and without GGPO, do nothing."""
        if self.perturbation is not None and self.training:
            down, up = self.factors[0]
            self.perturbation.update_norms(up.weight, down.weight)

    def update_grad_norms(self) -> None:
        """Give the noise of GGPO the row norms of the gradient; in evaluation mode, and without GGPO, do nothing."""
        if self.perturbation is not None and self.training:
            self.perturbation.update_gradient_norms(self.lora_up.weight, self.lora_down.weight, self.scale)

    @torch.no_grad()
    def change_norm(self) -> Tensor:
        """Return ‖scale · up @ down‖ over all slices, without DoRA's magnitude."""
        norms = [
            product_norm(*lora.matrices({"up": up.weight.float(), "down": down.weight.float()}), GRAM)
            for down, up in self.factors
        ]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm * abs(self.scale)

    @torch.no_grad()
    def shrink(self, ratio: Tensor) -> None:
        """Share the ratio evenly between both factors."""
        root = ratio.sqrt()
        for down, up in self.factors:
            down.weight.mul_(root)
            up.weight.mul_(root)
