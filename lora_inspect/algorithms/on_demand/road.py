"""RoAd: it rotates and stretches the outputs of a layer in pairs, and the bias with the weight.

The output x of a pair (x, y) becomes α cos θ · x - α sin θ · y, and y becomes α cos θ · y + α sin θ · x. The config
says how many outputs are a group; its first half is paired with the second one. The `variant` says how many numbers
there are: road_1 has one angle and one factor for each pair, road_2 for each output, and road_4 two for each output,
one of them for its cosine and one for its sine. PEFT has no multipliers for it. The functions use tensor methods only.
Sources: Liao et al. 2024; the `RoadLayer` of PEFT.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from lora_inspect.algorithms.config_fields import is_count, read_fields
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Surroundings, Tensors
from lora_inspect.maths.change import Change

# How many outputs each number of a variant is for.
_OUTPUTS = {"road_1": 2, "road_2": 1, "road_4": 0.5}


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of the angles and factors, each (count,), or None."""
    angles, factors = shapes["angles"], shapes["factors"]
    if len(angles) != 1 or factors != angles or not angles[0]:
        return f"road_theta {list(angles)} and road_alpha {list(factors)} are not as many angles as factors"
    return None


def _rows(shapes: Shapes, variant: str) -> int:
    return int(shapes["angles"][0] * _OUTPUTS[variant])


def misfit(shapes: Shapes, weight: tuple[int, ...], *, variant: str) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    rows = _rows(shapes, variant)
    return None if len(weight) == 2 and weight[0] == rows else f"turns {rows} outputs of a Linear layer"


def misfit_of_bias(shapes: Shapes, bias: tuple[int, ...], *, variant: str) -> str | None:
    """Return the mismatch with a bias of this shape, or None."""
    rows = _rows(shapes, variant)
    return None if bias == (rows,) else f"turns a bias of {rows} numbers"


def change(tensors: Tensors, scale: float, alpha: float | None, *, variant: str, group: int) -> "Change":
    """Return the turned pairs of outputs."""
    angles, factors = tensors["angles"], tensors["factors"]
    if variant == "road_4":
        angles, factors = angles.reshape(-1, 2, group), factors.reshape(-1, 2, group)
        own, other = factors[:, 0] * angles[:, 0].cos(), factors[:, 1] * angles[:, 1].sin()
        return TurnedPairs(own.flatten(), other.flatten(), group)
    if variant == "road_1":
        angles, factors = (one.reshape(-1, 1, group // 2).expand(-1, 2, -1).flatten() for one in (angles, factors))
    return TurnedPairs(factors * angles.cos(), factors * angles.sin(), group)


def variant(around: Surroundings) -> Algorithm | str:
    """Return the algorithm with the variant and the groups of the config, or an error text if they are unknown."""
    fields = {"variant": lambda value: isinstance(value, str) and value in _OUTPUTS, "group_size": is_count}
    found = read_fields(around.config, fields, "its turn of outputs")
    if isinstance(found, str):
        return found
    name, group = found["variant"], found["group_size"]
    rows = around.shapes["angles"][0] * _OUTPUTS[name]
    if group % 2 or rows % group:
        return (
            f"its adapter_config.json says groups of {group} outputs for {rows:g} of them in the variant {name}, "
            "which do not form such groups; put the config next to the file that it was saved with"
        )
    return ALGORITHM._replace(
        formula=_formula(name, group, misfit, lambda shapes: (_rows(shapes, name), None)),
        bias=_formula(name, group, misfit_of_bias, lambda shapes: (_rows(shapes, name),)),
    )


def _formula(variant: str, group: int, misfit: Any, shape: Any) -> Formula:
    return Formula(
        check,
        shape,
        misfit=partial(misfit, variant=variant),
        rank=lambda shapes: None,
        change=partial(change, variant=variant, group=group),
        together=lambda shapes: group,
    )


ALGORITHM = Algorithm(
    name="road",
    title="RoAd",
    equation="pairs of outputs turned by road_theta and stretched by road_alpha, and the bias with them",
    writers="PEFT",
    dialects={"peft": {"angles": ".road_theta", "factors": ".road_alpha"}},
    marks=("angles", "factors"),
    # What it is of a config that says nothing is never computed.
    formula=_formula("road_1", 2, misfit, lambda shapes: (None, None)),
    transposed=False,
    multiplies=True,
    blends=False,
    has_alpha=False,
    peft_type="ROAD",
    variant=variant,
)


@dataclass(frozen=True, slots=True)
class TurnedPairs(Change):
    """Rows in pairs (x, y), each row becoming `own` times itself and `other` times the other one of its pair.

    x' = own · x - other · y and y' = own · y + other · x, with numbers (out,) of each row's own. In each group of
    `together` rows a row of the first half and the one so far behind it in the second half are a pair. There is no
    multiplier but 1.
    """

    own: Any
    other: Any
    together: int

    def fold(self, rows: Any, first: int, multiplier: float) -> None:
        """Rotate whole groups; raise ValueError for a meaningless multiplier."""
        if multiplier != 1:
            raise ValueError(f"outputs are turned or not, which a multiplier of {multiplier:g} does not say")
        last = first + rows.shape[0]
        halves = rows.reshape(-1, 2, self.together // 2, rows.shape[1])
        swapped = halves.flip(1)
        swapped[:, 0] *= -1
        own, other = self.own[first:last].unsqueeze(1), self.other[first:last].unsqueeze(1)
        rows.copy_(rows * own + swapped.reshape(rows.shape) * other)
