"""One adapter as every program spells it, on the bases of both layouts: the merge is the same."""

import json

import layouts
import pytest
from adapters import DEFAULT, KOHYA, PEFT, Names, Spelling, assert_within, expected, factors
from layouts import FUSED, SPLIT
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.numeric
ORIGINAL, DIFFUSERS = "original", "diffusers"
OLD = Spelling(".lora.down.weight", ".lora.up.weight")
OLDEST = Spelling(".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")

# who writes it -> the names, and whether there is an alpha
SPELLINGS = {
    "kohya": (Names("lora_unet_", ORIGINAL, True, KOHYA), True),
    "kohya without alpha": (Names("lora_unet_", ORIGINAL, True, KOHYA), False),
    "kohya's names with PEFT's factors": (Names("lora_unet_", ORIGINAL, True, PEFT), True),
    "Wan-Fun": (Names("lora_unet__", ORIGINAL, True, KOHYA), True),
    "kohya over the names of diffusers": (Names("lora_unet_", DIFFUSERS, True, KOHYA), True),
    "OneTrainer, its own": (Names("lora_transformer_", DIFFUSERS, True, KOHYA), True),
    "OneTrainer, original": (Names("", ORIGINAL, False, PEFT), True),
    "OneTrainer, ComfyUI": (Names("diffusion_model.", ORIGINAL, False, PEFT), True),
    "ComfyUI": (Names("diffusion_model.", ORIGINAL, False, KOHYA), True),
    "ai-toolkit": (Names("diffusion_model.", ORIGINAL, False, PEFT), False),
    "ai-toolkit over the names of diffusers": (Names("diffusion_model.", DIFFUSERS, False, PEFT), False),
    "ai-toolkit, FLUX": (Names("transformer.", DIFFUSERS, False, PEFT), False),
    "diffusers": (Names("transformer.", DIFFUSERS, False, PEFT), False),
    "diffusers with the factors of kohya": (Names("transformer.", DIFFUSERS, False, KOHYA), True),
    "diffusers of 2023": (Names("transformer.", DIFFUSERS, False, OLD), False),
    "the first diffusers for text encoders": (Names("transformer.", DIFFUSERS, False, OLDEST), False),
    "LyCORIS, SimpleTuner": (Names("lycoris_", DIFFUSERS, True, KOHYA), True),
    "LyCORIS over the original": (Names("lycoris_", ORIGINAL, True, KOHYA), True),
    "DiffSynth-Studio": (Names("", ORIGINAL, False, DEFAULT), False),
    "a dump of PEFT's model": (Names("transformer.", DIFFUSERS, False, DEFAULT), False),
    "bare names": (Names("", ORIGINAL, False, PEFT), False),
    "bare names of diffusers": (Names("", DIFFUSERS, False, KOHYA), True),
    "Mochi": (Names("", ORIGINAL, False, Spelling(".lora_A", ".lora_B")), False),
    "PEFT": (Names("base_model.model.", DIFFUSERS, False, PEFT), False),
    "PEFT with the adapter's name": (Names("base_model.model.", DIFFUSERS, False, DEFAULT), False),
    "fal": (Names("base_model.model.", ORIGINAL, False, PEFT), False),
}  # fmt: skip


@pytest.fixture(scope="module")
def bases():
    original = layouts.flux(blocks=2, width=4)
    return {ORIGINAL: original, DIFFUSERS: layouts.flux_in_diffusers(original)}


# One of every scheme on a base whose names are none of its own.
CROSSING = ("kohya", "OneTrainer, its own", "ComfyUI", "diffusers", "LyCORIS, SimpleTuner", "bare names", "PEFT")
CASES = [*((writer, False) for writer in SPELLINGS), *((writer, True) for writer in CROSSING)]


@pytest.mark.parametrize(("writer", "other"), CASES, ids=[f"{w}, across layouts" if o else w for w, o in CASES])
def test_the_merge_is_the_same(writer, other, bases, tmp_path, run):
    names, has_alpha = SPELLINGS[writer]
    layout, own = names.layout, bases[names.layout]
    adapter = factors(own, FUSED if layout == ORIGINAL else SPLIT)
    if not has_alpha:
        adapter = {path: one._replace(alpha=one.down.shape[0]) for path, one in adapter.items()}
    is_peft = names.prefix == "base_model.model."
    file = tmp_path / ("adapter_model.safetensors" if is_peft else "adapter.safetensors")
    save_file(names.tensors(adapter, has_alpha=has_alpha), file, {"ss_base_model_version": "flux1"})
    if is_peft:
        ranks = {f"^{path}": one.down.shape[0] for path, one in adapter.items()}
        config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": "all-linear"}
        (tmp_path / "adapter_config.json").write_text(
            json.dumps({**config, "rank_pattern": ranks, "alpha_pattern": ranks})
        )

    base = bases[DIFFUSERS if (layout == ORIGINAL) == other else ORIGINAL]
    save_file({name: value.contiguous() for name, value in base.items()}, tmp_path / "base.safetensors")
    out = tmp_path / "out.safetensors"
    ended = run("merge", tmp_path / "base.safetensors", f"{file}:0.5", "-o", out)
    assert ended.status == 0, ended.stderr
    found, (values, bounds) = load_file(out), expected(own, adapter, 0.5, interpolate=False)
    if layout == DIFFUSERS and other:
        found = layouts.flux_in_diffusers(found)
    elif other:
        values, bounds = layouts.flux_in_diffusers(values), layouts.flux_in_diffusers(bounds)
    assert_within(found, values, bounds)
