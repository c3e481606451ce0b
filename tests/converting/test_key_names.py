"""magnitude_place: what a magnitude is called, and its shape, under each scheme's names."""

import pytest
from adapters import lora

from lora_inspect.converting.target.key_names import magnitude_place
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter

OUT, IN = 6, 5
KOHYA, LYCORIS, COMFYUI, DIFFUSERS = "lora_unet_a", "lycoris_a", "diffusion_model.a", "transformer.a"
PEFT = "base_model.model.a"
DUE = [
    *((name, "dora_scale", (OUT, 1), (1, IN)) for name in (KOHYA, LYCORIS, COMFYUI)),
    *((name, "lora_magnitude_vector", (OUT,), None) for name in (DIFFUSERS, PEFT)),
]
# The shapes in which programs store a magnitude of outputs, without and with the ones of a kernel.
SPELLINGS = {
    "dora_scale": ((OUT, 1), (OUT, 1, 1, 1)),
    "dora_layer.weight": ((OUT,), (OUT,)),
    "magnitude": ((OUT,), (OUT,)),
    "lora_magnitude_vector": ((OUT,), (1, OUT, 1, 1)),
    "lora_magnitude_vector.weight": ((OUT,), (1, OUT, 1, 1)),
}


def place(path):
    (module,) = read_adapter(open_checkpoint(str(path))).modules.values()
    (contribution,) = module.contributions
    return magnitude_place(module, contribution, contribution.magnitude)


@pytest.mark.parametrize(("name", "due", "linear", "of_inputs"), DUE, ids=[row[0] for row in DUE])
@pytest.mark.parametrize("is_convolution", [False, True], ids=["Linear", "convolution"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_where_a_magnitude_of_outputs_goes(spelling, is_convolution, name, due, linear, of_inputs, write_safetensors):
    tensors = lora(name, alpha=8.0 if of_inputs else None, kernel=(3, 3) if is_convolution else ())
    tensors[f"{name}.{spelling}"] = ("F32", SPELLINGS[spelling][is_convolution], 1.0)
    key, suffix, shape = place(write_safetensors(tensors))
    if spelling.startswith("lora_magnitude") and due.startswith("lora_magnitude"):
        due = spelling
    kernel = (1, 1) if is_convolution else ()
    expected = (*linear, *kernel) if due == "dora_scale" else (1, OUT, *kernel) if kernel else linear
    assert (key, suffix, shape) == (f"{name}.{due}", f".{due}", expected)


@pytest.mark.parametrize("kernel", [(), (3, 3)], ids=["Linear", "convolution"])
@pytest.mark.parametrize("name", [KOHYA, LYCORIS, COMFYUI])
def test_where_a_magnitude_of_inputs_goes(name, kernel, write_safetensors):
    shape = (1, IN, *(1 for _ in kernel))
    tensors = lora(name, kernel=kernel) | {f"{name}.dora_scale": ("F32", shape, 1.0)}
    assert place(write_safetensors(tensors)) == (f"{name}.dora_scale", ".dora_scale", shape)
