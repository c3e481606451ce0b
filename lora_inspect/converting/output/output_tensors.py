"""The step that spells a module's parts: the tensors of the output, under the names of its scheme.

Tensors that the modules of the output share are written once.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lora_inspect.algorithms.lora_experts import OF_MATRIX
from lora_inspect.converting.growth import Growth
from lora_inspect.converting.steps.part import Factor, Part, check_finite, content
from lora_inspect.converting.target.key_names import ALPHA, alpha_key, carrier_of, factor_key, magnitude_place
from lora_inspect.files.safetensors.writer import Content, TensorPlan, renamed
from lora_inspect.maths.dora import OUTPUT
from lora_inspect.reading.model.contribution import Magnitude, Module, shared_tensors


@dataclass(frozen=True, slots=True)
class SpelledModule:
    """A module of the output with its parts as they are written; `magnitude` is the suffix under which one is kept."""

    module: Module
    parts: tuple[Part, ...]
    contents: tuple[Content, ...]
    magnitude: str | None = None

    @property
    def path_in_config(self) -> str:
        """The dotted path by which a config of PEFT names it."""
        return self.parts[0].origin.config_path if self._is_named_as_before else self.module.name.body

    @property
    def is_of_parameter(self) -> bool:
        """Return True if PEFT finds it by the `target_parameters` of a config."""
        own = [part.algorithm for part in self.parts]
        is_matrix = self._is_named_as_before and any(algorithm is OF_MATRIX for algorithm in own)
        return is_matrix or any(algorithm.experts for algorithm in own)

    @property
    def _is_named_as_before(self) -> bool:
        return self.parts[0].origin.module == self.module.name

    @property
    def rank(self) -> int | None:
        """The rank of the part that has one."""
        return next((part.rank for part in self.parts if part.rank is not None), None)

    @property
    def alpha(self) -> float | None:
        """The alpha by which its scale is alpha/rank."""
        return next((part.alpha for part in self.parts if part.alpha is not None), None)

    @property
    def folded(self) -> float:
        """The scale that is in the factors of its first part with an alpha: of the others it is 1."""
        return next((part.folded for part in self.parts if part.algorithm.has_alpha), 1.0)

    @property
    def relative_error(self) -> float | None:
        """Return the largest relative error of its changes, or None if one is unknown."""
        errors = [part.error for part in self.parts]
        return max(error for error in errors if error is not None) if None not in errors else None

    @property
    def norms(self) -> str | None:
        """Whose norms its magnitude of outputs is over; None if it has none."""
        outputs = (part.magnitude for part in self.parts if part.magnitude and part.magnitude.axis == OUTPUT)
        return next((magnitude.spelling.norms for magnitude in outputs), None)

    @property
    def dropped(self) -> tuple[str, ...]:
        """Return the keys that no tensor of the output carries the meaning of."""
        return tuple(key for part in self.parts for key in part.dropped)

    @property
    def is_replaced(self) -> bool:
        """Return True if some factors are not those of the input."""
        return any(part.replaced for part in self.parts)


def spell(module: Module, parts: Sequence[Part], growth: Growth) -> SpelledModule:
    """Return the module's own tensors; raise LoraInspectError for a number beyond its type or too much growth."""
    own = ((part, role) for part in parts for role in part.factors if role not in part.algorithm.shared)
    contents = [_factor(module, part, role) for part, role in own]
    contents += _alpha(module, parts)
    suffix = None
    for part in parts:
        if part.magnitude:
            rows = part.lengths.shape[0] if part.lengths else None
            key, suffix, shape = magnitude_place(module, part.origin, part.magnitude, rows)
            contents.append(_magnitude(part, part.magnitude, key, shape))
    growth.take(sum(item.plan.nbytes for item in contents), module.name.key)
    return SpelledModule(module, tuple(parts), tuple(contents), suffix)


def _factor(module: Module, part: Part, role: str) -> Content:
    factor, key = part.factors[role], factor_key(module, part.origin, part.algorithm, role)
    return content(key, factor, part.file) if isinstance(factor, Factor) else renamed(factor, key)


def _magnitude(part: Part, magnitude: Magnitude, key: str, shape: tuple[int, ...]) -> Content:
    if part.lengths is None:
        return renamed(magnitude.info, key, shape)
    return content(key, part.lengths._replace(values=part.lengths.values.reshape(shape)), part.file)


def _alpha(module: Module, parts: Sequence[Part]) -> list[Content]:
    """Return the alpha that gives the scale; an alpha with another meaning stays as it is."""
    if carrier_of(module) != ALPHA:
        return []
    stored = next((part.alpha for part in parts if part.alpha is not None), None)
    if stored is not None:
        return [Content(TensorPlan(alpha_key(module), "F32", ()), struct.pack("<f", stored))]
    if module.alpha:
        return [renamed(module.alpha, alpha_key(module))]
    # LyCORIS loads no module without one, whatever it says of factors without a rank.
    is_asked = module.respelled and any(_has_whole_factors(part) for part in parts)
    return [Content(TensorPlan(alpha_key(module), "F32", ()), struct.pack("<f", 1.0))] if is_asked else []


def _has_whole_factors(part: Part) -> bool:
    """Return True if the part has an alpha that scales nothing, as LoKr's has if no factor is a product."""
    return part.algorithm.has_alpha and part.algorithm.settings is None and part.rank is None


def shared_contents(parts: Iterable[Part]) -> list[Content]:
    """Return the shared tensors of the parts, as in the input; raise LoraInspectError if one is not finite."""
    found = {}
    for part in (part for part in parts if part.algorithm.name == part.origin.algorithm.name):
        for role, info in shared_tensors(part.origin).items():
            if info.name not in found and role not in part.algorithm.positions:
                check_finite(info)
            found[info.name] = info
    return [renamed(info, name) for name, info in found.items()]
