"""The options of `--network_args`: each parsed and validated once, into one frozen record.

An unknown option gets a suggestion. Standard library only.
"""

import ast
import difflib
import math
import re
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

# The least likeness, from 0 to 1, of a slip to the name that was meant: `conv_rank` is none of `conv_alpha`.
_LIKENESS = 0.84

# What other programs call an option.
_ELSEWHERE = {
    "rs_lora": "use_rslora",
    "rslora": "use_rslora",
    "dora": "use_dora",
    "dora_wd": "use_dora",
    "weight_decompose": "use_dora",
    "conv_rank": "conv_dim",
    "conv_lora_dim": "conv_dim",
    "conv_lora_alpha": "conv_alpha",
    "lora_plus_ratio": "loraplus_lr_ratio",
    "lora_plus_lr_ratio": "loraplus_lr_ratio",
    "exclude_modules": "exclude_patterns",
    "exclude": "exclude_patterns",
    "include": "include_patterns",
    "include_modules": "include_patterns",
    "network_dropout": "dropout",
    "lora_dropout": "dropout",
    "constrain": "constraint",
    # Trainers have these as arguments of their own.
    "rank": "--network_dim",
    "dim": "--network_dim",
    "r": "--network_dim",
    "lora_rank": "--network_dim",
    "lora_dim": "--network_dim",
    "network_rank": "--network_dim",
    "network_dim": "--network_dim",
    "alpha": "--network_alpha",
    "lora_alpha": "--network_alpha",
    "network_alpha": "--network_alpha",
    "lr": "--learning_rate",
    "unet_lr": "--learning_rate",
    "scale_weight_norms": "--scale_weight_norms",
}


def argument_of_trainers(name: str) -> str | None:
    """Return the trainer argument that other programs call `name`, as `--network_dim`, or None."""
    elsewhere = _ELSEWHERE.get(name.lower(), "")
    return elsewhere if elsewhere.startswith("--") else None


def way_out(name: str, known: Collection[str]) -> str:
    """Return a suggestion for the unknown option `name`.

    It is the option that other programs call so, the most similar one, or all.
    """
    name = name.lower()
    if argument := argument_of_trainers(name):
        return f"it is {argument} of the trainer"
    elsewhere = _ELSEWHERE.get(name, "")
    near = [elsewhere] if elsewhere in known else difflib.get_close_matches(name, known, n=1, cutoff=_LIKENESS)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"


KAIMING, ORTHOGONAL, PISSA = "kaiming", "orthogonal", "pissa"
NATIVE, STANDARD = "native", "standard"
_PISSA_NITER = re.compile(rf"{PISSA}_niter_(\d+)")


class NetworkOption(NamedTuple):
    """An option: `read(name, value)` reads its value, and `default` holds if it is not given."""

    read: Callable[[str, Any], Any]
    default: Any = None


def read_bool(name: str, value: Any) -> bool:
    """Return True for true, 1, yes, on, and False for false, 0, no, off.

    Case does not matter, and the Python values count too. Raises ValueError for any other value.
    """
    word = str(value).strip().lower()
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise _refused(name, value, "True or False")


