"""How changed weights are rounded to what they are written in: to the nearest number, or stochastically."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lora_inspect.errors import RefusedError
from lora_inspect.files.safetensors.dtypes import BITS
from lora_inspect.sentences import listed

if TYPE_CHECKING:
    from lora_inspect.files.checkpoint import Checkpoint
    from lora_inspect.maths.rounding import StochasticRounding
    from lora_inspect.merging.fold_chain import Fold

# The two ways, the option that chooses the second, and the bits of the finest numbers that it is for.
NEAREST, STOCHASTIC = "nearest", "stochastic"
OPTION, _MOST_BITS = f"--rounding {STOCHASTIC}", 16


def seed_of(rounding: str, seed: int | None) -> int | None:
    """What is drawn by, None for the nearest number; ValueError for a seed that nothing is drawn by."""
    if rounding == STOCHASTIC:
        return seed or 0
    if seed is not None:
        raise ValueError(f"a seed is what rounding {STOCHASTIC} is drawn by, so give both or neither")
    return None


def rounding_of(seed: int | None, name: str, folds: "Sequence[Fold]") -> "StochasticRounding | None":
    """What rounds a weight by the `seed`; None for the nearest number, which what is not changed always gets."""
    if seed is None or not folds:
        return None
    from lora_inspect.maths.rounding import StochasticRounding

    return StochasticRounding(seed, name)


def check_rounding(
    seed: int | None, base: "Checkpoint", folds: "Mapping[str, Sequence[Fold]]", types: Mapping[str, str]
) -> None:
    """Raises LoraInspectError where there is a `seed` and no changed weight is written in numbers so coarse.

    `types` has the element type of each weight that gets another one.
    """
    changed = (name for name, own in folds.items() if any(fold.multiplier for fold in own))
    written = {types.get(name, base.tensors[name].dtype) for name in changed}
    if seed is not None and not any(BITS[one] <= _MOST_BITS for one in written):
        why = f"what changes is written in {listed(sorted(written))}" if written else "nothing changes"
        raise RefusedError(base.path, f"{OPTION} has nothing to round, as {why}", "leave it out")
