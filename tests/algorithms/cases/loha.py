"""LoHa of LyCORIS and of PEFT: scale · (w1_a @ w1_b) ⊙ (w2_a @ w2_b), Tucker cores, and DoRA over either axis."""

from collections.abc import Iterator

import peft
import torch
from libraries import of_lycoris, of_peft
from library_case import LAYERS, Case, decomposed
from lycoris.modules.loha import LohaModule
from torch import Tensor, nn

from networks.loha import LoHaModule

RANK, ALPHA = 4, 3.0
CONVOLUTIONS = [kind for kind in LAYERS if kind.startswith("conv") and kind != "conv 1x1"]


def delta(factors: dict[str, Tensor], shape: torch.Size) -> Tensor:
    """The two products multiplied; with cores each is Σ_ij t[i, j, …] w_a[i, o] w_b[j, c]."""
    products = []
    for number in (1, 2):
        left, right = factors[f"w{number}_a"], factors[f"w{number}_b"]
        core = factors.get(f"t{number}")
        products.append(left @ right if core is None else torch.einsum("ij...,io,jc->oc...", core, left, right))
    return (products[0] * products[1]).reshape(shape)


def of_keys(scale: float, prefix: str = "", rule: str = "lycoris"):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        weight = layer.weight.detach()
        factors = {key.removeprefix(prefix + "hada_"): tensor for key, tensor in tensors.items()}
        change = scale * delta(factors, weight.shape)
        if "dora_scale" not in tensors:
            return {"layer.weight": weight + multiplier * change}
        magnitude = tensors["dora_scale"]
        axis = 0 if magnitude.shape[0] == weight.shape[0] else 1
        return {"layer.weight": decomposed(weight, change, magnitude.reshape(-1), axis, multiplier, rule)}

    return oracle


def own(layer: nn.Module, tensors: dict[str, Tensor], multiplier: float, input: Tensor) -> Tensor:
    module = LoHaModule("layer", layer, multiplier, RANK, ALPHA).double()
    module.load_state_dict(tensors)
    module.apply_to()
    with torch.no_grad():
        return layer(input)


def made(title: str, kind: str, scale: float = ALPHA / RANK, **options) -> Case:
    fields = {key: options.pop(key) for key in ("forward", "dtype", "fields") if key in options}
    return of_lycoris(title, LohaModule, kind, of_keys(scale), **fields, lora_dim=RANK, alpha=ALPHA, **options)


def cases() -> Iterator[Case]:
    for kind in LAYERS:
        yield made("LoHa", kind, forward=own)
    for kind in CONVOLUTIONS:
        yield made("Tucker", kind, use_tucker=True)
    yield made("RS-LoRA", "linear", ALPHA / RANK**0.5, rs_lora=True)
    yield made("scalar", "conv 3x3", use_scalar=True)
    decomposed_in: dict[str, object] = {"dtype": torch.float32, "fields": {"dora_rule": "lycoris"}}
    for kind in ("linear", "square", *CONVOLUTIONS):
        for on_out in (True, False):
            title = f"DoRA on {'output' if on_out else 'input'}"
            for tucker in (False, True) if kind in CONVOLUTIONS else (False,):
                options = {"weight_decompose": True, "wd_on_out": on_out, "use_tucker": tucker}
                yield made(f"{title}{' Tucker' if tucker else ''}", kind, **decomposed_in, **options)
    for kind in ("linear", "square", "conv1d", "conv 1x1", "conv 3x3"):
        for effective in (False, True) if kind.startswith("conv") else (False,):
            yield of_config(f"LoHa{' effective' if effective else ''}", kind, use_effective_conv2d=effective)
    yield of_config("patterns", "linear", 5.0 / 2, rank_pattern={"layer": 2}, alpha_pattern={"layer": 5.0})


def of_config(title: str, kind: str, scale: float = ALPHA / RANK, **options) -> Case:
    config = peft.LoHaConfig(r=RANK, alpha=ALPHA, target_modules=["layer"], init_weights=False, **options)
    return of_peft(title, config, kind, of_keys(scale, "layer."))
