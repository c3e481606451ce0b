"""Bases whose weight is codes, as the programs that make them store them, in every spelling that is written again."""

import json

import torch

Q = "blocks.0.attn.q"
OUT, IN = 160, 256
E4M3, E5M2, I8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
LARGEST = {E4M3: 448, E5M2: 57344, I8: 127}


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def described(layer):
    return torch.tensor(list(json.dumps(layer).encode()), dtype=torch.uint8)


def grid(shape, scale):
    """The scale with an entry for each element of a weight (out, columns)."""
    out, columns = shape
    if scale.numel() == 1:
        return scale.reshape(1, 1).expand(out, columns)
    if scale.dim() == 2 and scale.shape[1] > 1:
        return scale.repeat_interleave(128, 0)[:out].repeat_interleave(128, 1)[:, :columns]
    blocks = scale.reshape(out, -1)
    return blocks.repeat_interleave(columns // blocks.shape[1], dim=1)


def coded(dtype, name, shape, stored, beside, module=Q):
    """A weight in codes as a quantiser makes it, with what stands beside it."""
    weight, ones = numbers(OUT, IN, seed=3), torch.ones(shape)
    size = torch.zeros(shape).flatten()
    owner = grid((OUT, IN), torch.arange(ones.numel()).reshape(shape)).flatten()
    size.scatter_reduce_(0, owner, weight.abs().flatten(), "amax")
    scale = (size / LARGEST[dtype]).to(stored).reshape(shape)
    exact = weight / grid((OUT, IN), scale.float())
    exact = (exact.round() if dtype == I8 else exact).clamp(-LARGEST[dtype], LARGEST[dtype])
    return {f"{module}.weight": exact.to(dtype), f"{module}.{name}": scale} | {
        key.replace("L.", f"{module}."): tensor for key, tensor in beside.items()
    }


BF16, F32 = torch.bfloat16, torch.float32
COMFY = {"L.comfy_quant": described({"format": "float8_e4m3fn"}), "L.input_scale": torch.tensor(0.5)}
MARKED = {"scaled_fp8": torch.empty(0, dtype=E4M3), "L.scale_input": torch.tensor(0.5)}
SPELLINGS = {
    "ComfyUI's first form": (E4M3, "scale_weight", (), F32, MARKED),
    "its marker of two": (E4M3, "scale_weight", (), F32, {"scaled_fp8": torch.zeros(2)}),
    "ComfyUI's second form": (E4M3, "weight_scale", (), F32, COMFY),
    "it in E5M2": (E5M2, "weight_scale", (), F32, {"L.comfy_quant": described({"format": "float8_e5m2"})}),
    "musubi's number": (E4M3, "scale_weight", (1,), BF16, {}),
    "musubi's rows": (E4M3, "scale_weight", (OUT, 1), BF16, {}),
    "musubi's blocks": (E4M3, "scale_weight", (OUT, IN // 64, 1), BF16, {}),
    "musubi's blocks in E5M2": (E5M2, "scale_weight", (OUT, IN // 64, 1), torch.float16, {}),
    "Ideogram's rows": (E4M3, "weight_scale", (OUT,), F32, {}),
    "compressed-tensors' rows": (E4M3, "weight_scale", (OUT, 1), BF16, {}),
    "DeepSeek's blocks": (E4M3, "weight_scale_inv", (2, 2), F32, {}),
    "a number of Mistral's": (E4M3, "weight_scale_inv", (), BF16, {"L.activation_scale": torch.tensor(0.5)}),
    "int8 of the weight": (I8, "weight_scale", (), F32, {"L.comfy_quant": described({"format": "int8_tensorwise"})}),
    "int8 of rows": (I8, "weight_scale", (OUT, 1), F32, {"L.comfy_quant": described({"format": "int8_tensorwise"})}),
}


def decoded(tensors, name, module=Q):
    return tensors[f"{module}.weight"].double() * grid((OUT, IN), tensors[f"{module}.{name}"].double())


def bits(tensor):
    return tensor.flatten().view(torch.uint8)
