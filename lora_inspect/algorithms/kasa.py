"""KaSA of PEFT, an option of its LoRA: a product replaces the r least singular triples of the weight.

W' = W without them + scale · B · diag(d) · A, with `lora_diag` d (r,) and the scale of LoRA. PEFT truncates the weight
whenever it loads the file, in float32, and rounds it to the base's type before it adds the product; here it is rounded
once. A multiplier acts on the product only. Sources: Wang et al. 2024, and the `KasaLinearVariant` of PEFT 0.21.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms import lora
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_inspect.maths.change import Blocks, Change


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of down (r, in), up (out, r) and the diagonal (r,), or None."""
    down, up, diagonal = shapes["down"], shapes["up"], shapes["diagonal"]
    if len(down) != 2 or len(up) != 2 or diagonal != down[:1]:
        return f"lora_A {list(down)}, lora_diag {list(diagonal)} and lora_B {list(up)} cannot be multiplied"
    return lora.check(shapes)


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None; at least one singular triple must remain."""
    rank = lora.rank(shapes)
    if len(weight) > 1 and min(weight[:2]) <= rank:
        return f"takes {rank} singular triples away and leaves one at least"
    return lora.misfit(shapes, weight)


def settings(around: Surroundings) -> dict[str, Any] | str:
    """Return no settings, or an error text if it is unknown whether the base is truncated."""
    if around.config is None or not isinstance(around.config.get("kasa_config"), dict):
        return (
            "no adapter_config.json with a kasa_config covers it; put the one next to the file that it was saved with"
        )
    if init := lora.residual_init(around.config):
        return (
            f"PEFT truncates the base and then takes the {init} part out of it, which lora-inspect does not support "
            "yet; merge it with PEFT"
        )
    return {}


@cache
def truncated() -> "Callable[..., Change]":
    """Make the class of the change: `info` imports this file for every LoRA of PEFT, and no change."""
    from dataclasses import dataclass

    from lora_inspect.maths.change import Change
    from lora_inspect.maths.products import add_product

    @dataclass(frozen=True, slots=True)
    class Truncated(Change):
        """W' = W without its `rank` least singular triples + multiplier · scale · up @ down, of that rank.

        A multiplier does not scale the removed part. The whole weight is in memory while it is decomposed.
        """

        up: Any  # (out, rank)
        down: Any  # (rank, columns)
        scale: float
        taken: tuple[Any, Any] | None = None  # (out, rank) and (rank, columns), once the weight is seen
        together: int = 1

        @property
        def holds_all(self) -> bool:
            """The decomposition is of all rows."""
            return True

        def settled(self, blocks: "Blocks", multiplier: float) -> "Change":
            """Return the change with the least singular triples of the weight."""
            import torch

            # What is not finite has no decomposition; it stays in the rows, which are refused for it.
            weight = torch.cat([rows.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0) for _, rows in blocks()])
            left, values, right = torch.linalg.svd(weight, full_matrices=False)
            rank = self.up.shape[1]
            return type(self)(self.up, self.down, self.scale, (left[:, -rank:] * values[-rank:], right[-rank:]))

        def fold(self, rows: Any, first: int, multiplier: float) -> None:
            """Remove the triples and add the product; raise ValueError before it has seen the weight."""
            if self.taken is None:
                raise ValueError("the singular triples of a weight are not known before all of its rows are seen")
            last = first + rows.shape[0]
            add_product(rows, -self.taken[0][first:last], self.taken[1])
            add_product(rows, self.up[first:last] * (self.scale * multiplier), self.down)

    return Truncated


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return the truncation and the product."""
    return truncated()(tensors["up"] * tensors["diagonal"], tensors["down"], scale)


ALGORITHM = Algorithm(
    name="kasa",
    title="KaSA",
    equation="W without its r least singular triples + m · s · B · diag(lora_diag) · A",
    writers="PEFT",
    dialects={"peft": {"down": ".lora_A.weight", "up": ".lora_B.weight", "diagonal": ".lora_diag"}},
    marks=("down", "up", "diagonal"),
    formula=Formula(check, lora.weight_shape, misfit, lora.rank, change, rslora=True),
    transposed=False,
    multiplies=True,
    peft_type="LORA",
    settings=settings,
    # Those without a diagonal are LoRA's.
    fits=lambda shapes: "diagonal" in shapes,
)
