"""The record of scales in the factors: shown, and never computed with."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.reading.scale.scale_records import FOLDED_KEY, FoldedScales, folded_record

A, B = "transformer.a.to_q", "transformer.b.to_q"
# What a file may claim; all of it is nonsense or a lie.
RECORDS = [
    '{"scale": 1000}', '{"scale": 2, "modules": {"transformer.a.to_q": 0}}', '{"scale": 1e999}', '{"scale": "2"}',
    '{"scale": true}', '{"scale": null}', '{"modules": []}', '{"modules": {"transformer.a.to_q": {}}}', "[]", "2", "{",
    "", '{"scale": NaN}', '{"scale": ' + "9" * 400 + "}",
]  # fmt: skip


def tensors():
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name in (A, B):
        found[f"{name}.lora_A.weight"] = torch.randn(2, 5, generator=generator)
        found[f"{name}.lora_B.weight"] = torch.randn(6, 2, generator=generator)
    return found


def test_a_record_is_read_as_it_was_written():
    scales = {"a": 2.0, "b": 0.3, "c": 2.0, "d": 0.0, "e": -1.0, "f": 1.0}
    found = FoldedScales({FOLDED_KEY: folded_record(scales)})
    assert {name: found.at(name) for name in scales} == scales
    assert folded_record({"a": 1.0, "b": 1.0}) is None
    assert json.loads(folded_record({"a": 2.0, "b": 2.0})) == {"scale": 2.0}


def test_the_order_of_the_modules_does_not_change_the_record():
    scales = {"a": 2.0, "b": 0.5, "c": 1.0}
    assert folded_record(scales) == folded_record(dict(reversed(scales.items())))


def test_no_record_is_scale_one():
    assert FoldedScales({}).at("a") == 1.0


@pytest.mark.parametrize("scale", ["1e999", "-1e999", "NaN", "true", '"2"', "null", "[2]", "1" + "0" * 400])
def test_a_scale_that_is_no_finite_number_is_none(scale):
    assert FoldedScales({FOLDED_KEY: f'{{"scale": {scale}, "modules": {{"a": {scale}}}}}'}).at("a") == 1.0


@pytest.mark.parametrize("record", RECORDS)
def test_a_damaged_or_lying_record_changes_nothing_that_is_computed(record, tmp_path, run):
    save_file({"a.to_q.weight": torch.ones(6, 5), "b.to_q.weight": torch.ones(6, 5)}, tmp_path / "base.safetensors")
    results = []
    for metadata in (None, {FOLDED_KEY: record}):
        save_file(tensors(), tmp_path / "x.safetensors", metadata)
        plan = plan_merge(str(tmp_path / "base.safetensors"), [(str(tmp_path / "x.safetensors"), 1.0)], MergeOptions())
        merge(plan, str(tmp_path / "merged.safetensors"), force=True)
        convert_to_standard(
            str(tmp_path / "x.safetensors"), str(tmp_path / "out.safetensors"), ConvertOptions(), force=True
        )
        assert run("info", tmp_path / "x.safetensors", "--json").status == 0
        results.append((load_file(tmp_path / "merged.safetensors"), load_file(tmp_path / "out.safetensors")))
    for first, second in zip(*results, strict=True):
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_record_beside_another_scale_is_not_of_these_tensors(tmp_path, run):
    save_file({**tensors(), f"{A}.alpha": torch.tensor(6.0)}, tmp_path / "x.safetensors", {FOLDED_KEY: '{"scale": 5}'})
    assert run("info", tmp_path / "x.safetensors", "--json").json["scales"] == {"3": 1, "5": 1}


def test_info_says_what_is_shown_and_what_is_applied(tmp_path, run):
    save_file({**tensors(), f"{A}.alpha": torch.tensor(6.0)}, tmp_path / "x.safetensors")
    convert_to_standard(str(tmp_path / "x.safetensors"), str(tmp_path / "out.safetensors"), ConvertOptions())
    found = run("info", tmp_path / "out.safetensors", "--json", "--modules").json
    assert found["scales"] == {"3": 1, "1": 1}
    assert {m["module"]: m["scale"] for m in found["module_list"]} == {A: 3.0, B: 1.0}
    assert {m["module"]: m["why"] for m in found["module_list"]}[A] == "it is multiplied into the factors"
    (says,) = [item for item in found["evidence"] if item["where"] == f"metadata {FOLDED_KEY}"]
    assert says["about"] == "scale"
    assert says["says"] == "3 is multiplied into the factors, which readers apply at 1"


def test_the_record_outlives_a_second_conversion_and_ends_with_other_factors(tmp_path, run):
    save_file({**tensors(), f"{A}.alpha": torch.tensor(6.0)}, tmp_path / "x.safetensors")
    for source, target in (("x", "once"), ("once", "twice")):
        convert_to_standard(
            str(tmp_path / f"{source}.safetensors"), str(tmp_path / f"{target}.safetensors"), ConvertOptions()
        )
    once, twice = (load_file(tmp_path / f"{name}.safetensors") for name in ("once", "twice"))
    assert all(torch.equal(once[name], twice[name]) for name in once)
    assert run("info", tmp_path / "twice.safetensors", "--json").json["scales"] == {"3": 1, "1": 1}


def test_a_record_of_other_factors_is_not_kept(tmp_path):
    """`--base` replaces the factors, and what was multiplied into the old ones is in none of the new ones."""
    generator = torch.Generator().manual_seed(0)
    given = {key: tensor for key, tensor in tensors().items() if key.startswith(A)}
    given |= {f"{A}.alpha": torch.tensor(2.0), f"{A}.lora_magnitude_vector": torch.ones(6)}
    save_file(given, tmp_path / "in.safetensors", metadata={FOLDED_KEY: '{"scale": 3}'})
    weight = torch.randn(6, 5, generator=generator)
    save_file({f"{A.removeprefix('transformer.')}.weight": weight}, tmp_path / "base.safetensors")
    options = ConvertOptions(base=str(tmp_path / "base.safetensors"), rank=5)
    convert_to_standard(str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors"), options)
    with safe_open(tmp_path / "out.safetensors", "pt") as found:
        assert FOLDED_KEY not in found.metadata()


def test_slices_of_one_scale_have_it_in_the_record(tmp_path):
    given = {f"{A}.alpha": torch.tensor(1.0)}
    for number in range(2):
        given[f"{A}.lora_down.{number}.weight"] = torch.full((2, 5), 1.0 + number)
        given[f"{A}.lora_up.{number}.weight"] = torch.ones(3, 2)
    save_file(given, tmp_path / "in.safetensors")
    convert_to_standard(str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors"), ConvertOptions())
    with safe_open(tmp_path / "out.safetensors", "pt") as found:
        assert json.loads(found.metadata()[FOLDED_KEY]) == {"scale": 0.5}


def test_slices_of_which_only_the_first_is_unscaled_are_changed(tmp_path):
    given = {f"{A}.alpha": torch.tensor(2.0)}
    for number, rank in enumerate((2, 4)):
        given[f"{A}.lora_down.{number}.weight"] = torch.full((rank, 5), 1.0 + number)
        given[f"{A}.lora_up.{number}.weight"] = torch.ones(3, rank)
    save_file(given, tmp_path / "in.safetensors", metadata={FOLDED_KEY: '{"scale": 3}'})
    convert_to_standard(str(tmp_path / "in.safetensors"), str(tmp_path / "out.safetensors"), ConvertOptions())
    with safe_open(tmp_path / "out.safetensors", "pt") as found:
        assert FOLDED_KEY not in found.metadata()
