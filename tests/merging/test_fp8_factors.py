"""Adapters whose factors are stored in eight bits: numbers as torch casts them, to every verb that computes.

What is expected is the formula in float64 of the numbers that torch's cast gives, or what the same file does whose
numbers are stored in float32.
"""

import json
import math

import pytest
import torch
from adapters import assert_within, dotted, expected, factors, kohya
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.numeric

TYPES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
WIDTH = 6


def base():
    generator = torch.Generator().manual_seed(3)
    shapes = {"a.b": (WIDTH, WIDTH + 1), "a.c": (WIDTH - 1, WIDTH), "a.conv": (4, 3, 3, 3)}
    return {f"{path}.weight": torch.randn(shape, generator=generator) for path, shape in shapes.items()}


def coded(tensors, dtype):
    """The tensors of an adapter, cast to eight bits: factors, magnitudes and alphas."""
    return {key: value.to(dtype) for key, value in tensors.items()}


def widened(tensors):
    return {key: value.float() for key, value in tensors.items()}


def as_cast(adapter, dtype):
    """The factors with the numbers that torch's cast to the dtype and back leaves of them."""

    def cast(value):
        return value if value is None else value.to(dtype).float()

    return {
        path: own._replace(
            down=cast(own.down), up=cast(own.up), magnitude=cast(own.magnitude),
            alpha=float(torch.tensor(own.alpha).to(dtype).float()),
        )
        for path, own in adapter.items()
    }  # fmt: skip


SPELLINGS = {"kohya": (kohya, "lora_unet_", True), "dotted": (dotted, "diffusion_model.", False)}


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
def test_factors_of_eight_bits_are_merged(dtype, spelling, dora, merged):
    spelled, prefix, interpolate = SPELLINGS[spelling]
    adapter = factors(base(), ["a.b", "a.c", "a.conv"], dora)
    found = merged(base(), coded(spelled(prefix, adapter), dtype), 0.5)
    values, bounds = expected(base(), as_cast(adapter, dtype), 0.5, interpolate)
    assert_within(found, values, bounds)


def tensors_of(kind):
    generator = torch.Generator().manual_seed(5)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    name = "lora_unet_a_b"
    return {
        "LoHa": {f"{name}.hada_{part}": random(*shape) for part, shape in {
            "w1_a": (WIDTH, 2), "w1_b": (2, WIDTH + 1), "w2_a": (WIDTH, 2), "w2_b": (2, WIDTH + 1)}.items()},
        "LoKr": {f"{name}.lokr_w1": random(2, 1), f"{name}.lokr_w2_a": random(3, 2), f"{name}.lokr_w2_b": random(2, 7)},
        "Tucker": {"lora_unet_a_conv.lora_down.weight": random(2, 3, 1, 1),
                   "lora_unet_a_conv.lora_up.weight": random(4, 2, 1, 1),
                   "lora_unet_a_conv.lora_mid.weight": random(2, 2, 3, 3)},
        "difference": {f"{name}.diff": random(WIDTH, WIDTH + 1)},
        "OFT": {f"{name}.oft_blocks": random(2, 3, 3) * 0.1},
    }[kind]  # fmt: skip


@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "Tucker", "difference", "OFT"])
@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
def test_every_algorithm_takes_the_numbers_that_the_codes_are(dtype, kind, merged):
    tensors = coded(tensors_of(kind), dtype)
    tensors |= {"lora_unet_a_b.alpha": torch.tensor(1.5)} if kind.startswith("Lo") else {}
    found, wide = merged(base(), tensors), merged(base(), widened(tensors))
    assert all(torch.equal(found[key], wide[key]) for key in wide)
    assert any(not torch.equal(found[key], value) for key, value in base().items())