def read_float(name: str, value: Any) -> float:
    """Return a finite number.

    Raises ValueError for any other value.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise _refused(name, value, "a number") from None
    if isinstance(value, bool) or not math.isfinite(number):
        raise _refused(name, value, "a number")
    return number


def read_nonnegative(name: str, value: Any) -> float:
    """Return a finite number of at least 0.

    Raises ValueError for any other value.
    """
    number = read_float(name, value)
    if number < 0:
        raise _refused(name, value, "a number of at least 0")
    return number


def read_alpha(name: str, value: Any) -> float:
    """Return a finite number of at least 0; 0 stands for scale 1.

    A negative alpha would train the same change with `up` of the other sign, which nobody wants. In files it is
    allowed.
    """
    return read_nonnegative(name, value)


def read_positive(name: str, value: Any) -> float:
    """Return a finite number above 0."""
    number = read_float(name, value)
    if number <= 0:
        raise _refused(name, value, "a number above 0")
    return number


def read_probability(name: str, value: Any) -> float:
    """Return a dropout, at least 0 and below 1.

    At 1 the rest would have to be scaled by 1/0.
    """
    number = read_float(name, value)
    if not 0 <= number < 1:
        raise _refused(name, value, "a probability of at least 0 and below 1")
    return number


def read_count(name: str, value: Any) -> int:
    """Return an integer of at least 0."""
    try:
        number = int(str(value).strip())
    except ValueError:
        number = -1
    if isinstance(value, bool) or number < 0:
        raise _refused(name, value, "a whole number of at least 0")
    return number


def read_rank(name: str, value: Any) -> int:
    """Return an integer above 0."""
    number = read_count(name, value)
    if number == 0:
        raise _refused(name, value, "a whole number above 0")
    return number


def read_patterns(name: str, value: Any) -> tuple[str, ...]:
    """Return regular expressions.

    The value is a list or tuple of strings, one string, or the Python literal of any of them.
    """
    found = _literal(value)
    if isinstance(value, str) and isinstance(found, str):
        found = [found]
    if not isinstance(found, list | tuple) or not all(isinstance(pattern, str) for pattern in found):
        raise _refused(name, value, "a list of regular expressions such as ['.*attn.*']")
    for pattern in found:
        _compile(name, pattern)
    return tuple(found)


def read_rank_pattern(name: str, value: Any) -> dict[str, int]:
    """Return ranks by regular expression, in order of precedence.

    The value is a dict or its literal, with integers above 0.
    """
    return _by_pattern(name, value, _is_count, "{'.*attn.*': 16}, whole numbers above 0")


def read_alpha_pattern(name: str, value: Any) -> dict[str, float]:
    """Return alphas by regular expression, in order of precedence.

    The value is a dict or its literal, with finite numbers above 0.
    """
    found = _by_pattern(name, value, _is_alpha, "{'.*attn.*': 8.0}, numbers above 0")
    return {pattern: float(alpha) for pattern, alpha in found.items()}


def read_lr_pattern(name: str, value: Any) -> dict[str, float]:
    """Return learning rates by regular expression, in order of precedence.

    The value is a dict or its literal, with finite numbers of at least 0.
    """
    found = _by_pattern(name, value, _is_rate, "{'.*attn.*': 5e-5}, numbers of at least 0")
    return {pattern: float(rate) for pattern, rate in found.items()}


def read_reg_dims(name: str, value: Any) -> dict[str, int]:
    """Return ranks by regular expression in sd-scripts' form, `attn=8,mlp=0`; 0 leaves layers out."""
    return _pairs(name, value, read_count)


def read_reg_alphas(name: str, value: Any) -> dict[str, float]:
    """Return alphas by regular expression in sd-scripts' form, `attn=8,mlp=4`; 0 stands for scale 1."""
    return _pairs(name, value, read_alpha)


def read_reg_lrs(name: str, value: Any) -> dict[str, float]:
    """Return learning rates by regular expression in sd-scripts' form, `attn=1e-4,mlp=5e-5`."""
    return _pairs(name, value, read_alpha)


