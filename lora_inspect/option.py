"""Declarations of options: one field of a verb's record per option, for the command line and the API.

A record is a frozen dataclass of plain values. The functions below make its fields: each field has the name in Python,
the default and, as metadata, an `Option` with the kind of its values and its help. `lora_inspect.cli.verb` makes
click's options of a record. `lora_inspect.api.arguments` makes the keywords of a function and checks their values.
`--help` loads the file of a record, so this file loads no code of the verbs.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import DTYPE_NAMES
from lora_inspect.maths.scaling import PACKINGS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# The kinds of values.
FLAG, TEXT, PATH, CHOICE, DTYPE, WHOLE, NUMBER, YES_NO, NAMES, ANSWERS = (
    *("flag", "text", "path", "choice", "element type", "whole number", "number", "yes or no", "names", "answers"),
)
_OPTION = "option"
_WORDS = {True: "yes", False: "no"}


class Option(NamedTuple):
    """An option: the kind of its values, its help, and the facts that its kind needs.

    `help` and `choices` may be functions, called when they are shown. `metavar` names the value in the help. An integer
    is at least `least`; a number is any finite one, or a `share`, from 0 to below 1. `takes_whole` says that a Python
    program may give a whole number for a text. `wrong` says of a number or a text why it is no value of the option, as
    the end of a sentence that begins with it, or nothing. `titles` returns the titles of choices by their names; such a
    choice may be given in another spelling.
    """

    kind: str
    help: str | Callable[[], str]
    metavar: str | None = None
    choices: Collection[str] | Callable[[], Collection[str]] = ()
    least: int | None = None
    share: bool = False
    wrong: Callable[[Any], str | None] = lambda value: None
    titles: Callable[[], Mapping[str, str]] | None = None
    takes_whole: bool = False

    @property
    def chosen_from(self) -> Collection[str]:
        """The values of a choice, in the order of the help."""
        return self.choices() if callable(self.choices) else self.choices

    @property
    def says(self) -> str:
        """The help as text."""
        return self.help() if callable(self.help) else self.help


class Declared(NamedTuple):
    """An option of a record: its name in Python, which is that of the field, and its default."""

    name: str
    option: Option
    default: Any

    @property
    def flag(self) -> str:
        """The option on the command line; `--no-NAME` for a flag that is set by default."""
        # A word of Python's has a mark behind it there.
        spelled = self.name.rstrip("_").replace("_", "-")
        return f"--no-{spelled}" if self.default is True else f"--{spelled}"

    def words(self, value: Any) -> Iterator[str]:
        """Yield the option with a value, as on a command line; nothing for the default."""
        if value == self.default:
            return
        if self.option.kind == FLAG:
            yield self.flag
            return
        for text in self._texts(value):
            yield from (self.flag, text)

    def _texts(self, value: Any) -> Iterator[str]:
        kind = self.option.kind
        if kind == NAMES:
            yield from value
        elif kind == ANSWERS:
            yield from (f"{glob}={_WORDS[is_so]}" for glob, is_so in value.items())
        else:
            yield f"{value:g}" if kind == NUMBER else _WORDS[value] if kind == YES_NO else str(value)


def declared(record: "type[DataclassInstance]") -> dict[str, Declared]:
    """Return the options of a record by name: its own in their order, then the ones that other records share."""
    own = [one for one in fields(record) if _OPTION in one.metadata]
    shared = {one.name for base in record.__mro__[1:] for one in getattr(base, "__dataclass_fields__", {}).values()}
    own.sort(key=lambda one: one.name in shared)
    return {one.name: Declared(one.name, one.metadata[_OPTION], _default(one)) for one in own}


def _default(one: Any) -> Any:
    return one.default_factory() if one.default is MISSING else one.default


def _field(option: Option, default: Any = None) -> Any:
    return field(default=default, metadata={_OPTION: option})


def flag(says: str, default: bool = False) -> Any:
    """Return an option without a value; if the default is True, the command line has `--no-NAME`."""
    return _field(Option(FLAG, says), default)


def text(
    metavar: str, says: str, wrong: Callable[[str], str | None] = lambda value: None, takes_whole: bool = False
) -> Any:
    """Return an option with any text that is not `wrong`."""
    return _field(Option(TEXT, says, metavar, wrong=wrong, takes_whole=takes_whole))


def path(metavar: str, says: str) -> Any:
    """Return an option with the path of a file or a folder."""
    return _field(Option(PATH, says, metavar))


def choice(
    choices: Collection[str] | Callable[[], Collection[str]],
    says: str | Callable[[], str],
    metavar: str | None = None,
    default: str | None = None,
    titles: Callable[[], Mapping[str, str]] | None = None,
) -> Any:
    """Return an option with one of several words."""
    return _field(Option(CHOICE, says, metavar, choices, titles=titles), default)


def dtype(says: str) -> Any:
    """Return an option with an element type.

    A value may be any of its names; the record has that of the safetensors format.
    """
    return _field(Option(DTYPE, says, choices=DTYPE_NAMES))


def whole(says: str, least: int | None = None) -> Any:
    """Return an option with an integer."""
    return _field(Option(WHOLE, says, "N", least=least))


def number(metavar: str, says: str, wrong: Callable[[float], str | None] = lambda value: None) -> Any:
    """Return an option with a finite number that is not `wrong`."""
    return _field(Option(NUMBER, says, metavar, wrong=wrong))


def share(says: str) -> Any:
    """Return an option with a number from 0 to below 1."""
    return _field(Option(NUMBER, says, "X", share=True))


def yes_or_no(says: str) -> Any:
    """Return an option that is True, False or neither."""
    return _field(Option(YES_NO, says))


def names(metavar: str, says: str) -> Any:
    """Return an option with any number of texts, in the order in which they are given."""
    return _field(Option(NAMES, says, metavar), ())


# Options of several records.


def no_family(name: str) -> str | None:
    """Say why a name is that of no model family."""
    from lora_inspect.architectures import names
    from lora_inspect.near_names import nearest_name

    known = names()
    if name in known:
        return None
    nearest = nearest_name(name, known)
    return f"is no model family{f'; the nearest name is {nearest}' if nearest else ''}"


def architecture(of: str) -> Any:
    """Return an option with the name of a model family; `of` names the adapters in its help."""
    return text("NAME", f"Model family of {of}, if the names match several: flux, chroma, ….", no_family)


@dataclass(frozen=True, slots=True)
class ReadingRequest:
    """The options that settle facts which an adapter's evidence leaves open."""

    rslora: bool | None = yes_or_no("yes: scale by alpha/sqrt(rank); no: by alpha/rank. For a file that does not say.")
    alpha: float | None = number("N", "Alpha where the file gives none; only one adapter may need it.")
    allow_partial_dora: bool = flag("Accept DoRA magnitudes on only some of the Linear modules.")
    expert_packing: str | None = choice(
        PACKINGS, "Order of the experts' factors in lora_B, for a file that does not say."
    )
    architecture: str | None = architecture("the adapters")


def transposed(of: str) -> Any:
    """Return the option for globs of weights stored as (in, out); `of` names the model in its help."""
    says = (
        f"yes: {of} stores square weights as (in, out); no: as (out, in). For weights with an orientation that "
        "nothing else shows: all, or those that match GLOB. Repeatable."
    )
    return field(default_factory=dict, metadata={_OPTION: Option(ANSWERS, says, "[GLOB=]yes|no")})
