"""The claims of an adapter's keys: modules and their changes, by keys and shapes.

Every tensor is claimed once or left unclaimed. The tensors of a module gather while the keys of a file come in; then
the module is made of them, and of others with the same suffixes and shapes in the same way.
"""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lora_inspect import algorithms, schemes
from lora_inspect.algorithms.record import Algorithm
from lora_inspect.fast_namedtuple import NamedTuple, make_record, make_records
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths import dora
from lora_inspect.reading.keys.suffixes import ROOT, ParsedKey, known_keys, parse_key, state_of_registries
from lora_inspect.reading.model.contribution import UNSCALED, Contribution, Magnitude, Module
from lora_inspect.reading.model.evidence import DORA_FLAG, LOKR_FLAG, RSLORA_FLAG, RawProblem
from lora_inspect.schemes.record import ModuleName

# What a group of tensors is like.
Form = tuple[tuple[Any, ...], ...]


class GroupTensor(NamedTuple):
    """A tensor of a module with a still unknown algorithm, and the possible meanings of its suffix."""

    info: TensorInfo
    parsed: ParsedKey

    def role_in(self, algorithm: str) -> str | None:
        """Return its role in the algorithm; None if it has none."""
        return next((role for name, role in self.parsed.meanings if name == algorithm), None)


class KeyGroup:
    """The tensors of one module while its keys come in, and by role the tensors that its algorithms share."""

    __slots__ = ("infos", "parsed", "shared")

    def __init__(self) -> None:
        self.infos: list[TensorInfo] = []
        self.parsed: list[ParsedKey] = []
        self.shared: dict[str, TensorInfo] = {}

    @property
    def form(self) -> Form:
        """Everything that decides the claim except the module's name: the suffixes and shapes."""
        # All keys that end alike share one object with what their end can mean.
        spelled = [(parsed.suffix, parsed.part, id(parsed.meanings)) for parsed in self.parsed]
        return tuple(spelled), tuple([info.shape for info in self.infos])

    @property
    def parts(self) -> dict[int | None, list[GroupTensor]]:
        """The factors by slice."""
        parts: dict[int | None, list[GroupTensor]] = {}
        for info, parsed in zip(self.infos, self.parsed, strict=True):
            if parsed.algorithm:
                parts.setdefault(parsed.part, []).append(GroupTensor(info, parsed))
        return parts

    @property
    def suffixes(self) -> list[str]:
        """The suffixes of the factors' keys."""
        return [parsed.suffix for parsed in self.parsed if parsed.algorithm]


# What a module has behind its tensors before its path is known.
_UNNAMED = tuple(Module._field_defaults[name] for name in Module._fields[4:])


def places_of(infos: Sequence[TensorInfo]) -> dict[str, int]:
    """Return the place of each tensor among these, by its name."""
    return {info.name: place for place, info in enumerate(infos)}


class ModulePlan:
    """A `module` made only from its keys and shapes, with the `places` of its tensors instead of the tensors."""

    __slots__ = ("_alpha", "_changes", "_flag")

    def __init__(self, module: Module, places: Mapping[str, int]) -> None:
        self._alpha = places[module.alpha.name] if module.alpha else None
        self._flag = places[module.rslora_flag.name] if module.rslora_flag else None
        self._changes = [
            (
                contribution.algorithm,
                [(role, places[info.name]) for role, info in contribution.factors.items()],
                contribution.magnitude and contribution.magnitude[1:],
                places[contribution.magnitude.info.name] if contribution.magnitude else 0,
                contribution.rows,
            )
            for contribution in module.contributions
        ]

    def module(self, name: ModuleName, infos: Sequence[TensorInfo]) -> Module:
        """Return the module of that name that is made of these tensors."""
        return make_record(Module, self.row(name, infos))

    def row(self, name: ModuleName, infos: Sequence[TensorInfo]) -> tuple[Any, ...]:
        """Return all values of the module's fields."""
        rows_of = [
            (
                name,
                algorithm,
                {role: infos[place] for role, place in places},
                Magnitude(infos[at], *spelled) if spelled else None,
                rows,
                *UNSCALED,
            )
            for algorithm, places, spelled, at, rows in self._changes
        ]
        alpha = None if self._alpha is None else infos[self._alpha]
        flag = None if self._flag is None else infos[self._flag]
        return name, tuple(make_records(Contribution, rows_of)), alpha, flag, *_UNNAMED


