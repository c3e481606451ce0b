"""Metadata of outputs: what stays, what is corrected, what is gone."""

import json

import pytest

from lora_inspect import __version__
from lora_inspect.reading.metadata.output_metadata import (
    CONVERTED_KEY,
    MERGED_KEY,
    describe_file,
    merged_metadata,
    standard_metadata,
)

TRAINED = {
    "ss_network_dim": "16",
    "ss_network_alpha": "8",
    "ss_network_args": json.dumps({"use_rslora": "True", "use_dora": "True", "conv_dim": "4"}),
    "ss_alpha_pattern": "{}",
    "ss_rank_pattern": "{}",
    "ss_tag_frequency": "{}",
    "sshs_model_hash": "00",
    "sshs_legacy_hash": "00",
    "modelspec.hash_sha256": "0x00",
    "modelspec.title": "mine",
    "lora_adapter_metadata": "{}",
}


def standard(metadata=TRAINED, ranks=frozenset({16}), alphas=frozenset({32.0}), magnitudes=0, algorithms=("lora",)):
    source = {"file": "a.safetensors", "rslora": True}
    return standard_metadata(
        metadata, source, ranks=set(ranks), alphas=set(alphas), magnitudes=magnitudes, algorithms=algorithms
    )


def test_what_described_the_old_tensors_is_corrected_or_gone():
    found = standard()
    assert json.loads(found.pop(CONVERTED_KEY)) == {"version": __version__, "file": "a.safetensors", "rslora": True}
    assert json.loads(found.pop("ss_network_args")) == {"conv_dim": "4"}
    assert found == {
        "ss_network_dim": "16",
        "ss_network_alpha": "32",
        "ss_tag_frequency": "{}",
        "modelspec.title": "mine",
        "lora_inspect.scale": "alpha/rank",
    }


def test_ranks_and_alphas_that_differ_have_no_single_number():
    found = standard(ranks={4, 16}, alphas={8.0, 32.0})
    assert not {found["ss_network_dim"], found["ss_network_alpha"]} & {"4", "16", "8", "32"}
    assert "ss_rank_pattern" in found


@pytest.mark.parametrize(
    ("module", "algo", "algorithms", "expected"),
    [
        ("lycoris.kohya", "LoKr", ["lora"], ("lycoris.kohya", {"algo": "lora", "conv_dim": "4"})),
        ("lycoris.kohya", "lokr", ["lokr", "lora"], ("lycoris.kohya", {"algo": "lokr", "conv_dim": "4", "factor": 8})),
        ("lycoris.kohya", "lokr", ["full"], ("lycoris.kohya", {"algo": "lokr", "conv_dim": "4", "factor": 8})),
        ("lycoris.kohya", "locon", ["lora"], ("lycoris.kohya", {"algo": "locon", "conv_dim": "4", "factor": 8})),
        ("networks.loha", None, ["lora"], ("networks.lora", {"conv_dim": "4", "factor": 8})),
        ("networks.loha", None, ["loha"], ("networks.loha", {"conv_dim": "4", "factor": 8})),
        ("networks.lora_wan", None, ["lora"], ("networks.lora_wan", {"conv_dim": "4", "factor": 8})),
    ],
)
def test_the_algorithm_is_that_of_the_modules(module, algo, algorithms, expected):
    args = {"conv_dim": "4", "factor": 8, **({"algo": algo} if algo else {})}
    metadata = {"ss_network_module": module, "ss_network_args": json.dumps(args)}
    found = standard(metadata, algorithms=algorithms)
    assert (found["ss_network_module"], json.loads(found["ss_network_args"])) == expected


def test_a_kept_magnitude_keeps_the_option_that_asked_for_it():
    assert json.loads(standard(magnitudes=2)["ss_network_args"]) == {"use_dora": "True", "conv_dim": "4"}


def test_nothing_is_invented_for_a_file_without_metadata():
    assert standard({}).keys() == {"lora_inspect.scale", CONVERTED_KEY}


def test_a_merge_keeps_the_base_and_records_the_adapters():
    base = {"modelspec.title": "base", "sshs_model_hash": "00", "modelspec.hash_sha256": "0", MERGED_KEY: "before"}
    found = merged_metadata(base, "record")
    assert found == {"modelspec.title": "base", MERGED_KEY: "record"}


def test_provenance_names_a_file_without_its_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert describe_file("some/secret/place/a.safetensors") == "a.safetensors"
    assert describe_file(".") == tmp_path.name
    assert describe_file("folder/") == "folder"


@pytest.mark.parametrize("option", ["use_rslora", "rs_lora", "alpha_pattern", "conv_alpha", "split_qkv"])
@pytest.mark.parametrize("magnitudes", [0, 2])
def test_no_option_says_how_to_read_the_alpha_of_a_standard_file(option, magnitudes):
    metadata = {"ss_network_args": json.dumps({option: "True", "use_dora": "True", "loraplus_lr_ratio": "4"})}
    kept = {"use_dora": "True"} if magnitudes else {}
    found = json.loads(standard(metadata, magnitudes=magnitudes)["ss_network_args"])
    assert found == {**kept, "loraplus_lr_ratio": "4"}
