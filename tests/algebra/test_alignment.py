"""Two adapters of one model as any two programs spell them: every module of the sum is that of the dense changes."""

import json

import layouts
import numpy
import pytest
import torch
from adapters import DEFAULT, KOHYA, PEFT, Names, Spelling, factors
from layouts import FUSED, SPLIT
from safetensors.torch import save_file

from lora_inspect.algebra.alignment import MultipliedAdapter, aligned
from lora_inspect.algebra.changes import sum_of
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter

ORIGINAL, DIFFUSERS = "original", "diffusers"
OLD = Spelling(".lora.down.weight", ".lora.up.weight")
# who writes it -> the names, and whether there is an alpha
SPELLINGS = {
    "kohya": (Names("lora_unet_", ORIGINAL, True, KOHYA), True),
    "kohya over the names of diffusers": (Names("lora_unet_", DIFFUSERS, True, KOHYA), True),
    "OneTrainer": (Names("lora_transformer_", DIFFUSERS, True, KOHYA), True),
    "ComfyUI": (Names("diffusion_model.", ORIGINAL, False, KOHYA), True),
    "ai-toolkit": (Names("transformer.", DIFFUSERS, False, PEFT), False),
    "diffusers of 2023": (Names("transformer.", DIFFUSERS, False, OLD), False),
    "LyCORIS": (Names("lycoris_", DIFFUSERS, True, KOHYA), True),
    "bare names": (Names("", ORIGINAL, False, PEFT), False),
    "PEFT": (Names("base_model.model.", DIFFUSERS, False, DEFAULT), False),
}  # fmt: skip
FIRST = ("kohya", "ai-toolkit", "PEFT", "bare names")


@pytest.fixture(scope="module")
def bases():
    original = layouts.flux(blocks=2, width=4)
    return {ORIGINAL: original, DIFFUSERS: layouts.flux_in_diffusers(original)}


class Written:
    """An adapter of a model's layers in a file, and what it changes in the layout of diffusers."""

    def __init__(self, writer, bases, folder, seed):
        names, has_alpha = SPELLINGS[writer]
        base = bases[names.layout]
        own = factors(base, FUSED if names.layout == ORIGINAL else SPLIT, seed=seed)
        if not has_alpha:
            own = {path: one._replace(alpha=one.down.shape[0]) for path, one in own.items()}
        is_peft = names.prefix == "base_model.model."
        folder.mkdir()
        file = folder / ("adapter_model.safetensors" if is_peft else "adapter.safetensors")
        save_file(names.tensors(own, has_alpha=has_alpha), file, {"ss_base_model_version": "flux1"})
        if is_peft:
            ranks = {f"^{path}": one.down.shape[0] for path, one in own.items()}
            config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": "all-linear"}
            text = json.dumps({**config, "rank_pattern": ranks, "alpha_pattern": ranks})
            (folder / "adapter_config.json").write_text(text)
        self.layout, self.names = names.layout, names
        self.adapter = read_adapter(open_checkpoint(str(file)))
        self.own = set(own)
        self.keys = {names.module(path): path for path in layouts.matrices(base)}
        self.dense = in_diffusers({path: change(one) for path, one in own.items()}, base, names.layout)


def change(one):
    down, up = one.down.double(), one.up.double()
    return (up.flatten(1) @ down.flatten(1)) * (one.alpha / down.shape[0])


def in_diffusers(changes, base, layout):
    """Changes by path, of a layout, as those of the weights of diffusers; zeros where there is none."""
    whole = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in base.items()}
    whole |= {f"{path}.weight": torch.as_tensor(value) for path, value in changes.items()}
    return layouts.flux_in_diffusers(whole) if layout == ORIGINAL else whole


def multiplied(written, multiplier):
    return MultipliedAdapter(written.adapter, dict.fromkeys(written.adapter.modules, multiplier))


@pytest.mark.parametrize("second", SPELLINGS)
@pytest.mark.parametrize("first", FIRST)
def test_the_sum_is_that_of_the_dense_changes(first, second, bases, tmp_path):
    one, other = (Written(writer, bases, tmp_path / f"{seed}", seed) for seed, writer in enumerate((first, second)))
    modules = aligned([multiplied(one, 0.7), multiplied(other, -0.4)], ConvertOptions())
    found = {}
    for module in modules:
        own = sum_of(module)
        found[one.keys[module.module.name.key]] = own.up * own.weights @ own.down
    assert one.own <= found.keys()
    summed = in_diffusers(found, bases[one.layout], one.layout)
    for name, value in summed.items():
        meant = 0.7 * one.dense[name] - 0.4 * other.dense[name]
        numpy.testing.assert_allclose(value.numpy(), meant.numpy(), rtol=1e-6, atol=1e-7, err_msg=name)
    assert max(float(value.abs().max()) for value in summed.values()) > 0.01
