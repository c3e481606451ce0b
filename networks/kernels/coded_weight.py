"""Layers with codes instead of a weight, and a forward of their own.

An adapter adds to the output of such a layer and needs no weight. The norms of DoRA and the components of PiSSA need
the decoded numbers. The library of the layer decodes them: it is found by the attributes of the layer, and is not
imported here.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_ROWS_ON_CPU = 32

# A library's class of tensors may hold codes under the dtype of their values.
PLAIN_CLASSES = (Tensor, nn.Parameter)


class Decoder(NamedTuple):
    """The decoding of one kind of layer.

    `knows` and `values` take the layer and the tensor that it holds as `weight`, or None if it holds none. The values
    are (out, in), in a dtype that the library chooses.
    """

    knows: Callable[[Any, Any], bool]
    values: Callable[[Any, Any], Tensor]


def stored_weight(layer: Any) -> Tensor | None:
    """Return the tensor that `layer` holds as its weight.

    None if its class decodes a new tensor for each access.
    """
    if torch.compiler.is_compiling():
        return layer.weight  # type: ignore[no-any-return]
    for held in (layer._parameters, layer._buffers, vars(layer)):
        if isinstance(weight := held.get("weight"), Tensor):
            return weight
    if any(hasattr(type(layer), name) for name in _METHODS):
        return None
    weight = getattr(layer, "weight", None)
    return weight if isinstance(weight, Tensor) else None


def device_of(layer: nn.Module) -> torch.device:
    """Return the device of the layer's weight, or of its codes."""
    weight = stored_weight(layer)
    if weight is not None:
        return weight.device
    return next((tensor.device for tensor in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))


def dtype_of(layer: nn.Module) -> torch.dtype | None:
    """Return the dtype of the weight's numbers, or None if the layer has codes instead."""
    weight = stored_weight(layer)
    return None if weight is None or is_coded(layer) else weight.dtype


def decoder_of(layer: Any) -> Decoder | None:
    """Return the decoder of a layer with codes of its own, or None.

    It is None for a layer of numbers and for unknown codes.
    """
    weight = stored_weight(layer)
    if type(layer).forward is nn.Linear.forward and type(weight) in PLAIN_CLASSES:
        return None  # torch multiplies with nothing but numbers
    return next((decoder for decoder in _DECODERS if decoder.knows(layer, weight)), None)


def is_coded(layer: Any) -> bool:
    """Return True if the layer holds codes: integers, tensors of a decoding class, or no weight."""
    weight = stored_weight(layer)
    if weight is None or not weight.is_floating_point() or decoder_of(layer) is not None:
        return True
    return decodes(weight)


def decodes(tensor: Tensor) -> bool:
    """Return True if the tensor's class holds codes and has its own `dequantize`, as in torchao."""
    return type(tensor).dequantize is not Tensor.dequantize


def multiplies_itself(layer: nn.Module) -> bool:
    """Return True if the forward of the layer or its class is not that of torch's Linear."""
    return "forward" in vars(layer) or getattr(type(layer), "forward", None) is not nn.Linear.forward


@torch.no_grad()
def base_product(forward: Callable[..., Tensor], layer: Any, rows: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Return W @ rowsᵀ (out, rank) for rows (rank, in), by the layer's `forward` without its bias.

    The input is that of a training step in `dtype`, since some layers repack their codes for any other. None if the
    layer refuses such an input.
    """
    held = layer._parameters.get("bias")
    if held is not None:
        layer._parameters["bias"] = None
    try:
        with torch.enable_grad():
            return forward(rows.detach().to(dtype).requires_grad_()).detach().t()
    except RuntimeError:  # it may be made for more rows, or for other dtypes, than it is given
        return None
    finally:
        if held is not None:
            layer._parameters["bias"] = held


def is_cheaper_product(rows: int, layer: Any) -> bool:
    """Return True if `base_product` of so many rows costs less than a decoded weight and the passes over it.

    On a CPU both took the same time at 30 to 60 rows, for NF4 and int8 in float32. Elsewhere the limit is an estimate:
    the passes move 16 to 40 bytes for each number, in the time of hundreds of multiplications.
    """
    limit: int = _ROWS_ON_CPU if device_of(layer).type == "cpu" else layer.in_features // 4
    return rows <= limit


# The methods of layers that decode their own weight: (name, call). OneTrainer's take the dtype, and the device that
# decodes; those of ai-toolkit and HQQ take nothing.
_METHODS: dict[str, Callable[[Any], Tensor]] = {
    "unquantized_weight": lambda layer: layer.unquantized_weight(torch.float32, device_of(layer)),
    "dequantize_weight": lambda layer: layer.dequantize_weight(),
    "dequantize": lambda layer: layer.dequantize(),
}


def _by_method(name: str, call: Callable[[Any], Tensor]) -> Decoder:
    return Decoder(lambda layer, weight: hasattr(type(layer), name), lambda layer, weight: call(layer))


def _state_4bit(layer: Any, weight: Any) -> Any:
    """Return the scales of 4-bit codes of bitsandbytes; a shard of FSDP leaves them in the layer."""
    return getattr(weight, "quant_state", None) or getattr(layer, "quant_state", None)


def _values_4bit(layer: Any, weight: Any) -> Tensor:
    functional: Any = sys.modules["bitsandbytes.functional"]
    codes, state = weight.data, _state_4bit(layer, weight)
    if getattr(state, "packing_format_for_cpu", False):
        codes, state = functional._convert_weight_packed_for_cpu_inverse(codes, state)
    values: Tensor = functional.dequantize_4bit(codes, state)
    return values


def _scales_8bit(layer: Any, weight: Any) -> Tensor | None:
    """Return the scales of 8-bit rows of bitsandbytes.

    The first forward moves them from the weight to the layer.
    """
    scales = getattr(weight, "SCB", None)
    return getattr(getattr(layer, "state", None), "SCB", None) if scales is None else scales


def _values_8bit(layer: Any, weight: Any) -> Tensor:
    """Return rows of codes times their largest value over 127.

    Source: LLM.int8 of bitsandbytes.
    """
    scales = _scales_8bit(layer, weight)
    assert scales is not None
    values: Tensor = weight.data.float() * (scales.float() / 127).to(weight.device).view(-1, 1)
    return values


def _gguf_of(weight: Any) -> Any:
    """Return the function of diffusers that decodes its class of GGUF weights, else None."""
    return getattr(sys.modules.get(type(weight).__module__), "dequantize_gguf_tensor", None)


_DECODERS = (
    *(_by_method(name, call) for name, call in _METHODS.items()),
    Decoder(lambda layer, weight: hasattr(_state_4bit(layer, weight), "absmax"), _values_4bit),
    Decoder(lambda layer, weight: _is_int8(weight) and _scales_8bit(layer, weight) is not None, _values_8bit),
    Decoder(lambda layer, weight: _gguf_of(weight) is not None, lambda layer, weight: _gguf_of(weight)(weight)),
)


def _is_int8(weight: Any) -> bool:
    return weight is not None and weight.dtype == torch.int8
