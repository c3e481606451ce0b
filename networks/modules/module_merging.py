"""Modules for inference: they fold their change into the base's weight, and take it out again.

For programs that merge while they load, `merge_weights_to_tensor` merges into one weight of a checkpoint at a time.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from lora_inspect.algorithms import lora
from lora_inspect.maths import dora
from lora_inspect.maths.change import Change
from lora_inspect.maths.dora_fold import DecomposedRows, MagnitudeValues
from lora_inspect.maths.scaling import scale_of
from lora_inspect.maths.torch_threads import whole_products

from ..files import reading
from ..files.reading import MAGNITUDE, read_alpha
from ..files.saving import check_dtype
from ..kernels.base_weight import is_plain, is_sharded, storage_of, true_weight
from ..kernels.coded_weight import stored_weight
from .adapter_module import AdapterModule
from .base_forward import follows_its_weight, holds_its_weight
from .delta_module import DeltaModule
from .lora_module import LoRAModule


class FoldableModule(AdapterModule):
    """The base class of modules for inference; it precedes a training class, and `fold` is the algorithm's."""

    _backup: Tensor | None = None
    _folded = False

    def fold(self, tensors: Mapping[str, Tensor], rows: Tensor, multiplier: float) -> None:
        """Fold `tensors`, with keys as in the state dict, into `rows` (out, in·kernel) in place.

        It computes in the dtype of the rows. Raises ValueError for tensors that are missing or change a weight of
        another shape.
        """
        raise NotImplementedError

    @torch.no_grad()
    def merge_to(
        self,
        sd: Mapping[str, Tensor],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        non_blocking: bool = False,
        safe_merge: bool = False,
    ) -> None:
        """Fold the factors `sd` (keys as in this module's state dict) into the base's weight.

        The result is computed on `device` in float32 or better, rounded to `dtype` if given, and stored in the weight's
        own dtype. A multiplier of 0 leaves the weight unchanged. Otherwise the module is disabled afterwards, since its
        change is in the weight.

        Raises ValueError for a `dtype` that is not floating, and for a weight that is sharded, no plain float or
        computed from others. The same holds for a forward that uses the weight differently, a missing magnitude,
        factors of another shape and, with `safe_merge`, a result that is not finite.
        """
        check_dtype(self.lora_name, dtype)
        if self.multiplier == 0:
            return
        weight = stored_weight(self.org_module)
        if weight is None:
            raise ValueError(
                f"{self.lora_name}: the base is stored as codes of a {type(self.org_module).__name__}, and no change "
                "can be added to that"
            )
        if is_sharded(weight):
            raise ValueError(f"{self.lora_name}: the base's weight is sharded; merge before you shard the model")
        if not is_plain(weight):
            raise ValueError(
                f"{self.lora_name}: the base is stored as {storage_of(weight)}, and no change can be added to that"
            )
        self._check_forward()
        working = torch.promote_types(weight.dtype, torch.float32)
        merged = weight.detach().to(device or weight.device, working, non_blocking=non_blocking, copy=True)
        with whole_products(merged.device.type):
            self.fold(sd, merged.view(merged.shape[0], -1), self.multiplier)
        if dtype is not None:
            merged = merged.to(dtype)
        merged = merged.to(weight.dtype)
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(
                f"{self.lora_name}: the merged weight is not finite in {weight.dtype}, so it stays unchanged"
            )
        weight.copy_(merged)
        self.enabled = False

    def _check_forward(self) -> None:
        base = self.org_module
        if not holds_its_weight(base):
            raise ValueError(
                f"{self.lora_name}: the base computes its weight from other tensors, so a change of it would "
                "be lost; merge before you parametrize the model"
            )
        if not follows_its_weight(base):
            raise ValueError(
                f"{self.lora_name}: the base is a {type(base).__name__}, and its forward uses the weight "
                "differently from torch's layer; run the adapter next to it, with apply_to"
            )

    @property
    def is_sum(self) -> bool:
        """True if the merged weight is the base's plus a delta that does not depend on it; False with DoRA."""
        return not getattr(self, "use_dora", False)

    @torch.no_grad()
    def get_weight(self, multiplier: float | None = None) -> Tensor:
        """Return merged minus base at `multiplier` (None: the module's own), in float32 or better."""
        multiplier = self.multiplier if multiplier is None else multiplier
        base = self._base()
        # The delta itself, where there is one, and not a difference that has lost its digits to the base's.
        is_delta = self.is_sum or multiplier == 0
        folded = torch.zeros_like(base) if is_delta else base.clone()
        if multiplier != 0:
            with whole_products(folded.device.type):
                self.fold(self.state_dict(), folded.view(folded.shape[0], -1), multiplier)
        return folded if is_delta else folded - base

    def _base(self) -> Tensor:
        return true_weight(self.org_module, torch.promote_types(torch.float32, next(self.parameters()).dtype))

    def backup_weights(self) -> None:
        """Keep the base's current weight, the first time only."""
        if self._backup is None:
            self._backup = self.org_module.weight.detach().clone()

    def pre_calculation(self) -> None:
        """Fold the module's own factors into the base's weight; the forward is then only the base's."""
        if self.enabled:
            self.merge_to(self.state_dict())
            self._folded = not self.enabled

    @torch.no_grad()
    def restore_weights(self) -> None:
        """Restore the kept weight bit for bit, and the forward that `pre_calculation` disabled."""
        if self._backup is not None:
            self.org_module.weight.copy_(self._backup)
            self.enabled = self.enabled or self._folded
            self._backup, self._folded = None, False


logger = logging.getLogger(__name__)


