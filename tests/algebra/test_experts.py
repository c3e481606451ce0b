"""Sums of the factors of all experts of a layer, against merges of the same adapters one after the other."""

import math
import shutil

import numpy
import pytest
from safetensors.numpy import load_file, save_file

import lora_inspect

# The folder of an adapter, and the base of the same model.
KINDS = {
    "PEFT 0.17, gpt-oss": ("experts/peft-0.17.1-gpt-oss", "experts/gpt-oss"),
    "PEFT 0.19, gpt-oss": ("experts/peft-0.19.0-gpt-oss", "experts/gpt-oss"),
    "PEFT 0.18, square": ("experts/peft-0.18.1-gpt-oss-square", "experts/gpt-oss"),
    "PEFT 0.18, Qwen3": ("experts/peft-0.18.1-qwen3-moe", "experts/qwen3-moe"),
    "PEFT 0.19, Qwen3": ("experts/peft-0.19.0-qwen3-moe", "experts/qwen3-moe"),
    "mlx-lm": ("mlx/experts", "mlx/qwen3-moe"),
}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request, fixtures):
    adapter, base = request.param
    return fixtures / adapter, fixtures / f"{base}.safetensors"


def merged(base, adapters, tmp_path, name):
    lora_inspect.merge(base, adapters, tmp_path / name)
    return load_file(tmp_path / name)


def changes(found, base):
    own = load_file(base)
    return {key: found[key].astype(float) - own[key].astype(float) for key in own}


def test_the_sum_is_merged_as_both_are(kind, tmp_path):
    adapter, base = kind
    meant = changes(merged(base, [(adapter, 0.45)], tmp_path, "one.safetensors"), base)
    lora_inspect.combine([(adapter, 0.7), (adapter, -0.25)], tmp_path / "sum")
    found = changes(merged(base, [tmp_path / "sum"], tmp_path, "two.safetensors"), base)
    assert max(numpy.abs(change).max() for change in meant.values()) > 0.1
    for key, change in meant.items():
        numpy.testing.assert_allclose(found[key], change, atol=2e-6, rtol=1e-5)


def test_the_error_of_a_trim_is_that_of_all_experts(kind, tmp_path):
    adapter, base = kind
    whole = changes(merged(base, [adapter], tmp_path, "one.safetensors"), base)
    result = lora_inspect.combine([adapter], tmp_path / "trimmed", rank=1)
    found = changes(merged(base, [tmp_path / "trimmed"], tmp_path, "two.safetensors"), base)
    lost = math.sqrt(sum(numpy.square(found[key] - whole[key]).sum() for key in whole))
    norm = math.sqrt(sum(numpy.square(change).sum() for change in whole.values()))
    assert result.error == pytest.approx(lost / norm, rel=1e-5)
    assert result.ranks.keys() == {1}


def test_each_expert_is_trimmed_as_well_as_it_can_be(fixtures, tmp_path):
    adapter, base = fixtures / "mlx/experts", fixtures / "mlx/qwen3-moe.safetensors"
    whole = changes(merged(base, [adapter], tmp_path, "one.safetensors"), base)
    lora_inspect.combine([adapter], tmp_path / "trimmed", rank=1)
    found = changes(merged(base, [tmp_path / "trimmed"], tmp_path, "two.safetensors"), base)
    for key, change in whole.items():
        if "experts" not in key or not change.any():
            continue
        for meant, own in zip(
            change.reshape(-1, *change.shape[-2:]), found[key].reshape(-1, *change.shape[-2:]), strict=True
        ):
            best = math.sqrt(numpy.square(numpy.linalg.svd(meant, compute_uv=False)[1:]).sum())
            assert numpy.linalg.norm(own - meant) == pytest.approx(best, rel=1e-4, abs=1e-6)


def test_experts_of_another_size_are_refused(fixtures, tmp_path):
    adapter = fixtures / "experts/peft-0.19.0-gpt-oss"
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    tensors = load_file(other / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.mlp.experts.lora_A.weight"
    tensors[key] = numpy.concatenate([tensors[key]] * 2, axis=1)
    save_file(tensors, other / "adapter_model.safetensors")
    with pytest.raises(lora_inspect.RefusedError, match="experts of another number, size or order"):
        lora_inspect.combine([adapter, other], tmp_path / "sum")
    assert not (tmp_path / "sum").exists()


def test_no_other_names_have_all_experts_of_peft(fixtures, tmp_path):
    with pytest.raises(lora_inspect.RefusedError):
        lora_inspect.combine([fixtures / "experts/peft-0.19.0-gpt-oss"] * 2, tmp_path / "a.safetensors", to="kohya")
