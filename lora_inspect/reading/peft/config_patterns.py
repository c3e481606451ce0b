"""The patterns of a LoraConfig, matched with a module's path as PEFT does, in bounded time.

A key of letters only is looked up among the ends of the path, however many keys there are; only expressions are
compared with path after path. `target_parameters` choose parameters of a module.
"""

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lora_inspect.reading.peft.regex import Refused, Steps
from lora_inspect.sentences import shortened

if TYPE_CHECKING:
    from lora_inspect.reading.peft.regex import Expression, Reach

# As many paths as expressions are compared with, and the letters of a key: no name in a file is longer.
_MOST_PATHS, _LONGEST_KEY = 10_000, 1 << 16
# Letters, dots, and what `re.escape` makes of other characters; anchored at either end or not.
_PLAIN = re.compile(r"(\^?)([^\\^$*+?{}\[\]|()]*(?:\\[^0-9A-Za-z][^\\^$*+?{}\[\]|()]*)*)(\$?)")
_ESCAPE, _DOT = re.compile(r"\\(.)", re.DOTALL), re.compile(r"\.")


class RefusedKey(ValueError):
    """A key of a config that is not compared with modules: which one, and why."""

    def __init__(self, key: str, why: object) -> None:
        super().__init__(f"'{shortened(key)}' {why}")


class PatternMap:
    """A `rank_pattern` or `alpha_pattern`. PEFT's rule is the first key that matches the end of the path at a dot.

    Raises RefusedKey for a key that is not compared, when it is made and when a path is looked up. A value that is no
    map has no keys.
    """

    def __init__(self, pattern: Any, steps: Steps) -> None:
        self._pattern: Mapping[str, Any] = pattern if isinstance(pattern, dict) else {}
        self._steps = steps
        self._plain = _PlainKeys(steps)
        self._expressions: list[tuple[int, str, Expression]] = []
        self._values = list(self._pattern.values())
        self._found: dict[str, int | None] = {}
        for number, key in enumerate(self._pattern):
            try:
                self._add(number, key)
            except Refused as why:
                raise RefusedKey(key, why) from None

    def value(self, path: str, default: Any) -> Any:
        """Return the value of the first key that matches the module at the dotted `path`, or the default."""
        if path not in self._found:
            try:
                self._found[path] = self._first(path)
            except Refused as why:
                raise RefusedKey(next(iter(self._pattern)), why) from None
        number = self._found[path]
        # A path is a key even where it does not match itself, as a+b does not.
        return self._pattern.get(path, default) if number is None else self._values[number]

    def _add(self, number: int, key: str) -> None:
        if len(key) > _LONGEST_KEY:
            raise Refused(f"has {len(key):,} characters, and lora-inspect reads at most {_LONGEST_KEY:,}")
        if plain := _PLAIN.fullmatch(key):
            self._plain.add(number, plain[2], anchored=bool(plain[1]))
        else:
            self._expressions.append((number, key, _expression(key, "end", self._steps)))

    def _first(self, path: str) -> int | None:
        first = self._plain.first(path)
        for number, key, expression in self._expressions:
            if first is not None and first < number:
                break
            if len(self._found) >= _MOST_PATHS:
                raise RefusedKey(
                    key, f"applies to more than {_MOST_PATHS:,} modules, the most that lora-inspect compares it with"
                )
            try:
                if expression.matches(path):
                    return number
            except Refused as why:
                raise RefusedKey(key, why) from None
        return first


class Targets:
    """A config's `target_modules`, by the rule of PEFT's `check_target_module_exists`.

    Raises RefusedKey for an expression that is not compared, when made and when a path is looked up.
    """

    def __init__(self, targets: Any, steps: Steps) -> None:
        self._steps = steps
        self._all = targets == "all-linear"
        self._text = targets if isinstance(targets, str) else ""
        self._names = {name for name in targets if isinstance(name, str)} if isinstance(targets, list) else set()
        self._lengths = set(map(len, self._names))
        try:
            self._expression = _expression(self._text, "whole", steps) if self._text and not self._all else None
        except Refused as why:
            raise RefusedKey(self._text, why) from None

    def choose(self, path: str) -> bool:
        """Return True if the module at the dotted `path` is a target."""
        try:
            return self._all or (self._expression.matches(path) if self._expression else self._has_end_of(path))
        except Refused as why:
            raise RefusedKey(self._text, why) from None

    def _has_end_of(self, path: str) -> bool:
        for start in (0, *_after_dots(path)):
            self._steps.take(_LOOK_UP)
            if len(path) - start in self._lengths and path[start:] in self._names:
                return True
        return False


