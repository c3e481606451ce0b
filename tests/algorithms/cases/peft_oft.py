"""OFT of PEFT, which turns the inputs: W' = W · diag(R₁, R₂, …)ᵀ, with R as its config says. It has no multipliers."""

from collections.abc import Iterator
from typing import Any

import peft
import torch
from libraries import of_peft
from library_case import Case, embedding
from torch import Tensor, nn

OPTIONS: dict[str, dict[str, Any]] = {
    "series": {},
    "series of 2": {"num_cayley_neumann_terms": 2},
    "series of 3": {"num_cayley_neumann_terms": 3},
    "series of 4": {"num_cayley_neumann_terms": 4},
    "series of 8": {"num_cayley_neumann_terms": 8},
    "exact": {"use_cayley_neumann": False},
    "one block for all": {"block_share": True},
    "one block for all, exact": {"block_share": True, "use_cayley_neumann": False},
    "a limit that binds": {"coft": True, "eps": 0.5},
    "a limit that binds some": {"coft": True, "eps": 1.5},
    "a limit on one block": {"coft": True, "eps": 0.5, "block_share": True},
}


def formula(options: dict[str, Any], key: str = "layer.oft_R.weight"):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        assert multiplier == 1.0
        weight, entries = layer.weight.detach().flatten(1), tensors[key]
        size, columns = 3, weight.shape[1]
        above = [(i, j) for i in range(size) for j in range(i + 1, size)]
        blocks = []
        for row in entries:
            skew = torch.zeros(size, size, dtype=torch.float64)
            for (i, j), number in zip(above, row, strict=True):
                skew[i, j], skew[j, i] = number, -number
            limit = options.get("eps", 0.0) / len(entries) ** 0.5
            if options.get("coft") and skew.norm() > limit:
                skew = skew / skew.norm() * limit
            blocks.append(rotation(skew, options))
        blocks = blocks * (columns // size) if options.get("block_share") else blocks
        # What an Embedding gives is turned, and what other layers get.
        whole = torch.block_diag(*blocks)
        turned = weight @ (whole if isinstance(layer, nn.Embedding) else whole.T)
        return {"layer.weight": turned.view_as(layer.weight)}

    return oracle


def rotation(skew: Tensor, options: dict[str, Any]) -> Tensor:
    one, power = torch.eye(len(skew), dtype=torch.float64), torch.linalg.matrix_power
    if not options.get("use_cayley_neumann", True):
        return (one - skew) @ torch.linalg.inv(one + skew)
    last = {2: 1, 3: 3, 4: 3, 5: 4, 8: 7}[options.get("num_cayley_neumann_terms", 5)]
    weights = [1.0] + [2.0] * last
    if last > 1:
        weights[-1] = 1.0
    return sum((factor * power(skew, i) for i, factor in enumerate(weights)), torch.zeros_like(one))


def cases() -> Iterator[Case]:
    for kind in ("linear", "square", "conv 1x1"):
        for name, options in OPTIONS.items():
            config = peft.OFTConfig(oft_block_size=3, target_modules=["layer"], **options)
            # PEFT divides the limit by a float32.
            dtype = torch.float32 if options.get("coft") else torch.float64
            yield of_peft(f"OFT, {name},", config, kind, formula(options), dtype=dtype, multipliers=(1.0,))
    for name in ("series", "exact", "one block for all", "a limit that binds some"):
        layer, input = embedding(14, 9)
        config = peft.OFTConfig(oft_block_size=3, target_modules=["layer"], **OPTIONS[name])
        dtype = torch.float32 if OPTIONS[name].get("coft") else torch.float64
        of_embedding = formula(OPTIONS[name], key="layer.oft_embedding_R.weight")
        title, layer = f"OFT, {name},", layer.to(dtype)
        yield of_peft(title, config, layer, of_embedding, input=input, dtype=dtype, multipliers=(1.0,))
