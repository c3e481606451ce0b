"""Averages of changes that depend on the weights of a base: each file changes the base alone, as its merge does."""

import json

import numpy
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import lora_inspect


@pytest.fixture
def files(fixtures):
    names = ("base_f32", "dora_without_flag", "rslora_flag", "dora_and_rslora_flags")
    return [fixtures / "synthetic" / f"{name}.safetensors" for name in names]


def changes(base, adapter, folder):
    """The differences that a merge makes of the weights of the base."""
    out = folder / f"merged{len(list(folder.iterdir()))}.safetensors"
    lora_inspect.merge(base, [adapter], out)
    before, after = load_file(base), load_file(out)
    return {name: after[name].astype(float) - before[name].astype(float) for name in before}


def assert_near(found, meant):
    norm = max(numpy.abs(value).max() for value in meant.values())
    assert norm > 0.01
    for name, value in meant.items():
        numpy.testing.assert_allclose(found[name], value, atol=2e-6 * norm)


def test_two_times_the_same_file_is_that_file(files, tmp_path):
    base, dora, *_ = files
    lora_inspect.average([dora, dora], tmp_path / "average.safetensors", base=base, exact=True)
    found = changes(base, tmp_path / "average.safetensors", tmp_path)
    assert_near(found, changes(base, dora, tmp_path))


@pytest.mark.parametrize("other", [2, 3])
def test_each_file_changes_the_base_alone(other, files, tmp_path):
    base, dora = files[:2]
    one, two = changes(base, (dora, 0.5), tmp_path), changes(base, files[other], tmp_path)
    out = tmp_path / "average.safetensors"
    named = [f"{dora}:0.5,step=1", f"{files[other]}:step=3"]
    result = lora_inspect.average(named, out, base=base, exact=True, beta=0.8)
    assert_near(changes(base, out, tmp_path), {name: 0.8 * one[name] + 0.2 * two[name] for name in one})
    assert result.order_matters == ()
    with safe_open(out, "numpy") as file:
        record = json.loads(file.metadata()["lora_inspect.combined"])
    assert record["weights"] == pytest.approx([0.8, 0.2])
