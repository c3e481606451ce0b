"""Adapters that PEFT and diffusers save, converted for programs with the original layout and merged into its bases.

What is expected is PEFT's own merge into the layers of diffusers, whose own converters make these layers of the base.
"""

import copy
import warnings

import layouts
import pytest
import torch
from adapter_files import factors_of
from diffusers.training_utils import _collate_lora_metadata
from diffusers_cases import lora_pipeline
from diffusers_families import LOADERS, says
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import nn

pytestmark = [pytest.mark.numeric, pytest.mark.slow]

# The families whose layers diffusers converts, but for Lumina 2, of which its converter knows one width.
FAMILIES = [*layouts.NARROW, "flux"]


class Layers(nn.Module):
    """The layers of a base at their paths."""

    def __init__(self, base) -> None:
        super().__init__()
        for path in layouts.matrices(base):
            parent: nn.Module = self
            *names, last = path.split(".")
            for name in names:
                if not hasattr(parent, name):
                    parent.add_module(name, nn.Module())
                parent = getattr(parent, name)
            weight = base[f"{path}.weight"]
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight.data.copy_(weight)
            parent.add_module(last, layer)


def base_of(family):
    """(a base in the original layout, what diffusers makes of such a base)."""
    if family == "flux":
        return layouts.flux(blocks=2, width=4), layouts.flux_in_diffusers
    return layouts.synthetic(family), lambda base: layouts.in_diffusers(family, base)


def trained(own, use_rslora, use_dora):
    """PEFT's model of the layers, with ranks and alphas of their own."""
    layers = Layers(own)
    adapter = factors_of({path: tuple(own[f"{path}.weight"].shape) for path in layouts.matrices(own)})
    config = LoraConfig(
        r=8,
        lora_alpha=4,
        target_modules=sorted(adapter),
        rank_pattern={f"^{path}": len(one.down) for path, one in adapter.items()},
        alpha_pattern={f"^{path}": one.alpha for path, one in adapter.items()},
        use_rslora=use_rslora,
        use_dora=use_dora,
    )
    model = get_peft_model(layers, config).eval()
    numbers = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            # Away from 0, so that the few numbers of a small layer change it too.
            drawn = torch.randn(parameter.shape, generator=numbers)
            parameter.data.copy_(0.3 * (drawn + drawn.sign() / 2))
        elif "magnitude" in name:
            parameter.data.mul_(1 + torch.rand(parameter.shape, generator=numbers))
    return model


def saved_by_peft(family, model, folder):
    """PEFT's own folder; no file of it says the family."""
    model.save_pretrained(folder)
    return folder


def saved_by_diffusers(family, model, folder):
    """The file of a pipeline, with the config in its metadata."""
    # The pipeline of Anima, whose model is Cosmos's, only loads.
    loader = getattr(lora_pipeline, LOADERS["cosmos" if family == "anima" else family])
    state = {key.removeprefix("base_model.model."): value for key, value in get_peft_model_state_dict(model).items()}
    metadata = _collate_lora_metadata({"transformer": model})
    loader.save_lora_weights(folder, transformer_lora_layers=state, weight_name="in.safetensors", **metadata)
    return folder / "in.safetensors"


@pytest.mark.parametrize(("kind", "save"), [("rslora", saved_by_peft), ("dora", saved_by_diffusers)])
@pytest.mark.parametrize("scheme", ["comfyui", "kohya"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_what_a_library_saves(family, scheme, kind, save, run, tmp_path):
    base, in_diffusers = base_of(family)
    own = in_diffusers(base)
    model = trained(own, kind == "rslora", kind == "dora")
    file = save(family, model, tmp_path)
    save_file(base, tmp_path / "base.safetensors", says(family))
    named = ("--architecture", family)
    options = ("--keep-dora",) if kind == "dora" else ()
    out = tmp_path / "out.safetensors"
    for command in (
        ("convert", file, "--to", scheme, *named, *options, "-o", out),
        ("merge", tmp_path / "base.safetensors", out, "-o", tmp_path / "merged.safetensors"),
    ):
        ended = run(*command)
        assert ended.status == 0, ended.stderr
    found = in_diffusers(load_file(tmp_path / "merged.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        meant = copy.deepcopy(model).merge_and_unload().state_dict()
    for path in layouts.matrices(own):
        name = f"{path}.weight"
        assert (found[name] - meant[name]).abs().max() < 1e-5 * meant[name].abs().max(), name
        assert (own[name] - meant[name]).abs().max() > 1e-3 * meant[name].abs().max(), name