def _pairs(name: str, value: Any, read: Callable[[str, Any], Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for pair in filter(None, (part.strip() for part in str(value).split(","))):
        pattern, sign, number = (part.strip() for part in pair.partition("="))
        if not sign:
            raise _refused(name, value, "regular expressions with numbers such as attn=8,mlp=4")
        _compile(name, pattern)
        found[pattern] = read(f"{name}[{pattern!r}]", number)
    return found


def read_split_dims(name: str, value: Any) -> dict[str, tuple[int, ...]]:
    """Return the output features of each slice by regular expression.

    The value is a dict or its literal, with at least two sizes per layer.
    """
    found = _by_pattern(name, value, _are_slices, r"{'.*\.qkv': [64, 64, 64]}, two sizes or more")
    return {pattern: tuple(sizes) for pattern, sizes in found.items()}


def read_init(name: str, value: Any) -> str:
    """Return the start of factors: kaiming (or true), orthogonal, pissa, or pissa_niter_N.

    Case does not matter.
    """
    word = str(value).strip().lower()
    if word == "true":
        return KAIMING
    iterations = _PISSA_NITER.fullmatch(word)
    if word in (KAIMING, ORTHOGONAL, PISSA) or (iterations and int(iterations[1]) > 0):
        return word
    raise _refused(name, value, "kaiming, orthogonal, pissa, or pissa_niter_N with N above 0")


def read_save_format(name: str, value: Any) -> str:
    """Return the form of saved files, native or standard.

    Case does not matter.
    """
    word = str(value).strip().lower()
    if word in (NATIVE, STANDARD):
        return word
    raise _refused(name, value, "native or standard")


def pissa_iterations(init: str) -> int | None:
    """Return the N of pissa_niter_N, or None for a full decomposition."""
    found = _PISSA_NITER.fullmatch(init)
    return int(found[1]) if found else None


def read_keywords(name: str, value: Any) -> dict[str, Any]:
    """Return keyword arguments from a mapping of names or its literal."""
    found = _literal(value)
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise _refused(name, value, "a dict of keyword arguments")
    return dict(found)


def _by_pattern(name: str, value: Any, accepts: Callable[[Any], bool], expected: str) -> dict[str, Any]:
    found = _literal(value)
    if not isinstance(found, Mapping) or not all(isinstance(pattern, str) for pattern in found):
        raise _refused(name, value, f"a dict of regular expressions such as {expected},")
    for pattern, element in found.items():
        _compile(name, pattern)
        if not accepts(element):
            raise _refused(f"{name}[{pattern!r}]", element, f"a value as in {expected},")
    return dict(found)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and math.isfinite(value)


def _is_alpha(value: Any) -> bool:
    return _is_rate(value) and value > 0


def _are_slices(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 1 and all(map(_is_count, value))


def _literal(value: Any) -> Any:
    """Return the Python object of a literal, or None for a string that is none.

    Values other than strings stay unchanged.
    """
    if not isinstance(value, str):
        return value
    try:
        with warnings.catch_warnings():
            # A regular expression such as '\.' is no Python escape, which the parser warns of.
            warnings.simplefilter("ignore")
            return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None


def _compile(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name}: {pattern!r} is no regular expression: {error}") from None


def _is_absent(value: Any, option: NetworkOption) -> bool:
    """Return True if the value stands for an option that is not given.

    Only options without a default can be given as none.
    """
    unset = option.default is None or option.default == ()
    return value is None or (unset and isinstance(value, str) and value.strip().lower() == "none")


def _refused(name: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{name}={value!r}: {expected} was expected")


def _option(read: Callable[[str, Any], Any], default: Any = None) -> Any:
    return field(default=default, metadata={"option": NetworkOption(read, default)})


class LayerValues(NamedTuple):
    """The values that options for blocks and kinds of layers give to one layer, or None.

    `source` is the option of its `rank`; a rank of 0 leaves it out. `rate` is a learning rate, and `lr_weight` a
    multiple of the trainer's, with a parameter group for each `block`. A `wanted` layer is adapted even if defaults
    leave it out. Layers are made in the order of `place`, and of the model among those of one place.
    """

    rank: int | None = None
    source: str = ""
    alpha: float | None = None
    rate: float | None = None
    block: int | None = None
    lr_weight: float = 1.0
    wanted: bool = False
    place: int = 0


NO_VALUES = LayerValues()


@dataclass(frozen=True, slots=True)
class NetworkArguments:
    """Every option of a network, validated.

    None means that a dropout, LoRA+ or GGPO is off, and that `conv_dim` and `conv_alpha` are those of Linear layers. A
    `conv_dim` of 0 leaves out convolutions with a kernel. `rank_pattern`, `alpha_pattern`, `lr_pattern` and
    `split_dims` hold a rank, an alpha, a learning rate and the output features of each slice by regular expression.
    `given` are the names that the user set, and `extra` the options that the architecture declared. `layers` are the
    values that those give to single layers, by dotted path.
    """

    use_rslora: bool = _option(read_bool, False)
    use_dora: bool = _option(read_bool, False)
    dora_conv: bool = _option(read_bool, False)
    use_tlora: bool = _option(read_bool, False)
    tlora_min_rank: int = _option(read_rank, 1)
    tlora_alpha: float = _option(read_positive, 1.0)
    init_lora_weights: str = _option(read_init, KAIMING)
    loraplus_lr_ratio: float | None = _option(read_positive)
    loraplus_unet_lr_ratio: float | None = _option(read_positive)
    loraplus_text_encoder_lr_ratio: float | None = _option(read_positive)
    ggpo_sigma: float | None = _option(read_nonnegative)
    ggpo_beta: float | None = _option(read_nonnegative)
    neuron_dropout: float | None = None
    rank_dropout: float | None = _option(read_probability)
    module_dropout: float | None = _option(read_probability)
    conv_dim: int | None = _option(read_count)
    conv_alpha: float | None = _option(read_alpha)
    enable_conv2d: bool = _option(read_bool, True)
    rank_pattern: Mapping[str, int] | None = _option(read_rank_pattern)
    alpha_pattern: Mapping[str, float] | None = _option(read_alpha_pattern)
    lr_pattern: Mapping[str, float] | None = _option(read_lr_pattern)
    split_dims: Mapping[str, tuple[int, ...]] | None = _option(read_split_dims)
    split_qkv: bool = _option(read_bool, False)
    exclude_patterns: tuple[str, ...] = _option(read_patterns, ())
    include_patterns: tuple[str, ...] = _option(read_patterns, ())
    save_format: str = _option(read_save_format, NATIVE)
    verbose: bool = _option(read_bool, False)
    given: frozenset[str] = frozenset()
    extra: Mapping[str, Any] = field(default_factory=dict)
    layers: Mapping[str, LayerValues] = field(default_factory=dict)

    @property
    def has_ggpo(self) -> bool:
        """True if both options of GGPO are given; one alone has no effect."""
        return self.ggpo_sigma is not None and self.ggpo_beta is not None

    def without(self, *names: str) -> "NetworkArguments":
        """Return the same options with these at their defaults, as if not given."""
        return replace(self, given=self.given.difference(names), **{name: _OPTIONS[name].default for name in names})


_OPTIONS: dict[str, NetworkOption] = {
    known.name: known.metadata["option"] for known in fields(NetworkArguments) if "option" in known.metadata
}
# What says more about another option.
_PARTS = {"dora_conv": "use_dora", "tlora_min_rank": "use_tlora", "tlora_alpha": "use_tlora"}
# sd-scripts passes --network_dropout under this name too, for LyCORIS.
_OPTIONS["dropout"] = NetworkOption(read_probability)


def parse(
    options: Mapping[str, Any], neuron_dropout: Any = None, extra: Mapping[str, NetworkOption] | None = None
) -> NetworkArguments:
    """Return the record of `options`, with strings from a trainer or Python objects as values.

    `neuron_dropout` is `--network_dropout`; `extra` are options of one architecture. Raises ValueError with the
    option's name for an invalid value. For an unknown option, the error names the most similar known one, or all of
    them.
    """
    known = {**_OPTIONS, **(extra or {})}
    for name in options:
        if name not in known:
            raise ValueError(f"unknown network_args option {name!r}; {way_out(name, known)}")
    given = {name: value for name, value in options.items() if not _is_absent(value, known[name])}
    values = {name: known[name].read(name, given[name]) if name in given else known[name].default for name in known}
    for name, switch in _PARTS.items():
        if values[name] != known[name].default and not values[switch]:
            raise ValueError(f"{name}={values[name]} has no meaning without {switch}=True")
    dropout = values.pop("dropout")
    if neuron_dropout is not None:
        dropout = read_probability("neuron_dropout (--network_dropout)", neuron_dropout)
    return NetworkArguments(
        neuron_dropout=dropout,
        given=frozenset(given),
        extra={name: values.pop(name) for name in extra or {}},
        **values,
    )
