"""Embeddings of tokens are known by their names, named, passed on, and no part of a merge."""

import pytest
import torch
from adapters import base, loras
from safetensors.torch import load_file

VECTORS = ("F32", (2, 8), 1)
# key -> token, as the programs write them.
BESIDE = {
    "bundle_emb.style.clip_l": "style",
    "bundle_emb.style.clip_g_out": "style",
    "bundle_emb.<my.style>.t5": "<my.style>",
    "bundle_emb.old.string_to_param.*": "old",
    "bundle_emb.an.old.one.string_to_param.*": "an.old.one",
    "<s1>": "<s1>",
    "emb_params": "",
    "clip_l": "",
    "t5": "",
    "text_encoders_1": "",
    "string_to_param.*": "",
}


def test_bundled_embeddings_are_named(write_safetensors, run):
    file = write_safetensors({**loras(), **dict.fromkeys(BESIDE, VECTORS)})
    record = run("info", file, "--json").json
    assert (record["kind"], record["modules"], record["unclaimed"]) == ("adapter", 3, [])
    found = {key: one["token"] for one in record["embeddings"] for key in one["keys"]}
    assert found == BESIDE
    assert [one["token"] for one in record["embeddings"]].count("style") == 1
    (problem,) = record["problems"]
    assert (problem["code"], problem["severity"]) == ("embeddings", "note")
    assert "(style, <my.style>, old, an.old.one, <s1>) change no weight" in problem["message"]


def test_cloneofsimo_says_in_the_metadata_what_is_one(write_safetensors, run):
    tensors = {**loras(), "sks": ("F32", (8,), 1), "other": ("F32", (8,), 1)}
    record = run("info", write_safetensors(tensors, {"sks": "<embed>"}), "--json").json
    assert record["embeddings"] == [{"token": "sks", "keys": ["sks"]}]
    assert record["unclaimed"] == ["other"]


@pytest.mark.parametrize(
    ("key", "shape"),
    [("bundle_emb.x", (2, 8)), ("bundle_emb..clip_l", (2, 8)), ("<>", (2, 8)), ("<s1", (2, 8)), ("clip_x", (2, 8)),
     ("emb_params", (2, 2, 8)), ("clip_l", ()), ("model.clip_l", (2, 8))],
)  # fmt: skip
def test_other_tensors_are_none(key, shape, write_safetensors, run):
    record = run("info", write_safetensors({**loras(), key: ("F32", shape, 1)}), "--json").json
    assert (record["embeddings"], record["unclaimed"]) == ([], [key])


@pytest.mark.parametrize("keys", [["<s1>"], ["emb_params"], ["clip_l", "clip_g"]])
def test_a_file_of_embeddings_is_no_adapter(keys, write_safetensors, run, tmp_path):
    file = write_safetensors(dict.fromkeys(keys, VECTORS), name="own.safetensors")
    record = run("info", file, "--json").json
    assert (record["kind"], record["embeddings"][0]["keys"]) == ("other", keys)
    merge = ("merge", write_safetensors(base(), name="base.safetensors"), file)
    for command in (merge, ("convert", file)):
        refusal = run(*command, "-o", tmp_path / "out.safetensors").refusal
        assert f"it holds textual-inversion embeddings ({', '.join(keys)}) but no adapter" in refusal


def test_merge_says_that_they_are_not_merged(write_safetensors, run, tmp_path):
    tensors = {**loras(), **dict.fromkeys(BESIDE, VECTORS)}
    file, plain = write_safetensors(tensors), write_safetensors(loras(), name="plain.safetensors")
    on, out = write_safetensors(base(), name="base.safetensors"), tmp_path / "out.safetensors"
    ended = run("merge", on, file, "-o", out, "--json")
    assert (ended.json["modules_merged"], ended.json["embeddings"], ended.json["unmatched"]) == (3, list(BESIDE), [])
    assert ", as they change no weight; load them with the merged base" in ended.stderr
    merged = load_file(out)
    assert run("merge", on, plain, "-o", out, "--force", "--json").json["embeddings"] == []
    assert merged.keys() == base().keys()
    assert all(torch.equal(merged[key], value) for key, value in load_file(out).items())


def test_convert_passes_them_on(write_safetensors, run, tmp_path):
    tensors = {**loras(), **dict.fromkeys(BESIDE, VECTORS)}
    out = tmp_path / "out.safetensors"
    result = run("convert", write_safetensors(tensors), "-o", out, "--json").json
    assert result["passed_through"] == list(BESIDE)
    written = load_file(out)
    assert all(torch.equal(written[key], torch.ones(2, 8)) for key in BESIDE)