# The plans of the last forms, with the suffixes of their factors, and the objects whose identities are in the form.
# They are for the algorithms and schemes that are known after so many changes.
_Plans = dict[Form, tuple[ModulePlan, list[str], list[ParsedKey]]]
_MOST_FORMS = 4_000
_plans: tuple[tuple[int, int], _Plans] = (0, 0), {}


def _plans_of_now() -> _Plans:
    global _plans
    changes = state_of_registries()
    if _plans[0] != changes or len(_plans[1]) >= _MOST_FORMS:
        _plans = changes, {}
    return _plans[1]


# Tensors of a whole network, without a module.
NETWORK_FLAGS = (RSLORA_FLAG, DORA_FLAG, LOKR_FLAG)
# What is said instead of a naming scheme where there are several.
MIXED = "mixed"
# The way out for a file whose tensors do not fit together.
_MEND = "fetch the file again, or write it again with the program that trained it"

# Of shapes that are those of another algorithm with the same suffixes, which is no complaint.
_OTHER = RawProblem("shape-mismatch", "", ())


class Claims(NamedTuple):
    """The claims of a file's keys: its modules, its network-level flags, and the unclaimed keys."""

    modules: dict[str, Module]
    flags: tuple[str, ...]
    unclaimed: tuple[str, ...]
    findings: tuple[RawProblem, ...]

    @property
    def computed(self) -> Iterable[tuple[Module, Contribution]]:
        """The contributions with a built algorithm, with their modules."""
        return (
            (module, contribution)
            for module in self.modules.values()
            for contribution in module.contributions
            if contribution.algorithm.formula
        )

    @property
    def scheme(self) -> str | None:
        """The naming scheme of all modules: MIXED where there are several, None without modules."""
        names = {module.name.scheme for module in self.modules.values()}
        return names.pop() if len(names) == 1 else (MIXED if names else None)


class _Claimed(NamedTuple):
    """The claims of a part of a file; `left` are the keys that no algorithm takes."""

    contributions: list[Contribution]
    left: list[str]
    findings: list[RawProblem]


def claim(tensors: dict[str, TensorInfo], known: Mapping[str, ParsedKey] = MappingProxyType({})) -> Claims:
    """Return a file's modules by its keys and shapes; `known` gives the meaning of keys that do not spell it."""
    return claim_with_plans(tensors, known)[0]


def claim_with_plans(
    tensors: dict[str, TensorInfo], known: Mapping[str, ParsedKey] = MappingProxyType({})
) -> tuple[Claims, list[ModulePlan | None]]:
    """Return the result of `claim`, and the plan of each module; like modules share one.

    The plan is None for a module that may be unlike all others.
    """
    groups: dict[str, KeyGroup] = {}
    flags: list[str] = []
    unclaimed: list[str] = []
    findings: list[RawProblem] = []
    spelled = known_keys()
    for key, info in tensors.items():
        if key in NETWORK_FLAGS:
            flags.append(key)
        elif (parsed := known.get(key) or spelled[key]) and not (parsed.module == ROOT and parsed.is_of_all):
            group = groups.get(parsed.module) or groups.setdefault(parsed.module, KeyGroup())
            if parsed.algorithm or group.shared.setdefault(parsed.role, info) is info:
                group.infos.append(info)
                group.parsed.append(parsed)
            else:
                unclaimed.append(key)
                findings.append(_second(key))
        else:
            unclaimed.append(key)
    modules: dict[str, Module] = {}
    followed: list[ModulePlan | None] = []
    taken: set[str] = set()
    left_of_modules: list[str] = []
    plans = _plans_of_now()
    for name, group in groups.items():
        form = group.form
        if known_form := plans.get(form):
            plan, suffixes, _ = known_form
            modules[name] = plan.module(schemes.recognise(name, suffixes), group.infos)
            followed.append(plan)
            continue
        takers = [own for own in map(algorithms.by_name, list(_possible(group.parts.get(None, ())))) if own.unmarked]
        for info, parsed in _unmarked(name, takers, tensors):
            group.infos.append(info)
            group.parsed.append(parsed)
            taken.add(info.name)
        suffixes = group.suffixes
        module, left, found = _build(schemes.recognise(name, suffixes), group)
        left_of_modules += left
        findings += found
        if module:
            modules[name] = module
            own = None if left or found or takers else ModulePlan(module, places_of(group.infos))
            followed.append(own)
            if own and len(plans) < _MOST_FORMS:
                plans[form] = own, suffixes, group.parsed
    unclaimed = [*(key for key in unclaimed if key not in taken), *left_of_modules]
    return Claims(modules, tuple(flags), tuple(unclaimed), tuple(findings)), followed


