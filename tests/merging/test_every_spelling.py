"""One adapter as every program spells it, on the bases of both layouts: the merge is the same."""

import json

import layouts
import pytest
from adapters import assert_within, expected, factors
from layouts import FUSED, SPLIT
from safetensors.torch import load_file, save_file
from torch import tensor

pytestmark = pytest.mark.numeric
UD = (".lora_down.weight", ".lora_up.weight")
AB = (".lora_A.weight", ".lora_B.weight")
DEFAULT = (".lora_A.default.weight", ".lora_B.default.weight")
ORIGINAL, DIFFUSERS = "original", "diffusers"

# who writes it -> layout of the names, prefix, whether underscored, suffixes of the factors, whether there is an alpha
SPELLINGS = {
    "kohya": (ORIGINAL, "lora_unet_", True, UD, True),
    "kohya without alpha": (ORIGINAL, "lora_unet_", True, UD, False),
    "kohya's names with PEFT's factors": (ORIGINAL, "lora_unet_", True, AB, True),
    "Wan-Fun": (ORIGINAL, "lora_unet__", True, UD, True),
    "kohya over the names of diffusers": (DIFFUSERS, "lora_unet_", True, UD, True),
    "OneTrainer, its own": (DIFFUSERS, "lora_transformer_", True, UD, True),
    "OneTrainer, original": (ORIGINAL, "", False, AB, True),
    "OneTrainer, ComfyUI": (ORIGINAL, "diffusion_model.", False, AB, True),
    "ComfyUI": (ORIGINAL, "diffusion_model.", False, UD, True),
    "ai-toolkit": (ORIGINAL, "diffusion_model.", False, AB, False),
    "ai-toolkit over the names of diffusers": (DIFFUSERS, "diffusion_model.", False, AB, False),
    "ai-toolkit, FLUX": (DIFFUSERS, "transformer.", False, AB, False),
    "diffusers": (DIFFUSERS, "transformer.", False, AB, False),
    "diffusers with the factors of kohya": (DIFFUSERS, "transformer.", False, UD, True),
    "diffusers of 2023": (DIFFUSERS, "transformer.", False, (".lora.down.weight", ".lora.up.weight"), False),
    "the first diffusers for text encoders": (
        DIFFUSERS, "transformer.", False, (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"), False),
    "LyCORIS, SimpleTuner": (DIFFUSERS, "lycoris_", True, UD, True),
    "LyCORIS over the original": (ORIGINAL, "lycoris_", True, UD, True),
    "DiffSynth-Studio": (ORIGINAL, "", False, DEFAULT, False),
    "a dump of PEFT's model": (DIFFUSERS, "transformer.", False, DEFAULT, False),
    "bare names": (ORIGINAL, "", False, AB, False),
    "bare names of diffusers": (DIFFUSERS, "", False, UD, True),
    "Mochi": (ORIGINAL, "", False, (".lora_A", ".lora_B"), False),
    "PEFT": (DIFFUSERS, "base_model.model.", False, AB, False),
    "PEFT with the adapter's name": (DIFFUSERS, "base_model.model.", False, DEFAULT, False),
    "fal": (ORIGINAL, "base_model.model.", False, AB, False),
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
    layout, prefix, is_flat, (down, up), has_alpha = SPELLINGS[writer]
    own = bases[layout]
    adapter = factors(own, FUSED if layout == ORIGINAL else SPLIT)
    if not has_alpha:
        adapter = {path: one._replace(alpha=one.down.shape[0]) for path, one in adapter.items()}
    tensors = {}
    for path, one in adapter.items():
        name = prefix + (path.replace(".", "_") if is_flat else path)
        tensors |= {name + down: one.down, name + up: one.up}
        if has_alpha:
            tensors[f"{name}.alpha"] = tensor(one.alpha)
    is_peft = prefix == "base_model.model."
    file = tmp_path / ("adapter_model.safetensors" if is_peft else "adapter.safetensors")
    save_file(tensors, file, {"ss_base_model_version": "flux1"})
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
