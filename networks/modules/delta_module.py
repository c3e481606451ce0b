"""What LoHa and LoKr share: a change of the weight that is computed with, beside the base or within it, not built."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_inspect.maths.change import Change

from ..files import reading
from ..kernels.adapted_linear import Kernel, adapted_linear
from ..kernels.base_weight import PLAIN_DTYPES
from ..kernels.row_blocks import rows_at_once
from ..kernels.tracing import is_traced
from .adapter_module import AdapterModule

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


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
        if not isinstance(org_module, _CONVOLUTIONS) and not hasattr(org_module, "in_features"):
            raise ValueError(f"{lora_name}: a {type(org_module).__name__} is neither a Linear nor a convolution")
        self._base_is_plain = False

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
        named = self.named_parameters(recurse=False)
        return {name.removeprefix(self.prefix): factor for name, factor in named}

    def apply_to(self) -> None:
        """Wraps the base's forward."""
        if self.org_forward is None:
            # Only torch's own forward may be computed here; a hook, another adapter or a patch has to be called.
            self._base_is_plain = type(self.org_module) is nn.Linear and "forward" not in vars(self.org_module)
        super().apply_to()

    def kernel(self, tokens: int, dtype: torch.dtype, shares_base: bool) -> tuple[Kernel, Sequence[Tensor]]:
        """What computes the scaled change of a Linear in `dtype`, and its factors, for an input of so many tokens.

        `shares_base` says that the base's products are its task too.
        """
        raise NotImplementedError

    def convolved(self, input: Tensor, positions: int) -> Tensor:
        """The scaled change of a convolution's output (samples, out, …), which has so many positions in all.

        Computed in the dtype of the input (samples, in, …), or in autocast's.
        """
        raise NotImplementedError

    def adapted(self, input: Tensor) -> Tensor:
        """The output with the change in it: computed in the wider dtype, rounded once to the base's own."""
        base = self.org_module
        if self._may_share_base(input):
            tokens = input.reshape(-1, input.shape[-1])
            kernel, factors = self.kernel(tokens.shape[0], self._dtype(input), shares_base=True)
            output = adapted_linear(kernel, tokens, base.weight, base.bias, None, factors)
            return output.view(*input.shape[:-1], output.shape[-1])
        assert self.org_forward is not None
        output = self.org_forward(input)
        return (output + self._change(input, output)).to(output.dtype)

    def _may_share_base(self, input: Tensor) -> bool:
        """Whether base and change may be one product, of the same input and with nothing in between."""
        dtype = self.org_module.weight.dtype
        dropping = (self.dropout or self.rank_dropout) and self.is_dropping
        plain = self._base_is_plain and not torch.is_autocast_enabled(input.device.type) and not is_traced()
        return plain and not dropping and input.dtype == dtype and dtype in PLAIN_DTYPES

    def _change(self, input: Tensor, output: Tensor) -> Tensor:
        """The scaled change of the base's output for this input, with its dropouts."""
        if self.dropout and self.is_dropping:
            input = F.dropout(input, self.dropout)
        dtype = self._dtype(input)
        if isinstance(self.org_module, _CONVOLUTIONS):
            channel = -1 - len(self.org_module.kernel_size)
            samples = input.to(dtype).view(-1, *input.shape[channel:])
            change = self.convolved(samples, output.numel() // max(1, output.shape[channel]))
        else:
            channel = -1
            tokens = input.reshape(-1, input.shape[-1])
            kernel, factors = self.kernel(tokens.shape[0], dtype, shares_base=False)
            if is_traced():
                change = kernel.composed(tokens, factors)
            else:
                change = adapted_linear(kernel, tokens, None, None, None, factors)
            change = change.view(output.shape)
        if self.rank_dropout and self.is_dropping:
            kept = F.dropout(change.new_ones(change.shape[channel]), self.rank_dropout)
            change = change * kept.view(-1, *[1] * (-1 - channel))
        return change

    def _dtype(self, input: Tensor) -> torch.dtype:
        """What the change is computed in: autocast's choice, else the wider of factors and base, at least float32."""
        dtype = torch.promote_types(torch.float32, next(iter(self.factors.values())).dtype)
        if torch.is_autocast_enabled(input.device.type) and dtype != torch.float64:
            return torch.get_autocast_dtype(input.device.type)
        weight: Tensor = self.org_module.weight
        return torch.promote_types(dtype, weight.dtype) if weight.dtype in PLAIN_DTYPES else dtype

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All factors alike: LoRA+ says nothing of these products."""
        return {"": list(self.factors.values())}

    def weight_change(self, dtype: torch.dtype) -> Change:
        """The scaled change of the base's weight, of detached factors in `dtype`."""
        tensors = {role: factor.detach().to(dtype) for role, factor in self.factors.items()}
        change: Change = self.formula.change(tensors, self.scale, None)
        return change

    @torch.no_grad()
    def change_norm(self) -> Tensor:
        """‖scale · delta‖, a few rows at a time."""
        change, (out_features, columns) = self.weight_change(torch.float32), self.matrix_shape
        device = next(iter(self.factors.values())).device
        step = rows_at_once(columns, device)
        norms = []
        for first in range(0, out_features, step):
            rows = torch.zeros(min(step, out_features - first), columns, device=device)
            change.fold(rows, first, 1.0)
            norms.append(torch.linalg.vector_norm(rows))
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    @torch.no_grad()
    def shrink(self, ratio: Tensor) -> None:
        """Shares the ratio evenly between the factors, each of which the delta is linear in."""
        factors = self.factors.values()
        for factor in factors:
            factor.mul_(ratio ** (1 / len(factors)))