def _unmarked(name: str, takers: Iterable[Algorithm], tensors: Mapping[str, TensorInfo]) -> Iterable[GroupTensor]:
    """Yield a module's tensors with suffixes that a base has too, by the possible algorithms of its other tensors."""
    for algorithm in takers:
        for role, suffix in algorithm.unmarked.items():
            key = name + suffix
            if key in tensors and parse_key(key) is None:
                yield GroupTensor(tensors[key], ParsedKey(name, suffix, ((algorithm.name, role),)))


def _second(key: str) -> RawProblem:
    message = f"{key} is a second tensor for the same role of its module; leave one of them out"
    return RawProblem("duplicate-tensor", message, (key,))


def _build(name: ModuleName, group: KeyGroup) -> tuple[Module | None, list[str], list[RawProblem]]:
    """Return the module, the keys that it does not take, and its problems."""
    contributions: list[Contribution] = []
    numbered = (tensor for part, tensors in group.parts.items() if part is not None for tensor in tensors)
    sliced = {name for tensor in numbered for name, _ in tensor.parsed.meanings}
    slices: dict[int | None, list[Contribution]] = {}
    left: list[str] = []
    findings: list[RawProblem] = []
    for part, tensors in sorted(group.parts.items(), key=lambda item: item[0] or 0):
        found = _claim_part(name, tensors)
        for contribution in found.contributions:
            is_sliced = contribution.algorithm.name in sliced
            (slices.setdefault(part, []) if is_sliced else contributions).append(contribution)
        left += found.left
        findings += found.findings
    parts = [contribution for own in slices.values() for contribution in own]
    if not sliced or findings:
        contributions += parts
    elif wrong := _check_slices(list(slices), parts):
        keys = tuple(info.name for part in (*parts, *contributions) for info in part.factors.values())
        findings.append(RawProblem("shape-mismatch", f"{name.key}: {wrong}; {_MEND}", keys))
        left.extend(keys)
        contributions = []
    else:
        contributions += _stack(parts)
    contributions, lone = _with_bearers(contributions, "magnitude" in group.shared)
    findings.extend(lone)
    left.extend(key for finding in lone for key in finding.keys)
    if not contributions:
        left.extend(info.name for info in group.shared.values())
        return None, left, findings
    if "magnitude" in group.shared:
        info = group.shared["magnitude"]
        suffix = next(parsed.suffix for own, parsed in zip(group.infos, group.parsed, strict=True) if own is info)
        contributions, remarks = _attach_magnitude(contributions, info, suffix)
        findings.extend(remarks)
        if remarks:
            left.append(info.name)
    alpha, flag = group.shared.get("alpha"), group.shared.get("rslora_flag")
    if alpha and not any(contribution.algorithm.has_alpha for contribution in contributions):
        left.append(alpha.name)
        alpha = None
    contributions.sort(key=lambda contribution: contribution.turn)
    return Module(name, tuple(contributions), alpha, flag), left, findings


def _with_bearers(
    contributions: list[Contribution], is_decomposed: bool
) -> tuple[list[Contribution], list[RawProblem]]:
    """Split off contributions that get no scale from another one; return the others, and the problems."""
    kept: list[Contribution] = []
    findings: list[RawProblem] = []
    for contribution in contributions:
        if (bearer := contribution.algorithm.beside) is None:
            kept.append(contribution)
            continue
        bearers = [other for other in contributions if other.algorithm.name == bearer]
        if len(bearers) == 1 and bearers[0].rows is None and not is_decomposed:
            kept.append(contribution)
            continue
        (key,) = (info.name for info in contribution.factors.values())
        title = algorithms.by_name(bearer).title
        wrong = (
            f"is next to a {title} of several slices or with a magnitude, and no program defines that"
            if bearers
            else f"is there, but its module has no {title} to give it a scale"
        )
        findings.append(RawProblem("incomplete", f"{key} {wrong}; {_MEND}", (key,)))
    return kept, findings


