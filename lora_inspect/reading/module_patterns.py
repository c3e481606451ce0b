"""Patterns by which a user names modules: a component, a path, blocks or a glob. Standard library only.

A pattern is a dotted path in which `*`, `?` and `[…]` stand for letters as in a shell, and a segment `0-9` for any of
these numbers. A pattern without a glob's signs means the module of that name and all modules below it. Short names of
blocks stand for patterns, too.

Sources of the short names: sd-scripts' `svd_merge_lora.py` (BASE, IN00, MID, OUT00), sd-webui-lora-block-weight (the
same with M00, and for FLUX D00, S00, IN and OUT). Nodes of ComfyUI name blocks by their paths.
"""

import re
from collections.abc import Iterable
from functools import cache

from lora_inspect.architectures.record import Architecture
from lora_inspect.errors import AmbiguousError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.near_names import nearest_name
from lora_inspect.sentences import listed

# The text encoders together: what stands before the blocks of the model.
BASE = "BASE"
# The list that a numbered name is of.
_LISTS = {"IN": "input_blocks", "OUT": "output_blocks", "D": "double_blocks", "S": "single_blocks"}
# What stands alone.
_ALONE = {
    "MID": ("middle_block",),
    "M00": ("middle_block",),
    "IN": ("img_in", "txt_in", "time_in", "vector_in", "guidance_in"),
    "OUT": ("final_layer",),
}
_NUMBERED = re.compile(r"(IN|OUT|D|S)([0-9]{2})(?:-(IN|OUT|D|S)?([0-9]{2}))?")


def reversed_range(name: str) -> str | None:
    """Return the range of blocks that `IN08-IN01` would be from its first block on; None for any other name."""
    found = _NUMBERED.fullmatch(name)
    if found is None or found[3] not in (None, found[1]) or found[4] is None or found[2] <= found[4]:
        return None
    return f"{found[1]}{found[4]}-{found[1]}{found[2]}"


def of_two_lists(name: str) -> bool:
    """Return True if it begins in one list of blocks and ends in another, as `IN08-OUT03`, which is no range."""
    found = _NUMBERED.fullmatch(name)
    return found is not None and found[3] not in (None, found[1])


def meanings(name: str) -> tuple[str, ...]:
    """Return the paths of a short name: `IN04` for `input_blocks.4`, `D00-D09` for `double_blocks.0-9`.

    Empty for a name that is not short.
    """
    if name in _ALONE:
        return _ALONE[name]
    found = _NUMBERED.fullmatch(name)
    if found is None or found[3] not in (None, found[1]):
        return ()
    numbers = [str(int(number)) for number in (found[2], found[4]) if number is not None]
    return (f"{_LISTS[found[1]]}.{'-'.join(numbers)}",)


_GLOB = re.compile(r"[*?[]")
# A segment of a path that is a range of numbers.
_RANGE = re.compile(r"(?<![^.])([0-9]{1,9})-([0-9]{1,9})(?![^.])")
# More than a model has blocks.
_LONGEST_RANGE = 1000
# Stands for the n-th range while a glob is made an expression; no pattern has it.
_MARK = "\0"
_TEXT_ENCODERS = "text_encoder"
_SHOWN, _COMPARED = 3, 2000


class Called(NamedTuple):
    """The names of a module in one family.

    `paths` are dotted, in every known layout; `flat` is the underscored name of a module with an unknown path, None for
    any other.
    """

    paths: tuple[str, ...]
    flat: str | None = None


class OpenNames(NamedTuple):
    """The names of a module of the adapter `file` in each family that the file may be of, if they differ."""

    file: str
    by_family: tuple[tuple[Architecture, Called], ...]


class ModuleNames(NamedTuple):
    """The names of one module: `paths` and `flat` as in `Called`, and `open` if they differ between families.

    `written` are the names in the file, with and without a prefix.
    """

    component: str
    paths: tuple[str, ...]
    written: tuple[str, ...]
    flat: str | None = None
    open: OpenNames | None = None


def check_pattern(pattern: str) -> None:
    """Raise ValueError for an invalid range, and for a letter that no name can have."""
    if _MARK in pattern:
        raise ValueError("a module name cannot have zero bytes; leave them out")
    if meant := reversed_range(pattern):
        raise ValueError(f"the range {pattern} ends before it begins; write {meant}")
    if of_two_lists(pattern):
        raise ValueError(f"{pattern} begins in one list of blocks and ends in another; give one range for each")
    for first, last in _RANGE.findall(pattern):
        if int(first) > int(last):
            raise ValueError(f"the range {first}-{last} ends before it begins; write {last}-{first}")
        if int(last) - int(first) >= _LONGEST_RANGE:
            raise ValueError(f"the range {first}-{last} has more than {_LONGEST_RANGE} numbers")


