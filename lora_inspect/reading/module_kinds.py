"""Modules of a file that are alike in all that decides their scales: what holds of one of them holds of each."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lora_inspect.reading.contribution import Contribution, Module
from lora_inspect.reading.stored_numbers import StoredNumbers
from lora_inspect.records import NamedTuple


class ModuleKind(NamedTuple):
    """The `first` of such modules, and the `places` of all of them among the modules of the file, by their names."""

    first: Module
    places: dict[str, int]


def computed(kinds: Iterable[ModuleKind]) -> Iterator[tuple[ModuleKind, Contribution]]:
    """The contributions of the first of each kind whose algorithm is built, with their kinds."""
    return ((kind, one) for kind in kinds for one in kind.first.contributions if one.algorithm.formula)


def kinds_of(modules: Mapping[str, Module], numbers: StoredNumbers, by_path: bool) -> list[ModuleKind]:
    """The kinds of modules, each where the first one of it stands.

    They differ where anything does but names and tensors: the algorithms, the shapes, the stored number. `by_path` says
    that what is known of a module hangs on its path too, so that no two of other paths are alike.
    """
    kinds: dict[Any, ModuleKind] = {}
    for place, (name, module) in enumerate(modules.items()):
        flag = module.rslora_flag
        traits = (
            module.name[: 4 if by_path else 3],
            module.alpha is None,
            # The same number of another type, or the other zero, is spelled in another way.
            id(numbers.alphas.get(name)),
            flag and (numbers.flags[flag.name],),
            *[
                (id(one.algorithm), one.rows, one.magnitude and one.magnitude.axis, *one.factors, *_shapes(one))
                for one in module.contributions
            ],
        )
        kind = kinds.get(traits)
        if kind is None:
            kind = kinds[traits] = ModuleKind(module, {})
        kind.places[name] = place
    return list(kinds.values())


def _shapes(contribution: Contribution) -> list[tuple[int, ...]]:
    return [info.shape for info in contribution.factors.values()]
