"""What `combine`, `resize` and `average` print, and what `info` says of the files that they made."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

NAMES = ("lora_unet_blocks_0_self_attn_q", "lora_unet_blocks_1_self_attn_q")


def written(path, values, seed=0, metadata=None):
    """LoRA whose two modules have these singular values, with alpha the rank."""
    drawn = np.random.default_rng(seed)
    tensors = {}
    for name in NAMES:
        left, right = (np.linalg.qr(drawn.normal(size=(24, len(values))))[0] for _ in range(2))
        tensors[f"{name}.lora_up.weight"] = (left * values).astype(np.float32)
        tensors[f"{name}.lora_down.weight"] = np.ascontiguousarray(right.T, np.float32)
        tensors[f"{name}.alpha"] = np.array(len(values), np.float32)
    save_file(tensors, path, metadata)
    return path


@pytest.fixture
def two(tmp_path, monkeypatch):
    """`a.safetensors` and `b.safetensors`, of rank 2 and of norm 5 in each module."""
    monkeypatch.chdir(tmp_path)
    written("a.safetensors", [4.0, 3.0], seed=1)
    written("b.safetensors", [4.0, 3.0], seed=2)


def lines(shown):
    assert (shown.status, shown.stderr) == (0, "")
    return shown.stdout.splitlines()


def test_a_sum_says_its_modules_inputs_and_rounding(two, run):
    first, *inputs, last = lines(run("combine", "a.safetensors:0.5", "b.safetensors", "-o", "sum.safetensors"))
    assert re.fullmatch(r"sum\.safetensors has 2 modules of rank 4, F32, [\d,]+ bytes", first)
    assert inputs == ["  from a.safetensors:0.5", "  from b.safetensors"]
    assert re.fullmatch(r"exact but for rounding to F32 \(relative error \d\.?\d*e-08\)", last)


def test_a_plan_says_what_would_be(two, run):
    first, *_, last = lines(run("combine", "a.safetensors", "b.safetensors", "--dry-run"))
    assert first.startswith("the output would have 2 modules of rank 4, F32, ")
    assert last == "exact but for rounding"


def test_a_multiplier_that_is_a_power_of_two_is_exact(two, run):
    assert lines(run("combine", "a.safetensors:0.5", "-o", "half.safetensors"))[-1] == "exact"


def test_a_trim_says_what_it_keeps_and_which_module_is_worst(two, run):
    # Of 4² + 3² the first direction has 16/25, and the other is 3/5 of the norm.
    *_, last = lines(run("resize", "a.safetensors", "--max-rank", "1", "-o", "small.safetensors"))
    says = rf"keeps 64\.0% of the energy: relative error 0\.6 \(worst: 0\.6 in ({'|'.join(NAMES)})\)"
    assert re.fullmatch(says, last)
    *_, error, rounding = lines(
        run("resize", "a.safetensors", "--rank", "1", "--dtype", "bf16", "-o", "bf16.safetensors")
    )
    assert re.fullmatch(says, error)
    assert re.fullmatch(r"rounding to BF16 adds a relative error of 0\.00\d+", rounding)


@pytest.mark.parametrize(("value", "kept"), [(1e-2, "99.999%"), (1e-3, "99.99999%"), (3e-5, "nearly all")])
def test_no_share_below_all_of_it_is_shown_as_all(value, kept, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written("a.safetensors", [4.0, value])
    *_, last = lines(run("resize", "a.safetensors", "--rank", "1", "-o", "small.safetensors"))
    assert last.startswith(f"keeps {kept} of the energy: relative error ")


def test_differences_have_no_rank(two, run, fixtures):
    base, dora = (fixtures / "synthetic" / f"{name}.safetensors" for name in ("base_f32", "dora_without_flag"))
    shown = run("combine", "a.safetensors", dora, "--base", base, "-o", "sum.safetensors")
    assert "10 of 11 modules are in only some of the inputs" in shown.stderr
    first = shown.stdout.splitlines()[0]
    assert first.startswith("sum.safetensors has 11 modules: 1 of rank 2, 10 without a rank, F32, ")


def test_modules_that_the_user_left_out_are_no_note(two, run):
    first, *_ = NAMES
    shown = run(
        "combine", f"a.safetensors:0,{first.removeprefix('lora_unet_')}=1", "b.safetensors", "-o", "sum.safetensors"
    )
    assert (shown.status, shown.stderr) == (0, "")


def test_a_smaller_file_is_offered_where_it_is_much_smaller(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written("a.safetensors", [4.0, *[0.01] * 7], seed=1)
    written("b.safetensors", [4.0, *[0.01] * 7], seed=2)
    *_, offer = lines(run("combine", "a.safetensors", "b.safetensors", "-o", "sum.safetensors"))
    said = re.fullmatch(
        r"smaller: --energy 0\.99 would give rank 2 at most and ([\d,]+) bytes, \d+% of this size", offer
    )
    small = run("combine", "a.safetensors", "b.safetensors", "--energy", "0.99", "-o", "small.safetensors", "--json")
    assert abs(int(said[1].replace(",", "")) - small.json["bytes"]) <= 64


def test_an_average_says_the_weights_and_how_far_the_factors_are(two, run):
    shown = lines(
        run("average", "a.safetensors:step=1", "b.safetensors:step=3", "--beta", "0.25", "-o", "mean.safetensors")
    )
    assert shown[1:3] == [
        "  from a.safetensors:step=1  weight 0.25 at step 1",
        "  from b.safetensors:step=3  weight 0.75 at step 3",
    ]
    up, down = ({}, {})
    for name in ("a", "b"):
        tensors = load_file(f"{name}.safetensors")
        up[name] = [tensors[f"{key}.lora_up.weight"] for key in NAMES]
        down[name] = [tensors[f"{key}.lora_down.weight"] for key in NAMES]
    wanted = [0.25 * up["a"][k] @ down["a"][k] + 0.75 * up["b"][k] @ down["b"][k] for k in (0, 1)]
    made = [(0.25 * up["a"][k] + 0.75 * up["b"][k]) @ (0.25 * down["a"][k] + 0.75 * down["b"][k]) for k in (0, 1)]
    apart = np.linalg.norm(np.subtract(wanted, made)) / np.linalg.norm(wanted)
    assert shown[-1] == f"relative difference of the average of factors (--of factors): {apart:.2g}"
    of_factors = lines(
        run("average", "a.safetensors:step=1", "b.safetensors:step=3", "--beta", "0.25", "--of", "factors",
            "-o", "factors.safetensors")
    )  # fmt: skip
    assert f"relative difference from the average of changes: {apart:.2g}" in of_factors
    assert not any("energy" in line for line in of_factors)


def test_a_folder_is_a_table(two, run, tmp_path):
    (tmp_path / "all").mkdir()
    for name in "ab":
        (tmp_path / f"{name}.safetensors").rename(tmp_path / "all" / f"{name}.safetensors")
    written("all/c.safetensors", [2.0], seed=3)
    shown = lines(run("resize", "all", "--max-rank", "1", "-o", "out"))
    rows = [re.split("  +", line.strip()) for line in shown if line.startswith("out/")]
    assert [row[1] for row in rows] == ["2 modules of rank 1"] * 3
    assert [row[-2:] for row in rows] == [["64.0%", "0.6"], ["64.0%", "0.6"], ["all", "-"]]
    assert shown[-1] == "3 resized"


def test_info_says_how_an_adapter_was_made(two, run):
    run("combine", "a.safetensors:0.5", "b.safetensors", "--rank", "2", "-o", "sum.safetensors")
    error = run("info", "sum.safetensors", "--json").json["combined"]["error"]
    shown = " ".join(run("info", "sum.safetensors").stdout.split())
    assert shown.endswith(f" made by combine --rank 2 of a.safetensors:0.5 and b.safetensors; error {error:.3g}")
    record = json.loads(run("metadata", "get", "sum.safetensors", "lora_inspect.combined").stdout)
    assert run("info", "sum.safetensors", "--json").json["combined"] == {**record, "method": None}
    assert run("info", "a.safetensors", "--json").json["combined"] is None
    assert "made by" not in run("info", "a.safetensors").stdout


def test_an_exact_sum_has_no_error_in_its_screen(two, run):
    run("combine", "a.safetensors:0.5", "-o", "half.safetensors")
    assert "  made by      combine of a.safetensors:0.5\n" in run("info", "half.safetensors").stdout


def test_of_very_many_inputs_some_are_named(tmp_path, run):
    record = {"verb": "average", "inputs": [{"file": f"{number}.safetensors"} for number in range(20_000)]}
    path = written(tmp_path / "a.safetensors", [1.0], metadata={"lora_inspect.combined": json.dumps(record)})
    shown = run("info", path).stdout
    assert len(shown) < 2_000
    assert "19,994 more" in shown or "19994 more" in shown
    assert len(run("info", path, "--json").json["combined"]["inputs"]) == 20_000


def test_modules_that_are_left_out_are_named_with_the_reason(two, run):
    named = run("combine", "a.safetensors", "--exclude", "blocks.0", "-o", "part.safetensors")
    assert named.stderr == f"left out (by --include or --exclude): {NAMES[0]}\n"
    zero = run("combine", "a.safetensors", "b.safetensors", "--exclude", "blocks.1", "-o", "sum.safetensors")
    assert zero.stderr == f"left out (by --exclude): {NAMES[1]}\n"
    small = run("resize", "a.safetensors:1,blocks.0=0.001", "--size", "5kB", "-o", "small.safetensors")
    assert (small.status, small.stdout.startswith("small.safetensors has 1 module of rank ")) == (0, True)
    assert small.stderr == f"left out (--size has no room for it): {NAMES[0]}\n"


@pytest.mark.parametrize("plan", [[], ["--dry-run"]])
def test_a_size_without_room_for_a_module_is_refused_as_such(plan, two, run):
    shown = run("resize", "a.safetensors", "--size", "4900", "-o", "small.safetensors", *plan)
    assert (shown.status, shown.stdout) == (1, "")
    assert shown.stderr == "Error: a.safetensors: --size 4,900 has no room for a module; give a larger size.\n"


def test_a_dry_run_of_a_folder_writes_nothing(run, tmp_path, monkeypatch, fixtures):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loras").mkdir()
    for name in ("rslora_flag", "comfyui_alpha"):
        shutil.copy(fixtures / "synthetic" / f"{name}.safetensors", tmp_path / "loras")
    shown = run("resize", "loras", "--rank", "2", "--dry-run")
    assert shown.status == 0
    assert shown.stdout.splitlines()[-1] == "2 would be resized"
    assert os.listdir(tmp_path) == ["loras"]
    assert run("resize", "loras", "--rank", "2", "-o", "out").status == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["comfyui_alpha.safetensors", "rslora_flag.safetensors"]
