"""BD-LoRA of PEFT, an option of its LoRA: lora_A or lora_B has the blocks of a diagonal, below each other.

The config says which of the two by pieces of a module's name, and how many blocks there are. The factor lora_A (r, in /
n) is diag(A₁, …) of blocks (r / n, in / n), lora_B (out, r / n) is diag(B₁, …) of blocks (out / n, r / n), and the rest
is LoRA. Shapes show only a lora_B of blocks, as it has fewer columns than there are ranks, and no lora_A of them.
PEFT's forward and its merge are the same. Source: the `BdLoraLinearVariant` of PEFT 0.21.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms import lora
from lora_inspect.algorithms.config_fields import is_count
from lora_inspect.algorithms.lora import other_than
from lora_inspect.algorithms.record import Algorithm, Formula, Role, Shapes, Surroundings, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

_PREFIX = "base_model.model."
# The field of the config that has the pieces of names, by the role of the factor that has blocks.
_FIELDS: dict[Role, str] = {"down": "target_modules_bd_a", "up": "target_modules_bd_b"}


def has_blocks(shapes: Shapes) -> bool:
    """Return True if up (out, r / n) can have blocks next to down (r, in)."""
    down, up = shapes.get("down", ()), shapes.get("up", ())
    if len(down) != 2 or len(up) != 2 or 0 in down or 0 in up:
        return False
    return down[0] > up[1] and down[0] % up[1] == 0


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of down (r, in) and up (out, r / n), or None."""
    if has_blocks(shapes):
        return None
    return f"down {list(shapes['down'])} and up {list(shapes['up'])} have different ranks"


def variant(around: Surroundings) -> Algorithm | str:
    """Return LoRA, or the algorithm with blocks in one of its factors, or an error text if that is unknown."""
    options = around.config.get("use_bdlora") if around.config else None
    undecided = f"down {list(around.shapes['down'])} and up {list(around.shapes['up'])} differ in rank"
    if not options:
        return (
            f"{undecided}, and no adapter_config.json says use_bdlora; put the config next to the file that it was "
            "saved with, or fetch the file again"
            if has_blocks(around.shapes)
            else lora.ALGORITHM
        )
    count = options.get("nblocks") if isinstance(options, dict) else None
    chosen = [role for role in _FIELDS if _names(options, _FIELDS[role], around.key.removeprefix(_PREFIX))]
    if count is None or not is_count(count) or len(chosen) > 1 or (not chosen and has_blocks(around.shapes)):
        return (
            "its adapter_config.json does not give the blocks of each factor in use_bdlora; put the config next to "
            "the file that it was saved with"
        )
    if not chosen:
        return lora.ALGORITHM
    found = _with_blocks(chosen[0], count)
    if wrong := found.formula and found.formula.check(around.shapes):
        return f"{wrong}; put the config next to the file that it was saved with"
    return found


def _names(options: Any, field: str, path: str) -> bool:
    """Return True if the option's list `field` has a string that is part of the path."""
    pieces = options.get(field) if isinstance(options, dict) else None
    return isinstance(pieces, list) and any(isinstance(piece, str) and piece in path for piece in pieces)


@lru_cache(maxsize=4)
def _with_blocks(role: Role, count: int) -> Algorithm:
    """Return the algorithm for `count` blocks in the factor `role`."""
    whole = partial(_whole_shapes, role, count)

    def fitting(shapes: Shapes) -> str | None:
        if any(len(shapes[each]) != 2 for each in _FIELDS) or shapes[role][0] % count:
            return f"{role} {list(shapes[role])} has no {count} blocks below one another"
        return lora.check(whole(shapes))

    def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
        return other_than(lora.weight_shape(whole(shapes)), weight)

    def low_rank(tensors: Tensors) -> tuple[Any, Any]:
        return lora.matrices({**tensors, role: _on_diagonal(tensors[role], count)})

    def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
        from lora_inspect.maths.change import LowRank

        return LowRank(*low_rank(tensors), scale)

    shape: Callable[[Shapes], tuple[int, ...]] = lambda shapes: lora.weight_shape(whole(shapes))  # noqa: E731
    return ALGORITHM._replace(
        variant=None,
        formula=Formula(fitting, shape, misfit, lora.rank, change, low_rank=low_rank, rslora=True),
    )


def _whole_shapes(role: Role, count: int, shapes: Shapes) -> Shapes:
    """Return the shapes with the factor `role` as a block diagonal of `count` blocks."""
    rows, columns = shapes[role]
    return {**shapes, role: (rows, columns * count)}


def _on_diagonal(stored: Any, count: int) -> Any:
    """Return `count` blocks of the rows (rows, columns) on the diagonal of a matrix (rows, columns · count)."""
    blocks = stored.unflatten(0, (count, -1))
    whole = stored.new_zeros(count, blocks.shape[1], count, stored.shape[1])
    for at in range(count):
        whole[at, :, at] = blocks[at]
    return whole.flatten(2).flatten(0, 1)


def _undecided(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    raise ValueError("how many blocks there are is not known")


ALGORITHM = Algorithm(
    name="bdlora",
    title="BD-LoRA",
    equation="W + m · s · up @ down, of which one has the blocks of a diagonal",
    writers="PEFT (use_bdlora)",
    dialects={"peft": lora.DIALECTS["peft"]},
    marks=("down", "up"),
    formula=Formula(check, lora.weight_shape, lora.misfit, lora.rank, _undecided, rslora=True),
    peft_type="LORA",
    scaled=("up",),
    variant=variant,
    option_of=("lora", "use_bdlora"),
    fits=has_blocks,
)
