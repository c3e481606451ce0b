"""Which tensors belong to quantised weights: the names of every quantiser, and the learned parameters called alike."""

import pytest

from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.base.quantisation import quantisation_settings, scale_beside


def found(dtypes):
    return quantisation_settings({name: TensorInfo(name, dtype, (4, 4), "f", 0, 0) for name, dtype in dtypes.items()})


# What one layer `x` consists of in the files of each quantiser; with a star what says how the codes are read.
LAYERS = {
    "ComfyUI's scaled fp8": {"x.weight": "F8_E4M3", "*x.scale_weight": "F32", "*x.scale_input": "F32", "x.bias": "F16"},
    "the file's marker": {"x.weight": "F8_E4M3", "*model.diffusion_model.scaled_fp8": "F32"},
    "ComfyUI's second form": {
        "x.weight": "F8_E5M2", "*x.weight_scale": "F32", "*x.input_scale": "F32", "*x.comfy_quant": "U8"},
    "nvfp4": {"x.weight": "U8", "*x.weight_scale": "F8_E4M3", "*x.weight_scale_2": "F32", "*x.pre_quant_scale": "BF16"},
    "blocks of fp8": {"x.weight": "F8_E4M3", "*x.weight_scale_inv": "F32"},
    "blocks of fp8 under a plain name": {"x.weight": "F8_E4M3", "*x.scale": "F32"},
    "bitsandbytes, 4 bits": {
        "x.weight": "U8", "*x.weight.absmax": "F32", "*x.weight.quant_map": "F32", "*x.weight.nested_absmax": "F32",
        "*x.weight.nested_quant_map": "F32", "x.bias": "F32"},
    "bitsandbytes, 8 bits": {"x.weight": "I8", "*x.SCB": "F32"},
    "GPTQ and AWQ": {"x.qweight": "I32", "*x.qzeros": "I32", "*x.scales": "F16", "x.g_idx": "I32", "x.bias": "F16"},
    "compressed-tensors": {
        "x.weight_packed": "I32", "*x.weight_scale": "BF16", "*x.weight_zero_point": "I8",
        "*x.input_global_scale": "F32", "*x.weight_global_scale": "F32"},
    "MLX": {"x.weight": "U32", "*x.scales": "BF16", "*x.biases": "BF16", "x.bias": "BF16"},
    "quanto": {"x.weight._data": "I8", "*x.weight._scale": "F16", "*x.input_scale": "F32", "x.weight": "I8"},
    "HQQ": {"x.W_q": "U8", "*x.scale": "F16", "*x.zero": "F16"},
    "nunchaku": {"x.qweight": "I8", "*x.wscales": "BF16", "*x.smooth_factor": "BF16", "x.proj_down": "BF16"},
    "stacked experts": {"x.down_proj": "F8_E4M3", "*x.down_proj_scale_inv": "F32", "*x.down_proj_input_scale": "F32"},
    "a cache of keys and values": {
        "x.k_proj.weight": "F8_E4M3", "*x.k_scale": "F32", "x.v_proj.weight": "F8_E4M3", "*x.v_proj.v_scale": "F32"},
    "a scaled weight in half precision": {"x.weight": "F16", "*x.scale_weight": "F32", "*x.scale_input": "F32"},
}  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_the_settings_of_a_quantiser_are_known(layer):
    expected = {name[1:] for name in layer if name.startswith("*")}
    assert found({name.lstrip("*"): dtype for name, dtype in layer.items()}) == expected


# Learned parameters and what else is called like a scale in models that are not quantised.
LEARNED = {
    "a norm": {"img_attn.norm.query_norm.scale": "F32", "img_attn.qkv.weight": "F32"},
    "a norm beside a layer of codes": {"x.norm.scale": "F32", "x.qkv.weight": "F8_E4M3"},
    "a scale beside a plain weight": {"x.weight": "F32", "x.scale": "F32", "x.zeros": "F32", "x.biases": "F32"},
    "an attention's own scale beside projections of codes": {"x.q.weight": "F8_E4M3", "x.scale": "F32"},
    "scales of queries and keys": {"x.q_scale": "F32", "x.k_scale": "F32", "x.k_proj.weight": "BF16"},
    "a scale without any weight": {"x.weight_scale": "F32", "x.scales": "F32", "y.weight": "F32"},
    "layer scale": {"x.layer_scale.gamma": "F32", "x.logit_scale": "F32", "x.scale_shift_table": "F32"},
    "beside a mask and a counter": {"x.bias": "BOOL", "x.num_batches_tracked": "I64", "x.scale": "F32"},
    "beside an embedding of positions": {"x.weight": "I64", "x.scale": "F32"},
    "the bias and the norm of a quantised layer": {"x.weight": "F8_E4M3", "x.bias": "F32", "x.norm.weight": "F32"},
}  # fmt: skip


@pytest.mark.parametrize("layer", LEARNED.values(), ids=LEARNED)
def test_learned_parameters_are_no_settings(layer):
    assert found(layer) == set()


@pytest.mark.parametrize("beside", ["scale_weight", "weight_scale", "weight.absmax", "comfy_quant", "qzeros", "SCB"])
def test_a_weight_that_is_scaled_is_codes_whatever_it_is_stored_as(beside):
    names = {"x.weight", "x.bias", f"x.{beside}", "y.weight", "y.scale", "y.input_scale"}
    assert scale_beside("x.weight", names) == f"x.{beside}"
    assert scale_beside("y.weight", names) is None
    assert scale_beside("x.bias", names) is None
    assert scale_beside("x.bias", names - {"x.weight"}) == f"x.{beside}"
