"""The options of `combine`, `resize`, `extract`, `average` and `compare`, for Python and the command line.

Each option is declared here once. The rule for the ranks of an output is one of `rank`, `energy`, `max_error` and
`size`; `max_rank` caps any of them, or is the only one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from lora_inspect import option
from lora_inspect.algebra.methods import SUM, known_methods
from lora_inspect.converting.options import known_targets, titles_of_programs
from lora_inspect.maths.dora import MULTIPLIER_RULES

if TYPE_CHECKING:
    from lora_inspect.algebra.linear.ranks import RankRule
    from lora_inspect.matching.orientation import Answers

# The rules of which one decides the ranks.
_RULES = ("rank", "energy", "max_error", "size")
# A megabyte is a million bytes, as of disks and downloads.
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?B)?", re.IGNORECASE)
# No file system has a file of so many.
_MOST_BYTES = 2.0**63
# From this relative width on a power function falls slower than the mean: 1/√12.
WIDEST = 12.0**-0.5
CHANGES, FACTORS = "changes", "factors"
# What `combine` does behind its method.
SVC, ENERGY = "svc", "energy"
# The settings of single methods.
_OF_METHODS = ("density", "t", "seed")
# Options that allow an output and change nothing in it, which its record therefore does not have.
PERMISSIONS = ("allow_growth", "allow_mixed")
# Options that the record of an output has in other keys than their names: the keys by option.
RECORDED_IN = {
    **dict.fromkeys((*_RULES, "max_rank"), "rule"),
    **dict.fromkeys(("method", *_OF_METHODS, "lambda_", "calibrate", "clip_sigma"), "method"),
    "dtype": "dtype",
    "weights": "inputs",
}


def size_in_bytes(text: str) -> int | None:
    """Return the bytes of a size such as `200MB`, `1.5GB` or `80000000`; None for anything else."""
    found = _SIZE.fullmatch(text.strip())
    size = float(found[1]) * _UNITS[(found[2] or "").upper()] if found else 0.0
    return round(size) if 0.0 < size < _MOST_BYTES else None


def _wrong_energy(value: float) -> str | None:
    if 0.0 < value <= 1.0:
        return None
    meant = f"; for {value:g} % give {value / 100:g}" if 1.0 < value <= 100.0 else ""
    return f"is no share of the energy, which is above 0 and at most 1{meant}"


def _wrong_size(value: str) -> str | None:
    return None if size_in_bytes(value) else "is no size; give one such as 200MB, 1.5GB or a number of bytes"


def _wrong_beta(value: float) -> str | None:
    return None if 0.0 < value < 1.0 else "is no decay, which is above 0 and below 1"


def _wrong_sigma(value: float) -> str | None:
    if value <= 0.0:
        return "is no relative width, which is above 0"
    if value >= WIDEST:
        return (
            f"is too wide: the power function with exponent 0, the plain average over the steps, has {WIDEST:.4f}, "
            "so no exponent gives more; give less, or --uniform"
        )
    return None


def _wrong_density(value: float) -> str | None:
    return None if 0.0 < value <= 1.0 else "is no share, which is above 0 and at most 1"


def _wrong_place(value: float) -> str | None:
    return None if 0.0 <= value <= 1.0 else "is no place between two adapters, which is from 0 to 1"


def _wrong_cap(value: float) -> str | None:
    return None if value > 0.0 else "is no cap of singular values, which is above 0"


def _wrong_difference(value: float) -> str | None:
    return None if value >= 0.0 else "is below 0, but a difference is not"


@dataclass(frozen=True)  # a class of several records with slots is not possible
class RankRequest:
    """The options that decide the ranks of an output."""

    rank: int | None = option.whole(
        "Rank of each module, or the lower rank of its change; `resize` fills those up.", least=1
    )
    energy: float | None = option.number(
        "X",
        "Lowest rank that keeps this share of the energy (squared norm) of each module, such as 0.99.",
        _wrong_energy,
    )
    max_error: float | None = option.share("Lowest rank with at most this relative error in each module, such as 0.1.")
    size: str | None = option.text(
        "SIZE",
        "Ranks of the least error in a file of at most this size, such as 200MB or 1.5GB.",
        _wrong_size,
        takes_whole=True,
    )
    max_rank: int | None = option.whole(
        "Highest rank of any module, with or without --energy, --max-error or --size.", least=1
    )


def rank_rule(request: RankRequest) -> "RankRule":
    """Return the rule that the options amount to."""
    from lora_inspect.algebra.linear.ranks import RankRule  # `--help` does without numpy

    size = None if request.size is None else size_in_bytes(request.size)
    return RankRule(request.rank, request.energy, request.max_error, size, request.max_rank)


@dataclass(frozen=True, slots=True)
class ChoiceRequest(option.ReadingRequest):
    """The options that choose modules and multipliers, and supply a base."""

    include: tuple[str, ...] = option.names("GLOB", "Use only matching modules. Repeatable.")
    exclude: tuple[str, ...] = option.names(
        "GLOB", "Leave out matching modules: a path, a block, blocks.0-9 or a glob. Repeatable."
    )
    weights: str | None = option.path(
        "FILE", "Read multipliers of adapters, components and blocks from a TOML file with a table per adapter."
    )
    base: str | None = option.path(
        "BASE", "The model of the adapters, for changes that depend on its weights, such as DoRA and OFT."
    )
    dora_multiplier: str | None = option.choice(
        MULTIPLIER_RULES, "Rule by which a multiplier acts on DoRA. [default: the rule of the file's own program]"
    )
    transposed: "Answers" = option.transposed("BASE")


@dataclass(frozen=True)  # a class of several records with slots is not possible
class OutputRequest:
    """The options of the file that is written."""

    to: str | None = option.choice(
        known_targets,
        "Write names, suffixes and layout of a program or a naming scheme.",
        "NAME",
        titles=titles_of_programs,
    )
    model_config: str | None = option.path(
        "CONFIG", "GGUF: the model's config.json, or its folder; gives llama.cpp's name of the model."
    )
    dtype: str | None = option.dtype("Element type of the factors. [default: the widest of the inputs]")
    allow_growth: bool = option.flag("Accept an output that is above 64 MB and above 16 times the inputs.")


@dataclass(frozen=True, slots=True)
class ResizeRequest(ChoiceRequest, OutputRequest, RankRequest):
    """The options of `resize`."""


@dataclass(frozen=True, slots=True)
class CombineRequest(ChoiceRequest, OutputRequest, RankRequest):
    """The options of `combine`: the method of combining the adapters' changes, and the options of the output."""

    method: str = option.choice(
        known_methods, "How the changes become one; sum adds them up as programs do.", default=SUM
    )
    density: float | None = option.number(
        "X", "ties, dare, dare-ties: the share of the numbers of each change that is kept.", _wrong_density
    )
    t: float | None = option.number(
        "X", "slerp: the place between the first adapter, 0, and the second, 1. [default: 0.5]", _wrong_place
    )
    lambda_: float | None = option.number("X", "Multiply the result by this. [default: 1]")
    calibrate: str | None = option.choice(
        (SVC, ENERGY),
        "Divide directions that several adapters share by how often they count them, or give the result the energy of "
        "independent adapters.",
    )
    clip_sigma: float | None = option.number(
        "X", "Cut the singular values of the result to this number, such as those of spikes.", _wrong_cap
    )
    seed: int | None = option.whole("dare, dare-ties: seed of the numbers that are dropped. [default: 0]", least=0)
    drop_biases: bool = option.flag("Leave out changes of biases; the loss is not measured.")
    allow_mixed: bool = option.flag("Combine adapters for different experts of a pipeline, such as Wan 2.2's two.")

    @property
    def is_sum(self) -> bool:
        """True if the changes are added up and nothing else is done."""
        return self.method == SUM and (self.lambda_, self.calibrate, self.clip_sigma) == (None, None, None)


