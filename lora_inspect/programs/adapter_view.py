"""A program's view of an adapter: groups of equal modules, and facts of the file.

A module's traits are the parts of its names and spellings that decide if and how a program loads it. Programs recognise
a file, and choose a loader, by parts of its keys.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache, cached_property
from itertools import count
from typing import Any, TypeVar

from lora_inspect import algorithms
from lora_inspect.architectures.patterns import layout_patterns, pattern_of
from lora_inspect.architectures.record import Architecture
from lora_inspect.architectures.text_encoders import PATHS, ROOTS
from lora_inspect.fast_namedtuple import NamedTuple, make_record
from lora_inspect.programs.record import HIDING, INFIXED, SLICED, TEXT_ENCODERS, Loader, Program, Reads
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.keys.groups import group_equal
from lora_inspect.reading.keys.suffixes import parse_key
from lora_inspect.reading.model.contribution import Contribution, Module


class ModuleTraits(NamedTuple):
    """The traits of a module's contribution, equal in most modules of a file.

    `pattern` is the body of the name without its numbers, `separator` joins the segments. `dialects` are the ones that
    spell all factors. `has_alpha` says that an alpha tensor is next to them. `magnitude` is the suffix and the axis of
    the magnitude, empty without one.
    """

    prefix: str
    pattern: str
    separator: str
    algorithm: str
    roles: tuple[str, ...]
    dialects: tuple[str, ...]
    has_alpha: bool
    magnitude: str


def look_of(module: Module, contribution: Contribution, pattern: str) -> ModuleTraits:
    """Return the traits of a contribution to a module with a name of the `pattern`."""
    magnitude = contribution.magnitude
    return ModuleTraits(
        prefix=module.name.prefix,
        pattern=pattern,
        separator=separator_of(module),
        algorithm=contribution.algorithm.name,
        roles=tuple(sorted(contribution.factors)),
        dialects=_dialects(module, contribution),
        has_alpha=module.alpha is not None,
        magnitude=f"{magnitude.spelling.suffix} {magnitude.axis}" if magnitude else "",
    )


def separator_of(module: Module) -> str:
    """Return the separator between the segments of the module's name."""
    return "_" if module.name.flat else "."


def is_of_layout(look: ModuleTraits, family: Architecture | None, layout: str) -> bool:
    """Return True if the path is in the `layout` of the family or of a text encoder."""
    if layout == TEXT_ENCODERS:
        return look.pattern in layout_patterns(PATHS, look.separator)
    if layout in ROOTS:
        return look.pattern in layout_patterns(ROOTS[layout], look.separator)
    own = (one for one in (family.layouts if family else ()) if layout in one.names)
    return any(look.pattern in layout_patterns(one.named, look.separator) for one in own)


def is_at(look: ModuleTraits, paths: tuple[str, ...]) -> bool:
    """Return True if the module is at one of the `paths`, with `{i}` for numbers."""
    return look.pattern in layout_patterns(paths, look.separator)


def _dialects(module: Module, contribution: Contribution) -> tuple[str, ...]:
    key = module.name.key
    names = ((role, info.name) for role, info in contribution.factors.items())
    shared = contribution.algorithm.shared
    # A key that hides a part of its module's path does not begin with the module's name.
    suffixes = frozenset(
        (role, name.removeprefix(key) if name.startswith(key) else "") for role, name in names if role not in shared
    )
    # That of all experts of a layer is made for each number of them, and in no registry.
    if not algorithms.is_known(contribution.algorithm.name):
        return _spelled_in(contribution.algorithm.dialects, suffixes)
    return _dialects_of(contribution.algorithm.name, suffixes)


@cache
def _dialects_of(name: str, suffixes: frozenset[tuple[str, str]]) -> tuple[str, ...]:
    return _spelled_in(algorithms.by_name(name).dialects, suffixes)


def _spelled_in(dialects: Mapping[str, Mapping[str, str]], suffixes: frozenset[tuple[str, str]]) -> tuple[str, ...]:
    known = dialects.items()
    spelled = tuple(own for own, roles in known if all(roles.get(role) == suffix for role, suffix in suffixes))
    return spelled or (_odd(suffix for _, suffix in suffixes),)


def _odd(suffixes: Iterable[str]) -> str:
    """Return SLICED, INFIXED or HIDING for suffixes of no dialect, "" for a mixture."""
    for suffix in suffixes:
        if not suffix:
            return HIDING
        parsed = parse_key(f"module{suffix}")
        if parsed and parsed.suffix != suffix:
            return INFIXED if parsed.part is None else SLICED
    return ""


class FramedKeys:
    """Keys between `^` and `$`, so that a mark can say its place in a key."""

    def __init__(self, keys: Collection[str]) -> None:
        self._keys = keys
        self._known: dict[tuple[bool, tuple[str, ...]], bool] = {}

    def hold(self, marks: tuple[str, ...], in_each: bool = False) -> bool:
        """Return True if a key has one of the marks, or every key if `in_each`."""
        asked = in_each, marks
        if asked not in self._known:
            self._known[asked] = self._each_hold(marks) if in_each else any(mark in self._text for mark in marks)
        return self._known[asked]

    def _each_hold(self, marks: tuple[str, ...]) -> bool:
        left = [f"^{key}$" for key in self._keys]
        for mark in marks:
            left = [key for key in left if mark not in key]
        return not left

    @cached_property
    def _text(self) -> str:
        """Join all keys by line ends; no mark has one, so a match is in a single key."""
        return "^" + "$\n^".join(self._keys) + "$" if self._keys else ""


