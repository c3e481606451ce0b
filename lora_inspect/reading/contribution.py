"""The changes that an adapter makes, taken from its keys and shapes: every tensor is claimed once or left unclaimed."""

from collections.abc import Iterable
from typing import NamedTuple

from lora_inspect import algorithms, schemes
from lora_inspect.algorithms.record import Algorithm, Formula
from lora_inspect.files.header import TensorInfo
from lora_inspect.maths import dora
from lora_inspect.reading.evidence import DORA_FLAG, RSLORA_FLAG, Problem
from lora_inspect.reading.suffixes import ParsedKey, parse_key
from lora_inspect.schemes.record import ModuleName

# Tensors of a whole network, without a module.
NETWORK_FLAGS = (RSLORA_FLAG, DORA_FLAG, "lokr_factor")


# The way out for a file whose tensors do not fit together.
_MEND = "fetch the file again, or write it anew with the program that trained it"


class Magnitude(NamedTuple):
    """DoRA's vector of one module, the spelling it came in and the axis it belongs to ("output" or "input")."""

    info: TensorInfo
    spelling: dora.DoraSpelling
    axis: str


class Contribution(NamedTuple):
    """One change of one base weight.

    `factors` are the tensors by role. `rows` are the rows of the weight that it covers, None for all.
    `transposed` says that the base stores the weight as (in, out): what a config says of it, None where none does,
    until `match` has looked at the base. `alpha`, the rule `rslora` and `scale` are None where unknown; `why` is the
    reason for the scale, or for its absence.
    """

    module: ModuleName
    algorithm: Algorithm
    factors: dict[str, TensorInfo]
    magnitude: Magnitude | None = None
    rows: tuple[int, int] | None = None
    transposed: bool | None = None
    rank: int | None = None
    alpha: float | None = None
    rslora: bool | None = None
    scale: float | None = None
    why: str = ""

    @property
    def formula(self) -> Formula:
        """How the change is computed; raises ValueError for an algorithm that is only recognised."""
        if self.algorithm.formula is None:
            raise ValueError(f"{self.module.key}: {self.algorithm.title} has no formula")
        return self.algorithm.formula

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in, *kernel) of the change; of one slice where the layer is split."""
        return self.formula.delta_shape(self.factors)

    @property
    def is_linear(self) -> bool:
        """Whether the change is of a Linear layer and not of a convolution."""
        return len(self.shape) == 2

    @property
    def known_scale(self) -> float:
        """The scale; raises ValueError where it is unknown, which every command that needs it has refused before."""
        if self.scale is None:
            raise ValueError(f"{self.module.key}: the scale is unknown: {self.why}")
        return self.scale


class Module(NamedTuple):
    """One adapted layer: its contributions, and the tensors that they share."""

    name: ModuleName
    contributions: tuple[Contribution, ...]
    alpha: TensorInfo | None = None
    rslora_flag: TensorInfo | None = None

    @property
    def tensors(self) -> Iterable[TensorInfo]:
        """Every tensor of the module, once."""
        for shared in (self.alpha, self.rslora_flag):
            if shared:
                yield shared
        for contribution in self.contributions:
            yield from contribution.factors.values()
            if contribution.magnitude:
                yield contribution.magnitude.info


class _Group:
    """The tensors of one module while its keys come in: factors by algorithm and part, shared ones by role."""

    __slots__ = ("roles", "shared")

    def __init__(self) -> None:
        self.roles: dict[tuple[str, int | None], dict[str, TensorInfo]] = {}
        self.shared: dict[str, tuple[TensorInfo, str]] = {}


class Claims(NamedTuple):
    """What a file's keys amount to: its modules, its network-level flags, and what nobody claims."""

    modules: dict[str, Module]
    flags: tuple[str, ...]
    unclaimed: tuple[str, ...]
    problems: tuple[Problem, ...]


def claim(tensors: dict[str, TensorInfo]) -> Claims:
    """Modules from the keys and shapes of a file."""
    groups: dict[str, _Group] = {}
    flags: list[str] = []
    unclaimed: list[str] = []
    problems: list[Problem] = []
    for key, info in tensors.items():
        if key in NETWORK_FLAGS:
            flags.append(key)
        elif parsed := parse_key(key):
            if not _file(groups.setdefault(parsed.module, _Group()), parsed, info):
                unclaimed.append(key)
                message = f"{key} is a second tensor for the same role of its module; leave one of them out"
                problems.append(Problem("twice", "error", message, (key,)))
        else:
            unclaimed.append(key)
    modules: dict[str, Module] = {}
    for name, group in groups.items():
        module, left, found = _build(schemes.recognise(name), group)
        unclaimed.extend(left)
        problems.extend(found)
        if module:
            modules[name] = module
    return Claims(modules, tuple(flags), tuple(unclaimed), tuple(problems))


