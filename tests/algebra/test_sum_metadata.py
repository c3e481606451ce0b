"""The metadata of sums: model keys where all agree, trigger phrases and tags together, counts added, nothing else."""

import json

import pytest
import torch
from dense_sums import kohya, metadata_of, peft

from lora_inspect import average, combine

MODEL = {
    "ss_base_model_version": "sdxl_base_v1-0", "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
    "ss_sd_model_hash": "abc", "modelspec.prediction_type": "epsilon",
}  # fmt: skip
TRAINING = {
    "ss_learning_rate": "1e-4", "ss_epoch": "7", "ss_steps": "700", "ss_output_name": "style", "ss_network_dim": "4",
    "ss_network_alpha": "2", "ss_num_train_images": "40", "sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8,
    "modelspec.title": "Style", "modelspec.date": "2026-01-01", "modelspec.author": "somebody", "note": "mine",
    "ss_dataset_dirs": '{"a": 1}', "ss_training_comment": "secret",
}  # fmt: skip


def both(folder, one, other, verb=combine, **options):
    """The metadata of the sum of two files with these."""
    first, _ = kohya(folder / "a.safetensors", 1, metadata=one)
    second, _ = kohya(folder / "b.safetensors", 2, rank=3, metadata=other)
    result = verb([first, second], folder / "out.safetensors", **options)
    return metadata_of(folder / "out.safetensors"), result


@pytest.mark.parametrize("verb", [combine, average])
def test_keys_of_the_model_stay_where_all_agree(verb, tmp_path):
    other = {**MODEL, "ss_sd_model_hash": "def"}
    del other["modelspec.prediction_type"]
    found, result = both(tmp_path, {**MODEL, **TRAINING}, {**other, **TRAINING}, verb)
    assert {key: found[key] for key in MODEL if key in found} == {
        key: MODEL[key] for key in ("ss_base_model_version", "modelspec.architecture")
    }
    assert any("differ in ss_sd_model_hash" in note for note in result.notes)
    kept = {"ss_network_dim", "ss_network_alpha"}
    assert found.keys().isdisjoint(TRAINING.keys() - kept)
    assert {key for key in found if key.startswith("ss_")} <= {"ss_base_model_version", *kept}


def test_the_rank_is_that_of_the_output(tmp_path):
    found, _ = both(tmp_path, {**MODEL, **TRAINING}, {**MODEL, **TRAINING})
    assert found.get("ss_network_dim", "7") == "7"
    assert float(found.get("ss_network_alpha", 7)) == 7


def test_trigger_phrases_and_tags_are_joined(tmp_path):
    one = {"modelspec.trigger_phrase": "ohwx man", "modelspec.tags": "style, painting"}
    other = {"modelspec.trigger_phrase": "sks dog, ohwx man", "modelspec.tags": "painting,dog"}
    found, _ = both(tmp_path, one, other)
    assert found["modelspec.trigger_phrase"] == "ohwx man, sks dog"
    assert found["modelspec.tags"] == "style, painting, dog"


def test_counts_of_tags_are_added(tmp_path):
    one = {"5_man": {"ohwx": 10, "hat": 2}, "reg": {"man": 4}}
    other = {"5_man": {"hat": 3, "dog": 1}}
    found, _ = both(tmp_path, {"ss_tag_frequency": json.dumps(one)}, {"ss_tag_frequency": json.dumps(other)})
    assert json.loads(found["ss_tag_frequency"]) == {"5_man": {"ohwx": 10, "hat": 5, "dog": 1}, "reg": {"man": 4}}


@pytest.mark.parametrize("odd", ["", "[", "[1]", '{"a": 3}', '{"a": {"b": "c"}}', '{"a": {"b": 1.5}}', "null", '"x"'])
def test_odd_counts_are_as_if_they_were_missing(odd, tmp_path):
    found, _ = both(tmp_path, {"ss_tag_frequency": odd}, {"ss_tag_frequency": '{"a": {"b": 2}}'})
    assert json.loads(found["ss_tag_frequency"]) == {"a": {"b": 2}}


def test_the_metadata_of_one_stay_with_a_rule_as_well(tmp_path):
    path, _ = kohya(tmp_path / "a.safetensors", 1, metadata={**MODEL, **TRAINING})
    combine([path], tmp_path / "out.safetensors", rank=2)
    found = metadata_of(tmp_path / "out.safetensors")
    changed = {"ss_network_dim": "2", "ss_network_alpha": "2.0"}
    for key, value in {**MODEL, **TRAINING}.items():
        if key.startswith("sshs_"):
            assert found[key] != value
        elif key in changed:
            assert float(found[key]) == 2
        else:
            assert found[key] == value
    assert json.loads(found["lora_inspect.combined"])["rule"] == {"rank": 2}


def test_a_record_of_a_sum_of_sums_is_of_the_last_one(tmp_path):
    found, _ = both(tmp_path, MODEL, MODEL)
    again, _ = kohya(tmp_path / "c.safetensors", 3)
    combine([str(tmp_path / "out.safetensors"), again], tmp_path / "more.safetensors")
    record = json.loads(metadata_of(tmp_path / "more.safetensors")["lora_inspect.combined"])
    assert [one["file"] for one in record["inputs"]] == ["out.safetensors", "c.safetensors"]
    assert found["lora_inspect.combined"] != json.dumps(record)


def test_the_config_of_a_folder_names_the_base_model(tmp_path):
    said = {"base_model_name_or_path": "org/model", "task_type": "CAUSAL_LM"}
    one, _ = peft(tmp_path / "a", 1, config=said)
    other, _ = peft(tmp_path / "b", 2, config=said)
    combine([one, other], tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert {key: config[key] for key in said} == said
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (8, 8, False)


@pytest.mark.parametrize(
    "said",
    [
        {"init_lora_weights": "gaussian"}, {"trainable_token_indices": None},
        {"lora_bias": False}, {"rank_pattern": {"ffn.0": 4}, "alpha_pattern": {"ffn.0": 2.0}},
        {"layers_to_transform": [0, 1], "layers_pattern": "blocks"},
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_an_input_do_not_change_the_sum(said, tmp_path):
    from dense_sums import read, relative, summed

    one, first = peft(tmp_path / "a", 1, config=said)
    other, second = peft(tmp_path / "b", 2)
    combine([(one, 0.5), other], tmp_path / "out")
    assert relative(read(tmp_path / "out"), summed((0.5, first), (1.0, second))) < 2e-7
    # Its own reader needs no settings for it.
    combine([str(tmp_path / "out")], tmp_path / "copy", rank=3)
    assert torch.isfinite(torch.tensor(combine([str(tmp_path / "out")], None, energy=0.5).error))
