"""Tensors of small adapters as `write_safetensors` takes them: (dtype, shape, number)."""

OUT, IN = 6, 5


def lora(module, rank=16, alpha=8.0, out=OUT, inputs=IN, spelling="kohya", kernel=(), dtype="F32", **extra):
    """down and up of one module, its alpha where not None, and `extra` tensors under it with _ for the first dot."""
    down, up = {"kohya": ("lora_down.weight", "lora_up.weight"), "peft": ("lora_A.weight", "lora_B.weight")}[spelling]
    tensors = {
        f"{module}.{down}": (dtype, (rank, inputs, *kernel), 0.5),
        f"{module}.{up}": (dtype, (out, rank, *(1 for _ in kernel)), 0.25),
    }
    if alpha is not None:
        tensors[f"{module}.alpha"] = alpha if isinstance(alpha, tuple) else ("F32", (), alpha)
    return tensors | {f"{module}.{suffix}": tensor for suffix, tensor in extra.items()}


def loras(count=3, **options):
    """`count` Linear modules of kohya's names."""
    return {key: t for i in range(count) for key, t in lora(f"lora_unet_blocks_{i}_attn_q", **options).items()}


def split(module="lora_unet_blocks_0_attn_qkv", parts=(0, 1, 2), rank=4, alpha=4.0, out=2, inputs=IN):
    """A split layer: a pair of factors for each part, and one alpha."""
    tensors = {} if alpha is None else {f"{module}.alpha": ("F32", (), alpha)}
    for part in parts:
        tensors[f"{module}.lora_down.{part}.weight"] = ("F32", (rank, inputs), 0.5)
        tensors[f"{module}.lora_up.{part}.weight"] = ("F32", (out, rank), 0.25)
    return tensors


def base(count=3, out=OUT, inputs=IN, prefix="", dtype="F32"):
    """A base with the weights that `loras` change."""
    return {f"{prefix}blocks.{i}.attn.q.weight": (dtype, (out, inputs), 1) for i in range(count)}
