"""The parameters of transformers 5 that hold single experts and routers."""

import pytest

from lora_inspect.reading.peft.fused_experts import fused_layer, has_fused_layers, is_of_mixture

FUSED = {
    "model.layers.3.mlp.experts.7.gate_proj": ("model.layers.3.mlp.experts.gate_up_proj", "gate_proj", 7),
    "model.layers.3.mlp.experts.7.up_proj": ("model.layers.3.mlp.experts.gate_up_proj", "up_proj", 7),
    "model.layers.3.mlp.experts.12.down_proj": ("model.layers.3.mlp.experts.down_proj", "down_proj", 12),
    "model.layers.3.block_sparse_moe.experts.0.w1": ("model.layers.3.mlp.experts.gate_up_proj", "w1", 0),
    "model.layers.3.block_sparse_moe.experts.0.w2": ("model.layers.3.mlp.experts.down_proj", "w2", 0),
    "model.layers.3.mlp.gate": ("model.layers.3.mlp.gate.weight", "gate", None),
    "model.layers.3.block_sparse_moe.gate": ("model.layers.3.mlp.gate.weight", "gate", None),
    "mlp.gate": ("mlp.gate.weight", "gate", None),
}
OTHERS = (
    "model.layers.3.mlp.gate_proj",
    "model.layers.3.self_attn.gate",
    "model.layers.3.mlp.shared_expert_gate",
    "model.layers.3.mlp.experts.gate_up_proj",
    "model.layers.3.mlp.experts.7.gate_up_proj",
    # Of HiDream-I1, whose program fuses nothing.
    "double_stream_blocks.0.block.ff_i.experts.0.w1",
    "double_stream_blocks.0.block.ff_i.shared_experts.w1",
)


@pytest.mark.parametrize("path", FUSED)
def test_fused_layer_has_parameter_of_transformers_5(path):
    assert fused_layer(path) == FUSED[path]
    assert is_of_mixture(path)
    assert has_fused_layers(["model.layers.3.self_attn.q_proj", path])


@pytest.mark.parametrize("path", OTHERS)
def test_layer_of_other_name_is_not_fused(path):
    assert fused_layer(path) is None
    assert not is_of_mixture(path)


@pytest.mark.parametrize("name", ["shared_expert", "shared_experts"])
def test_shared_expert_shows_mixture_but_is_not_fused(name):
    path = f"model.layers.0.mlp.{name}.up_proj"
    assert fused_layer(path) is None
    assert is_of_mixture(path)
