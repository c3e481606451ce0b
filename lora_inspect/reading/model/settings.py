"""The user's settings for an adapter, from options or its path: `PATH[:SETTING[,SETTING...]]`. Stdlib only."""

import math
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.maths.scaling import PACKINGS
from lora_inspect.stores.address import is_remote, printable_address

if TYPE_CHECKING:
    from lora_inspect.option import ReadingRequest

_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
# A component or a glob over module paths, in which files and addresses have no place.
_PATTERN = r"[^\s/\\:;,=]+"
_WORDS = {"yes": True, "no": False}
# What may be settled by an option as well.
_OPEN = ("alpha", "rslora", "expert_packing", "architecture")
_RSLORA, _ALPHA, _PACKING, _RESIDUAL = "rslora", "alpha", "expert-packing", "residual"
_ARCHITECTURE, _STEP = "architecture", "step"
_RESERVED = (_ALPHA, _RSLORA, _PACKING, _RESIDUAL, _ARCHITECTURE, _STEP)
# How families are called, as `architectures/` has them.
_FAMILY = r"[a-z][a-z0-9_]*"
# How the plain multiplier is called where modules have their own beside it: a glob that every module fits.
ALL = "*"
# How people write a number who do not know that it takes a point and nothing else.
_LIKE_A_NUMBER = r"[x*]?([+-]?[0-9]*[.,]?[0-9]+)([x%]?)"
# What people write between a path and its multiplier for a colon; what could be meant is short.
_LIKE_A_MULTIPLIER = r"\s*[\s=@*]\s*([^\s=@*]+)$"
_LONGEST = 40
# Digits, a comma and digits: two settings as they are counted, and one number as half of the world writes it.
_DECIMAL_COMMA = r"(?:(?<=,)|^)((?:[^,]*=)?[+-]?[0-9]+),([0-9]+(?:[eE][+-]?[0-9]+)?)(?=,|$)"
# How many colons of an argument are looked at for a file before them.
_COLONS = 10
_FORMS = (
    "a number (the multiplier), COMPONENT=number, GLOB=number, alpha=N, rslora=yes|no, residual=yes|no, "
    f"{_PACKING}={'|'.join(PACKINGS)} or {_ARCHITECTURE}=NAME"
)


class Settings(NamedTuple):
    """The user's settings for one adapter: its multiplier, and answers to questions that its evidence leaves open.

    `multiplier` is the plain number, None if there is none (which means 1); `part_multipliers` are multipliers by
    component or by glob, as they were written. `rslora`, `alpha` and `expert_packing` count if the file leaves them
    open. `residual` says whether the base is the one that an initialisation left; None means the original base.
    `architecture` is the name of one of the file's possible families. `step` is the training step after which the file
    was saved; only `average` asks for it. Settings `of_several` files only answer open questions of each: another
    family than that of a file is no contradiction.
    """

    multiplier: float | None = None
    part_multipliers: tuple[tuple[str, float], ...] = ()
    rslora: bool | None = None
    alpha: float | None = None
    allow_partial_dora: bool = False
    expert_packing: str | None = None
    residual: bool | None = None
    architecture: str | None = None
    step: int | None = None
    of_several: bool = False

    @property
    def has_multiplier(self) -> bool:
        """True if any multiplier is set."""
        return self.multiplier is not None or bool(self.part_multipliers)

    def joined(self, options: "Settings", path: str) -> "Settings":
        """Return the settings on a `path` with those of options.

        Raises LoraInspectError if they contradict each other.
        """
        together = self._replace(allow_partial_dora=self.allow_partial_dora or options.allow_partial_dora)
        for name in _OPEN:
            own, other = getattr(self, name), getattr(options, name)
            if None not in (own, other) and own != other:
                says, contradicts = (spell_settings(Settings()._replace(**{name: value})) for value in (own, other))
                raise RefusedError(
                    path, f"its path says {says} but an option says {contradicts}", "leave one of them out"
                )
            together = together._replace(**{name: other if own is None else own})
        return together

    def multipliers(self) -> float | dict[str, float]:
        """Return only the plain multiplier, or each by the name it was given, with "*" for all other modules."""
        plain = 1.0 if self.multiplier is None else self.multiplier
        return {ALL: plain, **dict(self.part_multipliers)} if self.part_multipliers else plain


