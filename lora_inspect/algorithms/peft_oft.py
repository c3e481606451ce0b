"""OFT of PEFT since 0.16 (OFTv2): rotations of blocks of inputs, by the formula in `adapter_config.json`.

The stored numbers of a block are those above the diagonal of Q, and W' = W · diag(R₁, R₂, …)ᵀ. An Embedding has its
outputs rotated: W' = W · diag(R₁, R₂, …) of a weight (num, dim).

With `use_cayley_neumann` R is a truncated series of (I + Q)(I - Q)^-1; without it R is (I - Q)(I + Q)^-1, the opposite
rotation. `coft` limits the norm of each Q. PEFT has no multipliers for it. Source: the `OFTLayer` of PEFT 0.21.
"""

from collections.abc import Mapping
from math import isqrt, prod
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.config_fields import is_count, is_number, is_switch, read_fields
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

# Before it the last term of the series counted twice, as the others do.
_SERIES_SINCE = (0, 18)
# What OneTrainer writes into the metadata of its files: COFT and another series are of versions that have no mark.
_ONETRAINER = "ot_revision"
# Beyond it a term is below the rounding of a float64 in every rotation that the series is good for.
_MOST_TERMS = 1000


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shape of the generators (count, size·(size - 1)/2), or None."""
    shape = shapes["generators"]
    if len(shape) != 2 or 0 in shape or block_size(shapes) * (block_size(shapes) - 1) // 2 != shape[1]:
        return f"oft_R {list(shape)} are not numbers above the diagonals of blocks"
    return None


def block_size(shapes: Shapes) -> int:
    """Return the number of inputs of a block."""
    return (1 + isqrt(1 + 8 * shapes["generators"][1])) // 2


def shape(shapes: Shapes) -> tuple[int | None, ...]:
    """Return (None, in), with None for in if there is one block, as it may serve all inputs."""
    count = shapes["generators"][0]
    return None, count * block_size(shapes) if count > 1 else None


def misfit_of_embedding(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight (num, dim) of this shape, or None."""
    return misfit(shapes, weight) if len(weight) == 2 else "turns the vectors of an embedding"


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None.

    PEFT rotates windows of the input of a larger kernel and adds them up; no weight does the same.
    """
    count, size = shapes["generators"][0], block_size(shapes)
    if prod(weight[2:]) > 1:
        return "turns windows of the input in PEFT, for a layer with a larger kernel than this one"
    if len(weight) > 1 and (weight[1] == count * size or (count == 1 and weight[1] % size == 0)):
        return None
    return f"rotates {count} blocks of {size} inputs"


def _is_count_of_terms(value: Any) -> bool:
    return is_count(value) and value <= _MOST_TERMS


def _is_limit(value: Any) -> bool:
    return is_number(value) and value > 0


# What of the config decides the formula, and what it must be.
_FIELDS = {
    "use_cayley_neumann": is_switch,
    "num_cayley_neumann_terms": _is_count_of_terms,
    "block_share": is_switch,
    "coft": is_switch,
    "eps": _is_limit,
}


def settings(around: Surroundings) -> dict[str, Any] | str:
    """Return the settings of the formula from the config, or an error text if they are unknown."""
    if around.config is None and _ONETRAINER in around.metadata:
        return (
            "OneTrainer wrote it, but its versions compute the rotation differently, and the file does not name one; "
            "merge it with the version that trained it"
        )
    found = read_fields(around.config, _FIELDS, "its rotation")
    if isinstance(found, str):
        return found
    if found["use_cayley_neumann"] and not _has_series_of_today(around.config or {}):
        return (
            "PEFT before 0.18 wrote its adapter_config.json and ended its series differently; merge it with the "
            "version of PEFT that trained it"
        )
    return found


def _has_series_of_today(config: Mapping[str, Any]) -> bool:
    """Return True if PEFT recorded its version and that version has today's series.

    PEFT records its version since the release that changed the series.
    """
    numbers = str(config.get("peft_version", "")).split(".")[:2]
    return len(numbers) == 2 and all(n.isdigit() for n in numbers) and tuple(map(int, numbers)) >= _SERIES_SINCE


def _blocks(
    tensors: Tensors,
    *,
    use_cayley_neumann: bool,
    num_cayley_neumann_terms: int,
    block_share: bool,
    coft: bool,
    eps: float,
) -> Any:
    """Return R (count, size, size); one block serves all if `block_share` or its count says so."""
    from lora_inspect.maths.rotation import cayley, from_upper, limited, neumann

    generators = tensors["generators"]
    skew = from_upper(generators, block_size({"generators": tuple(generators.shape)}))
    if coft:
        skew = limited(skew, eps / generators.shape[0] ** 0.5)
    return neumann(skew, num_cayley_neumann_terms) if use_cayley_neumann else cayley(-skew)


def change(tensors: Tensors, scale: float, alpha: float | None, **found: Any) -> "Change":
    """Return the rotation of blocks of columns."""
    from lora_inspect.maths.rotation import RotatedColumns

    return RotatedColumns(_blocks(tensors, **found))


def change_of_embedding(tensors: Tensors, scale: float, alpha: float | None, **found: Any) -> "Change":
    """Return the rotation of blocks of the numbers of every vector, the opposite one of `change`."""
    from lora_inspect.maths.rotation import RotatedColumns

    return RotatedColumns(_blocks(tensors, **found).transpose(1, 2))


ALGORITHM = Algorithm(
    name="peft_oft",
    title="OFT of PEFT",
    equation="W · diag(R₁, R₂, …)ᵀ",
    writers="PEFT since 0.16",
    dialects={"peft": {"generators": ".oft_R.weight"}},
    marks=("generators",),
    formula=Formula(check, shape, misfit, rank=lambda shapes: None, change=change),
    multiplies=True,
    blends=False,
    has_alpha=False,
    peft_type="OFT",
    settings=settings,
)
ALGORITHMS = (
    ALGORITHM,
    ALGORITHM._replace(
        name="peft_oft_embedding",
        title="OFT of PEFT on an Embedding",
        dialects={"peft": {"generators": ".oft_embedding_R.weight"}},
        formula=Formula(check, shape, misfit_of_embedding, rank=lambda shapes: None, change=change_of_embedding),
        transposed=False,
    ),
)
