"""DoRA: the norm of V = W + delta, the gain from magnitude and norm, and the fold.

Written only with tensor methods, so that it imports without torch and serves forward, merge and convert. Source: Liu et
al. 2024 (DoRA), W' = magnitude · V / ‖V‖; where programs differ, the program is named.
"""

from collections.abc import Sequence
from typing import Any

from lora_inspect.fast_namedtuple import NamedTuple

OUTPUT, INPUT = "output", "input"
INSIDE, INTERPOLATE, LYCORIS = "inside", "interpolate", "lycoris"
# Whose norms a magnitude is divided by: those of V = W + delta, as trainers mean it, or those of W, the base.
OF_SUM, OF_BASE = "sum", "base"
MULTIPLIER_RULES = (INSIDE, INTERPOLATE, LYCORIS)

MIN_NORM = 1e-6
# Columns whose squares are widened at a time: those of a block stay in a cache.
_COLUMNS = 512


class DoraSpelling(NamedTuple):
    """One spelling of the magnitude, and the meaning that its programs give it.

    `multiplier` is the rule by which they apply a multiplier. `added_eps` is the number that they add to the norm; None
    means ours, max(norm, 1e-6). `norms` says if they are norms of V or of W.
    """

    suffix: str
    multiplier: str
    added_eps: float | None = None
    norms: str = OF_SUM


# The spelling of a magnitude of the rows of a weight as it is stored, which of an Embedding are its inputs.
OF_STORED_ROWS = ".m"

# finfo(float32).eps, which LyCORIS and OneTrainer add to the norm; the magnitudes are float32 there.
_FLOAT32_EPS = 2.0**-23

SPELLINGS = {
    spelling.suffix: spelling
    for spelling in (
        DoraSpelling(".dora_layer.weight", INSIDE),
        DoraSpelling(".lora_magnitude_vector", INSIDE),
        DoraSpelling(".lora_magnitude_vector.weight", INSIDE),
        DoraSpelling(".magnitude", INSIDE),
        DoraSpelling(".dora_scale", INTERPOLATE, added_eps=_FLOAT32_EPS),
        # mlx-lm's, which divides by the norm as it is.
        DoraSpelling(OF_STORED_ROWS, INSIDE, added_eps=0.0),
    )
}

# How ComfyUI and Forge apply a `dora_scale` of outputs, whoever wrote it (`weight_decompose`): the rows of V are
# multiplied by it over the norms of the rows of W. Their eps is that of the type that they compute in, float32.
OVER_BASE = SPELLINGS[".dora_scale"]._replace(norms=OF_BASE)


def axis_of(spelling: DoraSpelling, shape: tuple[int, ...], changed: Sequence[int | None]) -> str | None:
    """Return the axis that a magnitude of `shape` belongs to, or None if it fits neither.

    One-dimensional magnitudes and those shaped (1, out, 1, …) of PEFT convolutions are per output row. A `dora_scale`
    is per output as (out, 1, …) and per input as (1, in, …), and `m` as (out,) and as (in,). `changed` is (out, in,
    *kernel) of the weight, or (out, in·kernel) if the factors do not show more.
    """
    out_features, in_features = changed[:2]
    if spelling.suffix == OF_STORED_ROWS:
        return OUTPUT if shape == (out_features,) else INPUT if shape == (in_features,) else None
    long = [size for size in shape if size != 1]
    if spelling.suffix != ".dora_scale":
        return OUTPUT if long in ([out_features], [] if out_features == 1 else None) else None
    if len(shape) < 2:
        return None
    if shape[0] == out_features and all(size == 1 for size in shape[1:]):
        return OUTPUT
    if all(size == 1 for size in (shape[0], *shape[2:])) and _are_inputs(shape, in_features, len(changed)):
        return INPUT
    return None


def _are_inputs(shape: tuple[int, ...], in_features: int | None, dimensions: int) -> bool:
    """Return True if there are as many numbers as inputs; for a flattened kernel they may be part of the columns."""
    if in_features is None or shape[1] == 0:
        return False
    is_flattened = dimensions == 2 and len(shape) > 2
    return in_features % shape[1] == 0 if is_flattened else shape[1] == in_features


def squared_norm(matrix: Any, axis: str) -> Any:
    """Return the sum of squares of `matrix` (out, columns) along `axis`: (out,) for outputs, (columns,) for inputs.

    A sum over rows is in float64, since with blocks of rows it is only a part of the whole sum.
    """
    if axis == OUTPUT:
        return (matrix * matrix).sum(1)
    found = matrix.new_empty(matrix.shape[1]).double()
    for first in range(0, matrix.shape[1], _COLUMNS):
        own = matrix[:, first : first + _COLUMNS]
        found[first : first + _COLUMNS] = (own * own).double().sum(0)
    return found


def expanded_squared_norm(base_squared: Any, base_down: Any, up: Any, down: Any, scale: float) -> Any:
    """Return the squared row norms of W + scale·up@down, without building the product.

    `base_squared` (out,) are the squared row norms of W, `base_down` (out, rank) is W @ downᵀ, `up` (out,
    rank), `down` (rank, columns): ‖W_i‖² + 2·scale·⟨W_i, (up@down)_i⟩ + scale²·up_i (down downᵀ) up_iᵀ.
    """
    cross = (base_down * up).sum(1)
    delta_squared = product_squared_norm(up, down)
    return (base_squared + (2.0 * scale) * cross + (scale * scale) * delta_squared).clamp(min=0.0)


def product_squared_norm(up: Any, down: Any) -> Any:
    """Return the squared row norms (out,) of up@down, (out, rank) and (rank, columns), without building the product."""
    return ((up @ (down @ down.transpose(0, 1))) * up).sum(1)


def norm_from_square(squared: Any, added_eps: float | None = None) -> Any:
    """Return the dividing norm: max(norm, 1e-6), or norm + eps for programs that add one."""
    norm = squared.sqrt()
    return norm.clamp(min=MIN_NORM) if added_eps is None else norm + added_eps


def gain(magnitude: Any, norm: Any) -> Any:
    """Return magnitude / norm, the factor of each row (or column) of V."""
    return magnitude / norm


def inner_multiplier(multiplier: float, rule: str) -> float:
    """Return the factor with which delta enters V: the multiplier itself for `inside`, else 1."""
    return multiplier if rule == INSIDE else 1.0


def apply_gain(base: Any, combined: Any, gains: Any, multiplier: float, rule: str) -> None:
    """Make the folded weight of V (`combined`), in place, from W (`base`), both (rows, columns), and the gains.

    inside: V·g. interpolate (ComfyUI): W + m·(V·g - W). lycoris (lycoris-lora): V·(m·(g - 1) + 1). Only the second one
    needs W. The gains are (rows, 1) or (1, columns).
    """
    if rule == LYCORIS:
        combined.mul_(multiplier * (gains - 1.0) + 1.0)
        return
    combined.mul_(gains)
    if rule == INTERPOLATE:
        combined.sub_(base).mul_(multiplier).add_(base)