def loader_for(program: Program, family: str, keys: FramedKeys) -> Loader | None:
    """Return the loader that reads a file with these keys, or None.

    It is for models of `family`, "" for an unknown one.
    """
    at = _place_of_loader(program, family, keys)
    return None if at is None else program.loaders[at]


def has_loader_for(program: Program, family: str, keys: FramedKeys) -> bool:
    """Return True if the program has a loader as `loader_for` finds it."""
    return _place_of_loader(program, family, keys) is not None


def _place_of_loader(program: Program, family: str, keys: FramedKeys) -> int | None:
    return next((at for at, one in enumerate(program.reads) if _reads(one, family, keys)), None)


def _reads(loader: Reads | Loader, family: str, keys: FramedKeys) -> bool:
    if loader.families and family not in loader.families:
        return False
    return not loader.marks or keys.hold(loader.marks, in_each=loader.all_marked)


_Answer = TypeVar("_Answer")


class Member(NamedTuple):
    """A module's contribution and its place among all contributions of the file."""

    place: int
    module: Module
    contribution: Contribution


class Kind(NamedTuple):
    """The traits of contributions; equal ones have one `number`, in all files.

    `keeps` holds the objects that tell kinds apart by identity.
    """

    number: int
    look: ModuleTraits
    keeps: tuple[Any, ...]


class MemberGroup(NamedTuple):
    """Contributions in file order that are equal up to the numbers in their names."""

    kind: Kind
    members: Sequence[Member]

    @property
    def look(self) -> ModuleTraits:
        """Return the traits of every member."""
        return self.kind.look


# The kinds of the last files by their traits. A number is never given twice.
_MOST_KINDS = 4_000
_kinds: dict[tuple[Any, ...], Kind] = {}
_numbers = count()


def _kind_of(traits: tuple[Any, ...], module: Module, contribution: Contribution) -> Kind:
    """Return the kind of a contribution with these traits."""
    kind = _kinds.get(traits)
    if kind is None:
        if len(_kinds) >= _MOST_KINDS:
            _kinds.clear()
        keeps = tuple([(one.algorithm, one.settings) for one in module.contributions])
        kind = _kinds[traits] = Kind(next(_numbers), look_of(module, contribution, traits[0]), keeps)
    return kind


class View:
    """An adapter as programs see it, with cached answers about the whole file."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self._answers: dict[Callable[[Adapter], Any], Any] = {}

    def ask(self, question: Callable[[Adapter], _Answer]) -> _Answer:
        """Return the answer of `question` for the adapter."""
        if question not in self._answers:
            self._answers[question] = question(self.adapter)
        answer: _Answer = self._answers[question]
        return answer

    @cached_property
    def groups(self) -> tuple[MemberGroup, ...]:
        """Return all contributions in groups, by the place of the first of each group."""
        members: dict[tuple[Any, ...], list[Member]] = {}
        place = 0
        modules = group_equal(self.adapter.modules)
        said = [[_traits(first, one) for one in first.contributions] for first in modules.firsts]
        # By kind of module, the number of what is said of each of its contributions, which several may have.
        numbers: dict[tuple[Any, ...], int] = {}
        forms = [[numbers.setdefault(traits, len(numbers)) for traits in of_kind] for of_kind in said]
        for module, kind in zip(modules.values(), modules.likeness.numbers, strict=True):
            _, component, prefix, body, is_flat = module.name
            pattern = pattern_of(body, "_" if is_flat else ".")
            key = prefix + body
            for contribution, form in zip(module.contributions, forms[kind], strict=True):
                traits = (pattern, prefix, component, is_flat, form, *_spelling(contribution, key))
                own = members.get(traits)
                if own is None:
                    own = members[traits] = []
                own.append(make_record(Member, (place, module, contribution)))
                place += 1
        spelled = list(numbers)
        return tuple(
            MemberGroup(_kind_of((*traits[:4], spelled[traits[4]], *traits[5:]), *own[0][1:]), own)
            for traits, own in members.items()
        )

    @cached_property
    def others(self) -> tuple[list[str], list[str], list[str]]:
        """Return the keys without a module: flags, embeddings, and unclaimed keys."""
        adapter = self.adapter
        of_modules = (module.rslora_flag.name for module in adapter.modules.values() if module.rslora_flag)
        embedded = [key for one in adapter.embeddings for key in one.keys]
        return [*adapter.flags, *of_modules], embedded, list(adapter.unclaimed)

    @cached_property
    def keys(self) -> FramedKeys:
        """Return the keys of all tensors."""
        return FramedKeys(self.adapter.checkpoint.tensors)


def _traits(module: Module, contribution: Contribution) -> tuple[Any, ...]:
    """Return all facts of a contribution but names, and the shapes of its tensors."""
    magnitude = contribution.magnitude
    return (
        module.alpha is None,
        module.rslora_flag is None,
        tuple([id(beside.algorithm) for beside in module.contributions]),
        id(contribution.algorithm),
        contribution.rank,
        contribution.alpha,
        contribution.rslora,
        contribution.scale,
        contribution.rows,
        contribution.fan_in_fan_out,
        contribution.residual,
        contribution.on_residual,
        contribution.unsettled,
        contribution.is_optional,
        id(contribution.settings),
        magnitude and magnitude[1:],
        *[(role, info.shape) for role, info in contribution.factors.items()],
    )


def _spelling(contribution: Contribution, key: str) -> list[Any]:
    """Return the names and types of a contribution's tensors in the module `key`."""
    length, magnitude = len(key), contribution.magnitude
    spelled = [(info.name[length:], info.name.startswith(key), info.dtype) for info in contribution.factors.values()]
    return [magnitude and magnitude.info.shape, *spelled]
