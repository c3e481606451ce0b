"""Evidence and problems: observations, the readings that follow, and problems as found and as reported.

Programs spell a yes, a no and an alpha in several ways; the functions here read them all.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.strict_json import parse_json

RSLORA_FLAG, DORA_FLAG = "use_rslora_flag", "use_dora_flag"
# Of a network whose program divides alpha by a dimension of w2 where both factors of a LoKr are whole.
LOKR_FLAG = "lokr_factor"
SCALE_KEY = "lora_inspect.scale"
# Options of trainers that give Linear layers an alpha other than the requested one.
ALPHA_OPTIONS = ("alpha_pattern", "network_reg_alphas", "block_alphas")
# In which trainers say how factors began, as from a part of the base that moved into them.
INIT_KEY = "ss_init_lora_weights"

# alpha may have been rounded to bfloat16, which keeps 8 bits.
ALPHA_TOLERANCE = 2.0**-8

# How programs spell yes and no where they keep options as text.
_SWITCH = {"true": True, "1": True, "yes": True, "on": True, "y": True, "t": True}
_SWITCH |= dict.fromkeys(("false", "0", "no", "off", "n", "f", "none", "null", ""), False)
# No trainer stores an alpha beyond what float32 holds.
_LARGEST_ALPHA = 2.0**127


class Evidence(NamedTuple):
    """One observation: its topic (`about`), its text (`says`), and its place in the file (`where`)."""

    about: str
    says: str
    where: str


class Hint(NamedTuple):
    """The share of modules with alpha = sqrt(rank), among the `modules` that could show it."""

    share: float
    modules: int

    def sentence(self) -> str:
        """Return the hint in words, with its other possible causes."""
        return (
            f"{self.share:.0%} of the alphas equal sqrt(rank), as in RS-LoRA networks of alpha 0, "
            "but also in plain rank 4 with alpha 2 or rank 16 with alpha 4"
        )


class RsloraReading(NamedTuple):
    """The scale rule: alpha/sqrt(rank) or not (None = unknown), the kind of evidence, and the hint."""

    value: bool | None
    source: str
    hint: Hint | None = None

    @property
    def settled(self) -> bool:
        """True if the file itself states the rule, and only one."""
        return self.source not in ("default", "conflict")

    @property
    def is_default(self) -> bool:
        """True if nothing states the rule and nothing has to: alpha/rank, as every reader takes it."""
        return self.source == "default" and self.value is False


class DoraReading(NamedTuple):
    """The use of magnitudes (None = unknown), the kind of evidence, the number of modules and the axis.

    `norms` names the weights with the norms that magnitudes of outputs refer to, None if there are none or that is
    unknown.
    """

    value: bool | None
    source: str
    modules: int
    axis: str | None
    norms: str | None = None


class LoraFacts(NamedTuple):
    """The facts about like LoRA modules that evidence uses; `alpha` is the stored one, None if there is none.

    `places` gives the place of each module among all modules of the file, by its name.
    """

    places: Mapping[str, int]
    rank: int
    alpha: float | None
    linear: bool
    split: bool
    magnitude_axis: str | None = None

    @property
    def modules(self) -> int:
        """The number of modules."""
        return len(self.places)


class DoraClaim(NamedTuple):
    """One voice's statement about DoRA: yes, no, or None for neither; `facts` are the modules that it is about.

    `says` is its text, if it is not that of a flag or of PEFT's config.
    """

    source: str
    where: str
    value: bool | None
    facts: Sequence[LoraFacts]
    says: str = ""


def names_of(facts: Iterable[LoraFacts]) -> list[str]:
    """Return the names of the modules in the order of the file."""
    return [name for _, name in sorted((place, name) for fact in facts for name, place in fact.places.items())]


def close(first: float, second: float) -> bool:
    """Return True if two alphas are the same number up to a rounding to bfloat16."""
    largest = max(abs(first), abs(second))
    return math.isfinite(largest) and abs(first - second) <= ALPHA_TOLERANCE * largest


def network_args(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the parsed `ss_network_args`, empty where they are missing or no JSON object."""
    try:
        found = parse_json(metadata.get("ss_network_args", "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def read_switch(value: Any) -> bool | None:
    """Return the boolean that configs and trainers spell, False for nothing at all; None for anything else."""
    return _SWITCH.get("" if value is None else str(value).strip().lower())


def read_flag(number: float | int | bool | None) -> bool | None:
    """Return the meaning of the number in a flag tensor; None for NaN, and for an unreadable element type."""
    return None if number is None or math.isnan(number) else bool(number)


def is_lycoris(metadata: Mapping[str, str]) -> bool:
    """Return True if LyCORIS wrote the file: it multiplies sqrt(rank) into the alpha that it stores."""
    return metadata.get("ss_network_module", "").startswith("lycoris")


def requested_alpha(metadata: Mapping[str, str]) -> float | None:
    """Return the requested alpha from `ss_network_alpha`; None for a number that cannot have been stored."""
    try:
        asked = float(metadata["ss_network_alpha"])
    except (KeyError, ValueError):
        return None
    return asked if abs(asked) < _LARGEST_ALPHA else None


# An error stops every command that would have to guess around it.
ERROR, WARNING, NOTE = "error", "warning", "note"
# From the least serious to the most.
SEVERITIES = (NOTE, WARNING, ERROR)


# The codes of a setting against evidence that it cannot change.
REPEATS, CONTRADICTS = "setting-repeats", "setting-contradicts"


class RawProblem(NamedTuple):
    """Something wrong or doubtful, as the one who looks finds it; `code` is its entry in the registry of problems."""

    code: str
    message: str
    keys: tuple[str, ...] = ()


class Problem(NamedTuple):
    """A finding with how serious it is: an "error", a "warning" or a "note"."""

    code: str
    severity: str
    message: str
    keys: tuple[str, ...] = ()
