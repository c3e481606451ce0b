"""The metadata of sums: model keys where all agree, trigger phrases and tags together, counts added, nothing else."""

import json
import re

import pytest
import torch
from dense_sums import kohya, metadata_of, peft

from lora_inspect import average, combine, convert, resize
from lora_inspect.algebra.output.sum_metadata import ACTED_KEYS, SOURCES

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


# Keys on which programs act.

IC_LORA = {
    "reference_downscale_factor": "2",
    "ss_reference_downscale_factor": "2",
    "reference_temporal_scale_factor": "4",
    **MODEL,
}
VERBS = {
    "combine": (combine, {}),
    "combine by a method": (combine, {"method": "ties", "density": 0.5}),
    "combine by a rule": (combine, {"rank": 2}),
    "average": (average, {}),
    "average of factors": (average, {"of": "factors"}),
}


def alike(folder, one, other):
    """Two files of the same rank with this metadata."""
    return [
        kohya(folder / f"{name}.safetensors", seed, metadata=metadata)[0]
        for seed, name, metadata in ((1, "a", one), (2, "b", other))
    ]


@pytest.mark.parametrize("case", VERBS)
def test_keys_that_programs_act_on_stay(case, tmp_path):
    verb, options = VERBS[case]
    paths = alike(tmp_path, {**IC_LORA, **TRAINING}, {**IC_LORA, **TRAINING, "other": "1"})
    result = verb(paths, tmp_path / "out.safetensors", **options)
    found = metadata_of(tmp_path / "out.safetensors")
    assert found.items() >= IC_LORA.items()
    assert result.dropped_metadata == sorted({*TRAINING, "other"} - found.keys())
    assert "other" in result.dropped_metadata
    assert not [note for note in result.notes if "acts on" in note]


CONFLICTS = {
    "reference_downscale_factor": ("2", "4", "ComfyUI, ComfyUI-LTXVideo and LTX-2's ltx-pipelines act on"),
    "ss_reference_downscale_factor": ("2", "4", "ComfyUI acts on"),
    "reference_temporal_scale_factor": ("2", "4", "LTX-2's ltx-pipelines acts on"),
    "ss_base_model_version": ("sdxl_base_v1-0", "sd_v1", "AUTOMATIC1111's web UI acts on"),
    "ss_v2": ("True", "False", "AUTOMATIC1111's web UI acts on"),
    "modelspec.architecture": ("flux-1-dev/lora", "chroma/lora", "SwarmUI acts on"),
}


@pytest.mark.parametrize("is_missing", [True, False], ids=["missing", "different"])
@pytest.mark.parametrize("key", CONFLICTS)
def test_conflict_in_key_that_programs_act_on_is_named(key, is_missing, tmp_path):
    text, other, programs = CONFLICTS[key]
    paths = alike(tmp_path, {key: text}, {"format": "pt"} if is_missing else {key: other})
    result = combine(paths, tmp_path / "out.safetensors")
    (note,) = [note for note in result.notes if key in note]
    values = f"{text} in a.safetensors and {'none' if is_missing else other} in b.safetensors"
    assert note.startswith(f"{programs} {key}, but the inputs differ in it ({values})")
    assert key in result.dropped_metadata
    assert key not in metadata_of(tmp_path / "out.safetensors")


@pytest.mark.parametrize("case", VERBS)
@pytest.mark.parametrize("is_planned", [True, False], ids=["planned", "written"])
def test_each_verb_names_conflict(case, is_planned, tmp_path):
    verb, options = VERBS[case]
    paths = alike(tmp_path, {"reference_downscale_factor": "2"}, {"reference_downscale_factor": "1"})
    result = verb(paths, None if is_planned else tmp_path / "out.safetensors", **options)
    assert [note for note in result.notes if "reference_downscale_factor" in note]
    assert result.dropped_metadata == ["reference_downscale_factor"]