@dataclass(frozen=True, slots=True)
class AverageRequest(ChoiceRequest, OutputRequest, RankRequest):
    """The options of `average`; at most one of `uniform`, `beta` and `sigma_rel` is set."""

    uniform: bool = option.flag("Give every file the same weight (the default).")
    beta: float | None = option.number(
        "X", "Exponential average in the order of the steps: each file counts 1-X, the average before it X.",
        _wrong_beta,
    )  # fmt: skip
    sigma_rel: float | None = option.number(
        "X",
        "Weights by a power of the step, of this relative width: 0.05 counts only late files, 0.28 nearly all equally.",
        _wrong_sigma,
    )
    of: str = option.choice(
        (CHANGES, FACTORS),
        "Average the changes of the weights, or each tensor by itself, as musubi-tuner does.",
        default=CHANGES,
    )
    exact: bool = option.flag(
        "Keep the whole average: ranks add up. [default: the largest rank of a module in the inputs]"
    )
    allow_mixed: bool = option.flag("Average adapters for different experts of a pipeline, such as Wan 2.2's two.")


@dataclass(frozen=True, slots=True)
class ExtractRequest(RankRequest, OutputRequest):
    """The options of `extract`."""

    only: tuple[str, ...] = option.names(
        "COMPONENT", "Extract only this component: model, text_encoder, …. Repeatable."
    )
    include: tuple[str, ...] = option.names("GLOB", "Extract only matching modules. Repeatable.")
    exclude: tuple[str, ...] = option.names("GLOB", "Leave out matching modules. Repeatable.")
    weights_only: bool = option.flag("Leave out differences of biases, norms and other vectors; print their share.")
    architecture: str | None = option.architecture("the models")


