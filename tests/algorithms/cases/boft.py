"""BOFT of PEFT: W' = s · W (B … B₁ B₀)ᵀ, with stages of blocks of inputs. It has no multipliers.

PEFT puts the blocks of several stages together in a kernel of its own for CUDA, in the place of which they are put
together by torch here; all else is its own code.
"""

from collections.abc import Iterator
from types import SimpleNamespace

import peft
import torch
from libraries import of_peft
from library_case import Case, fill
from peft.tuners.boft import layer as boft
from torch import Tensor, nn


def together(stages: Tensor) -> tuple[Tensor]:
    return (torch.stack([torch.block_diag(*blocks) for blocks in stages]),)


def of_keys(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    assert multiplier == 1.0
    weight, stored = layer.weight.detach().flatten(1), tensors["layer.boft_R"]
    whole = torch.eye(weight.shape[1], dtype=torch.float64)
    for stage, blocks in enumerate(stored):
        size = len(blocks[0])
        skew, one = (blocks - blocks.mT) / 2, torch.eye(size, dtype=torch.float64)
        turned = torch.block_diag(*((one - each) @ torch.linalg.inv(one + each) for each in skew))
        if stage:
            # Half blocks from either half of a group stand side by side.
            halves, half = 2**stage, size // 2
            numbers = torch.arange(weight.shape[1]).reshape(-1, 2, halves, half)
            order = torch.cat([torch.cat((group[0, k], group[1, k])) for group in numbers for k in range(halves)])
            placed = torch.zeros_like(whole)
            placed[order.unsqueeze(1), order] = turned
            turned = placed
        whole = turned @ whole
    changed = tensors["layer.boft_s"].reshape(-1, 1) * (weight @ whole.T)
    return {"layer.weight": changed.view_as(layer.weight)}


def cases() -> Iterator[Case]:
    given = boft._FBD_CUDA
    boft._FBD_CUDA = SimpleNamespace(forward=together)
    try:
        for kind, size, stages in (
            ("linear", 4, 1),
            ("linear", 3, 1),
            ("square", 12, 1),
            ("conv 1x1", 2, 1),
            ("conv 3x3", 6, 1),
            ("square", 6, 2),
        ):
            yield case(kind, size, stages)
        layer = fill(nn.Linear(16, 6).double(), torch.Generator().manual_seed(3))
        input = torch.randn(2, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        for size, stages in ((4, 3), (2, 4)):
            yield case(layer, size, stages, input)
        layer = fill(nn.Conv2d(4, 6, 2).double(), torch.Generator().manual_seed(5))
        input = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
        yield case(layer, 4, 3, input)
    finally:
        boft._FBD_CUDA = given


def case(kind: str | nn.Module, size: int, stages: int, input: Tensor | None = None) -> Case:
    config = peft.BOFTConfig(boft_block_size=size, boft_n_butterfly_factor=stages, target_modules=["layer"])
    found = of_peft(f"BOFT, {stages} stages of {size},", config, kind, of_keys, input=input, multipliers=(1.0,))
    library = found.library

    def with_kernel(multiplier: float) -> Tensor:
        given, boft._FBD_CUDA = boft._FBD_CUDA, SimpleNamespace(forward=together)
        try:
            return library(multiplier)
        finally:
            boft._FBD_CUDA = given

    found.library = with_kernel
    return found
