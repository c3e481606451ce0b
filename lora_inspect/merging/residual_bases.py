"""What an initialisation moved out of a base into the factors: where it can be taken out again, and that it is."""

from collections.abc import Iterable, Sequence

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.merging.fold_chain import Fold
from lora_inspect.reading.peft.residual_adapters import OLORA


def check_residual(folds: Sequence[Fold], base: Checkpoint) -> None:
    """Raises LoraInspectError where what an initialisation took from a weight cannot be computed from the base."""
    for fold in folds:
        if not fold.placed.has_residual or not fold.multiplier:
            continue
        contribution, place, rows = fold.placed
        name, init, path = contribution.module.key, contribution.residual, fold.adapter.checkpoint.path
        if fold.multiplier != 1:
            raise LoraInspectError(
                f"{path}: {name} has no multiplier between or beyond 0 and 1 on the original base, as the {init} "
                f"initialisation took a part of it, but {fold.multiplier:g} is given; give 1 or 0, or residual=yes "
                "on the residual base."
            )
        if place.block or (rows is not None and place.runs and place.runs.rows != rows):
            raise LoraInspectError(
                f"{path}: {name} took its {init} initialisation from a whole layer, of which {place.target.name} of "
                f"{base.path} is a part; use a base in the adapter's layout."
            )
        if place.transposed and init == OLORA:
            raise LoraInspectError(
                f"{path}: {place.target.name} of {base.path} is stored as (in, out), for which no program has the "
                f"{init} initialisation; give residual=yes where the base is the residual one."
            )


def residual_notes(folds: Iterable[Fold], base: Checkpoint) -> list[str]:
    """Which base it is taken for, a sentence for each adapter."""
    taken = {
        f.adapter.checkpoint.path: f.contribution.residual for f in folds if f.placed.has_residual and f.multiplier
    }
    return [
        f"{path}: its {init} initialisation is computed from {base.path} as the original base; give "
        f"{path}:residual=yes where that is the residual one."
        for path, init in taken.items()
    ]
