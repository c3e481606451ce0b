"""LoHa and LoKr put into a weight: by modules for inference and merging, or one weight of a checkpoint at a time."""

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any

from torch import Tensor

from lora_inspect.maths import dora
from lora_inspect.maths.change import Change
from lora_inspect.maths.dora_fold import DecomposedRows, Magnitude

from ..files.reading import MAGNITUDE
from ..files.stored_alpha import read_alpha
from .delta_module import DeltaModule
from .foldable import FoldableModule
from .merge_weight import merge_into


class FoldableDelta(FoldableModule, DeltaModule):
    """DeltaModule for inference and merging."""

    def fold(self, tensors: Mapping[str, Tensor], rows: Tensor, multiplier: float) -> None:
        """Adds the delta; with DoRA the magnitude has to be among the tensors."""
        if self.use_dora and MAGNITUDE not in tensors:
            raise ValueError(f"{self.lora_name}.{MAGNITUDE} is missing: without the magnitude DoRA cannot be merged")
        _change(self, self.lora_name, tensors, rows, self.lora_dim).fold(rows, 0, multiplier)


def merging(module_class: type[DeltaModule]) -> Callable[..., Tensor]:
    """The `merge_weights_to_tensor` of an algorithm."""
    return partial(merge_into, module_class, partial(_change, module_class))


def _change(algorithm: Any, name: str, tensors: Mapping[str, Tensor], rows: Tensor, rank: int) -> Change:
    """The change of a weight `rows` (out, in·kernel) that the `tensors` of a module are, in the dtype of the rows.

    A magnitude among them makes it DoRA's.
    """
    prefix = algorithm.prefix
    shapes = {key.removeprefix(prefix): tuple(tensors[key].shape) for key in tensors if key.startswith(prefix)}
    formula = algorithm.formula
    if wrong := formula.check(shapes):
        raise ValueError(f"{name}: {wrong}")
    out_features, *columns = formula.weight_shape(shapes)
    if (changed := [out_features, prod(columns)]) != list(rows.shape):
        raise ValueError(f"{name}: its factors change a weight of {changed}, but the base's is {list(rows.shape)}")
    alpha = read_alpha(name, tensors.get("alpha"), rank, rslora=False)
    factors = {role: tensors[prefix + role].to(rows) for role in shapes}
    change: Change = formula.change(factors, formula.scale(alpha, shapes), None)
    if MAGNITUDE not in tensors:
        return change
    magnitude = tensors[MAGNITUDE].to(rows)
    if magnitude.shape != rows.shape[:1]:
        raise ValueError(f"{name}.{MAGNITUDE} has shape {list(magnitude.shape)}, but the base has {rows.shape[0]} rows")
    return DecomposedRows(change, Magnitude(magnitude, dora.INSIDE))
