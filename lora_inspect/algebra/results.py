"""The account of an adapter that was made of others: ranks, bytes, and the errors of trim and rounding."""

from dataclasses import dataclass, field
from typing import Any

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.sentences import Result


@dataclass(frozen=True, slots=True)
class WorstModule:
    """The module with the largest relative error of its trim."""

    module: str
    error: float


@dataclass(frozen=True, slots=True)
class OfferedTrim:
    """The output that a rule would give: its largest rank and its bytes."""

    energy: float
    rank: int
    bytes: int


class ClippedModule(NamedTuple):
    """A module with cut singular values: the largest of them, and the share of the energy that was cut."""

    module: str
    value: float
    cut: float


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class MadeAdapter(Result):
    """The account of an adapter, made or planned.

    `output` is None where nothing was named. `inputs` have the path, the SHA-256 and the settings of each file.
    `left_out` are reasons by module or key. `ranks` count modules by rank. `error` is the relative error of the trims,
    of all modules together, `energy` is 1 - error², and `worst` the module with the largest error. `rounding` is the
    relative error of rounding to `dtype`, None where nothing was written. `order_matters` are weights of the base that
    another order of the adapters would leave different. `notes` are sentences on the inputs.
    """

    verb: str
    output: str | None
    is_made: bool
    inputs: tuple[dict[str, Any], ...]
    modules: int
    left_out: dict[str, str]
    ranks: dict[int, int]
    dtype: str
    bytes: int
    energy: float | None
    error: float | None
    rounding: float | None
    worst: WorstModule | None
    order_matters: tuple[str, ...] = ()
    seconds: float
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--json` prints."""
        return {
            "schema": f"lora-inspect/{self.verb}/1",
            "output": self.output,
            "dry_run": not self.is_made,
            "inputs": [{name: one[name] for name in ("path", "sha256", "settings")} for one in self.inputs],
            "modules": self.modules,
            "left_out": self.left_out,
            "ranks": {str(rank): count for rank, count in self.ranks.items()},
            "dtype": self.dtype,
            "bytes": self.bytes,
            "energy": self.energy,
            "error": self.error,
            "rounding": self.rounding,
            "worst": self.worst and {"module": self.worst.module, "error": self.worst.error},
            "order_matters": list(self.order_matters),
            "seconds": self.seconds,
        }


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class SumResult(MadeAdapter):
    """The account of a sum, or of the result of another method.

    `dropped_metadata` are all keys of the inputs' metadata that the output does not have, sorted. `offer` is the trim
    that an exact sum could have. `method` has the name and the settings of a method, None for a plain sum. `shares` are
    the shares of the inputs in its result: 1 for an unchanged input, None for one that changes nothing. `clipped` are
    the modules with cut singular values.
    """

    dropped_metadata: list[str] = field(default_factory=list)
    offer: OfferedTrim | None = None
    method: dict[str, Any] | None = None
    shares: tuple[float | None, ...] | None = None
    clipped: tuple[ClippedModule, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `combine --json` and `resize --json` print."""
        # zero-argument super() does not know the class that slots make
        found = {**MadeAdapter.to_dict(self), "dropped_metadata": self.dropped_metadata}
        if self.verb != "combine":
            return found
        clipped = [one._asdict() for one in self.clipped]
        shares = None if self.shares is None else list(self.shares)
        return {**found, "method": self.method, "shares": shares, "clipped": clipped}


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class AverageResult(SumResult):
    """The account of an average: that of a sum, and the weights of the files by their steps in the training.

    `apart` is the relative difference between the average of changes and that of factors, None where the files'
    factors do not pair up.
    """

    steps: tuple[int, ...] | None = None
    weights: tuple[float, ...] = ()
    apart: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `average --json` prints."""
        steps = None if self.steps is None else list(self.steps)
        return {
            # zero-argument super() does not know the class that slots make
            **MadeAdapter.to_dict(self),
            "dropped_metadata": self.dropped_metadata,
            "steps": steps,
            "weights": list(self.weights),
            "factors_apart": self.apart,
        }


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class ExtractResult(MadeAdapter):
    """The account of an extraction.

    `modules` counts the modules with factors, `differences` the vectors besides. `left_out` includes tensors and
    components without a place in the output, and `shares` are by reason their shares of the squared norm of the
    difference. `equal` counts the tensors that are the same in both models, `unpaired` are tensors that one of them
    lacks, and `unasked` tensors that no option requested. `noise` is the estimated rounding of both models as a share
    of the norm, and `noisy` counts the modules that stop at it.

    `error`, `energy`, `worst` and `noise` are of the extracted matrices. `whole_error` is the norm of everything that
    the adapter does not carry over that of the difference of the two models, of all tensors that both have: the error
    of the ranks, and everything left out. It is None if a tensor that no option requested is not finite.
    """

    whole_error: float | None
    differences: int
    shares: dict[str, float]
    unasked: tuple[str, ...]
    noise: float
    noisy: int
    equal: int
    unpaired: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `extract --json` prints."""
        return {
            **MadeAdapter.to_dict(self),
            "whole_error": self.whole_error,
            "differences": self.differences,
            "noise": self.noise,
            "equal": self.equal,
            "unpaired": list(self.unpaired),
        }
