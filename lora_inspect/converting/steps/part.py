"""What the steps of a conversion hand on: one contribution with its factors, on its way into another file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lora_inspect.algorithms.record import Algorithm, Formula, Role, Shapes
from lora_inspect.converting.steps.scaled_factors import Factor, check_finite
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.model.contribution import Contribution, Magnitude, Module


@dataclass(frozen=True, slots=True)
class Part:
    """`origin` is what was read, and `algorithm` what the factors are of, which a step may have made other ones.

    A factor is a tensor of the input as it stands, or numbers that were computed.

    Readers of the output multiply the change of the factors by `scale`. `alpha` is the number that makes them do so,
    None until a step has found it, or where they need none. `folded` is the scale that is in the factors already.
    `lengths` are the magnitude's numbers where they are other ones than those of the input, or in another order.
    `replaced` says that the factors are other ones, of the same change or of one near it.
    `error` is the share of the change that was lost, in the Frobenius norm, None where nobody can tell; `dropped` are
    keys whose meaning is in no tensor of the output.
    """

    origin: Contribution
    algorithm: Algorithm
    factors: Mapping[Role, TensorInfo | Factor]
    scale: float
    magnitude: Magnitude | None = None
    lengths: Factor | None = None
    alpha: float | None = None
    folded: float = 1.0
    replaced: bool = False
    error: float | None = 0.0
    dropped: tuple[str, ...] = ()

    @property
    def formula(self) -> Formula:
        """How the change of the factors is computed; raises ValueError for an algorithm that is only recognised."""
        return self.algorithm.formula or self.origin.formula

    @property
    def shapes(self) -> Shapes:
        """The shapes of the factors by role."""
        return {role: factor.shape for role, factor in self.factors.items()}

    @property
    def rank(self) -> int | None:
        """The rank by which readers divide alpha."""
        return self.formula.rank(self.shapes)

    @property
    def file(self) -> str:
        """The input that it is from."""
        return next(iter(self.origin.factors.values())).file


# From the parts of one module to those that take their place.
Step = Callable[[Sequence[Part]], Sequence[Part]]


def read_parts(module: Module) -> list[Part]:
    """The parts of a module as it was read; raises LoraInspectError where a factor of its own is not finite."""
    for contribution in module.contributions:
        for role, info in contribution.operands.items():
            if role not in contribution.algorithm.shared and role not in contribution.algorithm.positions:
                check_finite(info)
    return [Part(c, c.algorithm, c.factors, c.known_scale, c.magnitude) for c in module.contributions]
