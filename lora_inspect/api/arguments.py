"""Arguments of the API: paths with settings, keywords from a verb's record, and progress callbacks.

`in_a_sentence` wraps each call. It keeps settings of the program from rounding products, and turns errors of the system
into LoraInspectError.
"""

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from inspect import Parameter
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypedDict, TypeVar, cast

from lora_inspect import architectures
from lora_inspect.algebra.options import (
    AverageRequest,
    CombineRequest,
    CompareRequest,
    ExtractRequest,
    ResizeRequest,
)
from lora_inspect.converting.options import ConvertRequest
from lora_inspect.errors import (
    AmbiguousError,
    CouldNotWorkError,
    DamagedError,
    LoraInspectError,
    NeedsLibraryError,
    NeedsTorchError,
    NotFoundError,
    RefusedError,
    WouldOverwriteError,
    of_system,
)
from lora_inspect.files.safetensors.dtypes import DTYPE_NAMES
from lora_inspect.files.strict_json import is_unicode
from lora_inspect.matching.orientation import Answers, parse_answers
from lora_inspect.maths.torch_threads import whole_products
from lora_inspect.merging.options import MergeRequest, UnmergeRequest, VerifyRequest
from lora_inspect.near_names import meant, suggestion
from lora_inspect.option import (
    ANSWERS,
    CHOICE,
    DTYPE,
    FLAG,
    NAMES,
    NUMBER,
    PATH,
    TEXT,
    WHOLE,
    YES_NO,
    Declared,
    ReadingRequest,
    declared,
)
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.model.settings import Settings, parse_argument, parse_settings
from lora_inspect.stores.patience import timing_out

if TYPE_CHECKING:
    import torch
    from _typeshed import DataclassInstance

__all__ = [
    "AmbiguousError",
    "CouldNotWorkError",
    "DamagedError",
    "LoraInspectError",
    "NeedsLibraryError",
    "NeedsTorchError",
    "NotFoundError",
    "RefusedError",
    "WouldOverwriteError",
    "in_a_sentence",
    "timeout",
]


StrPath: TypeAlias = str | os.PathLike[str]
# A string is read as on the command line (`style.safetensors:0.8`), an os.PathLike as the path that it is; in a pair
# the second one is the multiplier, or what would stand behind the colon.
PathWithSettings: TypeAlias = StrPath | tuple[StrPath, float | str]
# How far a computation is, and how far it has to go: (done, total).
WatchProgress: TypeAlias = Callable[[int, int], object]
# Whether a base stores weights as (in, out): all, or by glob.
Transposed: TypeAlias = bool | Mapping[str, bool] | None
Function = TypeVar("Function", bound=Callable[..., Any])
Request = TypeVar("Request", bound="DataclassInstance")


def path_of(given: StrPath) -> str:
    """Return the path as a string; raise TypeError for anything else."""
    path = os.fspath(given)
    if not isinstance(path, str):
        raise TypeError(f"a path must be a str or an os.PathLike of one, not {path!r}")
    return path


def with_settings(given: PathWithSettings) -> tuple[str, Settings]:
    """Return the path and its settings.

    Raises LoraInspectError for a string that is neither a path nor one with settings, ValueError for invalid settings
    of a pair, and TypeError for anything else.
    """
    if isinstance(given, tuple):
        if len(given) != 2:
            raise ValueError(f"a pair of a path and its settings must have two parts, not {len(given)}")
        return path_of(given[0]), _settings_of(given[1])
    return parse_argument(given) if isinstance(given, str) else (path_of(given), Settings())


def without_multiplier(given: PathWithSettings) -> tuple[str, Settings]:
    """Return path and settings for a call that applies no adapter; ValueError for a multiplier."""
    path, settings = with_settings(given)
    if settings.step is not None:
        raise ValueError(f"{path}: only average uses a step; leave it out")
    if settings.has_multiplier:
        raise ValueError(f"{path}: this function applies no adapter, so a multiplier has no meaning; leave it out")
    return path, settings


