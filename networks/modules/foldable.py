"""What modules for inference add: the change put into the base's weight, and taken out again."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lora_inspect.maths.torch_threads import whole_products

from ..files.saving import check_dtype
from ..kernels.base_weight import is_plain, is_sharded, storage_of, true_weight
from .adapter_module import AdapterModule
from .base_forward import follows_its_weight, holds_its_weight


class FoldableModule(AdapterModule):
    """Goes in front of the class of a training module; `fold` is the algorithm's own."""

    _backup: Tensor | None = None
    _folded = False

    def fold(self, tensors: Mapping[str, Tensor], rows: Tensor, multiplier: float) -> None:
        """Folds `tensors`, with keys as in the state dict, into `rows` (out, in·kernel) in place, in their dtype.

        Raises ValueError for tensors that are missing or change a weight of another shape.
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
        """Folds the factors `sd` (keys as in this module's state dict) into the base's weight.

        Computed on `device` in float32 or better, rounded to `dtype` where one is given, and stored in the weight's
        own dtype. A multiplier of 0 leaves the weight as it is. Afterwards the module is disabled, as its change is
        in the weight. Raises ValueError for a `dtype` that is not floating, a weight that is sharded, no plain
        float or computed from others, for a forward that does something else with it, a missing magnitude, factors of
        another shape and, with `safe_merge`, for a result that is not finite.
        """
        check_dtype(self.lora_name, dtype)
        if self.multiplier == 0:
            return
        weight: Tensor = self.org_module.weight
        if is_sharded(weight):
            raise ValueError(f"{self.lora_name}: the base's weight is sharded; merge before the model is")
        if not is_plain(weight):
            raise ValueError(
                f"{self.lora_name}: the base is stored as {storage_of(weight)}, which no change can be added to"
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
                f"{self.lora_name}: the merged weight is not finite in {weight.dtype}; it was left as it is"
            )
        weight.copy_(merged)
        self.enabled = False

    def _check_forward(self) -> None:
        base = self.org_module
        if not holds_its_weight(base):
            raise ValueError(
                f"{self.lora_name}: the base computes its weight from other tensors, so that a change of it would be "
                "lost; merge before the model is parametrized"
            )
        if not follows_its_weight(base):
            raise ValueError(
                f"{self.lora_name}: the base is a {type(base).__name__}, whose forward is another function of its "
                "weight than that of torch's layer; run the adapter beside it, with apply_to"
            )

    @property
    def is_sum(self) -> bool:
        """Whether the merged weight is the base's and a delta that does not depend on it; not so with DoRA."""
        return not getattr(self, "use_dora", False)

    @torch.no_grad()
    def get_weight(self, multiplier: float | None = None) -> Tensor:
        """Merged minus base at `multiplier` (the module's own where None), in float32 or better."""
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
        """Keeps the base's weight as it is now, the first time only."""
        if self._backup is None:
            self._backup = self.org_module.weight.detach().clone()

    def pre_calculation(self) -> None:
        """Folds the module's own factors into the base's weight; the forward is then the base's alone."""
        if self.enabled:
            self.merge_to(self.state_dict())
            self._folded = not self.enabled

    @torch.no_grad()
    def restore_weights(self) -> None:
        """Puts the kept weight back, bit for bit, and what `pre_calculation` folded back into the forward."""
        if self._backup is not None:
            self.org_module.weight.copy_(self._backup)
            self.enabled = self.enabled or self._folded
            self._backup, self._folded = None, False
