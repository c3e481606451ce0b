"""LoKr of LyCORIS and of PEFT: scale · w1 ⊗ w2 in all their forms, and DoRA over either axis."""

from collections.abc import Iterator
from math import prod

import peft
import torch
from libraries import of_lycoris, of_peft
from library_case import LAYERS, WIDE, Case, decomposed
from lycoris.modules.lokr import LokrModule
from torch import Tensor, nn

from networks.lokr import LoKrModule

RANK, ALPHA = 2, 3.0
CONVOLUTIONS = [kind for kind in WIDE if "conv" in kind]


def factor(tensors: dict[str, Tensor], name: str, kernel: tuple[int, ...]) -> Tensor:
    """w1 or w2 as (out, in, kernel); with a core w2 is Σ_ij t2[i, j, …] w2_a[i, o] w2_b[j, c]."""
    if name in tensors:
        whole = tensors[name]
    elif name == "w2" and "t2" in tensors:
        whole = torch.einsum("ij...,io,jc->oc...", tensors["t2"], tensors["w2_a"], tensors["w2_b"])
    else:
        whole = tensors[f"{name}_a"] @ tensors[f"{name}_b"]
    return whole.reshape(whole.shape[0], -1, prod(kernel))


def of_keys(scale: float | None = None, prefix: str = ""):
    """The formula written out; the scale is ALPHA/RANK, and 1 for whole factors, where it is not given."""

    def oracle(tensors: dict[str, Tensor], layer: nn.Module, multiplier: float) -> dict[str, Tensor]:
        weight = layer.weight.detach()
        factors = {key.removeprefix(prefix + "lokr_"): tensor for key, tensor in tensors.items()}
        small, large = factor(factors, "w1", ()), factor(factors, "w2", weight.shape[2:])
        change = torch.einsum("abz,cdk->acbdk", small, large).reshape(weight.shape)
        is_whole = "w1" in factors and "w2" in factors
        change = change * (scale or (1.0 if is_whole else ALPHA / RANK))
        if "dora_scale" not in tensors:
            return {"layer.weight": weight + multiplier * change}
        magnitude = tensors["dora_scale"]
        axis = 0 if magnitude.shape[0] == weight.shape[0] else 1
        return {"layer.weight": decomposed(weight, change, magnitude.reshape(-1), axis, multiplier, "lycoris")}

    return oracle


def own(layer: nn.Module, tensors: dict[str, Tensor], multiplier: float, input: Tensor) -> Tensor:
    module = LoKrModule("layer", layer, multiplier, RANK, ALPHA).double()
    module.load_state_dict(tensors)
    module.apply_to()
    with torch.no_grad():
        return layer(input)


def made(title: str, kind: str, scale: float | None = None, rank: int = RANK, **options) -> Case:
    fields = {key: options.pop(key) for key in ("forward", "dtype", "fields") if key in options}
    return of_lycoris(title, LokrModule, kind, of_keys(scale), **fields, lora_dim=rank, alpha=ALPHA, **options)


def cases() -> Iterator[Case]:
    for kind in (*LAYERS, *WIDE):
        yield made("LoKr", kind, forward=own)
    for kind in WIDE:
        yield made("whole", kind, full_matrix=True)
        yield made("both", kind, decompose_both=True)
        yield made("unbalanced", kind, unbalanced_factorization=True, decompose_both=True)
        yield made("by 3", kind, factor=3)
    yield made("both around a whole one", "wide linear", decompose_both=True, factor=5, unbalanced_factorization=True)
    for kind in CONVOLUTIONS:
        yield made("Tucker", kind, use_tucker=True)
        yield made("Tucker both", kind, use_tucker=True, decompose_both=True)
    yield made("RS-LoRA", "wide linear", ALPHA / 2, rank=4, factor=2, rs_lora=True)
    yield made("scalar", "wide conv 3x3", use_scalar=True)
    decomposed_in: dict[str, object] = {"dtype": torch.float32, "fields": {"dora_rule": "lycoris"}}
    for kind in ("square", *WIDE):
        for on_out in (True, False):
            title = f"DoRA on {'output' if on_out else 'input'}"
            for form in ({}, {"full_matrix": True}, {"use_tucker": True}) if "conv" in kind else ({},):
                yield made(
                    " ".join([title, *form]), kind, **decomposed_in, weight_decompose=True, wd_on_out=on_out, **form
                )
    for kind in ("linear", "square", "conv 1x1", "conv 3x3", *WIDE):
        if kind != "wide conv3d":
            yield of_config("LoKr", kind)
            yield of_config("both", kind, decompose_both=True)
            yield of_config("by 5", kind, decompose_factor=5 if "wide" in kind else 3)
    for kind in ("wide conv1d", "wide conv 3x3"):
        yield of_config("effective", kind, use_effective_conv2d=True)
    yield of_config("whole by its rank", "wide linear", ALPHA / 20, r=20)
    patterns = {"rank_pattern": {"layer": 20}, "alpha_pattern": {"layer": 5.0}}
    yield of_config("whole by patterns", "wide conv 3x3", 5.0 / 20, **patterns)
    yield of_config("patterns", "wide linear", 5.0, rank_pattern={"layer": 1}, alpha_pattern={"layer": 5.0})


def of_config(title: str, kind: str, scale: float = ALPHA / RANK, **options) -> Case:
    options = {"r": RANK, "alpha": ALPHA, **options}
    config = peft.LoKrConfig(**options, target_modules=["layer"], init_weights=False)
    return of_peft(title, config, kind, of_keys(scale, "layer."))
