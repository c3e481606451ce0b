"""What a merged file records of its making, held against hashlib, and the chain over merges of merges."""

import hashlib
import json
from dataclasses import fields, replace
from types import SimpleNamespace

import pytest
from adapters import base, lora, loras
from safetensors import safe_open

from lora_inspect import __version__
from lora_inspect.merging import record as provenance
from lora_inspect.merging.plan import MergeOptions
from lora_inspect.reading.metadata.merge_record import merge_records

# The options whose merges cannot be undone, each with its reason.
NEVER_UNDONE: set[str] = set()


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def header_sha256(*files):
    digest = hashlib.sha256()
    for file in files:
        data = file.read_bytes()
        digest.update(data[: 8 + int.from_bytes(data[:8], "little")])
    return digest.hexdigest()


def record_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()["lora_inspect.merged"]


@pytest.fixture
def files(write_safetensors):
    return (
        write_safetensors(
            {**base(3), "norm.weight": ("BF16", (3,), 1)}, {"modelspec.title": "x"}, name="base.safetensors"
        ),
        write_safetensors(loras(3), {"sshs_model_hash": "abc"}, name="a.safetensors"),
        write_safetensors(loras(2, rank=1, alpha=1.0), name="b.safetensors"),
    )


def test_a_merge_records_base_adapters_settings_and_options(run, files, tmp_path):
    whole, first, second = files
    out = tmp_path / "out.safetensors"
    options = "-o", out, "--exclude", "blocks.2", "--dtype", "bf16"
    assert run("merge", whole, f"{first}:0.5,blocks.1=0,rslora=no", second, *options).status == 0
    text = record_of(out)
    assert json.loads(text) == {
        "version": __version__,
        "base": {
            "file": "base.safetensors",
            "bytes": whole.stat().st_size,
            "dtypes": {"F32": 3, "BF16": 1},
            "header": header_sha256(whole),
        },
        "adapters": [
            {
                "file": "a.safetensors",
                "multiplier": {"*": 0.5, "blocks.1": 0.0},
                "settings": "0.5,blocks.1=0,rslora=no",
                "scale": "alpha/rank",
                "sha256": sha256(first),
                "sshs_model_hash": "abc",
            },
            {"file": "b.safetensors", "multiplier": 1.0, "scale": "alpha/rank", "sha256": sha256(second)},
        ],
        "folded_in": {"BF16": "F32"},
        "options": {"dtype": "BF16", "exclude": ["blocks.2"]},
    }
    assert ": " not in text  # compact
    assert str(tmp_path) not in text


def test_the_hash_of_the_base_is_there_where_it_is_asked_for(run, files, tmp_path):
    out = tmp_path / "out.safetensors"
    assert run("merge", *files[:2], "-o", out, "--hash-base").status == 0
    assert json.loads(record_of(out))["base"]["sha256"] == sha256(files[0])


