"""Which program wrote a file."""

import json

import pytest

from lora_inspect.reading.metadata.trainers import find_trainer

# metadata, keys, config found, program
CASES = [
    ({"lora_inspect.network": "{}", "ss_network_module": "networks.lora"}, (), False, "lora-inspect networks"),
    ({"ss_network_module": "networks.lora_wan"}, ("use_rslora_flag",), False, "blissful-tuner"),
    ({}, ("use_dora_flag",), False, "blissful-tuner"),
    ({}, ("lokr_factor",), False, "blissful-tuner"),
    ({"ss_network_module": "lycoris.kohya", "ss_base_model_version": "wan2.1"}, (), False, "LyCORIS"),
    ({"ot_branch": "master", "ss_base_model_version": "sdxl_"}, (), False, "OneTrainer"),
    ({"software": json.dumps({"name": "ai-toolkit"}), "ss_base_model_version": "wan_2.2_14b"}, (), False, "ai-toolkit"),
    ({"ss_base_model_version": "wan2.1", "ss_network_module": "networks.lora_wan"}, (), False, "musubi-tuner"),
    ({"ss_base_model_version": "hunyuan_video_1_5"}, (), False, "musubi-tuner"),
    ({"ss_base_model_version": "sdxl_base_v1-0", "ss_network_module": "networks.lora"}, (), False, "sd-scripts"),
    ({"ss_sd_scripts_commit_hash": "00"}, (), False, "sd-scripts"),
    ({"lora_adapter_metadata": "{}"}, (), True, "diffusers"),
    ({}, (), True, "PEFT"),
    ({}, ("lora_unet_a.alpha",), False, None),
    ({"software": "{"}, (), False, None),
    ({"software": "[1]"}, (), False, None),
    ({"software": json.dumps({"name": 3})}, (), False, None),
    ({"software": "[" * 100_000}, (), False, None),
]


@pytest.mark.parametrize(("metadata", "keys", "config", "program"), CASES)
def test_the_program_is_told_by_what_only_it_writes(metadata, keys, config, program):
    assert find_trainer(metadata, keys, config) == program