def requested_settings(request: "ReadingRequest") -> Settings:
    """Return the settings from the options of a verb."""
    open_settings: dict[str, Any] = {name: getattr(request, name, None) for name in _OPEN}
    return Settings(allow_partial_dora=request.allow_partial_dora, **open_settings)


def parse_arguments(arguments: Iterable[str]) -> list[tuple[str, Settings]]:
    """Return the paths and the settings of several arguments.

    Raises LoraInspectError like `parse_argument`, and for a number as an argument of its own.
    """
    parsed: list[tuple[str, Settings]] = []
    for argument in arguments:
        if (number := bare_number(argument)) is not None:
            path, settings = parsed[-1] if parsed else ("ADAPTER", Settings())
            form = f"{path}:{spell_settings(settings._replace(multiplier=number))}"
            raise RefusedError(
                argument, "there is no such file, and a multiplier belongs at the end of a path", f"write {form}"
            )
        parsed.append(parse_argument(argument))
    return parsed


def bare_number(argument: str) -> float | None:
    """Return the number in an argument that is not an existing path; None if there is none."""
    return None if os.path.lexists(argument) else _intended_number(argument.removeprefix(":"))


def parse_argument(argument: str) -> tuple[str, Settings]:
    """Return the path and the settings of a command line argument.

    The last colon counts only if everything after it parses and the whole is not an existing path. Raises
    LoraInspectError if something other than settings follows an existing path.
    """
    if is_remote(argument):
        return _at_address(argument)
    if os.path.lexists(argument):
        return argument, Settings()
    if file := _file_before_a_colon(argument):
        return file, _settings_of(file, argument)
    path, _, tail = argument.rpartition(":")
    try:
        if path:
            return path, parse_settings(tail)
    except ValueError:
        pass
    _refuse_other_separators(argument)
    return argument, Settings()


def without_secrets(argument: str) -> str:
    """Return the argument, or option with a value, without the parts of an address that may be secret."""
    option, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    return option + equals + spell_argument(*_at_address(value)) if is_remote(value) else argument


def _at_address(argument: str) -> tuple[str, Settings]:
    """Return the address and the settings after the last colon of its path, if it ends in settings."""
    address, _, tail = argument.rpartition(":")
    if is_remote(address) and "/" in address.partition("://")[2]:
        shown = printable_address(address)
        with suppress(ValueError):
            return shown, parse_settings(tail)
    return printable_address(argument), Settings()


def _file_before_a_colon(argument: str) -> str | None:
    """Return the longest existing path that ends before one of the last colons; None if there is none."""
    path = argument
    for _ in range(_COLONS):
        path = path.rpartition(":")[0]
        if not path or os.path.lexists(path):
            break
    return path or None if os.path.lexists(path) else None


def _settings_of(file: str, argument: str) -> Settings:
    """Return the settings after an existing file. Raises LoraInspectError if anything else is there."""
    tail = argument[len(file) + 1 :]
    parts = [part for part in tail.split(":") if part]
    joined = ",".join(parts)
    try:
        settings = parse_settings(joined)
    except ValueError as error:
        if (number := _intended_number(joined)) is not None:
            says = f"there is no such file, and {tail!r} is not a multiplier; write {file}:{_spell(number)}"
        elif forms := _without_decimal_comma(joined):
            says = f"{error}; write {' or '.join(f'{file}:{form}' for form in forms)}"
        else:
            says = f"there is no such file, and {error}; write a setting as {_FORMS}, such as {file}:0.5"
        raise RefusedError.of(argument, says) from None
    if joined != tail:
        before = argument.rpartition(":")[0]
        raise RefusedError(argument, f"there is no file {before}", f"write settings after one colon: {file}:{joined}")
    return settings


def _without_decimal_comma(text: str) -> list[str]:
    """Return the valid spellings for a doubtful comma: with a decimal point, and with the multiplier in front."""
    found = re.search(_DECIMAL_COMMA, text)
    if found is None:
        return []
    with_points = re.sub(_DECIMAL_COMMA, r"\1.\2", text)
    in_front = re.sub(_DECIMAL_COMMA, r"\1", text, count=1)
    return [form for form in (with_points, f"{found[2]},{in_front}") if _is_settings(form)]


def _is_settings(text: str) -> bool:
    try:
        parse_settings(text)
    except ValueError:
        return False
    return True


