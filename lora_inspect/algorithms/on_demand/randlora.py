"""RandLoRA: W' = W + alpha/r · Σ B_j · diag(λ_j) · A · diag(γ_j), of bases that are drawn once for all modules.

Together the bases reach full rank. A is on the shorter side of the weight, inputs or outputs. Where PEFT multiplies,
the pairs (basis, rank) are counted rank first in A and basis first in B, so that position p of one meets position p of
the other; its files mean that. PEFT has no multiplier for it. Sources: Albert et al. 2025; the `RandLoraLayer` of PEFT.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_inspect.algorithms.config_fields import is_number
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Shared, Surroundings, Tensors
from lora_inspect.maths.change import Change
from lora_inspect.maths.products import add_product

_NOT_SAVED = (
    "its projections are not in the file (save_projection: false), and PEFT draws them again for the largest layers "
    "of its model, which the file does not name; merge it with PEFT on its own base, or train it with "
    "save_projection: true"
)
# PEFT writes them once more in every module, and loads those of the model last.
_COPIES = {"copy_A": ".randlora_A", "copy_B": ".randlora_B"}


@dataclass(frozen=True, slots=True)
class _Bases(Change):
    """The product of the shared B (long or more, bases or more, rank) and a scaled A (rank·bases, short)."""

    long: Any
    short: Any
    bases: int
    scale: float
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Add the product's rows: those of B if the inputs are the shorter side, else those of A transposed."""
        last, columns = first + rows.shape[0], rows.shape[1]
        factor = self.scale * multiplier
        if columns == self.short.shape[1]:
            add_product(rows, self._of_long(first, last) * factor, self.short)
        else:
            add_product(
                rows, self.short[:, first:last].transpose(0, 1) * factor, self._of_long(0, columns).transpose(0, 1)
            )

    def _of_long(self, first: int, last: int) -> Any:
        return self.long[first:last, : self.bases].flatten(1)


def check(shapes: Shapes) -> str | None:
    """Return the problem with λ (rank, bases), γ (bases, short), A (rank, 1, …) or B (long, bases, rank), or None."""
    own, gains = shapes["lambda"], shapes["gamma"]
    if len(own) != 2 or len(gains) != 2 or own[1] != gains[0] or 0 in own:
        return f"randlora_lambda {list(own)} and randlora_gamma {list(gains)} are not of the same bases"
    short, long = shapes.get("A"), shapes.get("B")
    if short and (len(short) != 3 or short[:2] != (own[0], 1) or short[2] < gains[1]):
        return f"randlora_A {list(short)} is not a basis of rank {own[0]} for {gains[1]} features"
    if long and (len(long) != 3 or long[1] < own[1] or long[2] != own[0]):
        return f"randlora_B {list(long)} are not {own[1]} bases of rank {own[0]}"
    return "a tensor that its modules share is empty" if () in (short, long) else None


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Return unknown sizes: the shorter side is known, but not its axis."""
    return None, None


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    short, most = shapes["gamma"][1], shapes["B"][0]
    if len(weight) == 2 and min(weight) == short and max(weight) <= most:
        return None
    return f"changes a weight with a shorter side of {short} and a longer one of at most {most}"


def settings(around: Surroundings) -> Mapping[str, Any] | str:
    """Return the alpha from the config, which PEFT divides by the rank, or an error text if it is unknown."""
    said = around.config.get("randlora_alpha") if around.config else None
    if not is_number(said):
        return (
            "PEFT keeps its scale in adapter_config.json (randlora_alpha), but nothing gives it here; put it next to "
            "the file"
        )
    return {"randlora_alpha": said}


def change(tensors: Tensors, scale: float, alpha: float | None, *, randlora_alpha: float) -> Change:
    """Return the bases, with both trained tensors in A."""
    own, gains = tensors["lambda"], tensors["gamma"]
    short = own.unsqueeze(2) * tensors["A"][:, :, : gains.shape[1]] * gains
    return _Bases(tensors["B"], short.flatten(0, 1), own.shape[1], randlora_alpha / own.shape[0])


ALGORITHM = Algorithm(
    name="randlora",
    title="RandLoRA",
    equation="W + s · Σ B_j · diag(λ_j) · A · diag(g_j)",
    writers="PEFT",
    dialects={"peft": {"lambda": ".randlora_lambda", "gamma": ".randlora_gamma", **_COPIES}},
    marks=("lambda", "gamma"),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change),
    shared={role: Shared(f"randlora_{role}", _NOT_SAVED) for role in ("A", "B")},
    idle=tuple(_COPIES),
    settings=settings,
    blends=False,
    has_alpha=False,
    peft_type="RANDLORA",
)
