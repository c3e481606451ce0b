"""Merges into the experts of gpt-oss in mxfp4, against merges into what transformers unpacks them to."""

import json

import pytest
import torch
from adapters import drawn
from safetensors.torch import load_file, save_file

from lora_inspect.maths.tensors import RowBlocks
from lora_inspect.merging import fold

transformers = pytest.importorskip("transformers.integrations.mxfp4")
pytestmark = pytest.mark.numeric

EXPERTS, WIDTH, INNER, RANK = 3, 64, 32, 2
LAYER = "model.layers.0"
EXPERT_PARAMETERS = {
    f"{LAYER}.mlp.experts.gate_up_proj": (2 * INNER, WIDTH),
    f"{LAYER}.mlp.experts.down_proj": (WIDTH, INNER),
}


def others():
    return {
        f"{LAYER}.self_attn.q_proj.weight": drawn(1, WIDTH, WIDTH + 32),
        f"{LAYER}.mlp.router.weight": drawn(2, EXPERTS, WIDTH),
        f"{LAYER}.mlp.experts.gate_up_proj_bias": drawn(3, EXPERTS, 2 * INNER),
        f"{LAYER}.mlp.experts.down_proj_bias": drawn(4, EXPERTS, WIDTH),
    }


@pytest.fixture
def packed():
    tensors = others()
    for seed, (name, (out, inputs)) in enumerate(EXPERT_PARAMETERS.items()):
        generator = torch.Generator().manual_seed(seed)
        shape = EXPERTS, out, inputs // 32
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=generator)
        tensors[f"{name}_scales"] = torch.randint(118, 124, shape, dtype=torch.uint8, generator=generator)
    return tensors


def unpacked(packed):
    """What transformers makes of it, (experts, in, out)."""
    found = others()
    for name in EXPERT_PARAMETERS:
        blocks, scales = packed[f"{name}_blocks"], packed[f"{name}_scales"]
        found[name] = transformers.convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    return found


def adapter(paths):
    """LoRA of single experts and of other layers."""
    sizes = {
        "gate_proj": (INNER, WIDTH),
        "up_proj": (INNER, WIDTH),
        "down_proj": (WIDTH, INNER),
        "q_proj": (WIDTH, WIDTH + 32),
    }
    found = {}
    for seed, path in enumerate(paths):
        out, inputs = sizes[path.rpartition(".")[2]]
        key = f"diffusion_model.{LAYER}.{path}"
        found |= {
            f"{key}.lora_A.weight": drawn(10 + seed, RANK, inputs),
            f"{key}.lora_B.weight": drawn(20 + seed, out, RANK),
        }
    return found


OF_EXPERTS = ("mlp.experts.1.gate_proj", "mlp.experts.1.up_proj", "mlp.experts.2.down_proj")


@pytest.mark.parametrize("elements", [1 << 20, 24])
@pytest.mark.parametrize("paths", [OF_EXPERTS, ("self_attn.q_proj",), (*OF_EXPERTS, "self_attn.q_proj")])
def test_equals_a_merge_into_what_transformers_unpacks(paths, elements, packed, merged, monkeypatch):
    monkeypatch.setattr(fold, "BLOCK_ELEMENTS", elements)
    expected = merged(unpacked(packed), adapter(paths), options=["--dtype", "fp32"])
    found = merged(packed, adapter(paths), options=["--dtype", "fp32"])
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("paths", [OF_EXPERTS, ("self_attn.q_proj",)])
def test_no_more_than_a_block_of_inputs_is_decoded_at_a_time(paths, packed, merged, monkeypatch):
    """An expert of gpt-oss has 17 million numbers."""
    read = []

    def block(self, source, info, blocks, *others):
        read.append((info.name, blocks.elements))
        return own(self, source, info, blocks, *others)

    own = RowBlocks.block
    monkeypatch.setattr(RowBlocks, "block", block)
    monkeypatch.setattr(fold, "BLOCK_ELEMENTS", 24)
    merged(packed, adapter(paths), options=["--dtype", "bf16"])
    of_experts = {name: elements for name, elements in read if name.endswith("_blocks") or name in EXPERT_PARAMETERS}
    assert sorted(of_experts.values()) == sorted(32 * out for out, _ in EXPERT_PARAMETERS.values())


def test_experts_that_are_not_changed_are_copied_as_they_are_stored(packed, merged):
    found = merged(packed, adapter(["self_attn.q_proj"]))
    assert found.keys() == packed.keys()
    assert [name for name in packed if not torch.equal(found[name], packed[name])] == [
        f"{LAYER}.self_attn.q_proj.weight"
    ]


def test_experts_that_are_changed_need_a_type_to_be_written_in(packed, merged):
    said = merged(packed, adapter(OF_EXPERTS), refused=True)
    assert "experts.gate_up_proj is stored as mxfp4" in said
    assert "--dtype bf16" in said


def test_experts_that_are_changed_are_not_decoded_alone(packed, merged):
    said = merged(packed, adapter(OF_EXPERTS[:2]), options=["--changed-dtype", "bf16"], refused=True)
    assert "gate_up_proj would be floats next to" in said
    assert "--dtype bf16" in said


def test_a_folder_says_nothing_of_codes_any_more(packed, run, tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    files = {name: f"model-0000{1 + ('down' in name)}-of-00002.safetensors" for name in packed}
    for file in set(files.values()):
        save_file({name: packed[name] for name in packed if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": 1}, "weight_map": files})
    )
    config = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(adapter(OF_EXPERTS), tmp_path / "a.safetensors")
    out = tmp_path / "out"
    assert run("merge", folder, tmp_path / "a.safetensors", "--dtype", "bf16", "-o", out).status == 0
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    there = {name: file.name for file in out.glob("*.safetensors") for name in load_file(file)}
    assert index == there
    assert set(EXPERT_PARAMETERS) <= index.keys()
    assert "quantization_config" not in json.loads((out / "config.json").read_text())


@pytest.mark.parametrize("shape", [(EXPERTS, 2 * INNER, 1), (EXPERTS, WIDTH, 3), (EXPERTS, 2 * INNER)])
def test_scales_that_fit_no_blocks_leave_them_packed(shape, packed, merged):
    name = f"{LAYER}.mlp.experts.gate_up_proj"
    wrong = packed | {f"{name}_scales": torch.zeros(shape, dtype=torch.uint8)}
    said = merged(wrong, adapter(OF_EXPERTS), options=["--dtype", "bf16"], refused=True)
    assert "mlp.experts has gate_up_proj_blocks" in said or "down_proj" in said


def test_an_exponent_that_is_no_number_is_refused(packed, merged):
    packed[f"{LAYER}.mlp.experts.down_proj_scales"][2, 0, 0] = 255
    said = merged(packed, adapter(OF_EXPERTS), options=["--dtype", "bf16"], refused=True)
    assert "experts.down_proj" in said
    assert "NaN" in said