@dataclass(frozen=True, slots=True)
class CompareRequest(ChoiceRequest):
    """The options of `compare`."""

    max_difference: float | None = option.number(
        "X", "Exit with 1 if a relative difference is above this.", _wrong_difference
    )


@dataclass(frozen=True, slots=True)
class ReportRequest(option.ReadingRequest):
    """The options of `report`."""

    base: str | None = option.path(
        "BASE", "The model of the adapters, for sizes relative to its weights, and for changes such as DoRA and OFT."
    )
    dora_multiplier: str | None = option.choice(
        MULTIPLIER_RULES, "Rule by which a multiplier acts on DoRA. [default: the rule of the file's own program]"
    )
    transposed: "Answers" = option.transposed("BASE")

    @property
    def comparison(self) -> CompareRequest:
        """The same options of `compare`."""
        return CompareRequest(**{one.name: getattr(self, one.name) for one in fields(self)})


def recorded_options(request: "CombineRequest | ResizeRequest | AverageRequest | ExtractRequest") -> dict[str, Any]:
    """Return the given options as the record of an output has them, by name, but for PERMISSIONS and RECORDED_IN.

    Of a path the record has the last part, as of the inputs: no folder of a machine, and no secret of an address.
    """
    from lora_inspect.reading.metadata.output_metadata import describe_file  # `--help` does without it
    from lora_inspect.stores.address import is_remote, printable_address

    recorded: dict[str, Any] = {}
    for name, declared in option.declared(type(request)).items():
        given = getattr(request, name)
        if name in PERMISSIONS or name in RECORDED_IN or given == declared.default:
            continue
        if declared.option.kind == option.PATH:
            given = describe_file(printable_address(given) if is_remote(given) else given)
        recorded[name] = list(given) if declared.option.kind == option.NAMES else given
    return recorded


def folder_contradiction(request: CompareRequest) -> str | None:
    """Return a sentence on options that speak of adapters by name, where a folder is compared, or None."""
    if request.max_difference is not None:
        return "--max-difference is for adapters that are named, not for a folder; leave it out."
    if request.weights is not None:
        return "--weights is for adapters that are named, not for a folder; leave it out."
    return None


def contradiction(request: RankRequest, needs_rule: str | None = None) -> str | None:
    """Return a sentence on options that exclude each other, or None.

    `needs_rule` is the verb that does nothing without a rule.
    """
    given = [_flag(name) for name in _RULES if getattr(request, name) is not None]
    if len(given) > 1:
        return f"{given[0]} and {given[1]} both decide the ranks; give one of them."
    if needs_rule and not given and request.max_rank is None:
        return f"{needs_rule} needs a rule: one of --rank, --energy, --max-error, --size and --max-rank."
    if request.rank is not None and request.max_rank is not None:
        return "--rank already is the rank of every module; leave --max-rank out."
    if isinstance(request, CombineRequest):
        return _of_method(request)
    return _of_average(request) if isinstance(request, AverageRequest) else None


def _of_method(request: CombineRequest) -> str | None:
    from lora_inspect.algebra.methods import by_name  # `--help` does without numpy

    method = by_name(request.method)
    given = [name for name in _OF_METHODS if getattr(request, name) is not None]
    if other := next((name for name in given if name not in method.settings), None):
        return f"--method {method.name} has no {_flag(other)}; leave it out."
    if "density" in method.settings and request.density is None:
        return f"--method {method.name} needs --density, the share of the numbers that is kept, such as 0.5."
    if request.calibrate == SVC and not method.has_directions:
        return (
            f"--method {method.name} makes all singular values equal, so --calibrate {SVC} has no directions to count; "
            f"leave it out, or take --calibrate {ENERGY}."
        )
    return None


def _of_average(request: AverageRequest) -> str | None:
    weights = [flag for flag, is_given in _WEIGHTS.items() if is_given(request)]
    if len(weights) > 1:
        return f"{weights[0]} and {weights[1]} both decide the weights; give one of them."
    has_rule = request.max_rank is not None or any(getattr(request, name) is not None for name in _RULES)
    if request.exact and has_rule:
        return "--exact keeps all directions, but a rule leaves some out; give one of them."
    if request.of == FACTORS and (request.exact or has_rule):
        return f"--of {FACTORS} keeps the ranks of the inputs; leave the rule out."
    return None


_WEIGHTS: dict[str, Callable[[AverageRequest], bool]] = {
    "--uniform": lambda request: request.uniform,
    "--beta": lambda request: request.beta is not None,
    "--sigma-rel": lambda request: request.sigma_rel is not None,
}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
