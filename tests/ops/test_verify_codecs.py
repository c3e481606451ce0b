"""verify of merges into fp8 and int8: our own are right, and what lacks the change is found out."""

import json

import pytest
import torch
from adapters import drawn_lora
from bases import IN, OUT, SPELLINGS, Q, coded, decoded
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.numeric

MODULE = "lora_unet_blocks_0_attn_q"
every_spelling = pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)


@pytest.fixture
def paths(tmp_path):
    return [tmp_path / f"{name}.safetensors" for name in ("base", "adapter", "merged")]


def lora(size):
    tensors = drawn_lora(MODULE, seed=5, rank=4, alpha=4.0, out=OUT, inputs=IN)
    tensors[f"{MODULE}.lora_up.weight"] *= size
    return tensors


def merged(run, paths, *options):
    base, adapter, output = paths
    run("merge", base, adapter, "-o", output, "--force", *options)


def verified(run, paths):
    base, adapter, output = paths
    return run("verify", output, base, adapter, "--json")


@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
@every_spelling
def test_our_own_merges_are_right_in_every_format(spelling, size, paths, run):
    save_file(coded(*spelling), paths[0])
    save_file(lora(size), paths[1])
    for options in ((), ("--changed-dtype", "bf16"), ("--dtype", "fp16")):
        merged(run, paths, *options)
        found = verified(run, paths)
        assert found.status == 0, json.loads(found.stdout)["findings"]
        (noise,) = json.loads(found.stdout)["noise"].values()
        (share,) = json.loads(found.stdout)["share"].values()
        assert share == pytest.approx(1, abs=max(noise, 0.01))
        assert noise < 0.15


@every_spelling
def test_a_base_that_nothing_was_merged_into_lacks_the_change(spelling, paths, run):
    save_file(coded(*spelling), paths[0])
    save_file(lora(0.3), paths[1])
    save_file(coded(*spelling), paths[2])
    found = verified(run, paths)
    assert found.status == 1
    assert [one["code"] for one in json.loads(found.stdout)["findings"]] == ["missing"]


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [2.0, 0.5, -1.0])
@every_spelling
def test_a_wrong_strength_is_told_from_rounding(spelling, wrong, paths, run):
    save_file(coded(*spelling), paths[0])
    save_file(lora(0.3), paths[1])
    run("merge", paths[0], f"{paths[1]}:{wrong}", "-o", paths[2])
    found = verified(run, paths)
    assert found.status == 1
    (share,), (noise,) = json.loads(found.stdout)["share"].values(), json.loads(found.stdout)["noise"].values()
    assert share == pytest.approx(wrong, abs=noise * abs(wrong) + 0.05)


@pytest.mark.parametrize("name", ["ComfyUI's second form", "int8 of rows", "DeepSeek's blocks"])
def test_codes_that_were_changed_without_their_scale_are_no_merge(name, paths, run):
    """The delta on the raw codes, as programs have it that know of no scale."""
    spelling = SPELLINGS[name]
    base, adapter = coded(*spelling), lora(0.3)
    save_file(base, paths[0])
    save_file(adapter, paths[1])
    merged(run, paths)
    made = load_file(paths[2])
    change = adapter[f"{MODULE}.lora_up.weight"] @ adapter[f"{MODULE}.lora_down.weight"]
    codes = base[f"{Q}.weight"]
    raw = (codes.float() + change).clamp(-127, 127)
    made[f"{Q}.weight"] = (raw.round() if codes.dtype == torch.int8 else raw).to(codes.dtype)
    made[f"{Q}.{spelling[1]}"] = base[f"{Q}.{spelling[1]}"]
    save_file(made, paths[2])
    assert verified(run, paths).status == 1
    assert decoded(made, spelling[1]).isfinite().all()
