"""Which modules of a base each module of an adapter is: one, or those that have its rows in another layout."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from lora_inspect.algorithms.record import BIAS, WEIGHT
from lora_inspect.architectures import open_clip
from lora_inspect.architectures.correspondence import Correspondence
from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_names import Found, NameTable
from lora_inspect.reading.keys.suffixes import MODELS
from lora_inspect.reading.model.contribution import Module


class Home(NamedTuple):
    """A module of the adapter, and the modules of the base that it is, in the order of its rows where several are."""

    module: Module
    found: tuple[Found, ...]

    @property
    def is_complete(self) -> bool:
        """Whether all parts are there of a module that is several."""
        piece = self.found[0].piece
        parts = piece.parts if piece and piece.of_whole else 1
        if self.found[0].single is None:
            return len(self.found) == parts
        experts = len(self.found) // parts
        return [one.single for one in self.found] == [expert for expert in range(experts) for _ in range(parts)]


class Homes(NamedTuple):
    """The modules with a home, those that are `homeless`, and of these what is found of one that is there in part.

    `lacking` are homes of homeless modules that have nothing of what these change.
    """

    complete: list[Home]
    homeless: tuple[Module, ...]
    partial: tuple[Home, ...]
    lacking: tuple[Home, ...]


def find_homes(adapter: Adapter, base: Checkpoint, modules: Sequence[Module], correspondence: Correspondence) -> Homes:
    """The home of each module; the `correspondence` is that of the model, not of its text encoders.

    Raises LoraInspectError where a name means two modules of the base, and where two modules change the same rows.
    """
    kinds = {(module.name.scheme, module.name.component, module.name.prefix) for module in modules}
    tables = {
        (scheme, component, prefix): NameTable(
            base, scheme, component, prefix, correspondence if component in MODELS else open_clip.CORRESPONDENCE
        )
        for scheme, component, prefix in kinds
    }
    homes: list[Home] = []
    partial: list[Home] = []
    lacking: list[Home] = []
    taken: dict[tuple[str, int | None], list[tuple[Found, Module]]] = defaultdict(list)
    unmatched: list[Module] = []
    for module in modules:
        name = module.name
        table = tables[name.scheme, name.component, name.prefix]
        found = _one_meaning(module, _of_parameter(module, table) or table.find(name), adapter, base)
        if found and not Home(module, found).is_complete:
            partial.append(Home(module, found))
            unmatched.append(module)
            continue
        if not found or not any(found[0].tensor(c.algorithm.parameter) in base.tensors for c in module.contributions):
            lacking += [Home(module, found)] if found else []
            unmatched.append(module)
            continue
        for one in found:
            here = taken[one.path, one.expert]
            if other := next((module for earlier, module in here if _share_rows(earlier, one)), None):
                raise LoraInspectError(_both_change(other, module, one, adapter, base))
            here.append((one, module))
        homes.append(Home(module, found))
    return Homes(homes, tuple(unmatched), tuple(partial), tuple(lacking))


def _of_parameter(module: Module, table: NameTable) -> list[Found]:
    """What has the parameter that alone the module changes, under a name that is no weight's or bias's."""
    parameters = {contribution.algorithm.parameter for contribution in module.contributions}
    if len(parameters) > 1 or parameters <= {WEIGHT, BIAS}:
        return []
    (parameter,) = parameters
    return table.find_parameter(module.name, parameter)


def _one_meaning(module: Module, found: Iterable[Found], adapter: Adapter, base: Checkpoint) -> tuple[Found, ...]:
    """The one module that is meant, or the parts of it in their order; empty where there is none.

    Raises LoraInspectError where several are meant.
    """
    meanings: dict[object, dict[tuple[int, int], Found]] = {}
    for one in found:
        piece = one.piece
        is_part = one.single is not None or (piece is not None and piece.of_whole)
        meaning = meanings.setdefault((piece and piece.arrangement) if is_part else one, {})
        number = one.single or 0, piece.part if is_part and piece else 0
        if number in meaning:
            raise LoraInspectError(_ambiguous(module, meaning[number], one, adapter, base))
        meaning[number] = one
    if len(meanings) > 1:
        first, second, *_ = (next(iter(meaning.values())) for meaning in meanings.values())
        raise LoraInspectError(_ambiguous(module, first, second, adapter, base))
    return tuple(one for meaning in meanings.values() for _, one in sorted(meaning.items()))


def _share_rows(one: Found, other: Found) -> bool:
    """Whether two modules of an adapter that are at home in one of the base have rows of it in common."""
    pieces = one.piece, other.piece
    apart = all(piece is not None and not piece.of_whole for piece in pieces)
    return not apart or pieces[0] == pieces[1]


def _ambiguous(module: Module, first: Found, second: Found, adapter: Adapter, base: Checkpoint) -> str:
    return (
        f"{adapter.checkpoint.path}: {module.name.key} fits both {_shown(first, base)} and "
        f"{_shown(second, base)} of {base.path}; use a base that holds one of them."
    )


def _both_change(first: Module, second: Module, found: Found, adapter: Adapter, base: Checkpoint) -> str:
    what = f"{_shown(found, base)} of {base.path}"
    both = f"{adapter.checkpoint.path}: {first.name.key} and {second.name.key} both change {what}"
    components = sorted({first.name.component, second.name.component})
    if len(components) == 1:
        return f"{both}; leave one of them out."
    choices = " or ".join(f"--only {component}" for component in components)
    return f"{both}, which holds one of {' and '.join(components)}; say which one it is with {choices}."


def _shown(found: Found, base: Checkpoint) -> str:
    """The weight of the base's module, or where it has none the module."""
    return weight if (weight := found.tensor(WEIGHT)) in base.tensors else found.path
