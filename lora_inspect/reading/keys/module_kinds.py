"""Modules of a file that are alike in all that decides their scales: what holds of one of them holds of each."""

from collections.abc import Iterable, Iterator, Mapping

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.keys.groups import alike, likeness_by
from lora_inspect.reading.keys.stored_numbers import StoredNumbers
from lora_inspect.reading.model.contribution import Contribution, Module


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
    known = alike(modules)
    flags = [module.rslora_flag for module in known.values()]
    traits = zip(
        known.likeness.numbers,
        # The same number of another type, or the other zero, is spelled in another way.
        [id(numbers.alphas.get(name)) for name in known],
        [flag and (numbers.flags[flag.name],) for flag in flags],
        known if by_path else [None] * len(known),
        strict=True,
    )
    likeness = likeness_by(traits)
    found = list(known.values())
    kinds = [ModuleKind(found[place], {}) for place in likeness.firsts]
    for place, (name, number) in enumerate(zip(known, likeness.numbers, strict=True)):
        kinds[number].places[name] = place
    return kinds
