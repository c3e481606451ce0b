"""LoKr, as a network module for every architecture.

The option `architecture` or the model names the architecture. Another option is `factor`, one side of the small factor;
-1, the default, makes both factors as even as possible.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lora_inspect.algorithms import lokr
from lora_inspect.algorithms.record import Shapes

from .files.reading import DialectTensors, ModuleWeights
from .kernels import kronecker
from .kernels.adapted_linear import Kernel
from .kernels.base_weight import CombinedSquares
from .kernels.coded_weight import is_cheaper_product
from .modules.adapter_module import convolve_pointwise
from .modules.base_forward import convolve_as, weight_shape
from .modules.delta_module import DeltaModule
from .modules.dora_layer import ThinChange
from .modules.module_merging import FoldableDelta, merging
from .network.architecture_module import TrainedAlgorithm, functions_of
from .network_args import NetworkOption

_ROLES = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")


def _settle(module: ModuleWeights, shapes: Shapes) -> ModuleWeights:
    """Return the module with its factor shapes and, if both factors are whole, the requested rank.

    Whole factors store that rank as alpha, which has no effect.
    """
    if lokr.is_whole(shapes):
        alpha = math.nan if module.alpha is None else module.alpha
        rank = int(alpha) if alpha.is_integer() and alpha > 0 else module.rank
        stored = torch.tensor(rank, dtype=torch.float32, device="cpu")
        module = module._replace(rank=rank, tensors={**module.tensors, "alpha": stored})
    return module._replace(keywords={"factor_shapes": shapes})


class LoKrModule(DeltaModule):
    """DeltaModule with w1 ⊗ w2.

    `lokr_w1` is whole; the rank decides between `lokr_w2` and the pair `lokr_w2_a` and `lokr_w2_b`. With
    `factor_shapes`, by role, the module has the factors of a file instead. If both factors are whole, the scale is 1
    and the rank is stored as alpha.
    """

    prefix = "lokr_"
    formula = lokr
    rank_is_a_size = False
    reader = DialectTensors(lokr.ALGORITHM, "lycoris", (*_ROLES, "magnitude"), _settle)

    def __init__(
        self,
        lora_name: str,
        org_module: nn.Module,
        *args: Any,
        factor: int = -1,
        factor_shapes: Shapes | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(lora_name, org_module, *args, **kwargs)
        out_features, in_features, *kernel = weight_shape(org_module)
        shapes = factor_shapes or lokr.factor_shapes(out_features, in_features, tuple(kernel), self.lora_dim, factor)
        if lokr.delta_size(shapes) != self.matrix_shape:
            raise ValueError(
                f"{lora_name}: its factors change a weight of {lokr.delta_size(shapes)}, but the base's is "
                f"{self.matrix_shape}"
            )
        self.add_factors(shapes)
        # As lycoris-lora starts: one factor is zero, and so the change.
        for parameter in self.factors.values():
            if parameter is self.zero_factor:
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
        self._set_alpha(self._alpha_value)

    @property
    def zero_factor(self) -> Tensor:
        """w2, or its second factor."""
        return self.factors["w2" if "w2" in self.factors else "w2_b"]

    def kernel(self, tokens: int, dtype: torch.dtype, shares_base: bool) -> tuple[Kernel, Sequence[Tensor]]:
        """Return a kernel of products with the small and the large factor, in the cheaper order."""
        factors = self.factors
        return kronecker.chain(tokens, lokr.small(factors), lokr.large(factors), self.scale * self.multiplier, dtype)

    def combined_squares(self, factors: Mapping[str, Tensor], scale: float) -> CombinedSquares:
        """Return the function for the sums of squares, which uses only the small factors."""
        left, *right = lokr.large(factors)
        return partial(kronecker.combined_squares, lokr.small(factors) * scale, left @ right[0] if right else left)

    def thin_change(self, factors: Mapping[str, Tensor], scale: float) -> ThinChange | None:
        """Return the change by the rows of w2_b at each group of inputs, while these are few."""
        w1, (left, *right) = lokr.small(factors) * scale, lokr.large(factors)
        groups = w1.shape[1]
        if not right or not is_cheaper_product(groups * len(right[0]), self.org_module):
            return None
        rows = torch.kron(torch.eye(groups, dtype=w1.dtype, device=w1.device), right[0])
        return ThinChange(rows, partial(kronecker.thin_squares, w1, left, right[0]))

    def convolved(self, input: Tensor, positions: int) -> Tensor:
        """Return the change, by a convolution of each group of w2's inputs and w1 over the groups."""
        base, dtype = self.org_module, input.dtype
        w1 = lokr.small(self.factors).to(dtype) * (self.scale * self.multiplier)
        w2 = [factor.to(dtype) for factor in lokr.large(self.factors)]
        inputs, *kernel = base.weight.shape[1:]
        # Files of 2023 part in·kernel; and the inputs of one group of a convolution are no groups of w2's.
        if base.groups > 1 or inputs % w1.shape[1]:
            delta = torch.kron(w1, w2[0] if len(w2) == 1 else w2[0] @ w2[1])
            return convolve_as(base, input, delta.view(base.weight.shape))
        if len(w2) == 2 and w2[1].shape[0] > w2[0].shape[0]:
            w2 = [w2[0] @ w2[1]]
        groups = input.reshape(-1, inputs // w1.shape[1], *input.shape[2:])
        hidden = convolve_as(base, groups, w2[-1].view(w2[-1].shape[0], -1, *kernel))
        middle = w1 @ hidden.reshape(len(input), w1.shape[1], math.prod(hidden.shape[1:]))
        change: Tensor = middle.view(-1, *hidden.shape[1:])
        if len(w2) == 2:
            change = convolve_pointwise(change, w2[0])
        return change.view(len(input), base.weight.shape[0], *hidden.shape[2:])

    def _set_alpha(self, alpha: float) -> None:
        super()._set_alpha(float(self.lora_dim) if lokr.is_whole(self.factors) else alpha)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if lokr.is_whole(self.factors) and prefix + "alpha" in state_dict:
            state_dict[prefix + "alpha"] = torch.tensor(self.lora_dim, dtype=torch.float32, device="cpu")
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def is_whole(self) -> bool:
        """True if neither factor is a product; then there is no rank and no scale."""
        return lokr.is_whole(self.factors)


class LoKrInfModule(FoldableDelta, LoKrModule):
    """LoKrModule for inference and merging."""


def read_factor(name: str, value: Any) -> int:
    """Return an integer above 0, or -1.

    Raises ValueError for any other value.
    """
    try:
        factor = int(str(value).strip())
    except ValueError:
        factor = 0
    if isinstance(value, bool) or (factor < 1 and factor != -1):
        raise ValueError(f"{name}={value!r}: a whole number above 0, or -1, was expected")
    return factor


TRAINED = TrainedAlgorithm("LoKr", LoKrModule, LoKrInfModule, {"factor": NetworkOption(read_factor, -1)})
_functions = functions_of(__name__, None, TRAINED)
create_arch_network = create_network = _functions.create_arch_network
create_arch_network_from_weights = _functions.create_arch_network_from_weights
create_network_from_weights = _functions.create_network_from_file
prepare_network = _functions.prepare_network
# What programs that merge while they load a checkpoint call, one weight at a time.
merge_weights_to_tensor = merging(LoKrModule)