def _file(group: _Group, parsed: ParsedKey, info: TensorInfo) -> bool:
    if parsed.algorithm is None:
        if parsed.role in group.shared:
            return False
        group.shared[parsed.role] = (info, parsed.suffix)
        return True
    roles = group.roles.setdefault((parsed.algorithm, parsed.part), {})
    if parsed.role in roles:
        return False
    roles[parsed.role] = info
    return True


def _build(name: ModuleName, group: _Group) -> tuple[Module | None, list[str], list[Problem]]:
    """The module, the keys that it does not take, and what is wrong with it."""
    contributions: list[Contribution] = []
    left: list[str] = []
    problems: list[Problem] = []
    for (algorithm_name, _), factors in sorted(group.roles.items(), key=lambda item: (item[0][0], item[0][1] or 0)):
        algorithm = algorithms.by_name(algorithm_name)
        keys = tuple(info.name for info in factors.values())
        missing = [role for role in algorithm.required if role not in factors]
        if missing and not algorithm.formula:
            left.extend(keys)
            continue
        if missing:
            message = f"{keys[0]} is there, but its module has no {' and no '.join(missing)} factor; {_MEND}"
            problems.append(Problem("incomplete", "error", message, keys))
            left.extend(keys)
            continue
        if algorithm.formula and (wrong := algorithm.formula.check(factors)):
            problems.append(Problem("shape", "error", f"{name.key}: {wrong}; {_MEND}", keys))
            left.extend(keys)
            continue
        contributions.append(Contribution(name, algorithm, factors))
    parts = [part for _, part in group.roles]
    if any(part is not None for part in parts) and not problems:
        if wrong := _check_slices(parts, contributions):
            keys = tuple(info.name for contribution in contributions for info in contribution.factors.values())
            problems.append(Problem("shape", "error", f"{name.key}: {wrong}; {_MEND}", keys))
            left.extend(keys)
            contributions = []
        else:
            contributions = _stack(contributions)
    if not contributions:
        left.extend(info.name for info, _ in group.shared.values())
        return None, left, problems
    if "magnitude" in group.shared:
        contributions, remarks = _attach_magnitude(contributions, *group.shared["magnitude"])
        problems.extend(remarks)
        if remarks:
            left.append(group.shared["magnitude"][0].name)
    alpha, flag = group.shared.get("alpha"), group.shared.get("rslora_flag")
    return Module(name, tuple(contributions), alpha and alpha[0], flag and flag[0]), left, problems


def _check_slices(parts: list[int | None], contributions: list[Contribution]) -> str | None:
    """What is wrong with the numbers and the shapes of a split layer's slices, or None."""
    if set(parts) != set(range(len(parts))):
        numbers = ", ".join("none" if part is None else str(part) for part in parts)
        return f"its slices are numbered {numbers}, not 0 to {len(parts) - 1}"
    factors = [info for contribution in contributions for info in contribution.factors.values()]
    if odd := next((info for info in factors if len(info.shape) != 2), None):
        return f"a split layer is a Linear one, but {odd.name} has the shape {list(odd.shape)}"
    inputs = sorted({contribution.shape[1] for contribution in contributions})
    return None if len(inputs) == 1 else f"its slices have different inputs, {inputs[0]} and {inputs[1]}"


def _stack(parts: list[Contribution]) -> list[Contribution]:
    """The slices of a fused layer, one below the other in the order of their numbers."""
    stacked: list[Contribution] = []
    row = 0
    for part in parts:
        rows = part.factors["up"].shape[0]
        stacked.append(part._replace(rows=(row, row + rows)))
        row += rows
    return stacked


def _attach_magnitude(
    contributions: list[Contribution], info: TensorInfo, suffix: str
) -> tuple[list[Contribution], list[Problem]]:
    first, spelling = contributions[0], dora.SPELLINGS[suffix]
    if first.algorithm.formula is None:
        return [first._replace(magnitude=Magnitude(info, spelling, dora.OUTPUT)), *contributions[1:]], []
    out_features, in_features = first.shape[:2]
    axis = dora.axis_of(spelling, info.shape, out_features, in_features)
    if first.rows is not None:
        wrong = f"{info.name} is the magnitude of a split module, where DoRA is not defined; {_MEND}"
        return contributions, [Problem("magnitude-shape", "error", wrong, (info.name,))]
    if axis is None:
        wrong = (
            f"{info.name} has shape {list(info.shape)}, which fits neither the {out_features} outputs nor the "
            f"{in_features} inputs of its module; {_MEND}"
        )
        return contributions, [Problem("magnitude-shape", "error", wrong, (info.name,))]
    return [first._replace(magnitude=Magnitude(info, spelling, axis)), *contributions[1:]], []
