"""What merge takes of adapters, how weights lie, and what the summary and the JSON say of what was left out."""

import json
import re

import pytest
from adapters import base, lora, loras
from safetensors.torch import load_file

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
    assert "orientation: from siblings 1 as (in, out)" in merge(SQUARE, WEIGHTS, "-v", *dry).stdout
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
    assert (
        "a.proj.weight is stored as (in, out) according to its siblings, but --transposed no contradicts" in contradicts
    )
    repeats = merge(SQUARE, WEIGHTS, "--transposed", "yes")
    assert repeats.status == 0
    assert "Note: --transposed yes is not needed" in repeats.stderr


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
    options = refusal[refusal.index("--only") : refusal.index(" to merge")].split()
    assert json.loads(merge(WITH_TE, WHOLE, *options, "--json").stdout)["modules_merged"] == 3


def test_a_component_that_no_adapter_has_is_refused(merge):
    assert (
        "it has no component text_encoder_3; choose from model, text_encoder, text_encoder_2"
        in merge(WITH_TE, WHOLE, "--only", "model", "--only", "text_encoder_3").refusal
    )


def test_a_component_needs_to_be_in_one_of_several_adapters_only(run, write_safetensors, tmp_path):
    files = [write_safetensors(WHOLE, name="base.safetensors")]
    files += [write_safetensors(loras(2), name="a.safetensors"), write_safetensors(WITH_TE, name="b.safetensors")]
    options = "--only", "model", "--only", "text_encoder", "--json"
    assert run("merge", *files, "-o", tmp_path / "out.safetensors", *options).json["modules_merged"] == 5
    refusal = run("merge", *files, "-o", tmp_path / "o.safetensors", "--only", "text_encoder").refusal
    assert "a.safetensors: it has no component text_encoder; choose from model" in refusal


def test_blocks_have_multipliers_of_their_own_and_what_is_excluded_is_counted(run, write_safetensors, tmp_path):
    files = write_safetensors(base(4), name="base.safetensors"), write_safetensors(loras(4), name="a.safetensors")
    adapter = f"{files[1]}:0.5,blocks.1-2=0.25"
    out = tmp_path / "out.safetensors"
    done = run("merge", files[0], adapter, "-o", out, "--exclude", "blocks.0", "--json").json
    assert done["modules_merged"] == 3
    assert done["multipliers"] == {str(files[1]): {"*": 0.5, "blocks.1-2": 0.25}}
    assert done["excluded"] == {str(files[1]): ["lora_unet_blocks_0_attn_q"]}
    # up is 0.25 and down 0.5 everywhere, of rank 16 and alpha 8
    merged = load_file(out)
    expected = {0: 0.0, 1: 0.25, 2: 0.25, 3: 0.5}
    for block, multiplier in expected.items():
        changed = merged[f"blocks.{block}.attn.q.weight"] - 1
        assert changed.unique().tolist() == [multiplier * 8 / 16 * 16 * 0.25 * 0.5]
    assert run("verify", out, files[0], adapter, "--exclude", "blocks.0").status == 0
    missing = run("verify", out, files[0], adapter)
    assert missing.status == 1
    assert "lora_unet_blocks_0_attn_q" in missing.stdout + missing.stderr or "blocks.0.attn.q" in missing.stdout
    told = run("merge", files[0], adapter, "-o", out, "--force", "--include", "blocks.0-2", "--exclude", "*_1_*")
    assert f"left out by --include and --exclude: 2 modules of {files[1]} (lora_unet_blocks_1_attn_q, lora_unet_" in (
        told.stderr
    )
    assert "merged 2 modules" in told.stdout


# options, and what is refused about them
WRONG_CHOICES = {
    ("--include", "blocks.7"): "--include blocks.7: blocks.7 is not a component and matches no module; try blocks.",
    ("--exclude", "block.1"): "--exclude block.1: block.1 is not a component and matches no module; try blocks.1",
    ("--exclude", "*"): "a.safetensors: none of its 4 modules remains after --exclude; leave it out.",
    ("--include", "blocks.1", "--exclude", "*q"): "none of its 4 modules remains after --include and --exclude",
    ("--include", "blocks.3-1"): "--include blocks.3-1: the range 3-1 ends before it begins; write 1-3.",
    ("--exclude", "IN08-IN01"): "--exclude IN08-IN01: the range IN08-IN01 ends before it begins; write IN01-IN08.",
    ("--include", "D08-01"): "--include D08-01: the range D08-01 ends before it begins; write D01-D08.",
    (
        "--include",
        "IN01-OUT03",
    ): "IN01-OUT03 begins in one list of blocks and ends in another; give one range for each.",
}