def _claim_part(name: ModuleName, tensors: Sequence[GroupTensor]) -> _Claimed:
    """Return the contributions of a module, or of one slice of it.

    Of the algorithms that know a suffix, the first with all its marks and matching shapes takes the tensors.
    """
    contributions: list[Contribution] = []
    findings: list[RawProblem] = []
    failures: list[tuple[Sequence[GroupTensor], RawProblem]] = []
    left = list(tensors)
    for algorithm in map(algorithms.by_name, _possible(tensors)):
        roles = [(tensor, role) for tensor in left if (role := tensor.role_in(algorithm.name))]
        if not roles:
            continue
        own = [tensor for tensor, _ in roles]
        factors: dict[str, TensorInfo] = {}
        taken = [tensor for tensor, role in roles if factors.setdefault(role, tensor.info) is tensor.info]
        if wrong := _misses(name, algorithm, factors):
            failures.append((own, wrong))
            continue
        contributions.append(Contribution(name, algorithm, factors))
        findings += [_second(tensor.info.name) for tensor in own if tensor not in taken]
        left = [tensor for tensor in left if tensor not in taken]
    findings += [finding for own, finding in failures if finding.message and all(tensor in left for tensor in own)]
    return _Claimed(contributions, [tensor.info.name for tensor in left], findings)


def _possible(tensors: Iterable[GroupTensor]) -> Iterable[str]:
    """Return the algorithms that any of the suffixes can belong to, in the order to try them."""
    return dict.fromkeys(name for tensor in tensors for name, _ in tensor.parsed.meanings if name)


def _misses(name: ModuleName, algorithm: Algorithm, factors: dict[str, TensorInfo]) -> RawProblem | None:
    """Return the problem that keeps the factors from being those of the algorithm, or None.

    It has no message for an algorithm without a formula, and if all names are common words.
    """
    shapes = {role: info.shape for role, info in factors.items()}
    if algorithm.fits and not algorithm.fits(shapes):
        return _OTHER
    keys = tuple(info.name for info in factors.values())
    is_common = all(role in algorithm.common for role in factors)
    missing = [role for role in algorithm.marks if role not in factors]
    if missing:
        message = f"{keys[0]} is there, but its module has no {' and no '.join(missing)} factor; {_MEND}"
        return RawProblem("incomplete", message if algorithm.formula and not is_common else "", keys)
    if algorithm.formula and (wrong := algorithm.formula.check(shapes)):
        return RawProblem("shape-mismatch", f"{name.key}: {wrong}; {_MEND}" if not is_common else "", keys)
    return None


def _check_slices(parts: list[int | None], contributions: list[Contribution]) -> str | None:
    """Return the error in the numbers and the shapes of a split layer's slices, or None."""
    if set(parts) != set(range(len(parts))):
        numbers = ", ".join("none" if part is None else str(part) for part in parts)
        return f"its slices are numbered {numbers}, not 0 to {len(parts) - 1}"
    factors = [info for contribution in contributions for info in contribution.factors.values()]
    if odd := next((info for info in factors if len(info.shape) != 2), None):
        return f"a split layer must be Linear, but {odd.name} has the shape {list(odd.shape)}"
    inputs = sorted({contribution.shape[1] or 0 for contribution in contributions})
    return None if len(inputs) == 1 else f"its slices have different numbers of inputs, {inputs[0]} and {inputs[1]}"


def _stack(parts: list[Contribution]) -> list[Contribution]:
    """Stack the slices of a fused layer in the order of their numbers."""
    stacked: list[Contribution] = []
    row = 0
    for part in parts:
        rows = part.shape[0] or 0
        stacked.append(part._replace(rows=(row, row + rows)))
        row += rows
    return stacked


def _attach_magnitude(
    contributions: list[Contribution], info: TensorInfo, suffix: str
) -> tuple[list[Contribution], list[RawProblem]]:
    spelling = dora.SPELLINGS[suffix]
    # Of an algorithm that is only recognised nothing else is known.
    bearers = [c for c in contributions if c.algorithm.decomposes] or [
        c for c in contributions if not c.algorithm.formula
    ]
    if not bearers:
        wrong = f"{info.name} is a magnitude, but no change of its module can take one; {_MEND}"
        return contributions, [RawProblem("magnitude-shape", wrong, (info.name,))]
    first = bearers[0]
    others = [contribution for contribution in contributions if contribution is not first]
    if first.algorithm.formula is None:
        return [first._replace(magnitude=Magnitude(info, spelling, dora.OUTPUT)), *others], []
    axis = dora.axis_of(spelling, info.shape, first.shape)
    if first.rows is not None:
        wrong = f"{info.name} is the magnitude of a split module, and DoRA does not define one; {_MEND}"
        return contributions, [RawProblem("magnitude-shape", wrong, (info.name,))]
    if axis is None:
        wrong = (
            f"{info.name} has shape {list(info.shape)}, which matches neither the {first.shape[0]} "
            f"outputs nor the {first.shape[1]} inputs of its module; {_MEND}"
        )
        return contributions, [RawProblem("magnitude-shape", wrong, (info.name,))]
    return [first._replace(magnitude=Magnitude(info, spelling, axis)), *others], []