def all_with_settings(given: PathWithSettings | Iterable[PathWithSettings]) -> list[tuple[str, Settings]]:
    """Return the adapters of a list, or the single one; ValueError for an empty list."""
    several = [given] if isinstance(given, (str, os.PathLike, tuple)) else list(given)
    if not several:
        raise ValueError("no adapter is named; name at least one")
    return [with_settings(one) for one in several]


def names_of(given: str | Iterable[str]) -> tuple[str, ...]:
    """Return several names, or the single one, as a tuple."""
    return (given,) if isinstance(given, str) else tuple(given)


def answers_of(given: Transposed) -> Answers:
    """Return how a base stores weights, in the form of the command line's option.

    Raises ValueError for an invalid glob and TypeError for any other value, also for the words of the command line.
    """
    if given is None or isinstance(given, bool):
        return parse_answers([] if given is None else [_word(given)])
    if not isinstance(given, Mapping) or not all(isinstance(is_so, bool) for is_so in given.values()):
        raise TypeError(f"transposed must be True, False or such an answer for each glob, not {given!r}")
    return parse_answers([f"{glob}={_word(is_so)}" for glob, is_so in given.items()])


def chosen(name: str, value: str, choices: Iterable[str], titles: Mapping[str, str] | None = None) -> str:
    """Return the choice of an argument that the value is, or means if there are titles; ValueError for any other."""
    known = sorted(choices)
    found = value if value in known else meant(str(value), known, titles) if titles is not None else None
    if found is None:
        nearest = suggestion(str(value), known)
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(known)}{nearest}")
    return found


def watched(watch: WatchProgress | None, total: int) -> Progress:
    """Return a progress function that calls `watch` with the sum of the amounts and the total."""
    if watch is None:
        return silent
    done = 0

    def add(amount: int) -> None:
        nonlocal done
        done += amount
        watch(done, total)

    return add


class _Noted(Protocol):
    @property
    def notes(self) -> tuple[str, ...]: ...


_Result = TypeVar("_Result", bound=_Noted)


def logged(result: _Result) -> _Result:
    """Return the result, and write its notes to the log of this library."""
    import logging

    for note in result.notes:
        logging.getLogger("lora_inspect").info("%s", note)
    return result


def _settings_of(given: float | str) -> Settings:
    return parse_settings(given) if isinstance(given, str) else Settings(multiplier=_finite(given, "a multiplier"))


def _finite(number: float, name: str) -> float:
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{name} must be a number, not {number!r}")
    if not abs(number) <= sys.float_info.max:
        raise ValueError(f"{name} is {number}, which is no finite number")
    return float(number)


def _word(is_so: bool) -> str:
    return "yes" if is_so else "no"


_DTYPES = "|".join((*DTYPE_NAMES, *DTYPE_NAMES.values(), *map(str.lower, DTYPE_NAMES.values())))
_RECORDS = (
    *(ReadingRequest, ConvertRequest, MergeRequest, VerifyRequest, UnmergeRequest),
    *(CombineRequest, ResizeRequest, AverageRequest, ExtractRequest, CompareRequest),
)


def _keyword(one: Declared) -> tuple[str, str]:
    """Return the keyword of an option as an error names it, and the values that may follow, as a regular expression."""
    name, option = one.name, one.option
    if option.kind == FLAG:
        return f"{name}={one.default is not True}", ""
    if option.kind == DTYPE:
        return name, _DTYPES
    if option.kind == YES_NO:
        return name, r"yes\|no|yes|no"
    if option.kind == CHOICE and not callable(option.choices):
        return name, "|".join(option.choices)
    if option.kind == WHOLE:
        return name, rf"{option.metavar}|\d+"
    if option.kind == NUMBER:
        return name, rf"{option.metavar}|\d+(?:\.\d+)?(?:e-?\d+)?"
    return name, (option.metavar or "").partition(".")[0]


