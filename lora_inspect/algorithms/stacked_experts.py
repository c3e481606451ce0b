"""LoRA on the layers of all experts of a mixture, with factors that llama.cpp stacks like the layers.

A is (experts, rank, in) and B (experts, out, rank): delta of expert e = scale · B_e @ A_e. The suffixes are those of
LoRA, and only the third dimension differs; of how many experts they are decides the formula. Source: `build_lora_mm_id`
of llama.cpp.
"""

from functools import cache, partial

from lora_inspect.algorithms import lora, mlx
from lora_inspect.algorithms.record import Algorithm, Formula, Shapes


def fits(shapes: Shapes) -> bool:
    """Return True if the factors have a dimension for experts."""
    return all(len(shape) == 3 for shape in shapes.values())


def check(shapes: Shapes) -> str | None:
    """Return the problem with the shapes of A (experts, rank, in) and B (experts, out, rank), or None."""
    down, up = shapes["down"], shapes["up"]
    if 0 in down or 0 in up:
        return f"A {list(down)} or B {list(up)} is empty"
    if down[:2] != (up[0], up[2]):
        return f"A {list(down)} has {down[0]} experts of rank {down[1]} and B {list(up)} {up[0]} of rank {up[2]}"
    return None


# As keys alone tell it.
ALGORITHM = Algorithm(
    name="stacked_experts",
    title="LoRA of all experts of a layer, stacked",
    dialects={"gguf": lora.DIALECTS["gguf"]},
    marks=lora.ALGORITHM.marks,
    fits=fits,
)


@cache
def stacked_experts(experts: int) -> Algorithm:
    """Return the algorithm of layers of `experts` experts."""
    return ALGORITHM._replace(
        equation="of each expert e: W + m · s · B_e @ A_e",
        writers="llama.cpp",
        formula=Formula(
            check=check,
            shape=mlx.shape_of_experts,
            misfit=partial(mlx.misfit_of_experts, experts),
            rank=lambda shapes: shapes["up"][2],
            change=mlx.change_of_experts,
            rslora=True,
        ),
        transposed=False,
        scaled=("up",),
        experts=experts,
    )
