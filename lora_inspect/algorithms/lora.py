"""LoRA on Linear and on convolutions, with or without a Tucker core (`lora_mid`, LyCORIS's LoCon).

delta = scale · up @ down, with down as (rank, in·kernel). A Tucker core holds the kernel between two thin factors. The
functions use tensor methods only. `misfit` compares the shape of the factors' change with that of a weight.

Sources: Hu et al. 2021; for the Tucker form the `rebuild_tucker` of lycoris-lora.
"""

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.record import Algorithm, Formula, Shapes, Tensors

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


def contracted(core: Any, inputs: Any) -> Any:
    """Return Σ_q core[p, q, x] · inputs[q, i] at (p, i·x), for `core` (p, q, *kernel) and `inputs` (q, in)."""
    core = core.reshape(core.shape[0], inputs.shape[0], -1)
    return (core.transpose(1, 2) @ inputs).transpose(1, 2).reshape(core.shape[0], -1)


def other_than(changed: tuple[int, ...], weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None; a 1x1 convolution is a Linear."""
    if _without_ones(changed) == _without_ones(weight):
        return None
    return f"changes a weight of {list(changed)}"


def flattened_other_than(rows: int, columns: int, weight: tuple[int, ...]) -> str | None:
    """Return the same for factors that show only (out, in·kernel)."""
    if (rows, columns) == (weight[0], prod(weight[1:])):
        return None
    return f"changes a weight of {rows} rows and {columns} columns"


def other_than_shape(changed: tuple[int, ...], weight: tuple[int, ...]) -> str | None:
    """Return the same for factors that show the kernel or, with two dimensions, only (out, in·kernel)."""
    return flattened_other_than(*changed, weight) if len(changed) == 2 else other_than(changed, weight)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the features and the kernel without trailing ones."""
    end = len(shape)
    while end > 2 and shape[end - 1] == 1:
        end -= 1
    return shape[:end]


# What PEFT's MonteCLoRA and VeLoRA keep for further training: the one samples around the factors only then, the other
# saves memory in the backward pass.
IDLE = {
    "std_prior": ".lora_monteclora_sampler.std_prior",
    "expert_weights_prior": ".lora_monteclora_sampler.expert_weights_prior",
    "gaussian_var_prior": ".lora_monteclora_sampler.gaussian_var_prior",
    "expert_weights": ".lora_monteclora_sampler.expert_weights",
    "velora_embed": ".lora_velora_embed",
}
DIALECTS = {
    "kohya": {"down": ".lora_down.weight", "up": ".lora_up.weight", "mid": ".lora_mid.weight"},
    "peft": {"down": ".lora_A.weight", "up": ".lora_B.weight"},
    "peft-training": IDLE,
    "diffusers-unet": {"down": ".lora.down.weight", "up": ".lora.up.weight"},
    "diffusers-text": {"down": ".lora_linear_layer.down.weight", "up": ".lora_linear_layer.up.weight"},
    "bare": {"down": ".lora_A", "up": ".lora_B"},
    "gguf": {"down": ".weight.lora_a", "up": ".weight.lora_b"},
}

# Initialisations that move part of the base into the factors, which are a change of the residual base then.
# Source: `LoraLayer.reset_lora_parameters` and its callees in PEFT.
_RESIDUAL_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga")


def residual_init(config: Mapping[str, Any]) -> str | None:
    """Return the initialisation in a config of PEFT that needs a residual base, or None."""
    init = config.get("init_lora_weights")
    return init if isinstance(init, str) and init.lower().startswith(_RESIDUAL_INITS) else None


def check(shapes: Shapes) -> str | None:
    """Return the problem with down (rank, in, *kernel), up (out, rank, 1…) and mid (rank, rank, *kernel), or None."""
    down, up, mid = shapes["down"], shapes["up"], shapes.get("mid")
    if len(down) < 2 or len(up) < 2:
        return f"down {list(down)} and up {list(up)} need at least two dimensions each"
    if any(size != 1 for size in up[2:]):
        return f"up {list(up)} has a kernel, which only down may have"
    if 0 in down or 0 in up:
        return f"down {list(down)} or up {list(up)} is empty"
    if mid is None:
        if down[0] != up[1]:
            return f"down {list(down)} has rank {down[0]} and up {list(up)} has rank {up[1]}"
        return None
    if len(mid) < 3 or mid[0] != up[1] or mid[1] != down[0]:
        return f"mid {list(mid)} does not match up {list(up)} and down {list(down)}"
    if any(size != 1 for size in down[2:]):
        return f"down {list(down)} has a kernel, but mid {list(mid)} has one too"
    return None


def rank(shapes: Shapes) -> int:
    """Return the inner size of the product: first dimension of down."""
    return shapes["down"][0]


def weight_shape(shapes: Shapes) -> tuple[int, ...]:
    """Return (out, in, *kernel) of the weight that the factors change."""
    kernel = shapes["mid"][2:] if "mid" in shapes else shapes["down"][2:]
    return (shapes["up"][0], shapes["down"][1], *kernel)


def misfit(shapes: Shapes, weight: tuple[int, ...]) -> str | None:
    """Return the mismatch with a weight of this shape, or None."""
    return other_than(weight_shape(shapes), weight)


def matrices(tensors: Tensors) -> tuple[Any, Any]:
    """Return (up, down) as matrices (out, rank) and (rank, in·kernel); a Tucker core is contracted into down.

    With mid M (p, q, *kernel): delta[o, i, x] = Σ_p up[o, p] · Σ_q M[p, q, x] · down[q, i].
    """
    up, down = tensors["up"], tensors["down"]
    up = up.reshape(up.shape[0], -1)
    if "mid" not in tensors:
        return up, down.reshape(down.shape[0], -1)
    return up, contracted(tensors["mid"], down.reshape(down.shape[0], -1))


def thin(shapes: Shapes) -> int:
    """Return the inner size of `matrices`."""
    return shapes["up"][1]


def change(tensors: Tensors, scale: float, alpha: float | None) -> "Change":
    """Return scale · up @ down."""
    from lora_inspect.maths.change import LowRank

    return LowRank(*matrices(tensors), scale)


ALGORITHM = Algorithm(
    name="lora",
    title="LoRA",
    equation="W + m · s · up @ down",
    writers=(
        "sd-scripts, musubi-tuner, PEFT, diffusers, LyCORIS, OneTrainer, ai-toolkit, blissful-tuner, llama.cpp, "
        "`networks`"
    ),
    dialects=DIALECTS,
    marks=("down", "up"),
    formula=Formula(check, weight_shape, misfit, rank, change, low_rank=matrices, rslora=True, thin=thin),
    decomposes=True,
    peft_type="LORA",
    idle=tuple(IDLE),
    scaled=("up",),
    rows={"up": "down"},
)
