"""PiSSA: training starts from the largest singular components of the base, and changes them.

Source: Meng et al. 2024, W = residual + scale · up₀ @ down₀, with up and down trained from up₀ and down₀ on. The paper
replaces W by the residual. Here W stays unchanged, and the trained difference is added to it:

    up @ down - up₀ @ down₀ = (up - up₀) @ down + up₀ @ (down - down₀)

This is the same function, and a LoRA of twice the rank. So the change is exactly zero at the first step, and a
multiplier of 0 is the base and not the residual. Nothing of the base is rounded, and a saved file needs no base but W.
Both terms are as small as the change, so half precision rounds the change and not the components.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_inspect.maths.residual import principal_factors
from lora_inspect.maths.scaling import alpha_growth

from ..kernels.base_weight import true_weight
from ..kernels.coded_weight import device_of, dtype_of
from ..network_args import PISSA, pissa_iterations
from .lora_module import FactorPair, LoRAModule

_OPTION = f"init_lora_weights={PISSA}"
NO_NORM = f"{_OPTION} cannot be combined with scale_weight_norms; leave one of them out"


class _Linear(NamedTuple):
    """A factor that is computed and not a layer."""

    weight: Tensor

    def __call__(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight)


class PissaModule(LoRAModule):
    """LoRA on a Linear that starts from its principal components; without DoRA and slices.

    State dict: that of a LoRAModule, and the buffers `initial_down` (rank, in) and `initial_up` (out, rank). Until
    `apply_to` or a state dict has set them all, the change is zero. Dropouts act on the 2·rank activations of the
    change, so they add no noise to the base.
    """

    lora_down: nn.Linear
    lora_up: nn.Linear
    initial_down: Tensor
    initial_up: Tensor

    def __init__(
        self, lora_name: str, org_module: nn.Module, *args: Any, init_lora_weights: str = PISSA, **kwargs: Any
    ) -> None:
        if not hasattr(org_module, "in_features"):
            raise ValueError(
                f"{lora_name}: {_OPTION} is for Linear layers, not for {type(org_module).__name__}; "
                "leave convolutions out with conv_dim=0 or exclude_patterns"
            )
        super().__init__(lora_name, org_module, *args, **kwargs)
        if self.use_dora or self.dora_disabled_reason:
            raise ValueError(f"{lora_name}: {_OPTION} cannot be combined with use_dora; leave one of them out")
        if self.split_dims:
            raise ValueError(
                f"{lora_name}: {_OPTION} cannot be combined with split_dims and split_qkv; leave one of them out"
            )
        rank, shape = self.lora_dim, (self.lora_up.out_features, self.lora_down.in_features)
        if rank > min(shape):
            raise ValueError(
                f"{lora_name}: {_OPTION} finds no {rank} components in a weight of {shape[0]} x {shape[1]}; "
                "lower its rank with network_dim or rank_pattern"
            )
        if self.scale <= 0:
            raise ValueError(f"{lora_name}: {_OPTION} needs an alpha above 0, but it is {float(self.alpha):g}")
        self.iterations = pissa_iterations(init_lora_weights)
        self.initialised = False
        self.register_buffer("initial_down", torch.zeros_like(self.lora_down.weight))
        self.register_buffer("initial_up", torch.zeros_like(self.lora_up.weight))

    @torch.no_grad()
    def apply_to(self) -> None:
        """Wrap the base's forward, and take the factors from its weight unless they were loaded."""
        if self.org_forward is None and not self.initialised:
            if device_of(self.org_module).type == "meta":
                raise ValueError(f"{self.lora_name}: {_OPTION} needs the base's weights, which are not loaded yet")
            dtype = torch.float64 if dtype_of(self.org_module) == torch.float64 else torch.float32
            with self.naming_unknown_values(_OPTION):
                weight = true_weight(self.org_module, dtype)
            up, down = principal_factors(weight, self.lora_dim, self.iterations)
            root = math.sqrt(self.scale)
            for factor, initial, value in (
                (self.lora_up, self.initial_up, up),
                (self.lora_down, self.initial_down, down),
            ):
                factor.weight.copy_(value / root)
                initial.copy_(factor.weight)
            self.initialised = True
        super().apply_to()

    @property
    def factors(self) -> list[FactorPair]:
        """The change as one product of twice the rank."""
        down, up = self.lora_down.weight, self.lora_up.weight
        joint_down = torch.cat([down, down - self.initial_down])
        joint_up = torch.cat([up - self.initial_up, self.initial_up], dim=1)
        return [FactorPair(_Linear(joint_down), _Linear(joint_up))]

    def change_norm(self) -> Tensor:
        """Raise ValueError: shrinking the trained factors does not shrink the change, a difference."""
        raise ValueError(NO_NORM)

    def file_tensors(self) -> dict[str, Tensor]:
        """Return a plain LoRA of twice the rank, on the untouched base."""
        down, up = self.factors[0]
        alpha = self.alpha * alpha_growth(2, self.use_rslora)
        return {"alpha": alpha, "lora_down.weight": down.weight, "lora_up.weight": up.weight}

    def from_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict for the result of `file_tensors`."""
        down, down_change = tensors["lora_down.weight"].float().chunk(2)
        up_change, initial_up = tensors["lora_up.weight"].float().chunk(2, dim=1)
        return {
            "alpha": tensors["alpha"] / alpha_growth(2, self.use_rslora),
            "lora_down.weight": down,
            "lora_up.weight": initial_up + up_change,
            "initial_down": down - down_change,
            "initial_up": initial_up,
        }

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.initialised = self.initialised or prefix + "initial_up" in state_dict
