"""A LoRA module that can also put its change into the base's weight, and take it out again."""

import logging
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lora_inspect.algorithms import lora
from lora_inspect.maths import dora
from lora_inspect.maths.change import Change, LowRank, OnRows
from lora_inspect.maths.dora_fold import DecomposedRows, Magnitude
from lora_inspect.maths.scaling import scale_of

from ..files.stored_alpha import read_alpha
from .foldable import FoldableModule
from .lora_module import LoRAModule

logger = logging.getLogger(__name__)


class LoRAInfModule(FoldableModule, LoRAModule):
    """LoRAModule for inference and merging."""

    @torch.no_grad()
    def get_weight(self, multiplier: float | None = None) -> Tensor:
        """As for every algorithm; a magnitude that was never set is a warning."""
        multiplier = self.multiplier if multiplier is None else multiplier
        if self.use_dora and multiplier != 0 and not self.dora_layer.initialised:
            logger.warning(f"{self.lora_name}: DoRA magnitude appears uninitialized; load the weights first")
        return super().get_weight(multiplier)

    def fold(self, tensors: Mapping[str, Tensor], rows: Tensor, multiplier: float) -> None:
        """Slice by slice; with DoRA the magnitude has to be among the tensors."""
        if self.use_dora and "dora_layer.weight" not in tensors:
            raise ValueError(
                f"{self.lora_name}.dora_layer.weight is missing: without the magnitude DoRA cannot be merged"
            )
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
            change: Change = OnRows(LowRank(up, down, scale), ((first, last, 0),))
            if self.use_dora:
                change = DecomposedRows(change, Magnitude(tensors["dora_layer.weight"].to(rows), dora.INSIDE))
            change.fold(rows, 0, multiplier)
            first = last

    def _matrices(self, tensors: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """(up, down) as matrices, slice by slice."""
        for part in [""] if not self.split_dims else [f".{number}" for number in range(len(self.split_dims))]:
            try:
                factors = {role: tensors[f"lora_{role}{part}.weight"] for role in ("up", "down")}
            except KeyError as missing:
                raise ValueError(f"{self.lora_name}.{missing.args[0]} is missing") from None
            yield lora.matrices(factors)
