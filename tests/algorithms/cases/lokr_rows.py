"""LoKr on some rows of its product: W + m · s · (w1 ⊗ w2)[first : first + out], with LyCORIS's own product.

ComfyUI, which alone reads the number of the first row, is no library that can be installed here.
"""

from collections.abc import Iterator

import torch
from library_case import Case, apply, make
from lycoris.functional.lokr import diff_weight
from torch import Tensor

RANK, ALPHA = 2, 3.0


def case(kind: str, first: int, dtype: torch.dtype, **shapes: tuple[int, ...]) -> Case:
    layer, input = make(kind)
    generator = torch.Generator().manual_seed(first)
    factors = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    weight, is_whole = layer.weight.detach(), "w2" in factors
    rows = slice(first, first + len(weight))
    order = ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
    product = diff_weight(*(factors.get(name) for name in order), gamma=1.0 if is_whole else ALPHA)
    small = factors["w1"]
    large = factors["w2"] if is_whole else factors["w2_a"] @ factors["w2_b"]

    def library(multiplier: float) -> Tensor:
        changed = weight + multiplier * product.reshape(-1, *weight.shape[1:])[rows]
        return apply(layer, {"layer.weight": changed, "layer.bias": layer.bias.detach()}, input)

    def oracle(multiplier: float) -> dict[str, Tensor]:
        whole = torch.einsum("ab,cd...->acbd...", small, large).reshape(-1, *weight.shape[1:])
        scale = 1.0 if is_whole else ALPHA / RANK
        return {"layer.weight": weight + multiplier * scale * whole[rows]}

    tensors = {f"diffusion_model.layer.lokr_{name}": factor for name, factor in factors.items()}
    marks = {"row_offset": torch.tensor(first).to(dtype), "alpha": torch.tensor(ALPHA)}
    return Case(
        id=f"LoKr of rows from {first} {kind}",
        layer=layer,
        tensors={**tensors, **{f"diffusion_model.layer.{name}": number for name, number in marks.items()}},
        library=library,
        oracle=oracle,
        input=input,
    )


def cases() -> Iterator[Case]:
    # Of 60, 36 and 24 rows; the first is in the middle of what one row of w1 makes.
    yield case("linear", 13, torch.int64, w1=(4, 3), w2=(15, 4))
    yield case("linear", 40, torch.float32, w1=(4, 3), w2_a=(15, RANK), w2_b=(RANK, 4))
    yield case("square", 0, torch.int64, w1=(6, 2), w2=(6, 6))
    yield case("conv 3x3", 7, torch.int64, w1=(3, 2), w2=(8, 3, 3, 3))