def test_a_sharded_base_and_a_folder_of_peft_have_the_hashes_of_their_files(run, write_safetensors, tmp_path):
    shards = [
        write_safetensors(tensors, name=f"model/model-0000{number}-of-00002.safetensors")
        for number, tensors in ((1, base(1)), (2, {"norm.weight": ("F32", (3,), 1)}))
    ]
    index = {"weight_map": {"blocks.0.attn.q.weight": shards[0].name, "norm.weight": shards[1].name}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    tensors = lora("base_model.model.blocks.0.attn.q", spelling="peft", alpha=None, rank=2)
    config = {"r": 2, "lora_alpha": 2, "peft_type": "LORA", "target_modules": ["q"]}
    adapter = write_safetensors(tensors, name="peft/adapter_model.safetensors").parent
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    assert run("merge", tmp_path / "model", adapter, "-o", out, "--hash-base").status == 0
    for shard in shards:
        record = json.loads(record_of(out / shard.name))
        assert record["base"]["header"] == header_sha256(*shards)
        assert record["base"]["sha256"] == {shard.name: sha256(shard) for shard in shards}
        (told,) = record["adapters"]
        assert told["file"] == "peft"
        assert told["sha256"] == sha256(adapter / "adapter_model.safetensors")
        assert told["config"] == sha256(adapter / "adapter_config.json")


def test_a_merge_of_a_merge_has_the_records_of_both(run, files, tmp_path):
    whole, first, second = files
    outs = [tmp_path / f"{number}.safetensors" for number in range(3)]
    assert run("merge", whole, first, "-o", outs[0]).status == 0
    assert run("merge", outs[0], f"{second}:2", "-o", outs[1]).status == 0
    assert run("merge", outs[1], first, "-o", outs[2]).status == 0
    records = [json.loads(record_of(out)) for out in outs]
    assert "earlier" not in records[0]
    assert records[1]["earlier"] == [records[0]]
    assert records[2].pop("earlier") == [records[0], {k: v for k, v in records[1].items() if k != "earlier"}]
    assert records[2]["base"]["file"] == "1.safetensors"
    with safe_open(outs[2], "pt") as file:
        chain = merge_records(file.metadata())
    assert [[(one.file, one.multiplier) for one in record.adapters] for record in chain] == [
        [("a.safetensors", 1.0)],
        [("b.safetensors", 2.0)],
        [("a.safetensors", 1.0)],
    ]
    info = run("info", outs[2], "--json").json
    assert [one["base"] for one in info["merged"]] == ["base.safetensors", "0.safetensors", "1.safetensors"]
    assert info["merged"][0]["adapters"] == [{"file": "a.safetensors", "multiplier": 1.0, "sha256": sha256(first)}]
    shown = run("info", outs[2]).stdout
    assert "merged" in shown
    assert "b.safetensors at 2 into 0.safetensors" in shown
    assert sha256(first) in "".join(run("metadata", "show", outs[2]).stdout.split())


@pytest.mark.parametrize("before", ["text", "[1, 2]", '{"adapters": 1}', "{" * 200, '{"earlier": {"a": 1}}', ""])
def test_what_stood_under_the_key_is_kept_whatever_it_is(run, write_safetensors, files, tmp_path, before):
    odd = write_safetensors(base(3), {"lora_inspect.merged": before}, name="odd.safetensors")
    out = tmp_path / "out.safetensors"
    assert run("info", odd).status == 0
    assert run("merge", odd, files[1], "-o", out).status == 0
    (earlier,) = json.loads(record_of(out))["earlier"]
    assert earlier == before if isinstance(earlier, str) else earlier.items() <= json.loads(before).items()
    assert run("info", out).status == 0


def test_a_dry_run_reads_no_adapter_for_its_hash(run, files, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_inspect.merging.record.file_sha256", None)
    assert run("merge", *files, "-o", tmp_path / "out.safetensors", "--dry-run").status == 0


def test_every_option_of_a_merge_is_recorded_or_known_to_change_nothing():
    said = {field.name for field in fields(MergeOptions)}
    assert set(provenance._SPELLED) <= said
    plan = SimpleNamespace(options=MergeOptions(), resized={})
    assert provenance._options(plan) == {}
    for name in said - set(provenance._SPELLED):
        plan = SimpleNamespace(options=replace(MergeOptions(), **{name: 0}), resized={})
        assert provenance._options(plan).get(name, 0) == 0
        assert (name in provenance._options(plan)) == (getattr(MergeOptions(), name) != 0)


def test_unmerge_knows_every_option_that_is_recorded():
    known = {*provenance._TEXTS, *provenance._LISTS, *provenance._FLAGS, provenance.SEED}
    for name in {field.name for field in fields(MergeOptions)} - set(provenance._SPELLED):
        assert provenance.RECORDED_AS.get(name, name) in known | NEVER_UNDONE, (
            f"unmerge refuses every merge with {name}. If {name} changes no number of the output, add it to UNRECORDED "
            "in lora_inspect/merging/options.py. If it does, read it in recorded_options of "
            "lora_inspect/merging/record.py, or add it to NEVER_UNDONE here."
        )