def test_value_like_missing_key_gives_no_note(tmp_path):
    """A1111 does the same for each version that is not of SDXL, and without the key."""
    one = {"ss_base_model_version": "sd_v1", "ss_v2": "False"}
    result = combine(alike(tmp_path, one, {"format": "pt"}), tmp_path / "out.safetensors")
    assert not [note for note in result.notes if "AUTOMATIC1111" in note]
    assert result.dropped_metadata == ["format", *one]


def test_first_key_that_comfyui_takes_has_factor_of_inputs(tmp_path):
    """`GetICLoRAParameters` takes the first key that ends so, and rounds its number."""
    paths = alike(tmp_path, {"ss_reference_downscale_factor": "2.0"}, {"ss_reference_downscale_factor": "2.0"})
    combine(paths, tmp_path / "out.safetensors")
    found = metadata_of(tmp_path / "out.safetensors")
    factor = next(text for key, text in found.items() if key.endswith("reference_downscale_factor"))
    assert max(1, round(float(factor))) == 2


@pytest.mark.parametrize("case", [*VERBS, "combine of one", "resize"])
@pytest.mark.parametrize("is_planned", [True, False], ids=["planned", "written"])
def test_dropped_metadata_are_all_keys_that_output_lacks(case, is_planned, tmp_path):
    metadata = {**MODEL, **TRAINING, "ss_rank_pattern": "{}", "ss_alpha_pattern": "{}", "modelspec.hash_sha256": "0x1"}
    paths = alike(tmp_path, metadata, {**metadata, "other": "1", "ss_sd_model_hash": "def"})
    out = tmp_path / "out.safetensors"
    if case == "resize":
        run = [resize(paths[1], output, rank=2) for output in (out, None)]
    elif case == "combine of one":
        run = [combine([paths[1]], output) for output in (out, None)]
    else:
        verb, options = VERBS[case]
        run = [verb(paths, output, **options) for output in (out, None)]
    found = run[is_planned].dropped_metadata
    assert found == sorted({*metadata, "other"} - metadata_of(out).keys())
    assert run[is_planned].to_dict()["dropped_metadata"] == found


def test_dropped_metadata_of_gguf_are_those_that_file_lacks(tmp_path):
    from lora_inspect.files.checkpoint import open_checkpoint

    modules = {f"model.layers.{layer}.self_attn.q_proj": (16, 16) for layer in range(2)}
    config = {"base_model_name_or_path": "org/model"}
    paths = [peft(tmp_path / name, seed, config=config, layers=modules)[0] for seed, name in ((1, "a"), (2, "b"))]
    model = tmp_path / "config.json"
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_attention_heads": 2}
    model.write_text(json.dumps(config), encoding="utf-8")
    one, other = (
        str(convert(path, tmp_path / f"{name}.gguf", to="llama-cpp", model_config=model).output)
        for path, name in zip(paths, "ab", strict=True)
    )
    result = combine([one, other], tmp_path / "out.gguf")
    inputs = {key for path in (one, other) for key in open_checkpoint(path).metadata}
    assert result.dropped_metadata == sorted(inputs - open_checkpoint(result.output).metadata.keys())
    assert not [key for key in result.dropped_metadata if key.startswith(("general.", "adapter."))]


def test_text_names_first_dropped_keys(run, tmp_path):
    paths = alike(tmp_path, TRAINING, TRAINING)
    shown = run("combine", *paths, "-o", tmp_path / "out.safetensors")
    dropped = run("combine", *paths, "--dry-run", "--json").json["dropped_metadata"]
    assert f"{len(dropped)} keys ({', '.join(dropped[:3])}, …)" in shown.stderr


@pytest.mark.parametrize("program", sorted({acted.program for acted in ACTED_KEYS} | SOURCES.keys()))
def test_source_of_program_names_file_and_commit(program):
    assert re.fullmatch(r"[\w/.-]+, at [0-9a-f]{12}", SOURCES[program])
