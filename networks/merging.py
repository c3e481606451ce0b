"""A LoRA module that can also put its change into the base's weight, and take it out again."""

import logging
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lora_inspect.algorithms import lora
from lora_inspect.fold import Fold
from lora_inspect.scaling import scale_of

from .adapter_module import read_alpha
from .base_weight import PLAIN_DTYPES, true_weight
from .layers import LoRAModule

logger = logging.getLogger(__name__)


class LoRAInfModule(LoRAModule):
    """LoRAModule for inference and merging."""

    _backup: Tensor | None = None
    _folded = False

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
        in the weight. Raises ValueError for a weight that is no plain float, a missing magnitude, factors of
        another shape and, with `safe_merge`, for a result that is not finite.
        """
        if self.multiplier == 0:
            return
        weight: Tensor = self.org_module.weight
        if weight.dtype not in PLAIN_DTYPES:
            raise ValueError(f"{self.lora_name}: the base is stored as {weight.dtype}, which no change can be added to")
        working = torch.promote_types(weight.dtype, torch.float32)
        merged = weight.detach().to(device or weight.device, working, non_blocking=non_blocking, copy=True)
        self._fold(sd, merged.view(merged.shape[0], -1), self.multiplier)
        if dtype is not None:
            merged = merged.to(dtype)
        merged = merged.to(weight.dtype)
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(
                f"{self.lora_name}: the merged weight is not finite in {weight.dtype}; it was left as it is"
            )
        weight.copy_(merged)
        self.enabled = False

    @torch.no_grad()
    def get_weight(self, multiplier: float | None = None) -> Tensor:
        """The change of the base's weight at `multiplier` (the module's own where None), in float32 or better.

        With DoRA that is merged minus base.
        """
        multiplier = self.multiplier if multiplier is None else multiplier
        if self.use_dora and not self.dora_layer.initialised:
            logger.warning(f"{self.lora_name}: DoRA magnitude appears uninitialized; load the weights first")
        weight: Tensor = self.org_module.weight
        base = true_weight(self.org_module, torch.promote_types(torch.float32, self.factors[0].up.weight.dtype))
        if multiplier == 0:
            return torch.zeros_like(base)
        # Without a magnitude the delta itself, and not a difference that has lost its digits to the base's.
        folded = base.clone() if self.use_dora else torch.zeros_like(base)
        self._fold(self.state_dict(), folded.view(weight.shape[0], -1), multiplier)
        return folded - base if self.use_dora else folded

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

    def _fold(self, tensors: Mapping[str, Tensor], rows: Tensor, multiplier: float) -> None:
        """Folds `tensors` into `rows` (out, in·kernel) in place, in the dtype of `rows`."""
        if self.use_dora and "dora_layer.weight" not in tensors:
            raise ValueError(
                f"{self.lora_name}.dora_layer.weight is missing: without the magnitude DoRA cannot be merged"
            )
        magnitude = tensors["dora_layer.weight"].to(rows) if self.use_dora else None
        first = 0
        for up, down in self._matrices(tensors):
            up, down = up.to(rows), down.to(rows)
            last = first + up.shape[0]
            if last > rows.shape[0] or down.shape != (up.shape[1], rows.shape[1]):
                raise ValueError(
                    f"{self.lora_name}: up {list(up.shape)} and down {list(down.shape)} make no change of a weight of "
                    f"{rows.shape[0]} rows and {rows.shape[1]} columns"
                )
            rank = down.shape[0]
            alpha = read_alpha(self.lora_name, tensors.get("alpha"), rank, self.use_rslora)
            scale = scale_of(alpha, rank, self.use_rslora)
            Fold(up, down, scale, multiplier, rows=(first, last), magnitude=magnitude).apply(rows, 0)
            first = last

    def _matrices(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """(up, down) as matrices, slice by slice."""
        for part in [""] if not self.split_dims else [f".{number}" for number in range(len(self.split_dims))]:
            try:
                factors = {role: tensors[f"lora_{role}{part}.weight"] for role in ("up", "down")}
            except KeyError as missing:
                raise ValueError(f"{self.lora_name}.{missing.args[0]} is missing") from None
            yield lora.flatten(factors)
