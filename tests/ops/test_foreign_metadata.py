"""Metadata that convert knows nothing of stays, whatever it is converted to; configs that go are named."""

import json
import string

import pytest
from adapters import lora
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.reading.metadata.output_metadata import standard_metadata

KOHYA = "lora_unet_double_blocks_0_img_attn_proj"
PEFT = "base_model.model.transformer_blocks.0.attn.to_out.0"
FLUX = {"ss_base_model_version": "flux1"}
# What says how a model is used, or was trained: programs go by it, and nothing here does.
MEANS = {
    "reference_downscale_factor": "2",
    **FLUX,
    "modelspec.trigger_phrase": "a sks dog",
    "modelspec.prediction_type": "v",
    "ss_v_parameterization": "True",
    "trigger_words": '["sks"]',
    "license": "",
    "config": '{"rank": 4}',
}
# Metadata that speaks of the tensors of before, of which the documentation says what becomes.
STALE = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", "ss_alpha_pattern", "ss_rank_pattern")


def metadata_of(path):
    file = path / "adapter_model.safetensors" if path.is_dir() else path
    with safe_open(file, "pt") as opened:
        return opened.metadata()


@pytest.mark.parametrize("scheme", [None, "kohya", "peft", "diffusers"])
def test_what_is_not_known_stays(scheme, write_safetensors, tmp_path):
    source = write_safetensors(lora(KOHYA, rank=4, out=4, inputs=4), MEANS)
    output = tmp_path / ("out" if scheme == "peft" else "out.safetensors")
    convert_to_standard(str(source), str(output), ConvertOptions(scheme=scheme))
    found = metadata_of(output)
    assert {key: found.get(key) for key in MEANS} == MEANS


KEYS = st.text(string.ascii_letters + string.digits + "_.", min_size=1, max_size=12)


@settings(max_examples=100, deadline=None)
@given(foreign=st.dictionaries(st.one_of(KEYS, KEYS.map("ss_{}".format), KEYS.map("modelspec.{}".format)), st.text()))
def test_no_other_key_is_changed_or_gone(foreign):
    known = {*STALE, "ss_network_dim", "ss_network_alpha", "ss_network_args", "ss_network_module"}
    foreign = {key: value for key, value in foreign.items() if key not in known}
    found = standard_metadata(foreign, {}, ranks={4}, alphas={4.0}, magnitudes=0, algorithms=["lora"])
    assert {key: found.get(key) for key in foreign} == foreign
    assert {key.partition(".")[0] for key in found.keys() - foreign.keys()} == {"lora_inspect"}


def test_a_config_of_peft_that_has_no_place_is_named(write_safetensors, tmp_path):
    tensors = lora(PEFT, rank=4, alpha=None, out=4, inputs=4, spelling="peft")
    write_safetensors(tensors, FLUX, name="in/adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["to_out.0"]}
    (tmp_path / "in" / "adapter_config.json").write_text(json.dumps(config))
    source = str(tmp_path / "in")
    kept = convert_to_standard(source, str(tmp_path / "kept"), ConvertOptions())
    assert not any("has no place" in remark for remark in kept.remarks)
    gone = convert_to_standard(source, str(tmp_path / "gone.safetensors"), ConvertOptions(scheme="kohya"))
    assert "the output leaves out adapter_config.json of the input, as its tensors give rank and scale" in gone.remarks


def test_an_embedded_config_that_is_not_true_any_more_is_named(write_safetensors, tmp_path):
    name = "transformer.blocks.0.attn.q"
    about = {"lora_adapter_metadata": json.dumps({"text_encoder.r": 4, "text_encoder.lora_alpha": 4})}
    source = write_safetensors(lora(name, rank=4, alpha=None, spelling="peft"), about)
    gone = convert_to_standard(str(source), str(tmp_path / "out.safetensors"), ConvertOptions())
    assert "lora_adapter_metadata" not in metadata_of(tmp_path / "out.safetensors")
    assert any(remark.startswith("the output leaves out lora_adapter_metadata of the input") for remark in gone.remarks)
