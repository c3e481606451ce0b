"""HiRA of PEFT: W' = W ⊙ (1 + B @ A), so that the change has full rank though its factors are thin.

The product is that of LoRA: of a convolution A has the kernel, and an Embedding has factors of its own, of whose
product it takes the transpose. There is no alpha, and PEFT has no strengths for it; its forward and its merge are the
same. Sources: Huang et al. 2025, and the `HiraLayer` of PEFT 0.21.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from lora_inspect.algorithms import lora, lora_embedding
from lora_inspect.algorithms.record import Algorithm, Formula, Tensors
from lora_inspect.maths.change import Change
from lora_inspect.maths.products import product


@dataclass(frozen=True, slots=True)
class Modulated(Change):
    """Each entry of the weight times 1 + multiplier · (its entry of up @ down)."""

    up: Any  # (out, rank)
    down: Any  # (rank, in·kernel)
    together: int = 1

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Multiplies the rows."""
        rows.mul_(1 + multiplier * product(self.up[first : first + rows.shape[0]], self.down))


def change(tensors: Tensors, scale: float, alpha: float | None) -> Change:
    """The factors as matrices."""
    return Modulated(*lora.matrices(tensors))


_hira = partial(Algorithm, marks=("down", "up"), multiplies=True, blends=False, has_alpha=False, peft_type="HIRA")
ALGORITHMS = (
    _hira(
        name="hira",
        title="HiRA",
        equation="W ⊙ (1 + B @ A)",
        writers="PEFT",
        dialects={"peft": {"down": ".hira_A", "up": ".hira_B"}},
        formula=Formula(lora.check, lora.weight_shape, lora.misfit, rank=lambda shapes: None, change=change),
        rows={"up": "down"},
    ),
    _hira(
        name="hira_embedding",
        title="HiRA on an Embedding",
        equation="W ⊙ (1 + (B @ A)ᵀ)",
        writers="PEFT",
        dialects={"peft": {"down": ".hira_embedding_A", "up": ".hira_embedding_B"}},
        formula=Formula(
            lora_embedding.check, lora.weight_shape, lora_embedding.misfit, rank=lambda shapes: None, change=change
        ),
        transposed=True,
    ),
)
