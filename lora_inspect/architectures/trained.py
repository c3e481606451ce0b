"""The family and layout of a model in memory, by the classes and names of its modules."""

from collections.abc import Collection, Iterable
from functools import cache

from lora_inspect.sentences import listed

from . import every
from .patterns import fill, layout_patterns, pattern_of
from .record import Architecture, Layout, Training

# Below it a model with blocks of a known class is none of the families.
_SHARE = 0.5


def trained() -> list[Architecture]:
    """Return the families that a network module trains."""
    return [architecture for architecture in every() if architecture.training]


def training_of(architecture: Architecture) -> Training:
    """Return the layers that the network module of the family adapts; raise ValueError if there is none."""
    if architecture.training is None:
        raise ValueError(f"no network module trains {architecture.title}")
    return architecture.training


def by_option(name: str) -> Architecture:
    """Return the family for an `architecture` option: its name, a key of a trainer, or a name from metadata.

    Raises ValueError, which lists the names, for any other.
    """
    wanted = name.strip().lower()
    for architecture in trained():
        others = (*training_of(architecture).keys, *architecture.metadata_names)
        if wanted in (architecture.name, *(other.lower() for other in others)):
            return architecture
    raise ValueError(f"architecture={name!r}: it must be {_known()}")


def family_of(classes: Collection[str], paths: Collection[str]) -> Architecture:
    """Return the family of a model with modules of these class names and layers at these dotted paths.

    A family is possible if the model has one of its blocks or is one of its models. Of the possible ones, it takes the
    one with a layout that holds the most layers, and of equal layouts the one with the fewest others. Raises
    ValueError, which lists the classes, if none is possible or the best holds less than half.
    """
    best = max(
        (architecture for architecture in trained() if _class_names(training_of(architecture)).intersection(classes)),
        key=lambda architecture: _fit(architecture, paths),
        default=None,
    )
    if best is None or _fit(best, paths)[0] < _SHARE * len(paths):
        sought = sorted({name for architecture in trained() for name in _class_names(training_of(architecture))})
        raise ValueError(
            f"the classes {', '.join(sorted(classes))} do not show the architecture; give architecture as {_known()}, "
            f"or a model with one of the classes that were looked for: {', '.join(sought)}; "
            "lora_inspect.networks.adapt takes any model"
        )
    return best


def layout_of(architecture: Architecture, paths: Collection[str]) -> Layout:
    """Return the layout of the family that holds the most of the paths, the first (original) one if equal."""
    return max(architecture.layouts, key=lambda layout: _held(layout, paths))


def blocks_of(training: Training, task: str | None) -> tuple[str, ...] | None:
    """Return the class names of the adapted blocks, original and diffusers'; None for the whole model.

    Raises ValueError if the family needs a task and this is none.
    """
    if training.task_attribute:
        tasks = dict(training.tasks)
        if task not in tasks:
            raise ValueError(f"the model's {training.task_attribute} is {task!r}, not {listed(list(tasks), 'or')}")
        return tasks[task]
    return None if training.classes is None else (*training.classes, *training.diffusers_classes)


@cache
def one_to_one(architecture: Architecture) -> tuple[tuple[str, str], ...]:
    """Return the (original, diffusers') paths of a family with the same block layers in both layouts.

    Empty for any other; layers outside of the blocks that have their rows in another order are left out.
    """
    layouts = {layout.name: layout for layout in architecture.layouts}
    if not {"original", "diffusers"} <= layouts.keys():
        return ()
    original, diffusers = layouts["original"], set(layouts["diffusers"].paths)
    between = [
        relation
        for relation in architecture.correspondence.relations
        if relation.whole in original.paths and diffusers.issuperset(relation.parts)
    ]
    in_blocks = tuple(f"{blocks}." for blocks, _ in original.blocks)
    if any(relation.arrangement is not None and relation.whole.startswith(in_blocks) for relation in between):
        return ()
    return tuple((relation.whole, relation.parts[0]) for relation in between if relation.arrangement is None)


def original_path(architecture: Architecture, path: str) -> str | None:
    """Return the original path of the layer at `path` in diffusers' model, if the blocks are one to one."""
    filled = (fill(diffusers, original, path) for original, diffusers in one_to_one(architecture))
    return next((found for found in filled if found), None)


def _fit(architecture: Architecture, paths: Collection[str]) -> tuple[int, int]:
    """Return (number of the paths in the best layout, minus the number of its other paths)."""
    layout = layout_of(architecture, paths)
    return _held(layout, paths), -len(layout.paths)


def _held(layout: Layout, paths: Iterable[str]) -> int:
    known = layout_patterns(layout.paths, ".")
    return sum(pattern_of(path, ".") in known for path in paths)


def _class_names(training: Training) -> set[str]:
    return {*(training.classes or ()), *training.diffusers_classes, *training.models}


def _known() -> str:
    return listed([architecture.name for architecture in trained()], "or")
