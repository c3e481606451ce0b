"""LoRA on the parameter of all experts of a layer, (experts, d1, d2), as PEFT's `target_parameters`.

The factors of all experts are in one tensor, A (experts·rank, a) and B (b, rank·experts), packed as `maths/scaling.py`
says.

delta of expert e = scale · B_e @ A_e if that is (d1, d2), else its transpose: versions of PEFT differ in the dimension
that A is along. No suffix distinguishes such factors from those of a Linear layer, so reading needs the evidence of a
config. Source: `ParamWrapper` of PEFT.
"""

from functools import cache, partial
from typing import TYPE_CHECKING

from lora_inspect.algorithms import lora
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


# Of what no registry has, as no suffix tells it.
NAME = "lora_experts"
# LoRA on a parameter of two dimensions: the change of it as it is stored, of which PEFT makes no DoRA.
OF_MATRIX = lora.ALGORITHM._replace(decomposes=False, transposed=False)


def rank(experts: int, shapes: Shapes) -> int:
    """Return the rank of one expert, which divides alpha."""
    return shapes["down"][0] // experts


def widths(shapes: Shapes) -> tuple[int, int]:
    """Return (b, a): the sizes of one expert's matrix that B and A are along."""
    return shapes["up"][0], shapes["down"][1]


def check(experts: int, shapes: Shapes) -> str | None:
    """Return the problem with the shapes of A (experts·rank, a) and B (b, rank·experts), or None."""
    if len(shapes["down"]) != 2 or len(shapes["up"]) != 2:
        return f"A {list(shapes['down'])} and B {list(shapes['up'])} of all experts are not matrices"
    if wrong := lora.check(shapes):
        return wrong
    if shapes["down"][0] % experts:
        return f"A {list(shapes['down'])} has a number of rows that is not a multiple of its {experts} experts"
    return None


def shape(shapes: Shapes) -> tuple[None, None]:
    """Return unknown sizes: only the base shows which size counts the outputs."""
    return None, None


def misfit(experts: int, shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight (experts·d1, d2), or None."""
    b, a = widths(shapes)
    if weight in ((experts * b, a), (experts * a, b)):
        return None
    return f"changes {experts} experts of [{b}, {a}] or [{a}, {b}]"


def change(experts: int, tensors: Tensors, scale: float, alpha: float | None, packing: str, turned: bool) -> "Change":
    """Return the products of all experts, below each other; those of the transposed matrices if `turned`."""
    from lora_inspect.maths.change import ExpertProducts
    from lora_inspect.maths.scaling import per_expert

    up, down = per_expert(tensors["up"], tensors["down"], experts, packing)
    if turned:
        up, down = down.transpose(1, 2), up.transpose(1, 2)
    return ExpertProducts(up, down, scale)


@cache
def lora_experts(experts: int) -> Algorithm:
    """Return the algorithm of a parameter of `experts` experts."""
    return Algorithm(
        name=NAME,
        title="LoRA of all experts of a layer",
        equation="of each expert e: W + m · s · B_e @ A_e",
        writers="PEFT (target_parameters), Unsloth",
        dialects={"peft": lora.DIALECTS["peft"]},
        marks=lora.ALGORITHM.marks,
        formula=Formula(
            check=partial(check, experts),
            shape=shape,
            misfit=partial(misfit, experts),
            rank=partial(rank, experts),
            change=partial(change, experts),
            rslora=True,
        ),
        transposed=False,
        peft_type=lora.ALGORITHM.peft_type,
        scaled=("up",),
        experts=experts,
        packed=True,
    )
