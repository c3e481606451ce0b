"""Checks of planned folds: each refuses a merge that would be wrong, or adds a note to the plan.

A multiplier must have a meaning for the algorithm, a tensor saved whole must be the only change of its weight, and the
part that an initialisation took from a base must follow from it.

A base holds a weight that two modules share once. A change of the weight changes both modules, while the adapter was
trained in one of them. The class of the model, which the config.json next to the base names, decides which weights are
shared. For a class outside the table of model classes, and without a config, the names of embeddings and heads decide.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora_inspect.architectures.model_classes import ModelClass, as_pattern, class_of_config
from lora_inspect.errors import RefusedError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.matching.unmatched import CLASSES_WITH_HEAD, has_head, is_embedding
from lora_inspect.merging.fold_chain import Fold
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.peft.peft_config import ties_weights
from lora_inspect.reading.peft.residual_adapters import OLORA


def check_tied(base: Checkpoint, config: Mapping[str, Any] | None, folds: Mapping[str, Sequence[Fold]]) -> list[str]:
    """Return sentences on changed embeddings that a head shares, by the content of the base's config.json.

    Raises LoraInspectError if the base's config shows a head, or another module, that shares a changed weight.
    """
    model_class = class_of_config(config)
    for name, fold in ((name, fold) for name, chain in folds.items() for fold in chain if _trains_one(fold)):
        sharing = model_class.sharing(name, config or {}) if model_class else None
        has_shared_head = sharing is None and is_embedding(name) and not has_head(base)
        if model_class and sharing is not None:
            weights = _without_tensor(base, model_class, sharing)
        else:
            weights = ("the head",) if has_shared_head and _is_of_a_head(config) else ()
        path, key = fold.adapter.checkpoint.path, fold.contribution.module.key
        if weights:
            raise RefusedError(
                path,
                f"{key} was trained without {weights[0]}, but {weights[0]} of {base.path} has no weight of its own and "
                f"would change with {name}",
                "save the base with tie_word_embeddings false, or leave it out with "
                f"{path}:{fold.contribution.module.body}=0",
            )
        if has_shared_head:
            return [
                (
                    f"{base.path} has no head; one that shares {name} would change with it, but {key} of {path} did "
                    "not train that"
                )
            ]
    return []


def _without_tensor(base: Checkpoint, model_class: ModelClass, weights: Iterable[str]) -> tuple[str, ...]:
    """Return the modules of the weights that a base does not hold, "the head" for that one, the head first."""
    held = {as_pattern(name) for name in base.tensors}
    modules = [
        weight.removesuffix(".weight") for weight in weights if not held & set(model_class.names_in_file(weight))
    ]
    names = ["the head" if module == model_class.head else module for module in modules]
    return tuple(sorted(names, key=lambda name: name != "the head"))


def _trains_one(fold: Fold) -> bool:
    """Return True if only the embedding is changed: PEFT may tie the change to that of the head, and records it."""
    if fold.contribution.algorithm.ties:
        return False
    return bool(fold.multiplier) and not ties_weights(fold.adapter.checkpoint.config)


def _is_of_a_head(config: Mapping[str, Any] | None) -> bool:
    """Return True if the config of a base names a model with a head."""
    names = config.get("architectures") if config else None
    return isinstance(names, list) and any(isinstance(name, str) and name.endswith(CLASSES_WITH_HEAD) for name in names)


def check_residual(folds: Sequence[Fold], base: Checkpoint) -> None:
    """Check that the part which an initialisation took from a weight follows from the base.

    Raises LoraInspectError if it does not.
    """
    for fold in folds:
        if not fold.placed.has_residual or not fold.multiplier:
            continue
        contribution, place, rows = fold.placed
        name, init, path = contribution.module.key, contribution.residual, fold.adapter.checkpoint.path
        if fold.multiplier != 1:
            raise RefusedError(
                path,
                f"the {init} initialisation of {name} took a part of the original base, so its multiplier must "
                f"be 0 or 1, but {fold.multiplier:g} is given",
                "give 1 or 0, or residual=yes on the residual base",
            )
        if place.block or (rows is not None and place.runs and place.runs.rows != rows):
            raise RefusedError(
                path,
                f"{name} took its {init} initialisation from a whole layer, but {place.target.name} of "
                f"{base.path} is only a part of that",
                "use a base in the adapter's layout",
            )
        if place.transposed and init == OLORA:
            raise RefusedError(
                path,
                f"{place.target.name} of {base.path} is stored as (in, out), but no program has the {init} "
                "initialisation for that",
                "give residual=yes if the base is the residual one",
            )


def residual_notes(folds: Iterable[Fold], base: Checkpoint) -> list[str]:
    """Return a sentence for each adapter for which the base is assumed to be the original one."""
    taken = {
        f.adapter.checkpoint.path: f.contribution.residual for f in folds if f.placed.has_residual and f.multiplier
    }
    return [
        f"{path}: merge computes its {init} initialisation from {base.path} as the original base; give "
        f"{path}:residual=yes if that is the residual one."
        for path, init in taken.items()
    ]


def check_replaced(folds: Mapping[str, Sequence[Fold]]) -> None:
    """Raise LoraInspectError if a tensor would be replaced in part, or if another adapter changes it too."""
    for name, own in folds.items():
        for fold in own:
            module, path = fold.contribution.module, fold.adapter.checkpoint.path
            if not fold.contribution.algorithm.replaces or not fold.multiplier:
                continue
            if fold.multiplier != 1:
                raise RefusedError(
                    path,
                    f"{module.key} is saved whole and can only replace {name} or not, so a multiplier of "
                    f"{fold.multiplier:g} has no meaning",
                    f"give it 1 or 0, for instance with {path}:{fold.multiplier:g},{module.body}=1",
                )
            other = next((one for one in own if one.adapter is not fold.adapter and one.multiplier), None)
            if other:
                raise RefusedError(
                    path,
                    f"{module.key} is saved whole and replaces {name}, but {other.adapter.checkpoint.path} "
                    "changes that, too",
                    f"give it 0 in one of them, for instance with {path}:{module.body}=0",
                )


def check_multiplier(path: str, contribution: Contribution, multiplier: float) -> None:
    """Raise LoraInspectError for a multiplier that has no meaning in the algorithm's own program."""
    algorithm = contribution.algorithm
    if not algorithm.blends and multiplier not in (0, 1):
        raise RefusedError(
            path,
            f"{algorithm.title} allows only multiplier 0 or 1, but {multiplier:g} is given for "
            f"{contribution.module.key}",
            "give 1, or 0 to leave it out",
        )
