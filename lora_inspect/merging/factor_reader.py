"""The factors of contributions as torch tensors; factors that modules share are read from the file once."""

from threading import Lock

import torch

from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.tensors import load, load_whole
from lora_inspect.reading.model.contribution import Contribution, shared_tensors

_Key = tuple[str, str, torch.dtype]

# Factors of all experts that are kept: those of the two parameters of a layer, in two adapters.
_MOST_OF_EXPERTS = 8


class FactorReader:
    """A reader of the factors of contributions, as tensors that callers must not change.

    It keeps the factors that several modules share for as long as it lives: at most the content of the file, in the
    working dtype. It keeps the factors of all experts of a layer, which change many weights of a base with separate
    experts, until other layers come. Several threads may read at the same time.
    """

    def __init__(self) -> None:
        self._kept: dict[_Key, torch.Tensor] = {}
        self._of_experts: dict[_Key, torch.Tensor] = {}
        self._reading = Lock()

    def read(
        self, contribution: Contribution, dtype: torch.dtype, is_needed_again: bool = False
    ) -> dict[str, torch.Tensor]:
        """Return the tensors that the change is computed from, by role: numbers in `dtype`, whole ones in int64.

        `is_needed_again` says that the contribution has other places, which factors of all experts are kept for.
        Raises LoraInspectError for one of an element type that is not expected there.
        """
        shared, positions = shared_tensors(contribution), contribution.algorithm.positions
        of_experts = self._of_all if contribution.algorithm.experts and is_needed_again else _read
        found = {}
        for role, info in contribution.operands.items():
            read = self._shared if role in shared else of_experts
            found[role] = read(info, dtype, role in positions)
        return found

    def _of_all(self, info: TensorInfo, dtype: torch.dtype, is_whole: bool) -> torch.Tensor:
        key = (info.file, info.name, dtype)
        with self._reading:
            if key not in self._of_experts:
                if len(self._of_experts) >= _MOST_OF_EXPERTS:
                    del self._of_experts[next(iter(self._of_experts))]
                self._of_experts[key] = _read(info, dtype, is_whole)
            return self._of_experts[key]

    def _shared(self, info: TensorInfo, dtype: torch.dtype, is_whole: bool) -> torch.Tensor:
        key = (info.file, info.name, dtype)
        with self._reading:
            if key not in self._kept:
                self._kept[key] = _read(info, dtype, is_whole)
            return self._kept[key]


def _read(info: TensorInfo, dtype: torch.dtype, is_whole: bool) -> torch.Tensor:
    return load_whole(info) if is_whole else load(info).to(dtype)