class EndNames:
    """Modules that a config names by any letters at the end of their paths, or by one expression for whole paths.

    That is PEFT's rule for `feedforward_modules`. Raises RefusedKey for an expression that is not compared, when made
    and when a path is looked up.
    """

    def __init__(self, names: Any, steps: Steps) -> None:
        self._steps = steps
        self._text = names if isinstance(names, str) else ""
        self._ends = tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()
        self._letters = sum(map(len, self._ends))
        try:
            self._expression = _expression(names, "whole", steps) if isinstance(names, str) else None
        except Refused as why:
            raise RefusedKey(self._text, why) from None

    def choose(self, path: str) -> bool:
        """Return True if the module at the dotted `path` is one of them."""
        try:
            if self._expression is not None:
                return self._expression.matches(path)
            self._steps.take(_LOOK_UP * len(self._ends) + self._letters)
        except Refused as why:
            raise RefusedKey(self._text or "the list", why) from None
        return path.endswith(self._ends)


class _PlainKeys:
    """The numbers of keys that have no metacharacter but the dot, which stands for any character.

    They are stored by length and by the places of their dots: few ends of a path have the length of a key. An end with
    dots put in the same places is looked up like any other text.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._ends: _ByForm = {}
        self._whole: _ByForm = {}

    def add(self, number: int, escaped: str, anchored: bool) -> None:
        """Add a key; an `anchored` one matches only whole paths."""
        literal = {found.start() - before for before, found in enumerate(_ESCAPE.finditer(escaped))}
        text = _ESCAPE.sub(r"\1", escaped)
        dots = tuple(found.start() for found in _DOT.finditer(text) if found.start() not in literal)
        self._steps.take(_KEY + len(escaped) + _LOOK_UP * (len(literal) + len(dots)))
        forms = self._whole if anchored else self._ends
        forms.setdefault(len(text), {}).setdefault(dots, {}).setdefault(text, number)

    def first(self, path: str) -> int | None:
        """Return the lowest number of the keys that match the end of the path at a dot."""
        found: list[int] = []
        # PEFT's `$` also stands before a line break at the end, and its `.*` does not go beyond one.
        for text in {path, path.removesuffix("\n")}:
            found += self._matching(self._whole, text)
            for start in (0, *_after_dots(text.partition("\n")[0])):
                found += self._matching(self._ends, text[start:]) if len(text) - start in self._ends else ()
                self._steps.take(_LOOK_UP)
        return min(found, default=None)

    def _matching(self, forms: "_ByForm", end: str) -> Iterator[int]:
        for dots, keys in forms.get(len(end), {}).items():
            self._steps.take(_LOOK_UP + len(end))
            letters = list(end)
            if any(letters[dot] == "\n" for dot in dots):
                continue
            for dot in dots:
                letters[dot] = "."
            if (number := keys.get("".join(letters))) is not None:
                yield number


# By length, by where the dots stand, by text: the number of the first such key.
_ByForm = dict[int, dict[tuple[int, ...], dict[str, int]]]
# Steps of one look at a table, and of one key that is put into it.
_LOOK_UP, _KEY = 15, 200


def _expression(source: str, reach: "Reach", steps: Steps) -> "Expression":
    from lora_inspect.reading.peft.regex import Expression  # most configs need none

    return Expression(source, reach, steps)


def _after_dots(text: str) -> Iterator[int]:
    """Yield the positions at which the parts of a path begin, except the first."""
    start = text.find(".") + 1
    while start:
        yield start
        start = text.find(".", start) + 1


# More names of parameters than the experts of any model have.
_MOST_NAMES = 16


class ParameterTargets:
    """The names in `target_parameters`, each the end of a parameter's path; anything but a list is ignored.

    Raises RefusedKey if the lookup of a path takes too long.
    """

    def __init__(self, targets: Any, steps: Steps) -> None:
        names = [name for name in targets if isinstance(name, str) and name] if isinstance(targets, list) else []
        bare = [name for name in names if "." not in name]
        dotted = [name for name in names if "." in name]
        self._dotted, self._bare = Targets(dotted, steps), Targets(bare, steps)
        # What a module is called that a dotted name may be of.
        self._modules = {name.split(".")[-2] for name in dotted}
        self._leaves = tuple(dict.fromkeys(name.rpartition(".")[2] for name in names))[:_MOST_NAMES]

    def of(self, module: str, without_parent: bool) -> list[str]:
        """Return the parameters of the module at the dotted path, in the order of their first names.

        A name without its module's, which is the end of many paths, counts only if `without_parent`.
        """
        if not self._leaves or not (without_parent or module.rpartition(".")[2] in self._modules):
            return []
        return [leaf for leaf in self._leaves if self._choose(f"{module}.{leaf}", without_parent)]

    def choose(self, path: str) -> bool:
        """Return True if the parameter at the dotted path is a target."""
        return bool(self._leaves) and self._choose(path, without_parent=True)

    def _choose(self, path: str, without_parent: bool) -> bool:
        return self._dotted.choose(path) or (without_parent and self._bare.choose(path))