# Options of the command line that sentences name -> the keyword, and the values that may follow; without any, it is a
# flag. Options of a record are here by themselves. The others follow, and those whose values are any words.
KEYWORDS = {
    **{one.flag: _keyword(one) for record in _RECORDS for one in declared(record).values()},
    "--tensors": ("tensors=True", ""),
    "--skip-hashes": ("skip_hashes=True", ""),
    "--force": ("force=True", ""),
    "--architecture": ("architecture", r"(?!(?:out|and|or|is|to|with)\b)[a-z][a-z0-9_]*"),
    "--transposed": ("transposed", r"yes|no|[^\s=]+=yes\|no"),
    "--only": ("only", r"(?!(?:out|and|or|is|to|with|leaves|merges)\b)[a-z][a-z0-9_]*"),
    "--for": ("program", "NAME"),
    "--fix": ("fix", ""),
    "--jobs": ("jobs", r"N|\d+"),
}
_WORDS = {"yes": "True", "no": "False"}


def in_keywords(text: str) -> str:
    """Replace options in a sentence by keywords: `--allow-loss` by `allow_loss=True`. Whole commands stay."""
    if "--" not in text:
        return text
    import re

    options = "|".join(
        rf"{option}(?![\w-])(?:[ =](?P<_{number}>{values})(?![\w-]))?" if values else rf"{option}(?![\w-])"
        for number, (option, (_, values)) in enumerate(KEYWORDS.items())
    )

    def keyword(found: "re.Match[str]") -> str:
        if not found[0].startswith("--"):
            return found[0]
        option = re.split("[ =]", found[0])[0]
        name, value = KEYWORDS[option][0], found[0][len(option) + 1 :]
        if not value:
            return name
        glob, equals, _ = value.partition("=")
        if equals:
            return f'{name}={{"{glob}": True}} or {{"{glob}": False}}'
        if value == "yes|no":
            return f"{name}=True or {name}=False"
        is_word = not (value.isupper() or value[0].isdigit() or value in _WORDS)
        return f'{name}="{value}"' if is_word else f"{name}={_WORDS.get(value, value)}"

    said = re.sub(rf"`?lora-inspect [^`;]*|(?<![\w-])(?:{options})", keyword, text)
    families = "|".join(architectures.names())
    return re.sub(
        rf'(?<=architecture=)"\w+"(?:(?:, | or )(?:{families})\b)+',
        lambda found: re.sub(r'(?<!")\b(?!or\b)\w+', r'"\g<0>"', found[0]),
        said,
    )


@contextmanager
def in_a_sentence() -> Iterator[None]:
    """Raise LoraInspectError for an error of the system, which stays its cause.

    Errors name the keywords of the API and no options of the command line. Works as a decorator, too.
    """
    try:
        with whole_products():
            yield
    except LoraInspectError as error:
        error.spell(in_keywords)
        raise
    except OSError as error:
        raise of_system(error) from error


@contextmanager
def timeout(seconds: float) -> Iterator[None]:
    """Give up requests to addresses that bring nothing for so many seconds, while the block runs; 60 without it.

    It counts in all threads of the process; of several blocks the last one counts. Raises ValueError for a
    number that is not positive and finite, and TypeError for any other value.
    """
    limit = _finite(seconds, "timeout")
    if limit <= 0:
        raise ValueError(f"timeout is {seconds}, but must be positive")
    with timing_out(limit):
        yield


class ReadingKeywords(TypedDict, total=False):
    """The keywords of a function that reads an adapter: they settle facts that the file leaves open."""

    rslora: bool | None
    alpha: float | None
    allow_partial_dora: bool
    expert_packing: str | None
    architecture: str | None


class ChoiceKeywords(ReadingKeywords, total=False):
    """The keywords of a function that takes modules of adapters at multipliers."""

    include: str | Iterable[str]
    exclude: str | Iterable[str]
    weights: StrPath | None
    base: StrPath | None
    dora_multiplier: str | None
    transposed: Transposed


