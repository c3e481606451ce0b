"""Files whose names other programs match in part, or read as all of one kind: the whole of each is merged."""

import layouts
import pytest
import torch
from adapters import assert_within, dotted, expected, factors, kohya

pytestmark = pytest.mark.numeric
# What musubi-tuner trains, the repository's own names, and what ComfyUI calls the same layers.
HUNYUAN = {
    "double_blocks.0.img_attn_qkv": "double_blocks.0.img_attn.qkv",
    "double_blocks.0.txt_attn_proj": "double_blocks.0.txt_attn.proj",
    "double_blocks.0.img_mlp.fc1": "double_blocks.0.img_mlp.0",
    "double_blocks.1.txt_mlp.fc2": "double_blocks.1.txt_mlp.2",
    "double_blocks.1.img_mod.linear": "double_blocks.1.img_mod.lin",
    "single_blocks.0.linear1": "single_blocks.0.linear1",
    "single_blocks.1.modulation.linear": "single_blocks.1.modulation.lin",
}


def test_hunyuan_video_of_musubi_on_the_names_of_comfyui(merged):
    """Trap 16."""
    own = layouts.tensors({f"{path}.weight": (6, 4) for path in HUNYUAN})
    comfyui = {f"{HUNYUAN[name.removesuffix('.weight')]}.weight": value for name, value in own.items()}
    adapter = factors(own, list(HUNYUAN))
    found = merged(comfyui, kohya("lora_unet_", adapter), 0.5)
    back = {f"{path}.weight": found[f"{theirs}.weight"] for path, theirs in HUNYUAN.items()}
    assert_within(back, *expected(own, adapter, 0.5, interpolate=False))


def test_z_image_of_musubi_on_the_original_names(merged):
    """Trap 17: musubi-tuner trains the class of diffusers, and the base has query, key and value in one weight."""
    base = layouts.synthetic("z_image")
    own = layouts.in_diffusers("z_image", base)
    adapter = factors(own, layouts.matrices(own))
    assert any(path.endswith("attention.to_q") for path in adapter)
    found = layouts.in_diffusers("z_image", merged(base, kohya("lora_unet_", adapter), 0.5))
    assert_within(found, *expected(own, adapter, 0.5, interpolate=False))


@pytest.mark.parametrize("first", ["lora", "lokr"])
def test_modules_of_two_algorithms_are_each_their_own(first, merged):
    """Trap 19."""
    base = layouts.tensors({"blocks.0.q.weight": (6, 4), "blocks.0.k.weight": (6, 4)})
    numbers = layouts.tensors({"down": (2, 4), "up": (6, 2), "w1": (2, 2), "w2": (3, 2)}, seed=4)
    lora = {f"lora_unet_blocks_0_q.lora_{side}.weight": numbers[side] for side in ("down", "up")}
    lora["lora_unet_blocks_0_q.alpha"] = torch.tensor(1.0)
    lokr = {f"lora_unet_blocks_0_k.lokr_{side}": numbers[side] for side in ("w1", "w2")}
    lokr["lora_unet_blocks_0_k.alpha"] = torch.tensor(8.0)
    found = merged(base, lora | lokr if first == "lora" else lokr | lora)
    changes = {
        "q": numbers["up"].double() @ numbers["down"].double() / 2,
        "k": torch.kron(numbers["w1"], numbers["w2"]),
    }
    for leaf, change in changes.items():
        name = f"blocks.0.{leaf}.weight"
        torch.testing.assert_close(found[name].double(), base[name] + change.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prefix", ["transformer.", "diffusion_model.", "base_model.model.", ""])
def test_an_alpha_beside_the_factors_of_peft_counts(prefix, merged):
    """Trap 22."""
    base = layouts.tensors({"transformer_blocks.0.attn.to_q.weight": (6, 4)})
    adapter = factors(base, ["transformer_blocks.0.attn.to_q"])
    (own,) = adapter.values()
    assert own.alpha != own.down.shape[0]
    assert_within(merged(base, dotted(prefix, adapter)), *expected(base, adapter, 1.0, interpolate=False))
