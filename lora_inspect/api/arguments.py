"""Arguments as Python programs give them: paths with what is settled about them, answers, and who watches.

How a call of the API goes: by whole products, whatever the program has set, and if it fails in a sentence.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

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
from lora_inspect.matching.orientation import Answers, parse_answers
from lora_inspect.maths.dora import MULTIPLIER_RULES
from lora_inspect.maths.scaling import PACKINGS
from lora_inspect.maths.torch_threads import whole_products
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.model.settings import Settings, parse_argument, parse_settings

if TYPE_CHECKING:
    import torch

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
]


StrPath: TypeAlias = str | os.PathLike[str]
# A string is read as on the command line (`style.safetensors:0.8`), an os.PathLike as the path that it is; in a pair
# the second one is the multiplier, or what would stand behind the colon.
PathWithSettings: TypeAlias = StrPath | tuple[StrPath, float | str]
# How far a computation is, and how far it has to go: (done, total).
WatchProgress: TypeAlias = Callable[[int, int], object]
# Whether a base stores weights as (in, out): all, or by glob.
Transposed: TypeAlias = bool | Mapping[str, bool] | None


def path_of(given: StrPath) -> str:
    """The path as a string; TypeError for what is none."""
    path = os.fspath(given)
    if not isinstance(path, str):
        raise TypeError(f"a path is a str or an os.PathLike of one, not {path!r}")
    return path


def with_settings(given: PathWithSettings) -> tuple[str, Settings]:
    """The path and what is settled about it.

    Raises LoraInspectError for a string that is neither a path nor one with settings, ValueError for settings of a pair
    that are none, and TypeError for anything else.
    """
    if isinstance(given, tuple):
        if len(given) != 2:
            raise ValueError(f"a pair of a path and its settings has two parts, not {len(given)}")
        return path_of(given[0]), _settings_of(given[1])
    return parse_argument(given) if isinstance(given, str) else (path_of(given), Settings())


def without_multiplier(given: PathWithSettings) -> tuple[str, Settings]:
    """The same for what applies no adapter; ValueError where a multiplier is given."""
    path, settings = with_settings(given)
    if settings.has_multiplier:
        raise ValueError(f"{path}: nothing is applied here, so a multiplier means nothing; leave it out")
    return path, settings


def all_with_settings(given: PathWithSettings | Iterable[PathWithSettings]) -> list[tuple[str, Settings]]:
    """The adapters of a list, or the one that is given; ValueError where there is none."""
    several = [given] if isinstance(given, (str, os.PathLike, tuple)) else list(given)
    if not several:
        raise ValueError("no adapter is named; name one at least")
    return [with_settings(one) for one in several]


def reading_settings(
    rslora: bool | None,
    alpha: float | None,
    allow_partial_dora: bool,
    expert_packing: str | None,
    architecture: str | None = None,
) -> Settings:
    """What the options settle where a file leaves it open; ValueError or TypeError for what none of them can be."""
    if rslora is not None and not isinstance(rslora, bool):
        raise TypeError(f"rslora is True, False or None, not {rslora!r}")
    if alpha is not None:
        alpha = _finite(alpha, "alpha")
    if expert_packing is not None:
        chosen("expert_packing", expert_packing, PACKINGS)
    return Settings(
        rslora=rslora,
        alpha=alpha,
        allow_partial_dora=allow_partial_dora,
        expert_packing=expert_packing,
        architecture=architecture,
    )


def names_of(given: str | Iterable[str]) -> tuple[str, ...]:
    """Several names, or the one that is given."""
    return (given,) if isinstance(given, str) else tuple(given)


def answers_of(given: Transposed) -> Answers:
    """How a base stores weights, as the command line's option says it; ValueError for a glob that is none.

    TypeError for what is no answer, as the command line's words are.
    """
    if given is None or isinstance(given, bool):
        return parse_answers([] if given is None else [_word(given)])
    if not isinstance(given, Mapping) or not all(isinstance(is_so, bool) for is_so in given.values()):
        raise TypeError(f"transposed is True, False or such an answer for each glob, not {given!r}")
    return parse_answers([f"{glob}={_word(is_so)}" for glob, is_so in given.items()])


def chosen(name: str, value: str, choices: Iterable[str]) -> str:
    """The value, one of the choices of an argument; ValueError for any other."""
    if value not in (known := sorted(choices)):
        raise ValueError(f"{name} is {value!r}, which is none of {', '.join(known)}")
    return value


def dtype_of(given: "str | torch.dtype | None") -> str | None:
    """The name that the format has for "bf16", "bfloat16", torch.bfloat16 and so on; ValueError for any other type."""
    if given is None:
        return None
    name = str(given).removeprefix("torch.")
    return DTYPE_NAMES[chosen("dtype", name, DTYPE_NAMES)]


def rank_of(given: int) -> int:
    """A rank, 1 at least."""
    _check_whole(given, "rank")
    if given < 1:
        raise ValueError(f"rank is {given}, which is less than 1")
    return given


def limit_of(given: float) -> float:
    """A relative error, from 0 to below 1."""
    limit = _finite(given, "max_error")
    if not 0 <= limit < 1:
        raise ValueError(f"max_error is {limit}, which is not from 0 to below 1")
    return limit


def watched(watch: WatchProgress | None, total: int) -> Progress:
    """What to tell of each amount that is done, for one who is told the sum and the total."""
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
    """The result, of which the notes go to the log of this library as well."""
    import logging

    for note in result.notes:
        logging.getLogger("lora_inspect").info("%s", note)
    return result


def _settings_of(given: float | str) -> Settings:
    return parse_settings(given) if isinstance(given, str) else Settings(multiplier=_finite(given, "a multiplier"))


def given_seed(given: int | None) -> int | None:
    """What is drawn by; None where nothing is."""
    if given is not None:
        _check_whole(given, "seed")
    return given


def _check_whole(number: int, name: str) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{name} is a whole number, not {number!r}")


def _finite(number: float, name: str) -> float:
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"{name} is a number, not {number!r}")
    if not abs(number) <= sys.float_info.max:
        raise ValueError(f"{name} is {number}, which is no finite number")
    return float(number)


def _word(is_so: bool) -> str:
    return "yes" if is_so else "no"


_DTYPES = "|".join((*DTYPE_NAMES, *DTYPE_NAMES.values(), *map(str.lower, DTYPE_NAMES.values())))
# Options of the command line that sentences name -> the keyword, and the values that may follow; without any, it is a
# flag.
KEYWORDS = {
    **{
        f"--{flag}": (f"{flag.replace('-', '_')}=True", "")
        for flag in (
            *("keep-dora", "drop-magnitude", "drop-biases", "allow-loss", "allow-growth", "allow-unclaimed", "tensors"),
            *("allow-unmatched", "allow-partial-dora", "allow-ambiguous", "hash-base", "force"),
        )
    },
    "--no-verify": ("verify=False", ""),
    "--alpha": ("alpha", "N"),
    "--rslora": ("rslora", "yes|no"),
    "--expert-packing": ("expert_packing", "|".join(PACKINGS)),
    "--architecture": ("architecture", r"(?!(?:out|and|or|is|to|with)\b)[a-z][a-z0-9_]*"),
    "--transposed": ("transposed", r"yes|no|[^\s=]+=yes\|no"),
    "--base": ("base", "BASE"),
    "--rank": ("rank", r"N|\d+"),
    "--max-error": ("max_error", r"E|\d[\d.e-]*"),
    "--algorithm": ("algorithm", "lora|full"),
    "--layout": ("layout", r"(?!(?:out|and|or|is|to|with)\b)[a-z][a-z_]*"),
    "--model-config": ("model_config", ""),
    "--dtype": ("dtype", _DTYPES),
    "--changed-dtype": ("changed_dtype", _DTYPES),
    "--dora-multiplier": ("dora_multiplier", "|".join(MULTIPLIER_RULES)),
    "--rounding": ("rounding", "nearest|stochastic"),
    "--seed": ("seed", r"N|\d+"),
    "--only": ("only", r"(?!(?:out|and|or|is|to|with|leaves|merges)\b)[a-z][a-z0-9_]*"),
    "--include": ("include", "GLOB"),
    "--exclude": ("exclude", "GLOB"),
    "--weights": ("weights", "FILE"),
    "--to": ("to", "NAME"),
    "--for": ("program", "NAME"),
    "--fix": ("fix", ""),
    "--jobs": ("jobs", r"N|\d+"),
}
_WORDS = {"yes": "True", "no": "False"}


def in_keywords(text: str) -> str:
    """What a sentence says of options, in keywords: `--allow-loss` is `allow_loss=True`. Whole commands stay."""
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
        is_word = not value.isupper() and value not in _WORDS
        return f'{name}="{value}"' if is_word else f"{name}={_WORDS.get(value, value)}"

    return re.sub(rf"`?lora-inspect [^`;]*|(?<![\w-])(?:{options})", keyword, text)


@contextmanager
def in_a_sentence() -> Iterator[None]:
    """Raises LoraInspectError for an error of the system, which stays its cause; serves as a decorator as well.

    Errors name the keywords of the API and no options of the command line.
    """
    try:
        with whole_products():
            yield
    except LoraInspectError as error:
        error.spell(in_keywords)
        raise
    except OSError as error:
        raise of_system(error) from error
