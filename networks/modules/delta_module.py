"""The base class of LoHa and LoKr: a change that is applied next to or within the base, but not built."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_inspect.maths import dora

from ..files import reading
from ..kernels import fused_lora
from ..kernels.adapted_linear import Kernel, adapted_linear
from ..kernels.base_weight import PLAIN_DTYPES, CombinedSquares, is_plain, squares_with_change
from ..kernels.coded_weight import device_of, dtype_of, is_coded
from ..kernels.fused_lora import fused_gain
from ..kernels.half_precision import is_served, is_traced, rows_at_once
from .adapter_module import AdapterModule
from .base_forward import CONVOLUTIONS, check_dora, weight_shape
from .dora_layer import DoRALayer, Norms, Product, ThinChange, norm_dtype


class DeltaModule(AdapterModule):
    """y = base(x) + layer(x, multiplier · scale · delta), for Linear layers and all convolutions.

    The factors are parameters called `prefix` and role; `formula` is the file of `lora_inspect.algorithms` that knows
    their meaning. `dropout` drops inputs of the change, and `rank_dropout` its outputs, the same for all samples: there
    are no activations of a rank.

    With DoRA each row of the sum is scaled by magnitude / ‖V‖, V = W + multiplier · scale · delta, and the bias is not.
    The magnitude is `dora_layer.weight` (out,). The same layers as in LoRA have it, see LoRAModule.
    """

    prefix: str
    formula: Any
    reader: reading.DialectTensors
    options = frozenset({"use_dora", "dora_conv"})

    def __init__(
        self,
        lora_name: str,
        org_module: nn.Module,
        *args: Any,
        use_rslora: bool = False,
        use_dora: bool = False,
        dora_conv: bool = False,
        **kwargs: Any,
    ) -> None:
        if use_rslora:
            raise ValueError(
                f"{lora_name}: use_rslora is for LoRA, not for {type(self).__name__}, as every program applies "
                "its files with alpha/rank; use an alpha that is sqrt(rank) times larger for the same change"
            )
        super().__init__(lora_name, org_module, *args, **kwargs)
        if not isinstance(org_module, CONVOLUTIONS) and not hasattr(org_module, "in_features"):
            raise ValueError(f"{lora_name}: a {type(org_module).__name__} is neither a Linear nor a convolution")
        self.dora_disabled_reason = self._find_dora_obstacle(dora_conv) if use_dora else None
        self.use_dora = use_dora and self.dora_disabled_reason is None
        if self.use_dora:
            check_dora(lora_name, org_module)
            self.dora_layer = DoRALayer(self.matrix_shape[0])
            # LyCORIS and the programs that read its files know no other spelling.
            self.dora_scale_axes = len(weight_shape(org_module))

    def _find_dora_obstacle(self, dora_conv: bool) -> str | None:
        base = self.org_module
        is_linear = isinstance(base, nn.Linear) or (hasattr(base, "in_features") and is_coded(base))
        if not (is_linear or (dora_conv and isinstance(base, CONVOLUTIONS))):
            return "non-Linear"
        if self.dropout:
            return "dropout"
        return "rank_dropout" if self.rank_dropout else None

    @property
    def zero_factor(self) -> Tensor:
        """The factor that is zero before the first step, and with it the delta."""
        raise NotImplementedError

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(out, in·kernel) of the base's weight."""
        out_features, *columns = weight_shape(self.org_module)
        return out_features, prod(columns)

    def add_factors(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Create a parameter of each shape, by role, without a value yet."""
        for role, shape in shapes.items():
            self.register_parameter(
                self.prefix + role, nn.Parameter(torch.empty(shape, dtype=torch.float32, device="cpu"))
            )

    @property
    def factors(self) -> dict[str, nn.Parameter]:
        """The factors by role."""
        named = self.named_parameters(recurse=False)
        return {name.removeprefix(self.prefix): factor for name, factor in named}

    def apply_to(self) -> None:
        """Wrap the base's forward, and give DoRA its magnitude unless one was loaded."""
        if self.org_forward is None and self.use_dora and not self.dora_layer.initialised:
            with self.naming_unknown_values("use_dora"):
                self.dora_layer.start(self.org_module, self._norms)
        super().apply_to()

    def kernel(self, tokens: int, dtype: torch.dtype, shares_base: bool) -> tuple[Kernel, Sequence[Tensor]]:
        """Return the kernel for a Linear's scaled change in `dtype`, and its factors.

        `tokens` is the number of tokens of the input. `shares_base` says that the kernel also computes the base's
        products.
        """
        raise NotImplementedError

    def convolved(self, input: Tensor, positions: int) -> Tensor:
        """Return the scaled change of a convolution's output (samples, out, …).

        `positions` is the number of all its positions. It is computed in the dtype of the input (samples, in, …), or in
        autocast's.
        """
        raise NotImplementedError

    def combined_squares(self, factors: Mapping[str, Tensor], scale: float) -> CombinedSquares:
        """Return the function for the sums of squares of rows of the base's weight + scale · delta.

        The factors, by role, are detached.
        """
        raise NotImplementedError

    def thin_change(self, factors: Mapping[str, Tensor], scale: float) -> ThinChange | None:
        """Return scale · delta of a Linear by few rows, or None if their product costs more than decoding the base.

        The factors, by role, are detached.
        """
        raise NotImplementedError

    def adapted(self, input: Tensor) -> Tensor:
        """Return the output with the change, computed in the wider dtype and rounded once to the base's."""
        base = self.org_module
        if self._may_share_base(input):
            tokens = input.reshape(-1, input.shape[-1])
            kernel, factors = self.kernel(tokens.shape[0], self._dtype(input), shares_base=True)
            gain = self._gain() if self.use_dora else None
            output = adapted_linear(kernel, tokens, base.weight, base.bias, gain, factors)
            return output.view(*input.shape[:-1], output.shape[-1])
        assert self.org_forward is not None
        output = self.org_forward(input)
        change = self._change(input, output)
        if not self.use_dora:
            return (output + change).to(output.dtype)
        # Over the positions of a convolution's output, which stand behind its channels.
        per_output = (-1, *[1] * len(getattr(base, "kernel_size", ())))
        bias = None if base.bias is None else base.bias.view(per_output)
        combine = fused_lora.scaled_sum if is_traced() else fused_gain
        gain = self._gain(self.base_product_in(input.dtype)).view(per_output)
        return combine(output, change, gain, bias)

    def _gain(self, product: Product | None = None) -> Tensor:
        return self.dora_layer.gain_of(self.org_module, self._norms(product), self.zero_factor)

    @torch.no_grad()
    def _norms(self, product: Product | None = None) -> Norms:
        """Return the norms for DoRALayer; the multiplier is inside them too.

        ‖W‖² can be kept, but not what the inner products of W and the delta need: over all values of the factors they
        determine W. A base in codes computes them by `product` if the delta is thin, and is decoded each time
        otherwise. A decoded copy would save the decoding, on a CPU a quarter of this time for NF4 and a tenth for int8,
        but a bfloat16 copy makes an NF4 base five times as large.
        """
        base = self.org_module
        device, dtype = device_of(base), norm_dtype(base, self.zero_factor)
        scale = self.scale * dora.inner_multiplier(self.multiplier, dora.INSIDE)
        factors = {role: factor.detach().to(device, dtype) for role, factor in self.factors.items()}
        # Autocast would compute the delta in half precision, float32 factors or not.
        with torch.autocast(device.type, enabled=False):
            thin = self.thin_change(factors, scale) if product is not None and is_coded(base) else None
            if thin is None:
                combined = self.combined_squares(factors, scale)
                base_squares, squares = squares_with_change(base, combined, dtype)
                return Norms(base_squares, dora.norm_from_square(squares))
        return self.dora_layer.norms_of(base, thin, product)

    def _may_share_base(self, input: Tensor) -> bool:
        """Return True if base and change may be one product, of the same input without steps in between."""
        dropping = (self.dropout or self.rank_dropout) and self.is_dropping
        plain = self._base_is_plain and not torch.is_autocast_enabled(input.device.type) and not is_traced()
        if not plain or dropping:
            return False
        weight: Tensor = self.org_module.weight
        return input.dtype == weight.dtype and is_plain(weight)

    def _change(self, input: Tensor, output: Tensor) -> Tensor:
        """Return the scaled change of the base's output for this input, with its dropouts."""
        if self.dropout and self.is_dropping:
            input = F.dropout(input, self.dropout)
        dtype = self._dtype(input)
        if isinstance(self.org_module, CONVOLUTIONS):
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
        """Return the dtype of the change: the wider of factors and base, at least float32.

        Under autocast it is autocast's dtype, if the device has products in it.
        """
        dtype = torch.promote_types(torch.float32, self.zero_factor.dtype)
        if torch.is_autocast_enabled(input.device.type) and dtype != torch.float64:
            chosen = torch.get_autocast_dtype(input.device.type)
            return chosen if is_served(input.device, chosen) else dtype
        own = dtype_of(self.org_module)
        return torch.promote_types(dtype, own) if own in PLAIN_DTYPES else dtype

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return all factors in one group, as LoRA+ does not treat these products, and the magnitude as "dora"."""
        groups = {"": list(self.factors.values())}
        return groups | {"dora": list(self.dora_layer.parameters())} if self.use_dora else groups

    @torch.no_grad()
    def change_norm(self) -> Tensor:
        """Return ‖scale · delta‖, a few rows at a time, without DoRA's magnitude."""
        device, (out_features, columns) = self.zero_factor.device, self.matrix_shape
        change = self.formula.change({role: factor.float() for role, factor in self.factors.items()}, self.scale, None)
        step = rows_at_once(columns, device)
        norms = []
        for first in range(0, out_features, step):
            rows = torch.zeros(min(step, out_features - first), columns, dtype=torch.float32, device=device)
            change.fold(rows, first, 1.0)
            norms.append(torch.linalg.vector_norm(rows))
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    @torch.no_grad()
    def shrink(self, ratio: Tensor) -> None:
        """Share the ratio evenly between the factors, since the delta is linear in each."""
        factors = self.factors.values()
        for factor in factors:
            factor.mul_(ratio ** (1 / len(factors)))
