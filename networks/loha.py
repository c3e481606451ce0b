"""LoHa, as a network module for every architecture.

The option `architecture` or the model names the architecture.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lora_inspect.algorithms import loha
from lora_inspect.maths import dora

from .files.reading import DialectTensors
from .kernels import hadamard
from .kernels.adapted_linear import Kernel
from .kernels.base_weight import CombinedSquares
from .kernels.coded_weight import is_cheaper_product
from .modules.adapter_module import convolve_pointwise
from .modules.base_forward import convolve_as
from .modules.delta_module import DeltaModule
from .modules.dora_layer import ThinChange
from .modules.module_merging import FoldableDelta, merging
from .network.architecture_module import TrainedAlgorithm, functions_of


class LoHaModule(DeltaModule):
    """DeltaModule with (w1_a @ w1_b) ⊙ (w2_a @ w2_b).

    `hada_*_a` are (out, rank), `hada_*_b` (rank, in·kernel).
    """

    prefix = "hada_"
    formula = loha
    reader = DialectTensors(loha.ALGORITHM, "lycoris", (*loha.ROLES, "magnitude"))

    def __init__(self, lora_name: str, org_module: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(lora_name, org_module, *args, **kwargs)
        out_features, columns = self.matrix_shape
        self.add_factors(loha.factor_shapes(out_features, columns, self.lora_dim))
        # As lycoris-lora starts: one factor is zero, and so the change. Nothing is drawn for that one, so that a seed
        # starts where it does in other trainers.
        for role, factor in self.factors.items():
            if factor is self.zero_factor:
                nn.init.zeros_(factor)
            else:
                nn.init.normal_(factor, std=0.1 if role.endswith("a") else 1.0)

    @property
    def zero_factor(self) -> Tensor:
        """w2_a."""
        return self.factors["w2_a"]

    def kernel(self, tokens: int, dtype: torch.dtype, shares_base: bool) -> tuple[Kernel, Sequence[Tensor]]:
        """Return a kernel with one product of rank², or with blocks of the delta's rows."""
        kernel = hadamard.kernel(tokens, self.matrix_shape, self.lora_dim, self._strength, dtype, shares_base)
        return kernel, self._ordered

    def convolved(self, input: Tensor, positions: int) -> Tensor:
        """Return the change, by two convolutions of rank² if these are cheaper than one with the delta.

        Rows of a delta with a kernel would each need the input unfolded, which is larger than the delta.
        """
        base, dtype = self.org_module, input.dtype
        by_rank = hadamard.kernel(positions, self.matrix_shape, self.lora_dim, self._strength, dtype, False)
        # Another group of inputs would meet the same rows of the first convolution.
        if base.groups > 1 or not isinstance(by_rank, hadamard.LowRankKernel):
            delta = hadamard.delta(self._ordered, self._strength)
            return convolve_as(base, input, delta.to(dtype).view(base.weight.shape))
        up, down = loha.low_rank({role: factor.to(dtype) for role, factor in self.factors.items()})
        hidden = convolve_as(base, input, down.reshape(-1, *base.weight.shape[1:]))
        return convolve_pointwise(hidden * self._strength, up)

    def combined_squares(self, factors: Mapping[str, Tensor], scale: float) -> CombinedSquares:
        """Return the function for the sums of squares, which builds rows of the delta."""
        return hadamard.combined_squares([factors[role] for role in loha.ROLES], scale)

    def thin_change(self, factors: Mapping[str, Tensor], scale: float) -> ThinChange | None:
        """Return the change as a product of rank², while that is small."""
        if not is_cheaper_product(self.lora_dim**2, self.org_module):
            return None
        up, down = loha.low_rank(factors)
        return ThinChange(down, partial(dora.expanded_squared_norm, up=up, down=down, scale=scale))

    @property
    def _strength(self) -> float:
        return self.scale * self.multiplier

    @property
    def _ordered(self) -> list[nn.Parameter]:
        return [self.factors[role] for role in loha.ROLES]


class LoHaInfModule(FoldableDelta, LoHaModule):
    """LoHaModule for inference and merging."""


TRAINED = TrainedAlgorithm("LoHa", LoHaModule, LoHaInfModule)
_functions = functions_of(__name__, None, TRAINED)
create_arch_network = create_network = _functions.create_arch_network
create_arch_network_from_weights = _functions.create_arch_network_from_weights
create_network_from_weights = _functions.create_network_from_file
prepare_network = _functions.prepare_network
# What programs that merge while they load a checkpoint call, one weight at a time.
merge_weights_to_tensor = merging(LoHaModule)