def is_glob(pattern: str) -> bool:
    """Return True if a pattern has wildcards."""
    return bool(_GLOB.search(pattern))


def is_component(pattern: str, names: ModuleNames) -> bool:
    """Return True if a pattern names the module's component, or means all text encoders and it is in one."""
    return pattern == names.component or (pattern == BASE and names.component.startswith(_TEXT_ENCODERS))


def fits_path(pattern: str, names: ModuleNames) -> bool:
    """Return True if a pattern matches the module's path, a name in the file or its block.

    Raises LoraInspectError if it does so in one possible family of the file, and not in another.
    """
    if any(map(_expression(pattern).fullmatch, names.written)):
        return True
    if names.open is None:
        return _fits_called(pattern, Called(names.paths, names.flat))
    answers = [(family, _fits_called(pattern, called)) for family, called in names.open.by_family]
    fitting, others = ([family for family, fits_it in answers if fits_it is is_so] for is_so in (True, False))
    if fitting and others:
        raise AmbiguousError(
            names.open.file,
            f"{pattern} matches {names.written[0]} if the adapter is for {_titles(fitting)}, but not if "
            f"it is for {_titles(others)}",
            f"give --architecture {listed([family.name for family, _ in answers], 'or')}",
        )
    return bool(fitting)


def _fits_called(pattern: str, called: Called) -> bool:
    for own in (pattern, *meanings(pattern)):
        for form in (own,) if is_glob(own) else (own, f"{own}.*"):
            if any(map(_expression(form).fullmatch, called.paths)):
                return True
            if called.flat is not None and _expression(form, "_").fullmatch(called.flat):
                return True
    return False


def _titles(families: Iterable[Architecture]) -> str:
    return listed([family.title for family in families], "or")


def fits(pattern: str, names: ModuleNames) -> bool:
    """Return True if a pattern matches the module in any way; raises LoraInspectError like `fits_path`."""
    return is_component(pattern, names) or fits_path(pattern, names)


def unknown_pattern(pattern: str, modules: Iterable[ModuleNames], left: str = "") -> str:
    """Return an error text for a pattern that matches none of the `modules`, with suggestions.

    `left` explains why these are the modules.
    """
    modules = list(modules)
    components = sorted({one.component for one in modules})
    near = nearest_name(pattern, _nameable(pattern, modules, components))
    hint = f"; try {near}, or choose from" if near else "; choose from"
    keys = [one.written[0] for one in modules]
    return (
        f"{pattern} is not a component and matches no module{left}{hint} {_listed(components)}, or from "
        f"modules like {_listed(keys)}"
    )


def check_all_fit(patterns: Iterable[str], modules: Iterable[ModuleNames], option: str) -> None:
    """Raise LoraInspectError if one of an option's patterns matches no module."""
    modules = list(modules)
    for pattern in patterns:
        try:
            check_pattern(pattern)
        except ValueError as error:
            raise RefusedError(f"{option} {pattern}: {error}.") from None
        if not any(fits(pattern, one) for one in modules):
            raise RefusedError(f"{option} {pattern}: {unknown_pattern(pattern, modules)}.")


@cache
def _expression(glob: str, separator: str = ".") -> re.Pattern[str]:
    """Return the glob as an expression; with another separator, for names written with that one."""
    from fnmatch import translate

    ranges = [range(int(first), int(last) + 1) for first, last in _RANGE.findall(glob)]
    marked = _RANGE.sub(_MARK, glob).replace(".", separator)
    # A mark has no meaning in an expression, so it comes through the translation as it is.
    first, *rest = translate(marked).split(_MARK)
    numbers = [f"(?:{'|'.join(map(str, numbers))})" for numbers in ranges]
    return re.compile(first + "".join(number + part for number, part in zip(numbers, rest, strict=True)))


def _nameable(pattern: str, modules: list[ModuleNames], components: list[str]) -> Iterable[str]:
    """Return the names that a pattern of as many segments may have meant: blocks, modules and components."""
    depth = pattern.count(".") + 1
    found = dict.fromkeys(components)
    for one in modules:
        for path in one.paths or one.written[-1:]:
            found[".".join(path.split(".")[:depth])] = None
            if len(found) >= _COMPARED:
                return found
    return found


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
