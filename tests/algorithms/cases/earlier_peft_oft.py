"""OFT of PEFT before 0.16, which cannot be installed beside the one of today.

Its forward is written out as its own code computes: before 0.14 the outputs are turned, since then the weight. The
adapters that PEFT 0.12, 0.13, 0.14 and 0.15 themselves make merge to what they compute within the rounding of float64.
"""

from collections.abc import Iterator
from typing import Any

import torch
from library_case import Case, apply, make
from torch import Tensor, nn

COUNT, EPS = 2, 0.02
LIMITED = {"coft": True, "eps": EPS, "block_share": False}
FREE = {"coft": False, "eps": 6e-5, "block_share": False}
SHARED = {**FREE, "block_share": True}


def rotation(stored: Tensor, blocks: int, limit: float | None) -> Tensor:
    """D: Cayley's transform of the halved skew part of every block, on the diagonal."""
    found = []
    for block in stored:
        short = block * min(1.0, limit / float(block.norm())) if limit else block
        skew, one = (short - short.T) / 2, torch.eye(len(block), dtype=torch.float64)
        found.append((one - skew) @ torch.linalg.inv(one + skew))
    return torch.block_diag(*(found * blocks if len(found) == 1 else found))


def case(title: str, kind: str, options: dict[str, Any], turns_rows: bool) -> Case:
    layer, input = make(kind)
    weight = layer.weight.detach().flatten(1)
    turned = weight.shape[0 if turns_rows else 1]
    size = turned // COUNT
    generator = torch.Generator().manual_seed(3)
    count = 1 if options["block_share"] else COUNT
    stored = 0.4 * torch.randn(count, size, size, generator=generator, dtype=torch.float64)
    lengths = 1 + 0.2 * torch.randn(len(weight), 1, generator=generator, dtype=torch.float64)
    # The limit is by the blocks of outputs, also where inputs are turned.
    limit = EPS * (len(weight) // COUNT) ** 2 / count**0.5 if options["coft"] else None
    turn = rotation(stored, turned // size, limit)
    if limit:
        assert any(float(block.norm()) > limit for block in stored), "a limit that never binds"
    changed = turn.T @ weight if turns_rows else weight @ turn.T * lengths

    def library(multiplier: float) -> Tensor:
        assert multiplier == 1.0
        with torch.no_grad():
            if not turns_rows:
                whole = turn @ weight.T
                return apply(layer, {"layer.weight": (whole.T * lengths).view_as(layer.weight), **bias(layer)}, input)
            output = apply(layer, {"layer.weight": layer.weight}, input)
            last = output.movedim(1, -1) if output.dim() > 2 else output
            last = last @ turn + layer.bias
            return last.movedim(-1, 1) if output.dim() > 2 else last

    return Case(
        id=f"{title} {kind}",
        layer=layer,
        tensors={"base_model.model.layer.oft_r": stored}
        | ({} if turns_rows else {"base_model.model.layer.oft_s": lengths}),
        library=library,
        oracle=lambda multiplier: {"layer.weight": changed.view_as(layer.weight)},
        input=input,
        config={"peft_type": "OFT", "r": COUNT, "target_modules": ["layer"], **options},
        multipliers=(1.0,),
    )


def bias(layer: nn.Module) -> dict[str, Tensor]:
    return {"layer.bias": layer.bias}


def cases() -> Iterator[Case]:
    for kind in ("linear", "square", "conv 1x1", "conv 3x3"):
        for title, options in (("", FREE), ("one block for all", SHARED), ("limited", LIMITED)):
            yield case(f"OFT of outputs {title}", kind, options, turns_rows=True)
            yield case(f"OFT of inputs with lengths {title}", kind, options, turns_rows=False)
