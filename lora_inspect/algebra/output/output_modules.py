"""The records of an output's modules: as they are planned, as they are made, and the errors of all together."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy
from numpy.typing import NDArray

from lora_inspect.algebra.alignment import OutputModule, Term
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.dtypes import FP8, PLAIN_FLOATS
from lora_inspect.files.safetensors.writer import TensorPlan
from lora_inspect.reading.peft.fused_experts import fused_layer
from lora_inspect.schemes.peft import PEFT

if TYPE_CHECKING:
    from lora_inspect.algebra.changes import WeightChanges
    from lora_inspect.algebra.core_merging import MergeFacts, MergeRule


class PlannedModule(NamedTuple):
    """A module of the output: the terms of its weight's change, and those of its other parameters' differences.

    `shape` is (out, in, *kernel) of its weight, empty where that does not change. `is_full` says that the change is no
    product of thin factors, and `is_difference` that it is written as a full difference. `rank` is the most that its
    change can have, and `of_inputs` the largest of one input. `vectors` are the terms by parameter, that of a norm is
    `weight` too, and `vector_shapes` the shapes of these parameters. Of a layer of several `experts`, the shape and the
    ranks are those of one. Programs add the product of the factors `times` times.
    """

    sum: OutputModule
    shape: tuple[int, ...]
    is_full: bool
    is_difference: bool
    rank: int
    of_inputs: int
    vectors: Mapping[str, tuple[Term, ...]]
    vector_shapes: Mapping[str, tuple[int, ...]]
    experts: int = 0
    times: int = 1

    @property
    def is_single_expert(self) -> bool:
        """True for a layer of one expert under PEFT's names, which PEFT loads only if all experts have factors."""
        name = self.sum.module.name
        fused = fused_layer(name.body) if name.scheme == PEFT.name else None
        return fused is not None and fused.expert is not None


@dataclass(frozen=True, slots=True)
class Making:
    """The choices that hold for all modules: the element types, the base, and whether short ranks are filled.

    `dtype` is that of factors and `differences` that of full differences and vectors. `base` computes changes that
    depend on a weight. `initial` is the rank up to which trained networks begin: rows of down are drawn, up has zeros.
    `common` is the rank up to which both are filled with zeros, for programs that take only one rank. `merge` is the
    method that makes one change of those of the inputs, None for their sum.
    """

    dtype: str
    differences: str
    base: "WeightChanges | None" = None
    initial: int | None = None
    common: int | None = None
    merge: "MergeRule | None" = None


@dataclass(frozen=True, slots=True)
class MadeModule:
    """A module as it is written: up (out, rank) and down (rank, columns), rounded to the type of the output.

    Both are None at rank 0, where nothing is left of the sum, and where the change is a full difference. `differences`
    are by parameter. `norm` is that of the weight's change, `lost` the norm that the trim loses, and `rounding` the
    norm of the error that the rounding makes, of factors estimated with random vectors. `offered` is the rank that
    keeps the share OFFERED of the energy. `facts` are those of a method.
    """

    module: PlannedModule
    rank: int = 0
    up: NDArray[numpy.generic] | None = None
    down: NDArray[numpy.generic] | None = None
    differences: Mapping[str, NDArray[numpy.generic]] = field(default_factory=dict)
    norm: float = 0.0
    lost: float = 0.0
    rounding: float = 0.0
    offered: int = 0
    facts: "MergeFacts | None" = None

    @property
    def key(self) -> str:
        """The key of the module in the output."""
        return self.module.sum.module.name.key

    @property
    def nbytes(self) -> int:
        """The bytes of the numbers as they are written."""
        return sum(one.nbytes for one in (self.up, self.down, *self.differences.values()) if one is not None)

    @property
    def account(self) -> "ModuleAccount":
        """The facts without the numbers."""
        return ModuleAccount(
            self.key, self.rank, bool(self.differences), self.norm, self.lost, self.rounding, self.offered, self.facts
        )


class WrittenTensor(NamedTuple):
    """A tensor outside the modules, as it is written."""

    plan: TensorPlan
    values: NDArray[numpy.generic]


class ModuleAccount(NamedTuple):
    """The facts of a made module: its key, its rank, and norms of its change and of the errors, as of MadeModule.

    `has_differences` says that a parameter's difference is written; without that and a rank nothing is.
    """

    key: str
    rank: int
    has_differences: bool
    norm: float
    lost: float
    rounding: float
    offered: int = 0
    facts: "MergeFacts | None" = None


@dataclass(frozen=True, slots=True)
class FileError:
    """The relative errors of a file, of all its weights' changes together: of the trims, and of the rounding.

    `worst` is the error of the trim that is the largest in its module, and `worst_module` that one's key. `error` is
    None if it is unknown.
    """

    error: float | None = 0.0
    rounding: float = 0.0
    worst: float = 0.0
    worst_module: str | None = None

    @property
    def energy(self) -> float | None:
        """The share of the squared norm of all changes that is kept; None if it is unknown."""
        return None if self.error is None else 1.0 - self.error**2


def file_error(modules: Iterable[ModuleAccount]) -> FileError:
    """Return the errors of all modules together."""
    counted = [one for one in modules if one.norm]
    norm = math.hypot(*(one.norm for one in counted))
    if not norm:
        return FileError()
    worst = max(counted, key=lambda one: one.lost / one.norm)
    return FileError(
        math.hypot(*(one.lost for one in counted)) / norm,
        math.hypot(*(one.rounding for one in counted)) / norm,
        worst.lost / worst.norm,
        worst.key,
    )


def widest(dtypes: Iterable[str], otherwise: str = "F32") -> str:
    """Return the type that holds numbers of all float types: those of eight bits in BF16, F16 with BF16 in F32.

    It is `otherwise` of no float type at all.
    """
    own = {"BF16" if dtype in FP8 else dtype for dtype in dtypes if dtype in FP8 | PLAIN_FLOATS}
    if "F64" in own:
        return "F64"
    return "F32" if len(own) > 1 else own.pop() if own else otherwise
