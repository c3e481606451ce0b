"""What LoHa and LoKr share: a change of the weight that is computed as a whole, and added beside the base's forward."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..files import reading
from ..files.stored_alpha import read_alpha
from ..kernels.base_weight import PLAIN_DTYPES
from .adapter_module import AdapterModule
from .foldable import FoldableModule


class DeltaModule(AdapterModule):
    """y = base(x) + layer(x, multiplier · scale · delta), for Linear layers and convolutions of any kind.

    The factors are parameters called `prefix` and role; `formula` is the file of `lora_inspect.algorithms` that
    knows what they mean. `dropout` drops inputs of the change, `rank_dropout` outputs of it, for all samples alike:
    there are no activations of a rank.
    """

    prefix: str
    formula: Any
    reader: reading.FactorReader

    def __init__(
        self,
        lora_name: str,
        org_module: nn.Module,
        *args: Any,
        use_rslora: bool = False,
        use_dora: bool = False,
        **kwargs: Any,
    ) -> None:
        if use_rslora or use_dora:
            raise ValueError(f"{lora_name}: use_rslora and use_dora are for LoRA, not for {type(self).__name__}")
        super().__init__(lora_name, org_module, *args, **kwargs)
        if not isinstance(org_module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and not hasattr(org_module, "in_features"):
            raise ValueError(f"{lora_name}: a {type(org_module).__name__} is neither a Linear nor a convolution")

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(out, in·kernel) of the base's weight."""
        weight: Tensor = self.org_module.weight
        return weight.shape[0], weight[0].numel()

    def add_factors(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Makes a parameter of each shape, by role, without a value yet."""
        for role, shape in shapes.items():
            self.register_parameter(self.prefix + role, nn.Parameter(torch.empty(shape)))

    @property
    def factors(self) -> dict[str, nn.Parameter]:
        """The factors by role."""
        return {name.removeprefix(self.prefix): factor for name, factor in self.named_parameters()}

    def adapted(self, input: Tensor) -> Tensor:
        """The output with the change in it: added in the wider dtype, rounded once to the base's own."""
        base = self.org_module
        assert self.org_forward is not None
        output = self.org_forward(input)
        delta = self.formula.delta(self.factors) * (self.scale * self.multiplier)
        if self.rank_dropout and self.is_dropping:
            delta = delta * F.dropout(delta.new_ones(delta.shape[0], 1), self.rank_dropout)
        # Under autocast the product below chooses its dtype itself.
        if not torch.is_autocast_enabled(input.device.type) and input.is_floating_point():
            input = input.to(delta.dtype)
        if self.dropout and self.is_dropping:
            input = F.dropout(input, self.dropout)
        if hasattr(base, "in_features"):
            change = F.linear(input, delta)
        else:
            # The convolution's own way of padding and grouping, with another weight.
            change = base._conv_forward(input, delta.view(base.weight.shape), None)
        return (output + change).to(output.dtype)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All factors alike: LoRA+ says nothing of these products."""
        return {"": list(self.parameters())}

    @torch.no_grad()
    def change_norm(self) -> Tensor:
        """‖scale · delta‖."""
        delta: Tensor = self.formula.delta({role: factor.float() for role, factor in self.factors.items()})
        norm: Tensor = delta.norm() * abs(self.scale)
        return norm

    @torch.no_grad()
    def shrink(self, ratio: Tensor) -> None:
        """Shares the ratio evenly between the factors, each of which the delta is linear in."""
        factors = list(self.parameters())
        for factor in factors:
            factor.mul_(ratio ** (1 / len(factors)))


class FoldableDelta(FoldableModule, DeltaModule):
    """DeltaModule for inference and merging."""

    def fold(self, tensors: Mapping[str, Tensor], rows: Tensor, multiplier: float) -> None:
        """Adds the delta."""
        _add_delta(self, self.lora_name, tensors, rows, self.lora_dim, multiplier)


def merge_into(
    module_class: type[DeltaModule],
    model_weight: Tensor,
    lora_name: str,
    lora_sd: Mapping[str, Tensor],
    lora_weight_keys: set[str],
    multiplier: float,
    calc_device: torch.device | str,
) -> Tensor:
    """The weight with the module called `lora_name` merged, in its own dtype; as it is where there is no such module.

    The keys that were used are removed from `lora_weight_keys`. Computed on `calc_device` in float32 or better. Raises
    ValueError for a weight that is no plain float, for what is no factor of the algorithm, and for factors that do not
    fit the weight.
    """
    keys = [key for key in lora_sd if key.partition(".")[0] == lora_name and key in lora_weight_keys]
    if multiplier == 0 or not any(key.startswith(f"{lora_name}.{module_class.prefix}") for key in keys):
        return model_weight
    if model_weight.dtype not in PLAIN_DTYPES:
        raise ValueError(f"{lora_name}: the base is stored as {model_weight.dtype}, which no change can be added to")
    working = torch.promote_types(model_weight.dtype, torch.float32)
    merged = model_weight.to(calc_device, working, copy=True)
    read = reading.read({key: lora_sd[key] for key in keys}, reader=module_class.reader.with_every_role)
    module = read.modules[lora_name]
    _add_delta(module_class, lora_name, module.tensors, merged.view(merged.shape[0], -1), module.rank, multiplier)
    lora_weight_keys.difference_update(keys)
    return merged.to(model_weight.device, model_weight.dtype)


def _add_delta(
    algorithm: Any, name: str, tensors: Mapping[str, Tensor], rows: Tensor, rank: int, multiplier: float
) -> None:
    """Adds the delta of `tensors` to `rows` (out, in·kernel) in place, in their dtype."""
    prefix = algorithm.prefix
    shapes = {key.removeprefix(prefix): tuple(tensors[key].shape) for key in tensors if key.startswith(prefix)}
    if wrong := algorithm.formula.check(shapes):
        raise ValueError(f"{name}: {wrong}")
    delta = algorithm.formula.delta({role: tensors[prefix + role].to(rows) for role in shapes})
    if delta.shape != rows.shape:
        raise ValueError(
            f"{name}: its factors change a weight of {list(delta.shape)}, but the base's is {list(rows.shape)}"
        )
    alpha = read_alpha(name, tensors.get("alpha"), rank, rslora=False)
    rows.add_(delta, alpha=algorithm.formula.scale(alpha, shapes) * multiplier)