class LoRAInfModule(FoldableModule, LoRAModule):
    """LoRAModule for inference and merging."""

    @torch.no_grad()
    def get_weight(self, multiplier: float | None = None) -> Tensor:
        """Return merged minus base; a magnitude that was never set causes a warning."""
        multiplier = self.multiplier if multiplier is None else multiplier
        if self.use_dora and multiplier != 0 and not self.dora_layer.initialised:
            logger.warning(f"{self.lora_name}: DoRA magnitude appears uninitialized; load the weights first")
        return super().get_weight(multiplier)

    def fold(self, tensors: Mapping[str, Tensor], rows: Tensor, multiplier: float) -> None:
        """Fold slice by slice; with DoRA the tensors have to contain the magnitude."""
        check_magnitude(self, tensors)
        first = 0
        for factors in self._factors(tensors):
            last = first + factors["up"].shape[0]
            own = rows[first:last]
            change_of(self.lora_name, lora, factors, tensors, own, self.use_rslora).fold(own, 0, multiplier)
            first = last

    def _factors(self, tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Yield the factors of each slice, by role."""
        for part in [""] if not self.split_dims else [f".{number}" for number in range(len(self.split_dims))]:
            try:
                yield {role: tensors[f"lora_{role}{part}.weight"] for role in ("up", "down")}
            except KeyError as missing:
                raise ValueError(f"{self.lora_name}.{missing.args[0]} is missing") from None


def check_magnitude(module: Any, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a module with DoRA has no magnitude among the tensors."""
    if module.use_dora and MAGNITUDE not in tensors:
        raise ValueError(f"{module.lora_name}.{MAGNITUDE} is missing: without the magnitude DoRA cannot be merged")


def change_of(
    name: str,
    formula: Any,
    factors: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    rows: Tensor,
    rslora: bool = False,
) -> Change:
    """Return the change of `rows` (out, in·kernel) by `factors`, in the dtype of the rows.

    The `formula` takes the factors by role. The `tensors` of the module called `name` have the alpha, and possibly the
    magnitude of DoRA. Raises ValueError if any of these does not match the rows.
    """
    shapes = {role: tuple(factor.shape) for role, factor in factors.items()}
    if wrong := formula.check(shapes):
        raise ValueError(f"{name}: {wrong}")
    out_features, *columns = formula.weight_shape(shapes)
    if (changed := [out_features, prod(columns)]) != list(rows.shape):
        raise ValueError(f"{name}: its factors change a weight of {changed}, but the base's is {list(rows.shape)}")
    rank = formula.rank(shapes)
    scale = 1.0
    if rank is not None:
        scale = scale_of(read_alpha(name, tensors.get("alpha"), rank, rslora), rank, rslora)
    change: Change = formula.change({role: factor.to(rows) for role, factor in factors.items()}, scale, None)
    if MAGNITUDE not in tensors:
        return change
    magnitude = tensors[MAGNITUDE].to(rows)
    if magnitude.shape != rows.shape[:1]:
        raise ValueError(f"{name}.{MAGNITUDE} has shape {list(magnitude.shape)}, but the base has {rows.shape[0]} rows")
    return DecomposedRows(change, MagnitudeValues(magnitude, dora.INSIDE))


def merge_into(
    module_class: Any,
    change: Callable[[str, Mapping[str, Tensor], Tensor], Change],
    model_weight: Tensor,
    lora_name: str,
    lora_sd: Mapping[str, Tensor],
    lora_weight_keys: set[str],
    multiplier: float,
    calc_device: torch.device | str,
) -> Tensor:
    """Return the weight with the module called `lora_name` merged, in its own dtype.

    Without such a module the weight stays unchanged. `module_class` has the reader and the prefix of its algorithm.
    `change(name, tensors, rows)` returns the change of rows (out, in·kernel). The used keys are removed from
    `lora_weight_keys`. It computes on `calc_device` in float32 or better.

    Raises ValueError for a weight that is no plain float, for a tensor that is no factor of the algorithm, and for
    factors that do not match the weight.
    """
    keys = [key for key in lora_sd if key.partition(".")[0] == lora_name and key in lora_weight_keys]
    if multiplier == 0 or not any(key.startswith(f"{lora_name}.{module_class.prefix}") for key in keys):
        return model_weight
    if not is_plain(model_weight):
        stored = storage_of(model_weight)
        raise ValueError(f"{lora_name}: the base is stored as {stored}, and no change can be added to that")
    working = torch.promote_types(model_weight.dtype, torch.float32)
    merged = model_weight.to(calc_device, working, copy=True)
    read = reading.read({key: lora_sd[key] for key in keys}, reader=module_class.reader.with_every_role)
    rows = merged.view(merged.shape[0], -1)
    with whole_products(rows.device.type):
        change(lora_name, read.modules[lora_name].tensors, rows).fold(rows, 0, multiplier)
    lora_weight_keys.difference_update(keys)
    return merged.to(model_weight.device, model_weight.dtype)


class FoldableDelta(FoldableModule, DeltaModule):
    """DeltaModule for inference and merging."""

    def fold(self, tensors: Mapping[str, Tensor], rows: Tensor, multiplier: float) -> None:
        """Add the delta; with DoRA the tensors have to contain the magnitude."""
        check_magnitude(self, tensors)
        _change(self, self.lora_name, tensors, rows).fold(rows, 0, multiplier)


def merging(module_class: type[DeltaModule]) -> Callable[..., Tensor]:
    """Return the `merge_weights_to_tensor` of an algorithm."""
    return partial(merge_into, module_class, partial(_change, module_class))


def _change(algorithm: Any, name: str, tensors: Mapping[str, Tensor], rows: Tensor) -> Change:
    prefix = algorithm.prefix
    factors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    return change_of(name, algorithm.formula, factors, tensors, rows)
