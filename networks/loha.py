"""LoHa, as a network module for every architecture: `architecture` names it, else the model tells it."""

from functools import partial
from typing import Any

from torch import nn

from lora_inspect.algorithms import loha

from .build.architecture_module import Algorithm, functions_of
from .files.reading import FactorReader
from .modules.delta_module import DeltaModule, FoldableDelta, merge_into


class LoHaModule(DeltaModule):
    """DeltaModule with (w1_a @ w1_b) ⊙ (w2_a @ w2_b); `hada_*_a` are (out, rank), `hada_*_b` (rank, in·kernel)."""

    prefix = "hada_"
    formula = loha
    reader = FactorReader(loha.ALGORITHM, "lycoris", loha.ROLES)

    def __init__(self, lora_name: str, org_module: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(lora_name, org_module, *args, **kwargs)
        out_features, columns = self.matrix_shape
        self.add_factors(loha.factor_shapes(out_features, columns, self.lora_dim))
        # As lycoris-lora starts: one factor is zero, and so the change.
        for role, factor in self.factors.items():
            nn.init.normal_(factor, std=0.1 if role.endswith("a") else 1.0)
        nn.init.zeros_(self.factors["w2_a"])


class LoHaInfModule(FoldableDelta, LoHaModule):
    """LoHaModule for inference and merging."""


_functions = functions_of(__name__, None, Algorithm("LoHa", LoHaModule, LoHaInfModule))
create_arch_network = create_network = _functions.create_arch_network
create_arch_network_from_weights = _functions.create_arch_network_from_weights
create_network_from_weights = _functions.create_network_from_file
# What programs that merge while they load a checkpoint call, one weight at a time.
merge_weights_to_tensor = partial(merge_into, LoHaModule)
