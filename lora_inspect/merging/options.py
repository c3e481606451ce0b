"""The options of `merge`, `verify` and `unmerge`, for Python and the command line.

Each option is declared here once. The command line and the API make a request of them, and a plan sees the
`MergeOptions` of that. The file also checks the rounding of changed weights, to the nearest number or stochastically,
and deals a base's files among several jobs: by size, with the same result in every job.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from lora_inspect import option
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import BITS
from lora_inspect.maths.dora import MULTIPLIER_RULES
from lora_inspect.sentences import listed

if TYPE_CHECKING:
    from lora_inspect.files.checkpoint import Checkpoint
    from lora_inspect.matching.orientation import Answers
    from lora_inspect.merging.fold_chain import Fold
    from lora_inspect.reading.ambiguous_options import ModuleFilter
    from lora_inspect.reading.model.settings import Settings
    from lora_inspect.reading.weights_toml import WeightsFile

# The two ways, the option that chooses the second, and the bits of the finest numbers that it is for.
NEAREST, STOCHASTIC = "nearest", "stochastic"
OPTION, _MOST_BITS = f"--rounding {STOCHASTIC}", 16
# The options of a merge that the merged file does not record as options: they change no number of it, or the record of
# each adapter has what they say. `unmerge` refuses every other one that it does not know.
UNRECORDED = ("weights", "hash_base")


_EXCLUDE = "Leave out matching modules: a path, a block, blocks.0-9 or a glob. Repeatable."
_WEIGHTS = "Read multipliers of adapters, components and blocks from a TOML file with a table per adapter."
_DORA_MULTIPLIER = "Rule by which a multiplier acts on DoRA. [default: the rule of the file's own program]"


@dataclass(frozen=True, slots=True)
class VerifyRequest(option.ReadingRequest):
    """The options of `verify` as given."""

    only: tuple[str, ...] = option.names(
        "COMPONENT", "Verify only this component of the adapters: model, text_encoder, …. Repeatable."
    )
    include: tuple[str, ...] = option.names("GLOB", "Verify only matching modules. Repeatable.")
    exclude: tuple[str, ...] = option.names("GLOB", _EXCLUDE)
    weights: str | None = option.path("FILE", _WEIGHTS)
    allow_unmatched: bool = option.flag("Leave out modules and tensors without a target in BASE.")
    dora_multiplier: str | None = option.choice(MULTIPLIER_RULES, _DORA_MULTIPLIER)
    transposed: "Answers" = option.transposed("BASE")


@dataclass(frozen=True, slots=True)
class MergeRequest(option.ReadingRequest):
    """The options of a merge as given; at most one of `dtype` and `changed_dtype` is set."""

    dtype: str | None = option.dtype("Element type of floating-point tensors. [default: the type in BASE]")
    changed_dtype: str | None = option.dtype(
        "Element type of the changed weights only; other tensors keep their stored type."
    )
    only: tuple[str, ...] = option.names(
        "COMPONENT", "Merge only this component of the adapters: model, text_encoder, …. Repeatable."
    )
    include: tuple[str, ...] = option.names("GLOB", "Merge only matching modules. Repeatable.")
    exclude: tuple[str, ...] = option.names("GLOB", _EXCLUDE)
    weights: str | None = option.path("FILE", _WEIGHTS)
    rounding: str = option.choice(
        (NEAREST, STOCHASTIC),
        "Rounding of changed weights to 16 bits or fewer; stochastic keeps the mean of small changes and adds noise.",
        default=NEAREST,
    )
    seed: int | None = option.whole("Seed of stochastic rounding. [default: 0]")
    allow_loss: bool = option.flag("Write the output even if it keeps less than half of an adapter.")
    allow_unmatched: bool = option.flag("Leave out modules and tensors without a target in BASE, and list them.")
    dora_multiplier: str | None = option.choice(MULTIPLIER_RULES, _DORA_MULTIPLIER)
    transposed: "Answers" = option.transposed("BASE")
    hash_base: bool = option.flag(
        "Read all of BASE and record its SHA-256, too; that of its header is always recorded."
    )


@dataclass(frozen=True, slots=True)
class UnmergeRequest:
    """The options of `unmerge` as given."""

    base: str | None = option.path("BASE", "The original base of the merge; restores it completely.")
    allow_ambiguous: bool = option.flag(
        "Write the nearest value for every ambiguous original value, and report their number."
    )


def _no_settings() -> "Settings":
    from lora_inspect.reading.model.settings import Settings

    return Settings()


def _no_choice() -> "ModuleFilter":
    from lora_inspect.reading.ambiguous_options import ModuleFilter

    return ModuleFilter()


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """The options of a merge in the form that its plan uses; fields of a request keep their names.

    `dtype` and `changed_dtype` are names of the safetensors format. `choice` are the modules that --include and
    --exclude leave. `weights` is the file with more multipliers. `settings` are the options that settle facts which
    adapters leave open. Changed weights are rounded to the nearest number, or stochastically with a `seed`.
    """

    dtype: str | None = None
    only: tuple[str, ...] = ()
    transposed: "Answers" = field(default_factory=dict)
    allow_unmatched: bool = False
    dora_rule: str | None = None
    settings: "Settings" = field(default_factory=_no_settings)
    choice: "ModuleFilter" = field(default_factory=_no_choice)
    weights: "WeightsFile | None" = None
    hash_base: bool = False
    changed_dtype: str | None = None
    seed: int | None = None
    allow_loss: bool = False


def merge_options(request: MergeRequest | VerifyRequest) -> MergeOptions:
    """Return the options of a merge, or of the one to verify, in the form that its plan uses.

    Raises LoraInspectError for an invalid file of weights, and ValueError for a seed without stochastic rounding.
    """
    from lora_inspect.reading.ambiguous_options import ModuleFilter
    from lora_inspect.reading.model.settings import requested_settings
    from lora_inspect.reading.weights_toml import read_weights

    same: dict[str, Any] = {
        one.name: getattr(request, one.name) for one in fields(MergeOptions) if hasattr(request, one.name)
    }
    own = {
        "dora_rule": request.dora_multiplier,
        "settings": requested_settings(request),
        "choice": ModuleFilter(request.include, request.exclude),
        "weights": None if request.weights is None else read_weights(request.weights),
        "seed": seed_of(request.rounding, request.seed) if isinstance(request, MergeRequest) else None,
    }
    return MergeOptions(**{**same, **own})


def contradiction(request: MergeRequest) -> str | None:
    """Return a sentence on options that exclude each other, or None."""
    if request.dtype and request.changed_dtype:
        return "--dtype is for all weights and --changed-dtype for the changed ones; give one of them."
    try:
        seed_of(request.rounding, request.seed)
    except ValueError as error:
        return f"{error}."
    return None


def seed_of(rounding: str, seed: int | None) -> int | None:
    """Return the seed, None for the nearest number; ValueError for a seed without stochastic rounding."""
    if rounding == STOCHASTIC:
        return seed or 0
    if seed is not None:
        raise ValueError(f"a seed only affects rounding {STOCHASTIC}; give both or neither")
    return None


def check_rounding(
    seed: int | None, base: "Checkpoint", folds: "Mapping[str, Sequence[Fold]]", types: Mapping[str, str]
) -> None:
    """Check that stochastic rounding has an effect.

    Raises LoraInspectError if there is a `seed` and no changed weight is written in numbers so coarse. `types` has the
    element type of each weight that gets another one.
    """
    changed = (name for name, own in folds.items() if any(fold.multiplier for fold in own))
    written = {types.get(name, base.tensors[name].dtype) for name in changed}
    if seed is not None and not any(BITS[one] <= _MOST_BITS for one in written):
        why = f"the changed weights are written in {listed(sorted(written))}" if written else "nothing changes"
        raise RefusedError(base.path, f"{OPTION} has nothing to round, as {why}", "leave it out")


class ProcessShare(NamedTuple):
    """The part of one of several processes: share `number` of `of`, counted from 1."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> "ProcessShare":
        """Read `I/N`; raise ValueError for anything but 1/N to N/N."""
        number, slash, of = text.partition("/")
        if not slash or not (_is_count(number) and _is_count(of)) or not 1 <= int(number) <= int(of):
            raise ValueError(f"{text!r} is no share from 1/N to N/N, such as 3/8")
        return cls(int(number), int(of))


def dealt(sizes: Mapping[str, int], of: int) -> list[list[str]]:
    """Return the files of each share, in their order.

    The largest file goes to the share with the least, and so on.
    """
    loads, hands = [0] * of, [list[str]() for _ in range(of)]
    for file in sorted(sizes, key=lambda file: (-sizes[file], file)):
        number = min(range(of), key=lambda number: (loads[number], len(hands[number]), number))
        loads[number] += sizes[file]
        hands[number].append(file)
    return [[file for file in sizes if file in hand] for hand in hands]


def taken(share: ProcessShare, sizes: Mapping[str, int]) -> Sequence[str]:
    """Return the files of one share."""
    return dealt(sizes, share.of)[share.number - 1]


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 7
