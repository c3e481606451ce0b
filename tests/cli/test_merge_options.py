"""--only and --transposed of merge, and what the summary and the JSON say of what was left out and how weights lie."""

import json

import pytest
from toy_adapters import base, lora, loras

N = 6
SQUARE = lora("base_model.model.a.proj", rank=2, out=N, inputs=N, spelling="peft", alpha=2.0)
WEIGHTS = {"a.proj.weight": ("F32", (N, N), 1), "b.proj.weight": ("F32", (N, 9), 1), "b.proj.bias": ("F32", (9,), 1)}
ALONE = {"a.proj.weight": ("F32", (N, N), 1)}
WITH_TE = {**loras(2), **lora("lora_te1_layers_0_q"), **lora("lora_te2_layers_0_q")}
WHOLE = {**base(2), "conditioner.embedders.0.transformer.layers.0.q.weight": ("F32", (6, 5), 1)}


@pytest.fixture
def merge(run, write_safetensors, tmp_path):
    def merge_files(adapter, weights, *options):
        files = write_safetensors(weights, name="base.safetensors"), write_safetensors(adapter, name="a.safetensors")
        return run("merge", *files, "-o", tmp_path / "out.safetensors", "--force", *options)

    return merge_files


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_decided_the_orientation_is_said(merge, dry):
    assert "orientation: from siblings 1 as (in, out)" in merge(SQUARE, WEIGHTS, *dry).stdout
    expected = {"a.proj.weight": {"transposed": True, "from": "siblings"}}
    assert merge(SQUARE, WEIGHTS, "--json", *dry).json["orientation"] == expected


def test_a_weight_that_shows_it_by_its_shape_is_not_mentioned(merge):
    assert "orientation" not in merge(loras(2), base(2)).stdout
    assert merge(loras(2), base(2), "--json").json["orientation"] == {}


def test_transposed_settles_contradicts_and_repeats(merge):
    assert "--transposed no or --transposed yes" in merge(SQUARE, ALONE).refusal
    settled = merge(SQUARE, ALONE, "--transposed", "yes", "--json").json
    assert settled["orientation"] == {"a.proj.weight": {"transposed": True, "from": "option"}}
    contradicts = merge(SQUARE, WEIGHTS, "--transposed", "no").refusal
    assert "a.proj.weight is stored as (in, out) by its siblings, which --transposed no contradicts" in contradicts
    repeats = merge(SQUARE, WEIGHTS, "--transposed", "yes")
    assert repeats.status == 0
    assert "Note: --transposed yes repeats" in repeats.stderr


def test_transposed_takes_globs_and_says_what_is_no_answer(merge):
    both = SQUARE | lora("base_model.model.a.other", rank=2, out=N, inputs=N, spelling="peft", alpha=2.0)
    weights = ALONE | {"a.other.weight": ("F32", (N, N), 1)}
    refusal = merge(both, weights).refusal
    assert "name by name with --transposed other=yes|no --transposed proj=yes|no" in refusal
    done = merge(both, weights, "--transposed", "yes", "--transposed", "a.o*=no", "--json").json
    assert {name: item["transposed"] for name, item in done["orientation"].items()} == {
        "a.other.weight": False,
        "a.proj.weight": True,
    }
    for wrong in ("maybe", "=yes", "proj=true", "proj=", ""):
        assert merge(both, weights, "--transposed", wrong).status == 2
    assert merge(both, weights, "--transposed", "yes", "--transposed", "no").status == 2


def test_only_may_be_repeated_and_what_it_leaves_out_is_said(merge):
    only = "--only", "model", "--only", "text_encoder"
    done = merge(WITH_TE, WHOLE, *only)
    assert "merged 3 modules" in done.stdout
    assert "left out by --only: text_encoder_2 (1 modules)" in done.stderr
    assert merge(WITH_TE, WHOLE, *only, "--json").json["left_out"] == {"text_encoder_2": 1}


def test_the_command_that_a_refusal_names_does_what_it_says(merge):
    refusal = merge(WITH_TE, WHOLE).refusal
    options = refusal[refusal.index("--only") : refusal.index(" merges")].split()
    assert json.loads(merge(WITH_TE, WHOLE, *options, "--json").stdout)["modules_merged"] == 3


def test_a_component_that_no_adapter_has_is_refused(merge):
    assert (
        "it has no component text_encoder_3; it has model, text_encoder, text_encoder_2"
        in merge(WITH_TE, WHOLE, "--only", "model", "--only", "text_encoder_3").refusal
    )


def test_a_component_needs_to_be_in_one_of_several_adapters_only(run, write_safetensors, tmp_path):
    files = [write_safetensors(WHOLE, name="base.safetensors")]
    files += [write_safetensors(loras(2), name="a.safetensors"), write_safetensors(WITH_TE, name="b.safetensors")]
    options = "--only", "model", "--only", "text_encoder", "--json"
    assert run("merge", *files, "-o", tmp_path / "out.safetensors", *options).json["modules_merged"] == 5
    refusal = run("merge", *files, "-o", tmp_path / "o.safetensors", "--only", "text_encoder").refusal
    assert "a.safetensors: it has no component text_encoder; it has model" in refusal
