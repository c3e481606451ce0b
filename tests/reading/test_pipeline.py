"""High and low noise of Wan 2.2, told by what files are called."""

import pytest
from adapters import lora

from lora_inspect.reading.file_info import inspect
from lora_inspect.reporting.file_record import as_json

LOW, HIGH = "low noise", "high noise"


@pytest.fixture
def record(write_safetensors):
    """`record(name, metadata, prefix)`: what `info --json` says of an adapter of Wan."""

    def inspected(name="adapter", metadata=None, prefix="diffusion_model.", leaf="self_attn.q", width=5120):
        tensors = lora(f"{prefix}blocks.0.{leaf}", rank=2, out=width, inputs=width)
        return as_json(inspect(str(write_safetensors(tensors, metadata=metadata or {}, name=f"{name}.safetensors"))))

    return inspected


@pytest.mark.parametrize(("name", "expert"), [
    ("wan2.2_i2v_lightx2v_4steps_lora_v1_high_noise", HIGH), ("Style_HighNoise_Wan2.2", HIGH),
    ("Wan2.2-Lightning_T2V-A14B-4steps-lora_HIGH_fp16", HIGH), ("motion-low", LOW), ("style low-noise v2", LOW),
    ("LOW_rank64", LOW), ("low_poly", None), ("slow_noise", None), ("highway", None), ("high_and_low", None),
    ("high_noise_and_low_noise", None), ("lowrank", None), ("adapter", None), ("yellow", None),
    ("low_poly_high_noise", HIGH), ("low_poly_HIGH", None),
    # Spellings on Civitai.
    ("wan22_HIGH_v1", HIGH), ("Wan22_A14B_T2V_LOW_Lightning", LOW), ("DR_I2V_14B_HIGH_V2", HIGH), ("style_HN", HIGH),
    ("style-LN-e20", LOW), ("Wan2.2-HighNoise", HIGH), ("StyleLowNoise", LOW), ("HIGHNOISE_style", HIGH),
    ("wan22-style-high-v2", HIGH), ("style_low_lora", LOW), ("style_low_i2v", LOW), ("HIGH_LOW_style", None),
    ("HN_LN", None), ("style_hn", None), ("HNY", None), ("HIGHER", None), ("style_high_poly", None), ("SLOW", None),
])  # fmt: skip
def test_the_name_of_the_file_tells_it(name, expert, record):
    found = record(name)
    assert found["architecture"] == "wan"
    assert found["expert"] == expert
    said = [item for item in found["evidence"] if item["about"] == "expert"]
    assert [(item["says"], item["where"]) for item in said] == (
        [(f"a name says {expert}", "file name")] if expert else []
    )


@pytest.mark.parametrize("key", ["ss_output_name", "modelspec.title", "name", "ss_sd_model_name"])
def test_metadata_tells_it(key, record):
    found = record(metadata={key: "wan2.2_t2v_low_noise_14B_fp16.safetensors"})
    assert found["expert"] == LOW
    assert {"about": "expert", "says": "a name says low noise", "where": f"metadata {key}"} in found["evidence"]


def test_names_that_contradict_each_other_tell_nothing(record):
    found = record("style_high_noise", {"ss_output_name": "style_low_noise"})
    assert found["expert"] is None
    (said,) = (item for item in found["evidence"] if item["about"] == "expert")
    assert said["says"] == "the names contradict each other: low noise and high noise expert"
    assert said["where"] == "metadata ss_output_name and file name"


def test_the_second_model_of_a_pipeline_is_of_low_noise(record):
    found = record("style_high_noise", prefix="transformer_2.", leaf="attn1.to_q")
    assert (found["expert"], found["layout"]) == (LOW, "diffusers")
    assert record("style", prefix="transformer.", leaf="attn1.to_q")["expert"] is None


def test_other_families_have_no_experts(record):
    assert record("style_high_noise", leaf="cross_attn.q_proj", width=2048)["expert"] is None


def test_info_shows_it_beside_the_family(record, write_safetensors, run):
    tensors = lora("diffusion_model.blocks.0.self_attn.q", rank=2, out=5120, inputs=5120)
    shown = run("info", write_safetensors(tensors, name="style_low_noise.safetensors")).stdout
    assert shown.startswith("LoRA for Wan 2.2 14B (low noise expert) - ")
    assert "at multiplier 1, for the low noise model" in " ".join(shown.split())
    assert "why low noise: a name says low noise [file name]" in shown
