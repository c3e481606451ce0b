"""What a module of an adapter says: its changes, and the tensors that they are made of."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from lora_inspect.algorithms.record import Algorithm, Formula, Shapes
from lora_inspect.files.header import TensorInfo
from lora_inspect.maths.dora import DoraSpelling
from lora_inspect.schemes.record import ModuleName


class Magnitude(NamedTuple):
    """DoRA's vector of one module, the spelling it came in and the axis it belongs to ("output" or "input")."""

    info: TensorInfo
    spelling: DoraSpelling
    axis: str


class Contribution(NamedTuple):
    """One change of one base weight.

    `factors` are the tensors by role. `rows` are the rows of the layer's weight that it covers, None for all.
    `fan_in_fan_out` is what a config says of the way in which the base stores the weight, None where none does.
    `alpha`, the rule `rslora` and `scale` are None where unknown; `why` is the reason for the scale, or for its
    absence. `settings` are what else the formula needs, and `unsettled` is the reason why it is unknown, or empty.
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

    @property
    def formula(self) -> Formula:
        """How the change is computed; raises ValueError for an algorithm that is only recognised."""
        if self.algorithm.formula is None:
            raise ValueError(f"{self.module.key}: {self.algorithm.title} has no formula")
        return self.algorithm.formula

    @property
    def shapes(self) -> Shapes:
        """The shapes of the factors by role."""
        return {role: info.shape for role, info in self.factors.items()}

    @property
    def shape(self) -> tuple[int | None, ...]:
        """(out, in, *kernel) of the change as far as the factors tell; of one slice where the layer is split."""
        return self.formula.shape(self.shapes)

    @property
    def multiplies(self) -> bool:
        """Whether what it does to a weight depends on the weight, so that it matters what was folded before."""
        return self.magnitude is not None or self.algorithm.multiplies

    @property
    def is_common(self) -> bool:
        """Whether the names of its tensors are common words, which a base may have by chance."""
        return all(role in self.algorithm.common for role in self.factors)

    @property
    def is_linear(self) -> bool:
        """Whether nothing in the factors speaks against a Linear layer."""
        return self.algorithm.transposed is None and len(self.shape) == 2

    @property
    def known_shape(self) -> tuple[int, ...]:
        """The shape; raises ValueError where the factors leave a part of it open."""
        known = tuple(size for size in self.shape if size is not None)
        if len(known) < len(self.shape):
            raise ValueError(f"{self.module.key}: {self.algorithm.title} does not tell how many inputs there are")
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
        """The scale; raises ValueError where it is unknown, which every command that needs it has refused before."""
        if self.scale is None:
            raise ValueError(f"{self.module.key}: the scale is unknown: {self.why}")
        return self.scale


class Module(NamedTuple):
    """One adapted layer: its contributions in the order in which they are folded, and the tensors that they share.

    Those of the weight come first, and of these what is added to it. `path` is the layer's dotted path, None where
    that is not known.
    """

    name: ModuleName
    contributions: tuple[Contribution, ...]
    alpha: TensorInfo | None = None
    rslora_flag: TensorInfo | None = None
    path: str | None = None

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