@pytest.mark.parametrize(("options", "says"), WRONG_CHOICES.items(), ids=map(" ".join, WRONG_CHOICES))
def test_a_choice_of_nothing_is_refused(merge, options, says):
    assert says in merge(loras(4), base(4), *options).refusal


def test_a_setting_for_what_is_excluded_is_refused(run, write_safetensors, tmp_path):
    files = write_safetensors(base(4), name="base.safetensors"), write_safetensors(loras(4), name="a.safetensors")
    out = tmp_path / "out.safetensors"
    refusal = run("merge", files[0], f"{files[1]}:blocks.0=2", "-o", out, "--exclude", "blocks.0").refusal
    assert "blocks.0 is not a component and matches no module left by --exclude" in refusal


def test_what_is_excluded_needs_no_target(merge):
    more = loras(2) | lora("lora_unet_other_0_q")
    assert merge(more, base(2)).status == 1
    assert merge(more, base(2), "--exclude", "*other*").status == 0


def test_weights_come_from_a_file_that_is_an_input(run, write_safetensors, tmp_path):
    files = write_safetensors(base(3), name="base.safetensors"), write_safetensors(loras(3), name="a.safetensors")
    weights = tmp_path / "weights.toml"
    weights.write_text('["a.safetensors"]\nmultiplier = 0.5\n["a.safetensors".blocks]\nblocks.2 = 0\n')
    out = tmp_path / "out.safetensors"
    done = run("merge", *files, "-o", out, "--weights", weights, "--json").json
    assert done["multipliers"] == {str(files[1]): {"*": 0.5, "blocks.2": 0.0}}
    assert run("verify", out, *files, "--weights", weights).status == 0
    assert run("verify", out, *files).status == 1
    assert "input" in run("merge", *files, "-o", weights, "--weights", weights, "--force").refusal
    weights.write_text("[b]\n")
    assert 'line 1: ["b"] names none of the adapters' in run("merge", *files, "-o", out, "--weights", weights).refusal


def test_a_module_that_has_no_alpha_among_others_is_told(run, write_safetensors, tmp_path):
    lost = {**loras(2), **lora("lora_unet_blocks_2_attn_q", alpha=None)}
    file, weights = write_safetensors(lost, name="a.safetensors"), write_safetensors(base(3), name="base.safetensors")
    says = (
        f"Note: {file}: the file has no alpha for 1 module (lora_unet_blocks_2_attn_q), which means scale 1 there, but "
        "has one for 2 modules."
    )
    out = tmp_path / "out.safetensors"
    assert says in run("merge", weights, file, "-o", out).stderr
    assert says in run("verify", out, weights, file).stderr
    assert says in run("convert", file, "-o", tmp_path / "c.safetensors").stderr
    assert [problem["code"] for problem in run("info", file, "--json").json["problems"]] == ["alpha-missing"]


@pytest.mark.parametrize("adapter", [loras(3), loras(3, alpha=None)], ids=["alphas", "no alphas"])
def test_alphas_that_are_all_there_or_none_are_not_told(adapter, merge):
    assert "alpha" not in merge(adapter, base(3)).stderr


@pytest.mark.parametrize(("words", "lines"), [([], 3), (["-v"], 4), (["-q"], 0), (["-q", "--json"], None)])
def test_how_much_is_printed(words, lines, merge):
    ended = merge(loras(2), base(2), *words)
    if lines is None:
        assert ended.json["modules_merged"] == 2
        return
    told = ended.stdout.splitlines()
    assert (ended.status, ended.stderr, len(told)) == (0, "", lines)
    if lines:
        assert told[0].startswith("merged 2 modules (")
        assert told[-2].startswith("kept: ")
        assert re.fullmatch(r"[0-9,]+ bytes in [0-9.]+ s", told[-1])
    assert ("tensors copied unchanged" in ended.stdout) == ("-v" in words)


def test_more_and_nothing_exclude_each_other(merge):
    assert merge(loras(2), base(2), "-v", "-q").status == 2