def request_of(record: type[Request], given: Mapping[str, Any]) -> Request:
    """Make the record of a verb's options from the keywords of a call.

    Raises ValueError and TypeError for a value that its option cannot have.
    """
    return record(**{one.name: _value(one, given[one.name]) for one in declared(record).values() if one.name in given})


def _value(one: Declared, given: Any) -> Any:
    name, option = one.name, one.option
    if option.kind == ANSWERS:
        return answers_of(given)
    if option.kind == NAMES:
        return names_of(given)
    if option.kind == FLAG or (given is None and one.default is None):
        return given
    if option.kind == TEXT:
        return _right(one, _text(name, given, option.takes_whole))
    if option.kind == PATH:
        return path_of(given)
    if option.kind == CHOICE:
        return chosen(name, given, option.chosen_from, option.titles and option.titles())
    if option.kind == DTYPE:
        return _dtype(name, given)
    if option.kind == WHOLE:
        return _whole(name, given, option.least)
    return _yes_or_no(name, given) if option.kind == YES_NO else _right(one, _number(name, given, option.share))


def _right(one: Declared, value: Any) -> Any:
    """Return the value; raise ValueError if the option calls it wrong."""
    if wrong := one.option.wrong(value):
        raise ValueError(f"{one.name}: {value!r} {wrong}")
    return value


def _dtype(name: str, given: "str | torch.dtype") -> str:
    """Return the format's name for "bf16", "bfloat16", torch.bfloat16 and so on; ValueError for any other type."""
    return DTYPE_NAMES[chosen(name, str(given).removeprefix("torch."), DTYPE_NAMES)]


def _text(name: str, given: object, takes_whole: bool) -> str:
    if takes_whole and isinstance(given, int) and not isinstance(given, bool):
        return str(given)
    if not isinstance(given, str):
        kinds = "a str or an int" if takes_whole else "a str"
        raise TypeError(f"{name} must be {kinds}, not {given!r}")
    if not is_unicode(given):
        raise ValueError(f"{name} is {given!r}, which is not text in UTF-8")
    return given


def _whole(name: str, given: int, least: int | None) -> int:
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"{name} must be a whole number, not {given!r}")
    if least is not None and given < least:
        raise ValueError(f"{name} is {given}, but must be at least {least}")
    return given


def _number(name: str, given: float, share: bool) -> float:
    number = _finite(given, name)
    if share and not 0 <= number < 1:
        raise ValueError(f"{name} is {number}, but must be at least 0 and below 1")
    return number


def _yes_or_no(name: str, given: bool) -> bool:
    if not isinstance(given, bool):
        raise TypeError(f"{name} must be True, False or None, not {given!r}")
    return given


def takes(record: "type[DataclassInstance]", keywords: Any) -> Callable[[Function], Function]:
    """Give a function with `**keywords` the signature that a verb's record declares.

    The function then refuses other keywords. `keywords` is the TypedDict with the types that Python programs may give.
    Raises ValueError for one of them that the record does not declare.
    """
    types = keywords.__annotations__
    if other := types.keys() - declared(record).keys():
        raise ValueError(f"{record.__name__} declares no {min(other)}")
    shown = [
        Parameter(
            one.name,
            Parameter.KEYWORD_ONLY,
            default=None if one.option.kind == ANSWERS else one.default,
            annotation=getattr(types[one.name], "__forward_arg__", types[one.name]),
        )
        for one in declared(record).values()
        if one.name in types
    ]

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind != Parameter.VAR_KEYWORD]
        first = [one for one in own if one.kind != Parameter.KEYWORD_ONLY]
        names = {one.name for one in (*own, *shown)}

        @wraps(function)
        def checked(*positional: Any, **given: Any) -> Any:
            if other := next((name for name in given if name not in names), None):
                raise TypeError(f"{function.__name__}() got an unexpected keyword argument {other!r}")
            return function(*positional, **given)

        parameters = [*first, *shown, *own[len(first) :]]
        checked.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        checked.__annotations__ = {one.name: one.annotation for one in parameters} | {
            "return": signature.return_annotation
        }
        return cast(Function, checked)

    return decorate