def _refuse_other_separators(argument: str) -> None:
    """Raise LoraInspectError for an existing path and a multiplier after anything but a colon."""
    behind = re.search(_LIKE_A_MULTIPLIER, argument[-_LONGEST:])
    number = _intended_number(behind[1]) if behind else None
    path = argument.removesuffix(behind[0]) if behind else argument
    if number is not None and os.path.lexists(path):
        raise RefusedError(
            argument, "there is no such file, and a multiplier comes after a colon", f"write {path}:{_spell(number)}"
        )


def _intended_number(text: str) -> float | None:
    """Return the intended number of a text with a decimal comma, a percent sign or an x; None if there is none."""
    found = re.fullmatch(_LIKE_A_NUMBER, text.strip().lower()) if len(text) <= _LONGEST else None
    return float(found[1].replace(",", ".")) / (100 if found[2] == "%" else 1) if found else None


def parse_settings(text: str) -> Settings:
    """Return the settings in `SETTING[,SETTING...]`.

    Raises ValueError for a part that is not a setting or repeats one, and for two whole numbers in a row that may be
    one number with a decimal comma.
    """
    if found := re.search(_DECIMAL_COMMA, text):
        raise ValueError(f"the comma in {found[0]!r} may be a decimal point")
    settings, said = Settings(), set[str]()
    for item in text.split(","):
        name, equals, value = item.rpartition("=")
        if not equals:
            settings = settings._replace(multiplier=_number(value, item))
        elif name == _RSLORA and value in _WORDS:
            settings = settings._replace(rslora=_WORDS[value])
        elif name == _ALPHA:
            settings = settings._replace(alpha=_number(value, item))
        elif name == _RESIDUAL and value in _WORDS:
            settings = settings._replace(residual=_WORDS[value])
        elif name == _PACKING and value in PACKINGS:
            settings = settings._replace(expert_packing=value)
        elif name == _ARCHITECTURE and re.fullmatch(_FAMILY, value):
            from lora_inspect.option import no_family  # few runs name one

            if wrong := no_family(value):
                raise ValueError(f"{value} {wrong}")
            settings = settings._replace(architecture=value)
        elif name == _STEP and re.fullmatch("[0-9]{1,12}", value):
            settings = settings._replace(step=int(value))
        elif is_pattern(name):
            from lora_inspect.reading.module_patterns import check_pattern  # most runs name no part of an adapter

            check_pattern(name)
            settings = settings._replace(part_multipliers=(*settings.part_multipliers, (name, _number(value, item))))
        else:
            raise ValueError(f"{item!r} is not a setting")
        if name in said:
            raise ValueError(f"{item!r} repeats another setting")
        said.add(name)
    return settings


def is_pattern(name: str) -> bool:
    """Return True if a name can be a component, or a glob over module paths; no setting has such a name."""
    return re.fullmatch(_PATTERN, name) is not None and name not in _RESERVED


def spell_settings(settings: Settings) -> str:
    """Return the settings as a path spells them, the inverse of `parse_settings`; "" if there are none."""
    parts = [] if settings.multiplier is None else [_spell(settings.multiplier)]
    parts += [f"{name}={_spell(number)}" for name, number in settings.part_multipliers]
    parts += [] if settings.alpha is None else [f"{_ALPHA}={_spell(settings.alpha)}"]
    parts += [] if settings.rslora is None else [f"{_RSLORA}={'yes' if settings.rslora else 'no'}"]
    parts += [] if settings.residual is None else [f"{_RESIDUAL}={'yes' if settings.residual else 'no'}"]
    parts += [] if settings.expert_packing is None else [f"{_PACKING}={settings.expert_packing}"]
    parts += [] if settings.architecture is None else [f"{_ARCHITECTURE}={settings.architecture}"]
    parts += [] if settings.step is None else [f"{_STEP}={settings.step}"]
    return ",".join(parts)


def spell_argument(path: str, settings: Settings) -> str:
    """Return the path with the settings after it, the inverse of `parse_argument`."""
    said = spell_settings(settings)
    return f"{path}:{said}" if said else path


def _number(text: str, item: str) -> float:
    number = float(text) if re.fullmatch(_NUMBER, text) else math.nan
    if not math.isfinite(number):
        raise ValueError(f"{item!r} is not a setting")
    return number


def _spell(number: float) -> str:
    return repr(float(number)).removesuffix(".0")
