"""FourierFT, whose entries are drawn for a whole layer, on a base that has the layer as a part of a fused one."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

BLOCK = "transformer_blocks.0.attn.to_"


@pytest.mark.parametrize("leaf", ["q", "k", "v"])
def test_a_part_of_a_fused_layer_is_changed_as_the_layer_is(leaf, run, tmp_path):
    parts = {name: torch.randn(8, 8) for name in "qkv"}
    split = {f"{BLOCK}{name}.weight": weight for name, weight in parts.items()}
    save_file({**split, f"{BLOCK}out.0.weight": torch.randn(8, 8)}, tmp_path / "split.safetensors")
    fused = {"qkv": torch.cat([*parts.values()]), "proj": torch.randn(8, 8)}
    fused = {f"double_blocks.0.img_attn.{name}.weight": weight for name, weight in fused.items()}
    save_file(fused, tmp_path / "fused.safetensors")
    (tmp_path / "adapter").mkdir()
    tensors = {f"base_model.model.{BLOCK}{leaf}.fourierft_spectrum": torch.randn(10)}
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "FOURIERFT", "scaling": 150.0, "random_loc_seed": 777, "target_modules": [f"to_{leaf}"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    found = {}
    for base in ("split", "fused"):
        output = tmp_path / f"merged-{base}.safetensors"
        assert run("merge", tmp_path / f"{base}.safetensors", tmp_path / "adapter", "-o", output).status == 0
        found |= load_file(output)
    changed = [found[key] for key in split]
    assert torch.equal(found["double_blocks.0.img_attn.qkv.weight"], torch.cat(changed))
    same = [torch.equal(new, old) for new, old in zip(changed, parts.values(), strict=True)]
    assert same == [name != leaf for name in "qkv"]