@pytest.fixture
def files(tmp_path):
    """The paths of a base, and of an adapter in eight bits with RS-LoRA's rule, in names without alpha tensors."""

    def make(dtype, dora=False):
        adapter = factors(base(), ["a.b", "a.c"], dora)
        save_file(base(), tmp_path / "base.safetensors")
        tensors = coded(dotted("base_model.model.", adapter), dtype)
        folder = tmp_path / "adapter"
        folder.mkdir()
        save_file({k: v for k, v in tensors.items() if "alpha" not in k}, folder / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA", "r": 1, "lora_alpha": 3, "use_rslora": True, "use_dora": dora,
            "target_modules": ["b", "c"], "rank_pattern": {"a.c": 2},
        }  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(config))
        scales = {"a.b": 3.0, "a.c": 3.0 / 2**0.5}
        return tmp_path / "base.safetensors", folder, as_cast(adapter, dtype), scales

    return make


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
def test_a_merge_of_eight_bits_is_verified(dtype, files, run, tmp_path):
    model, adapter, _, _ = files(dtype)
    out = tmp_path / "merged.safetensors"
    assert run("merge", model, adapter, "-o", out).status == 0
    record = run("verify", out, model, adapter, "--json").json
    assert record["ok"]
    assert all(share == pytest.approx(1.0, abs=1e-3) for share in record["share"].values())


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
def test_the_standard_form_keeps_the_codes(dtype, files, run, tmp_path):
    _, adapter, _, _ = files(dtype)
    assert run("convert", adapter, "-o", tmp_path / "out").status == 0
    before, after = (load_file(path / "adapter_model.safetensors") for path in (adapter, tmp_path / "out"))
    assert {value.dtype for value in after.values()} == {dtype}
    assert all(torch.equal(before[key].view(torch.uint8), after[key].view(torch.uint8)) for key in before)


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
def test_an_alpha_is_written_in_float32(dtype, run, tmp_path):
    """At rank 2 alpha 1.25 of RS-LoRA is the plain one of 1.25 · sqrt(2), which eight bits would round."""
    tensors = coded(kohya("lora_unet_", factors(base(), ["a.conv", "a.b"])), dtype)
    tensors |= {"lora_unet_a_b.alpha": torch.tensor(1.25).to(dtype), "use_rslora_flag": torch.tensor(1.0).to(dtype)}
    save_file(tensors, tmp_path / "adapter.safetensors")
    ended = run("convert", tmp_path / "adapter.safetensors", "-o", tmp_path / "out.safetensors")
    assert ended.status == 0, ended.stderr
    found = load_file(tmp_path / "out.safetensors")
    assert found["lora_unet_a_b.alpha"].dtype == torch.float32
    assert float(found["lora_unet_a_b.alpha"]) == pytest.approx(1.25 * 2**0.5, rel=1e-7)
    assert found["lora_unet_a_b.lora_up.weight"].dtype == dtype


@pytest.mark.parametrize("dtype", TYPES.values(), ids=TYPES)
def test_dora_of_eight_bits_becomes_plain_lora(dtype, run, merged, tmp_path):
    adapter = factors(base(), ["a.b", "a.c"], dora=True)
    dora, plain = tmp_path / "dora.safetensors", tmp_path / "plain.safetensors"
    save_file(base(), tmp_path / "base.safetensors")
    save_file(coded(dotted("diffusion_model.", adapter), dtype), dora)
    ended = run("convert", dora, "--base", tmp_path / "base.safetensors", "--rank", str(WIDTH), "-o", plain)
    assert ended.status == 0, ended.stderr
    tensors = load_file(plain)
    assert {value.dtype for value in tensors.values()} == {torch.float32}
    found = merged(base(), tensors)
    values, _ = expected(base(), as_cast(adapter, dtype), 1.0, interpolate=False)
    for path in adapter:
        change = values[f"{path}.weight"] - base()[f"{path}.weight"]
        assert float((found[f"{path}.weight"] - values[f"{path}.weight"]).norm()) <= 2e-6 * float(change.norm()), path


@pytest.mark.parametrize("dtype", ["F8_E4M3FNUZ", "F8_E8M0", "I8"])
def test_other_codes_are_refused_with_a_way_out(dtype, write_safetensors, run, tmp_path):
    sizes = {"lora_unet_a_b.lora_down.weight": (2, WIDTH + 1), "lora_unet_a_b.lora_up.weight": (WIDTH, 2)}
    path = write_safetensors({k: (dtype, shape, bytes(math.prod(shape))) for k, shape in sizes.items()})
    save_file(base(), tmp_path / "base.safetensors")
    refusal = run("merge", tmp_path / "base.safetensors", path, "-o", tmp_path / "out.safetensors").refusal
    assert f"is stored as {dtype}" in refusal
    assert "write the file again" in refusal
