"""The modules of an adapter: their changes, and the tensors that these are made of."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lora_inspect.algorithms.record import BIAS, WEIGHT, Algorithm, Features, Formula, Shapes
from lora_inspect.fast_namedtuple import NamedTuple, make_records
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.dora import DoraSpelling
from lora_inspect.schemes.record import ModuleName


class Magnitude(NamedTuple):
    """DoRA's vector of one module, the spelling it came in and the axis it belongs to ("output" or "input")."""

    info: TensorInfo
    spelling: DoraSpelling
    axis: str


class Scaling(NamedTuple):
    """The known facts about the scale of a contribution, which has the same fields."""

    fan_in_fan_out: bool | None = None
    rank: int | None = None
    alpha: float | None = None
    rslora: bool | None = None
    scale: float | None = None
    why: str = ""


class Contribution(NamedTuple):
    """One change of one base weight.

    `factors` are the tensors by role. `rows` are the rows of the layer's weight that it covers, None for all.
    `fan_in_fan_out` is a config's statement of how the base stores the weight, None without one. `alpha`, the rule
    `rslora` and `scale` are None if unknown; `why` is the reason for the scale, or for its absence. `settings` are the
    other values that the formula needs, and `unsettled` is the reason if the formula is unknown, or empty.

    `residual` is the initialisation that moved a part of the base into the factors, or empty; `on_residual` says that
    the given base lacks that part. `is_optional` says that a layer may lack the parameter without an error. `in_config`
    is the name in PEFT's config for the target of the factors, empty if that is the module's own path.
    """

    module: ModuleName
    algorithm: Algorithm
    factors: dict[str, TensorInfo]
    magnitude: Magnitude | None = None
    rows: tuple[int, int] | None = None
    fan_in_fan_out: bool | None = None
    rank: int | None = None
    alpha: float | None = None
    rslora: bool | None = None
    scale: float | None = None
    why: str = ""
    settings: Mapping[str, Any] = MappingProxyType({})
    unsettled: str = ""
    residual: str = ""
    on_residual: bool = False
    is_optional: bool = False
    in_config: str = ""

    @property
    def config_path(self) -> str:
        """The dotted path by which a config of PEFT gives it a rank and an alpha."""
        return self.in_config or self.module.body

    @property
    def formula(self) -> Formula:
        """The formula of the change; raises ValueError for an algorithm that is only recognised."""
        if self.algorithm.formula is None:
            raise ValueError(f"{self.module.key}: {self.algorithm.title} has no formula")
        return self.algorithm.formula

    @property
    def operands(self) -> dict[str, TensorInfo]:
        """The factors that the change is computed from."""
        others = (*self.algorithm.idle, *self.algorithm.numbers)
        return {role: info for role, info in self.factors.items() if role not in others}

    @property
    def shapes(self) -> Shapes:
        """The shapes of the factors by role."""
        return {role: info.shape for role, info in self.factors.items()}

    @property
    def shape(self) -> tuple[int | None, ...]:
        """(out, in, *kernel) of the change as far as the factors show it; of one slice if the layer is split."""
        return self.formula.shape(self.shapes)

    @property
    def features(self) -> Features:
        """(out, in) of the shape; a vector has no inputs, and a single number has neither."""
        out_features, in_features = (*self.shape, None, None)[:2]
        return out_features, in_features

    @property
    def multiplies(self) -> bool:
        """True if its effect on a weight depends on the weight, so that earlier changes matter."""
        return self.magnitude is not None or self.algorithm.multiplies

    @property
    def turn(self) -> tuple[bool, bool]:
        """The sort key of folding: the weight before other parameters, additions before multiplications."""
        return self.algorithm.parameter != WEIGHT, self.multiplies

    @property
    def of_bias(self) -> "Contribution | None":
        """The change of the layer's bias by the same factors; None if there is none."""
        if self.algorithm.bias is None:
            return None
        of_bias = self.algorithm._replace(formula=self.algorithm.bias, parameter=BIAS, transposed=False, bias=None)
        return self._replace(algorithm=of_bias, magnitude=None, is_optional=not self.algorithm.needs_bias)

    @property
    def is_common(self) -> bool:
        """True if the names of its tensors are common words, which a base may have by chance."""
        return all(role in self.algorithm.common for role in self.factors)

    @property
    def is_scaled(self) -> bool:
        """True if an alpha next to its factors is, or would be, the scale of its change."""
        return self.algorithm.has_alpha and (self.rank is not None or bool(self.algorithm.scaled))

    @property
    def has_scale(self) -> bool:
        """True if its file, or a program for it, states a scale of its change."""
        return self.is_scaled or bool(self.rank and self.algorithm.scaled)

    @property
    def is_linear(self) -> bool:
        """True if nothing in the factors speaks against a Linear layer."""
        return self.algorithm.transposed is None and len(self.shape) == 2

    @property
    def known_shape(self) -> tuple[int, ...]:
        """The shape; raises ValueError if the factors leave a part of it open."""
        known = tuple(size for size in self.shape if size is not None)
        if len(known) < len(self.shape):
            raise ValueError(f"{self.module.key}: {self.algorithm.title} does not say its number of inputs")
        return known

    @property
    def known_rank(self) -> int:
        """The rank by which alpha is divided; raises ValueError for an algorithm without one."""
        rank = self.formula.rank(self.shapes)
        if rank is None:
            raise ValueError(f"{self.module.key}: {self.algorithm.title} has no rank")
        return rank

    @property
    def known_scale(self) -> float:
        """The scale; raises ValueError if it is unknown, which every command that needs it has refused before."""
        if self.scale is None:
            raise ValueError(f"{self.module.key}: the scale is unknown: {self.why}")
        return self.scale


