"""LoRA of LyCORIS (LoCon) and of PEFT: scale · up @ down, and DoRA over either axis."""

from collections.abc import Iterator

import peft
import torch
from libraries import of_lycoris, of_peft
from library_case import LAYERS, Case, decomposed
from lycoris.modules.locon import LoConModule
from peft.tuners.lora.config import MontecloraConfig, VeloraConfig
from torch import Tensor, nn

from networks.modules.lora_module import LoRAModule

RANK, ALPHA = 4, 3.0


def delta(up: Tensor, down: Tensor, mid: Tensor | None, shape: torch.Size) -> Tensor:
    flat_up = up.flatten(1)
    if mid is None:
        return (flat_up @ down.flatten(1)).view(shape)
    return torch.einsum("op,pq...,qi->oi...", flat_up, mid, down.flatten(1)).reshape(shape)


def of_keys(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
    weight = layer.weight.detach()
    factors = (tensors[f"lora_{role}.weight"] for role in ("up", "down"))
    change = float(tensors["alpha"]) / RANK * delta(*factors, tensors.get("lora_mid.weight"), weight.shape)
    if "dora_scale" not in tensors:
        return {"layer.weight": weight + multiplier * change}
    scale = tensors["dora_scale"]
    axis = 0 if scale.shape[0] == weight.shape[0] else 1
    return {"layer.weight": decomposed(weight, change, scale.reshape(-1), axis, multiplier, "lycoris")}


def of_peft_keys(scale: float):
    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        weight = layer.weight.detach()
        change = scale * delta(tensors["layer.lora_B.weight"], tensors["layer.lora_A.weight"], None, weight.shape)
        magnitude = tensors.get("layer.lora_magnitude_vector")
        if magnitude is None:
            return {"layer.weight": weight + multiplier * change}
        return {"layer.weight": decomposed(weight, change, magnitude.reshape(-1), 0, multiplier, "inside")}

    return oracle


def own(layer: nn.Module, tensors: dict[str, Tensor], multiplier: float, input: Tensor) -> Tensor:
    module = LoRAModule("layer", layer, multiplier, RANK, ALPHA).double()
    module.load_state_dict(tensors)
    module.apply_to()
    with torch.no_grad():
        return layer(input)


def cases() -> Iterator[Case]:
    for kind in LAYERS:
        yield of_lycoris("LoCon", LoConModule, kind, of_keys, forward=own, lora_dim=RANK, alpha=ALPHA)
    for kind in ("conv 3x3", "conv1d", "conv3d"):
        yield of_lycoris("Tucker", LoConModule, kind, of_keys, lora_dim=RANK, alpha=ALPHA, use_tucker=True)
    for kind in ("linear", "square", "conv 3x3", "conv1d"):
        for on_out in (True, False):
            yield of_lycoris(
                f"DoRA on {'output' if on_out else 'input'}",
                LoConModule,
                kind,
                of_keys,
                dtype=torch.float32,
                fields={"dora_rule": "lycoris"},
                lora_dim=RANK,
                alpha=ALPHA,
                weight_decompose=True,
                wd_on_out=on_out,
            )
    options = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["layer"]}
    for kind in LAYERS:
        yield of_peft("LoRA", peft.LoraConfig(**options), kind, of_peft_keys(ALPHA / RANK))
        yield of_peft("RS-LoRA", peft.LoraConfig(**options, use_rslora=True), kind, of_peft_keys(ALPHA / RANK**0.5))
        yield of_peft("DoRA", peft.LoraConfig(**options, use_dora=True), kind, of_peft_keys(ALPHA / RANK))
    # What these two keep for further training makes no difference to what was trained.
    monteclora = peft.LoraConfig(**options, monteclora_config=MontecloraConfig())
    velora = peft.LoraConfig(**options, velora_config=VeloraConfig(num_groups=4))
    for kind in ("linear", "square"):
        yield of_peft("MonteCLoRA", monteclora, kind, of_peft_keys(ALPHA / RANK))
        yield of_peft("VeLoRA", velora, kind, of_peft_keys(ALPHA / RANK))
