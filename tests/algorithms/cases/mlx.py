"""LoRA and DoRA of mlx-lm, whose forwards are written out with its factors as they stand.

mlx is no library of these tests: what its own `fuse` makes of an adapter is in fixtures/mlx.
"""

from collections.abc import Iterator

import torch
from library_case import BATCH, Case, decomposed, embedding, fill
from torch import Tensor, nn

RANK, SCALE = 3, 1.75


def config(kind: str, **parameters: object):
    return {"fine_tune_type": kind, "num_layers": 4, "lora_parameters": {"rank": RANK, "scale": SCALE, **parameters}}


def case_of(title: str, layer: nn.Module, tensors: dict[str, Tensor], input: Tensor, **parameters: object) -> Case:
    a, b, m = (tensors.get(f"layer.{name}") for name in ("lora_a", "lora_b", "m"))
    is_embedding = isinstance(layer, nn.Embedding)
    weight, bias = layer.weight.detach(), getattr(layer, "bias", None)

    def library(multiplier: float) -> Tensor:
        """As `DoRALinear`, `LoRALinear` and `DoRAEmbedding` compute it, a multiplier being one of the scale."""
        scale = SCALE * multiplier
        first = a[input] if is_embedding else input @ a
        output = (weight[input] if is_embedding else input @ weight.T) + scale * (first @ b)
        if m is not None:
            adapted = weight + scale * (a @ b if is_embedding else (a @ b).T)
            gains = m / torch.linalg.norm(adapted, dim=1)
            output = gains[input][..., None] * output if is_embedding else gains * output
        return output if bias is None else output + bias.detach()

    def oracle(multiplier: float) -> dict[str, Tensor]:
        change = SCALE * (torch.einsum("nr,rd->nd", a, b) if is_embedding else torch.einsum("ir,ro->oi", a, b))
        if m is None:
            return {"layer.weight": weight + multiplier * change}
        return {"layer.weight": decomposed(weight, change, m, 0, multiplier, "inside")}

    kind = "lora" if m is None else "dora"
    return Case(title, layer, tensors, library, oracle, input, config=config(kind, **parameters))


def cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(5)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    for out, inputs in ((6, 10), (14, 9), (12, 12)):
        layer, input = fill(nn.Linear(inputs, out).double(), generator), drawn(BATCH, inputs)
        tensors = {"layer.lora_a": drawn(inputs, RANK), "layer.lora_b": drawn(RANK, out)}
        yield case_of(f"Linear {out}x{inputs}", layer, tensors, input)
        yield case_of(f"with an alpha {out}x{inputs}", layer, tensors, input, alpha=16)
        magnitude = drawn(out).abs() + 0.5
        yield case_of(f"DoRA {out}x{inputs}", layer, {**tensors, "layer.m": magnitude}, input)
    # A magnitude of as many numbers as there are rows shows that these are those of an Embedding.
    for rows, columns in ((14, 9), (6, 10)):
        layer, input = embedding(rows, columns)
        tensors = {"layer.lora_a": drawn(rows, RANK), "layer.lora_b": drawn(RANK, columns)}
        yield case_of(
            f"DoRA on an Embedding {rows}x{columns}", layer, {**tensors, "layer.m": drawn(rows).abs() + 0.5}, input
        )