# Where a contribution has the fields of a scaling.
_FIRST = Contribution._fields.index(Scaling._fields[0])
_BEHIND = _FIRST + len(Scaling._fields)
# What a contribution has there, and behind, before anything but its tensors is known.
UNSCALED = tuple(Contribution._field_defaults[name] for name in Contribution._fields[_FIRST:])


def missing_shared(contribution: Contribution) -> str | None:
    """Return the reason why a contribution lacks a shared tensor, as the end of a sentence; None if it has all."""
    shared = contribution.algorithm.shared
    return next((shared[role].missing for role in shared if role not in contribution.factors), None)


def shared_tensors(contribution: Contribution) -> dict[str, TensorInfo]:
    """Return the factors that other modules have as well, by role."""
    return {role: contribution.factors[role] for role in contribution.algorithm.shared if role in contribution.factors}


class Module(NamedTuple):
    """One adapted layer: its contributions in the order of folding, and the tensors that they share.

    Changes of the weight come first, and among these the additions. `path` is the layer's dotted path, None if unknown.
    `respelled` says that all its keys get the spelling of its scheme, whatever they were: the suffixes, and an alpha
    where readers look for one.
    """

    name: ModuleName
    contributions: tuple[Contribution, ...]
    alpha: TensorInfo | None = None
    rslora_flag: TensorInfo | None = None
    path: str | None = None
    respelled: bool = False

    @property
    def changes(self) -> list[Contribution]:
        """The contributions, and the changes of a bias by their factors, in the order of folding."""
        of_biases = filter(None, (contribution.of_bias for contribution in self.contributions))
        return sorted((*self.contributions, *of_biases), key=lambda change: change.turn)

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


_PATH = Module._fields.index("path")


class Embedding(NamedTuple):
    """The vectors of one `token`, which is empty where the file does not say it, by the keys of its tensors."""

    token: str
    keys: tuple[str, ...]


def with_scalings(modules: Sequence[Module], scalings: Sequence[Scaling | None]) -> Iterable[Module]:
    """Return like modules with the scaling of each of their contributions; None leaves a contribution unchanged."""
    if not scalings:
        return modules
    found = [
        [module.contributions[number] for module in modules]
        if scaling is None
        else make_records(Contribution, [_scaled(module.contributions[number], scaling) for module in modules])
        for number, scaling in enumerate(scalings)
    ]
    rows = zip(modules, zip(*found, strict=True), strict=True)
    return make_records(Module, [(module.name, contributions, *module[2:]) for module, contributions in rows])


def _scaled(contribution: Contribution, scaling: Scaling) -> tuple[Any, ...]:
    return contribution[:_FIRST] + scaling + contribution[_BEHIND:]


def with_paths(modules: Iterable[Module], paths: Iterable[str | None]) -> Iterable[Module]:
    """Return the modules with the path of each."""
    return make_records(
        Module, [(*module[:_PATH], path, *module[_PATH + 1 :]) for module, path in zip(modules, paths, strict=True)]
    )


class Counted(NamedTuple):
    """A multiple of the stored alpha: one for each of the `parts` that a layer was saved in.

    `contradiction` is the reason if the number is unknown; else it is empty.
    """

    parts: int = 1
    contradiction: str = ""


ONCE = Counted()


class Counting(NamedTuple):
    """A rule for the multiple of the alpha of a contribution, by the number that is stored.

    `by_name` is True where the name or the data of the module may decide it.
    """

    counted: Callable[[Contribution, float | None], Counted] = lambda contribution, alpha: ONCE
    by_name: bool = False
