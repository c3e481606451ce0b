"""The facts that a page shows of several adapters together, at their multipliers."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lora_inspect.algebra.changes import needs_base, shape_of
from lora_inspect.algebra.measures.compare_plan import ComparePlan, PlanComparison
from lora_inspect.algebra.measures.stack import weight_name
from lora_inspect.algebra.measures.stack_commands import StackCommand
from lora_inspect.algebra.options import ENERGY
from lora_inspect.architectures.detection import Detection
from lora_inspect.reading.identify import adapter_candidates
from lora_inspect.reading.model.settings import spell_argument
from lora_inspect.reporting.adapter_facts import AdapterFacts
from lora_inspect.reporting.heat_map import HeatMap, LayerSize, heat_map, place_of
from lora_inspect.sentences import listed, printable
from lora_inspect.shell import command_line, operand

if TYPE_CHECKING:
    from lora_inspect.algebra.alignment import OutputModule, Term
    from lora_inspect.algebra.measures.comparison import Comparison

Matrix = list[list[float | None]]
# From this agreement on adapters push the same direction.
_SHARED = 0.1


class StackFacts:
    """The comparison of adapters in the numbers of a page."""

    def __init__(self, plan: ComparePlan, found: PlanComparison, facts: Sequence[AdapterFacts]) -> None:
        self._plan, self._found = plan, found
        # Of experts only the measured factors tell the whole shape.
        self._shapes = {size.key: size.shape for one in facts for size in one.norms.sizes if size.sigma_1 is not None}
        self._count = len(plan.inputs.adapters)
        bases = plan.bases or [None] * self._count
        self._bases = {id(one.adapter): base for one, base in zip(plan.inputs.adapters, bases, strict=True)}
        self._named = [
            spell_argument(operand(one.adapter.checkpoint.path), one.adapter.settings) for one in plan.inputs.adapters
        ]
        self._families: Sequence[Detection] = adapter_candidates(plan.inputs.first)

    @property
    def names(self) -> list[str]:
        """The adapters as they were named, without the folder."""
        return [printable(name.replace("\\", "/").rpartition("/")[2]) for name in self._named]

    @property
    def cosine(self) -> Matrix:
        """The cosine of each two changes."""
        return self._matrix(self._found.whole.cosine)

    @property
    def overlap(self) -> Matrix:
        """The share of directions that each two changes have in common."""
        return self._matrix(self._found.whole.overlap)

    def _matrix(self, number: Any) -> Matrix:
        return [[number(one, other) for other in range(self._count)] for one in range(self._count)]

    @property
    def _weights(self) -> "list[tuple[OutputModule, Comparison]]":
        """The weights of the part that the sum changes most."""
        pairs = zip(self._plan.modules, self._found.modules, strict=True)
        every = [(module, one) for module, one in pairs if len(self._shape(module)) > 1]
        energies: dict[str, float] = defaultdict(float)
        for module, one in every:
            energies[module.module.name.component] += one.together
        main = max(energies, key=lambda name: energies[name], default="")
        return [(module, one) for module, one in every if module.module.name.component == main]

    def _shape(self, module: "OutputModule") -> tuple[int, ...]:
        """Return the shape of the weight, of experts with their number in front; empty if no adapter changes it."""
        if any(term.contribution.algorithm.experts for term in module.terms):
            keys = (term.contribution.module.key for term in module.terms)
            return next((self._shapes[key] for key in keys if key in self._shapes), ())
        return max(map(self._shape_of, module.terms), key=len)

    def _shape_of(self, term: "Term") -> tuple[int, ...]:
        """Return (out, in, *kernel) of the weight that a term changes; empty where neither factors nor base show it."""
        base = self._bases[id(term.adapter)]
        if base and needs_base(term.contribution) and base.has(term):
            return base.shape(term)
        return () if None in term.contribution.shape else shape_of(term)

    @property
    def heat_map(self) -> HeatMap:
        """The map of the sum."""
        spiked = {spike.module for spike in self._found.stack.spikes if spike.adapter is None}
        sizes = [
            LayerSize(
                weight_name(module).key,
                _path(module),
                self._shape(module),
                math.sqrt(one.together),
            )
            for module, one in self._weights
        ]
        return heat_map(sizes, spiked, self._families)

    @property
    def norms(self) -> dict[tuple[str, int], list[float]]:
        """The norm of each adapter in each block of the map."""
        squares: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0.0] * self._count)
        for module, one in self._weights:
            place = place_of(_path(module), self._families)
            own = squares[place.list, place.number]
            for number, square in enumerate(one.inner.diagonal().tolist()):
                own[number] += square
        return {place: [math.sqrt(square) for square in own] for place, own in squares.items()}

    @property
    def sentences(self) -> list[str]:
        """A sentence on the energy of the sum, and one on the adapters that conflict."""
        energy, stack = self._found.whole.sum_energy, self._found.stack
        if energy is None:
            return ["None of them changes anything."]
        said = f"The sum has {energy:.3g} times the energy of independent adapters"
        if stack.agreement >= _SHARED:
            said += f": {energy**-0.5:.2g} times these multipliers give it theirs"
        found = [f"{said}."]
        if conflict := stack.conflict:
            one, other = (place + 1 for place in conflict.adapters)
            found.append(f"{one} and {other} work against each other in {len(conflict.blocks)} blocks.")
        return found

    @property
    def commands(self) -> Iterator[tuple[str, str]]:
        """Three commands for the stack, each with the sentence above it."""
        advice = self._found.stack.recommendation
        yield f"Recommended: {advice.sentence}{self._carried()}", advice.command
        yield "As strong as independent adapters", self._calibrated()
        yield "All numbers by block", command_line(["lora-inspect", "compare", *self._named])

    def _carried(self) -> str:
        """Return the shares of the adapters in the recommended result, as the end of a sentence."""
        carried = self._found.stack.recommendation.carried or ()
        shares = [f"{share:.1%} of {place}" for place, share in enumerate(carried, 1) if share is not None]
        return f"; it carries {listed(shares)}" if shares else ""

    def _calibrated(self) -> str:
        """Return the sum at the energy of independent adapters."""
        words, energy = self._found.words, self._found.whole.sum_energy or 1.0
        if words.takes_methods:
            return words.line(StackCommand((1.0,) * self._count, {"calibrate": ENERGY}))
        return words.line(StackCommand((energy**-0.5,) * self._count))

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as the page's JSON has them."""
        whole = self._found.whole
        return {
            "adapters": self.names,
            "cosine": self.cosine,
            "overlap": self.overlap,
            "sum_energy": whole.sum_energy,
            **self._found.stack.to_dict(),
            "norms": whole.norms,
            "blocks": {
                name: {"norms": one.norms, "sum": math.sqrt(one.together)} for name, one in self._found.blocks.items()
            },
        }


def _path(module: "OutputModule") -> str:
    return module.module.path or module.module.name.body
