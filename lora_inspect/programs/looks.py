"""How a module looks to a program: what of its names and spellings decides whether and how it is loaded."""

from collections.abc import Iterable, Mapping
from functools import cache

from lora_inspect import algorithms
from lora_inspect.architectures.patterns import layout_patterns
from lora_inspect.architectures.record import Architecture
from lora_inspect.architectures.text_encoders import PATHS, ROOTS
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.programs.record import HIDING, INFIXED, SLICED, TEXT_ENCODERS
from lora_inspect.reading.keys.suffixes import parse_key
from lora_inspect.reading.model.contribution import Contribution, Module


class Look(NamedTuple):
    """What a program sees of a module's contribution, alike in most modules of a file.

    `pattern` is the body of the name up to its numbers, `separator` what its segments are joined by. `dialects` are
    those that all factors are spelled in, `has_alpha` says that an alpha tensor stands beside them, and `magnitude` is
    the suffix and the axis of the magnitude, empty without one.
    """

    prefix: str
    pattern: str
    separator: str
    algorithm: str
    roles: tuple[str, ...]
    dialects: tuple[str, ...]
    has_alpha: bool
    magnitude: str


def look_of(module: Module, contribution: Contribution, pattern: str) -> Look:
    """How a program sees a contribution of a module whose name is of the `pattern`."""
    magnitude = contribution.magnitude
    return Look(
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
    """What joins the segments of the module's name."""
    return "_" if module.name.flat else "."


def is_of_layout(look: Look, family: Architecture | None, layout: str) -> bool:
    """Whether the path is one of the family's layout called so, or of the text encoders that stand in its place."""
    if layout == TEXT_ENCODERS:
        return look.pattern in layout_patterns(PATHS, look.separator)
    if layout in ROOTS:
        return look.pattern in layout_patterns(ROOTS[layout], look.separator)
    own = (one for one in (family.layouts if family else ()) if layout in one.names)
    return any(look.pattern in layout_patterns(one.named, look.separator) for one in own)


def is_at(look: Look, paths: tuple[str, ...]) -> bool:
    """Whether it is the module at one of the `paths`, with `{i}` for numbers."""
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
    """What is odd about suffixes of no dialect: SLICED, INFIXED or HIDING, and empty for a mixture of dialects."""
    for suffix in suffixes:
        if not suffix:
            return HIDING
        parsed = parse_key(f"module{suffix}")
        if parsed and parsed.suffix != suffix:
            return INFIXED if parsed.part is None else SLICED
    return ""
