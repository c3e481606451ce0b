"""Changes of several kinds in one file: each is checked, whichever comes first."""

import pytest
from adapters import lora

from lora_inspect.converting.options import ConvertOptions
from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.convert import convert_to_standard

LOHA = {"hada_w1_a": (6, 2), "hada_w1_b": (2, 6), "hada_w2_a": (6, 2), "hada_w2_b": (2, 6)}
PLAIN, OTHER = "diffusion_model.blocks.0.self_attn.q", "diffusion_model.blocks.1.self_attn.q"


def refused(write_safetensors, tmp_path, tensors, **options):
    file = write_safetensors(lora(PLAIN, rank=2, out=6, inputs=6) | tensors)
    with pytest.raises(LoraInspectError) as caught:
        convert_to_standard(str(file), str(tmp_path / "output.safetensors"), ConvertOptions(**options))
    return str(caught.value)


def test_a_scheme_refuses_what_its_programs_cannot_load_behind_what_they_can(write_safetensors, tmp_path):
    loha = {f"{OTHER}.{role}": ("F32", shape, 0.5) for role, shape in LOHA.items()}
    message = refused(write_safetensors, tmp_path, loha, scheme="diffusers")
    assert f"{OTHER} is LoHa, which" in message


def test_a_scheme_refuses_two_changes_of_one_weight_behind_single_ones(write_safetensors, tmp_path):
    loha = {f"{OTHER}.{role}": ("F32", shape, 0.5) for role, shape in LOHA.items()}
    both = loha | lora(OTHER, rank=2, out=6, inputs=6)
    message = refused(write_safetensors, tmp_path, both, scheme="lycoris")
    assert f"{OTHER} has LoHa and LoRA for one weight" in message


def test_a_program_refuses_what_it_skips_behind_what_it_loads(write_safetensors, tmp_path):
    head = lora("diffusion_model.head.head", rank=2, out=6, inputs=6)
    modulation = {"diffusion_model.head.head.diff_m": ("F32", (1, 2, 6), 0.5)}
    message = refused(write_safetensors, tmp_path, head | modulation, program="comfyui")
    assert "diffusion_model.head.head is a full modulation difference, which ComfyUI skips" in message
