"""What the summary and the options of merge say of what the output keeps of an adapter."""

import re

import pytest
from adapters import base, loras
from safetensors.torch import load_file

SIZE = {"out": 96, "inputs": 64}


@pytest.fixture
def merge(run, write_safetensors, tmp_path):
    """Weights of 1 in bfloat16, whose next number is 2^-7 away, and an adapter that adds its multiplier to them."""

    def merge_files(multiplier, *options):
        files = write_safetensors(base(3, dtype="BF16", **SIZE), name="base.safetensors"), tmp_path / "a.safetensors"
        write_safetensors(loras(3, **SIZE), name="a.safetensors")
        return run("merge", files[0], f"{files[1]}:{multiplier}", "-o", tmp_path / "out.safetensors", *options)

    return merge_files


def test_the_summary_says_what_is_kept(merge, tmp_path):
    done = merge(1)
    assert f"kept: ~1.00 of {tmp_path / 'a.safetensors'}\n" in done.stdout
    assert "Note" not in done.stderr


def test_a_merge_that_loses_an_adapter_is_refused_and_leaves_nothing(merge, tmp_path):
    refusal = merge(0.001).refusal
    assert f"{tmp_path / 'a.safetensors'}: the output would keep ~0.00 of it" in refusal
    assert "blocks.0.attn.q.weight (0.00), blocks.1.attn.q.weight (0.00) and blocks.2.attn.q.weight (0.00)" in refusal
    assert not (tmp_path / "out.safetensors").exists()
    assert len(list(tmp_path.iterdir())) == 2


def test_the_loss_can_be_accepted_and_is_still_told(merge, tmp_path):
    done = merge(0.001, "--allow-loss")
    assert done.status == 0
    assert "kept: ~0.00 of" in done.stdout
    assert f"Note: {tmp_path / 'a.safetensors'}: the output keeps ~0.00 of it" in done.stderr
    record = merge(0.001, "--allow-loss", "--force", "--json").json
    assert record["kept"] == {str(tmp_path / "a.safetensors"): 0}
    assert set(record["kept_worst"][str(tmp_path / "a.safetensors")].values()) == {0}


@pytest.mark.parametrize("way_out", [["--dtype", "fp32"], ["--rounding", "stochastic"]])
def test_the_ways_out_that_a_refusal_names_lead_out(merge, way_out):
    assert " ".join(way_out) in merge(0.001).refusal
    done = merge(0.001, *way_out)
    assert done.status == 0
    assert "kept: ~" in done.stdout


def test_stochastic_rounding_tells_its_seed_and_its_noise(merge, tmp_path):
    """A part p = 0.001 / 2^-7 of the entries goes up by a whole step: the noise is sqrt(1/p - 1) of the change."""
    told = merge(0.001, "--rounding", "stochastic", "--seed", "3").stdout
    assert re.search(r"; rounded stochastically with seed 3 \(noise: 2\.[4-8] times the change of /", told)
    record = merge(0.001, "--rounding", "stochastic", "--seed", "3", "--force", "--json").json
    assert (record["rounding"], record["seed"]) == ("stochastic", 3)
    assert record["noise"][str(tmp_path / "a.safetensors")] == pytest.approx((2**-7 / 0.001 - 1) ** 0.5, rel=0.1)
    first = load_file(tmp_path / "out.safetensors")["blocks.1.attn.q.weight"]
    assert first.double().mean().item() == pytest.approx(1.001, abs=0.0005)
    assert first.unique().tolist() == [1, 1 + 2**-7]


def test_a_seed_alone_is_wrong_usage(merge):
    wrong = merge(1, "--seed", "3")
    assert wrong.status == 2
    assert "give both or neither" in wrong.stderr


def test_an_adapter_without_a_change_has_no_share(merge, tmp_path):
    done = merge(0)
    assert f"kept: no share, as the adapter changes nothing there, of {tmp_path / 'a.safetensors'}" in done.stdout
    assert merge(0, "--force", "--json").json["kept"] == {str(tmp_path / "a.safetensors"): None}
