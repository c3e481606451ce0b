"""The relation between the modules of two layouts of one family, as data that is read in both directions.

Paths are written as in a `Layout`, with `{i}` for an index, which is the same on both sides. `FLUX` has, among others,

    stack("double_blocks.{i}.img_attn.qkv", "transformer_blocks.{i}.attn.to_q", …)
    swapped("final_layer.adaLN_modulation.1", "norm_out.linear")
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from ..fast_namedtuple import NamedTuple
from .patterns import fill, pattern_of

if TYPE_CHECKING:  # where something is arranged, and most runs ask for no relation
    from .rows import Arrangement, Share


# No model has more experts than nine digits count, and int() of thousands of digits is an error.
_MOST_DIGITS = 9


class Relation(NamedTuple):
    """The module `whole` of one layout, and the modules of another one that have its rows.

    `arrangement` maps the rows; None is one module with the same rows in the same order. Biases are arranged like the
    rows of the weights.

    With `experts`, the whole is one parameter (experts, rows, columns), and each part is one module per expert; the
    expert's number is the last `{i}` of its path. With `alike`, the whole and its parts are all such parameters, and
    the rows are those of each expert.
    """

    whole: str
    parts: tuple[str, ...]
    arrangement: "Arrangement | None" = None
    experts: bool = False
    alike: bool = False


class Link(NamedTuple):
    """The name of a module in another layout: `path`, in the relation to the part of that number.

    `is_whole` is True if the path is that of the whole, and the module itself is the part.
    """

    path: str
    relation: Relation
    part: int
    is_whole: bool

    @property
    def template(self) -> str:
        """The path with `{i}` for its indices, as the layout has it."""
        return self.relation.whole if self.is_whole else self.relation.parts[self.part]


def same(one: str, other: str) -> Relation:
    """Return the relation of one module under two names."""
    return Relation(one, (other,))


def stack(whole: str, *parts: str, shares: "tuple[Share, ...]" = ()) -> Relation:
    """Return the relation of a fused module to its parts, top to bottom, with equal rows unless `shares` differ.

    More shares than parts are rows at the bottom that none of them has.
    """
    from .rows import Stacked

    return Relation(whole, parts, Stacked(shares or (1,) * len(parts)))


def interleaved(whole: str, *parts: str, run: int = 1) -> Relation:
    """Return a fused module with parts that take turns, `run` rows each, as heads of a query, key and value may."""
    from .rows import Interleaved

    return Relation(whole, parts, Interleaved(len(parts), run))


def swapped(one: str, other: str) -> Relation:
    """Return the relation of one module with its halves of rows swapped, as shift and scale of a modulation."""
    from .rows import Swapped

    return Relation(one, (other,), Swapped())


def pair_swapped(one: str, other: str) -> Relation:
    """Return the relation of a modulation that is swapped only if it has just shift and scale."""
    from .rows import PairSwapped

    return Relation(one, (other,), PairSwapped())


def experts(whole: str, *parts: str) -> Relation:
    """Return the relation of a parameter with a layer of all experts to each expert's modules, top to bottom."""
    from .rows import Stacked

    return Relation(whole, parts, Stacked((1,) * len(parts)) if len(parts) > 1 else None, experts=True)


def parameters(whole: str, *parts: str) -> Relation:
    """Return the relation of a parameter of all experts to others that have some rows of every expert."""
    return experts(whole, *parts)._replace(experts=False, alike=True)


def below(whole_parent: str, part_parent: str, *relations: Relation) -> tuple[Relation, ...]:
    """Return the relations of modules below two parents."""
    return tuple(
        relation._replace(
            whole=f"{whole_parent}.{relation.whole}", parts=tuple(f"{part_parent}.{part}" for part in relation.parts)
        )
        for relation in relations
    )


def renamed(relations: Iterable[Relation], names: Iterable[Relation]) -> tuple[Relation, ...]:
    """Return the relations of a third layout, for the modules that `names` renames."""
    found = {relation.whole: relation.parts[0] for relation in names}
    return tuple(relation._replace(whole=found[relation.whole]) for relation in relations if relation.whole in found)


class Correspondence:
    """The relations of a family's layouts, made where they are first asked for: most runs need those of one family."""

    def __init__(self, make: Callable[[], Iterable[Relation]] = tuple) -> None:
        self._make = make

    @cached_property
    def relations(self) -> tuple[Relation, ...]:
        """Every relation; empty if none is known."""
        return tuple(self._make())

    def links(self, path: str) -> Iterator[Link]:
        """Yield the links of the module at `path`, in either layout, to other paths in the other layout."""
        for template, other, link in self._by_pattern.get(pattern_of(path, "."), ()):
            found = fill(template, other, path)
            if found is not None and found != path:
                yield link._replace(path=found)

    def links_of_experts(self, path: str) -> Iterator[Link]:
        """Yield the modules of single experts in the parameter at `path`, with `{i}` for the expert."""
        for relation in self._of_experts.get(pattern_of(path, "."), ()):
            for number, part in enumerate(relation.parts):
                parent, mark, leaf = part.rpartition("{i}")
                if (found := fill(relation.whole, parent, path)) is not None:
                    yield Link(f"{found}{mark}{leaf}", relation, number, is_whole=False)

    def links_of_expert(self, path: str) -> Iterator[tuple[Link, int]]:
        """Yield the parameters that have the layer at `path`, and the number of its expert."""
        for relation, number in self._of_single_experts.get(pattern_of(path, "."), ()):
            if (found := fill(relation.parts[number], relation.whole, path)) is not None:
                expert = next(part for part in reversed(path.split(".")) if part.isdigit())
                if len(expert) <= _MOST_DIGITS:
                    yield Link(found, relation, number, is_whole=True), int(expert)

    def links_of_parameters(self, path: str) -> Iterator[Link]:
        """Yield the parameters of all experts that have rows of the one at `path`."""
        for relation in (relation for relation in self.relations if relation.alike):
            for number, part in enumerate(relation.parts):
                if (found := fill(relation.whole, part, path)) is not None:
                    yield Link(found, relation, number, is_whole=False)

    @cached_property
    def _by_pattern(self) -> dict[str, list[tuple[str, str, Link]]]:
        """Every path of the relations with the related one, by its pattern."""
        table: dict[str, list[tuple[str, str, Link]]] = defaultdict(list)
        for relation in (one for one in self.relations if not (one.experts or one.alike)):
            for number, part in enumerate(relation.parts):
                of_whole = relation.whole, part, Link("", relation, number, is_whole=False)
                of_part = part, relation.whole, Link("", relation, number, is_whole=True)
                for entry in (of_whole, of_part):
                    table[pattern_of(entry[0], ".")].append(entry)
        return dict(table)

    @cached_property
    def _of_experts(self) -> dict[str, list[Relation]]:
        """The relations of experts by the pattern of the parameter."""
        table: dict[str, list[Relation]] = defaultdict(list)
        for relation in (relation for relation in self.relations if relation.experts):
            table[pattern_of(relation.whole, ".")].append(relation)
        return dict(table)

    @cached_property
    def _of_single_experts(self) -> dict[str, list[tuple[Relation, int]]]:
        """The relations of experts by the pattern of each part, with its number."""
        table: dict[str, list[tuple[Relation, int]]] = defaultdict(list)
        for relation in (relation for relation in self.relations if relation.experts):
            for number, part in enumerate(relation.parts):
                table[pattern_of(part, ".")].append((relation, number))
        return dict(table)


UNKNOWN = Correspondence()
