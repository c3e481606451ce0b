"""A weight in the place of the base's own. No library here reads it: the formula is all there is."""

from collections.abc import Iterator

import torch
from library_case import Case, apply, make


def cases() -> Iterator[Case]:
    for kind in ("linear", "square", "conv 3x3", "layer norm"):
        layer, input = make(kind)
        weight = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        found = {"layer.weight": weight, "layer.bias": layer.bias.detach()}
        yield Case(
            id=f"replaced {kind}",
            layer=layer,
            tensors={"diffusion_model.layer.set_weight": weight},
            library=lambda multiplier, layer=layer, found=found, input=input: apply(layer, found, input),
            oracle=lambda multiplier, found=found: found,
            input=input,
            multipliers=(1.0,),
        )
