"""verify between element types: shares are 1 within what is stated, over sizes, kinds, seeds and codes."""

import pytest
import torch
from adapters import drawn
from verified_merges import BLOCKS, Folder, base_of, delta, lora, weight, with_dora

from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

pytestmark = [pytest.mark.numeric, pytest.mark.slow]

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def typed(tensors, dtype):
    return {name: value.to(dtype) if value.dim() > 1 else value for name, value in tensors.items()}


@pytest.mark.parametrize("merged", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("base", DTYPES)
@pytest.mark.parametrize("size", [0.1, 0.01, 0.001, 0.0003, 0.0001])
def test_our_own_merges_are_right_or_untold_in_every_type(size, base, merged, folder, tmp_path):
    """Small changes fall between the numbers of a type: what is then stated still has 1 within it."""
    for seed in range(3):
        own = typed(base_of(seed=seed, out=300), DTYPES[base])
        a, b = lora(seed + 1, size=size, out=300), lora(seed + 11, size=size, out=300)
        b = with_dora(b, {name: value.float() for name, value in own.items()}, seed) if size > 0.01 else b
        paths = [folder.file(name, tensors) for name, tensors in (("base", own), ("a", a), ("b", b))]
        out = str(tmp_path / "out.safetensors")
        merge(
            plan_merge(paths[0], [(paths[1], 1.0), (paths[2], 1.0)], MergeOptions(dtype=merged, allow_loss=True)),
            out,
            force=True,
        )
        found = folder.verified(out, paths[0], (a, ""), (b, ""))
        errors = [f.message for f in found.found.findings if f.is_error and f.code != "undetermined"]
        assert errors == []
        if size >= 0.01:
            assert found.ok
            assert max(found.noise.values()) < 0.1
        for letter, share in found.share.items():
            assert share is None or share == pytest.approx(1, abs=max(0.01, found.noise[letter]))


@pytest.mark.parametrize("size", [0.05, 0.003, 0.001])
def test_a_lost_adapter_is_never_taken_for_one_that_rounding_took(size, folder):
    for seed in range(3):
        own, a = typed(base_of(seed=seed), torch.bfloat16), lora(seed + 1, size=size)
        found = folder.verified(own, own, (a, ""))
        assert not found.ok
        assert [code for code, _ in found.codes] in (["missing"], ["undetermined"], ["missing", "undetermined"])
        assert [code for code, _ in found.codes] == ["missing"] or size < 0.05


def test_a_merge_in_half_precision_that_is_saved_as_float32_has_the_rounding_of_half(folder):
    own, a = base_of(), lora(size=0.004)
    made = {weight(n): (own[weight(n)].double() + delta(a, n)).bfloat16().float() for n in range(BLOCKS)}
    found = folder.verified(own | made, own, (a, ""))
    assert found.ok
    assert found.noise["a"] > 0.001
    made = {weight(n): (own[weight(n)].double() + delta(a, n)).float() for n in range(BLOCKS)}
    assert folder.verified(own | made, own, (a, "")).noise["a"] < 1e-4


def test_the_rounding_of_a_base_counts_where_the_merge_was_made_of_a_finer_one(folder):
    """A merge of the float32 original, verified against its bfloat16 copy."""
    own, a = base_of(), lora(size=0.02)
    made = {weight(n): (own[weight(n)].double() + delta(a, n)).float() for n in range(BLOCKS)}
    found = folder.verified(own | made, typed(own, torch.bfloat16), (a, ""))
    assert found.ok, found.messages
    assert found.share["a"] == pytest.approx(1, abs=found.noise["a"])
    assert found.noise["a"] > 0.001


def quantised(tensors, dtype, rows):
    """Codes in fp8 with ComfyUI's scale of a tensor, or with musubi-tuner's of each row."""
    found = {}
    for name, value in tensors.items():
        if value.dim() != 2:
            found[name] = value
            continue
        peak = value.abs().amax(1, keepdim=True) if rows else value.abs().amax()
        scale = peak / torch.finfo(dtype).max
        found[name] = (value / scale).to(dtype)
        found[name.replace("weight", "scale_weight" if rows else "weight_scale")] = scale
    return found


def decoded(tensors):
    found = {}
    for name, value in tensors.items():
        if value.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
            scales = (name.replace("weight", kind) for kind in ("scale_weight", "weight_scale"))
            found[name] = value.float() * next(tensors[scale] for scale in scales if scale in tensors)
        elif "scale" not in name:
            found[name] = value
    return found


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_bases_and_merges_in_scaled_fp8_are_decoded(dtype, rows, folder):
    a = lora(size=0.05)
    base = quantised(base_of(), dtype, rows)
    plain = decoded(base)
    exact = {weight(n): plain[weight(n)].double() + delta(a, n) for n in range(BLOCKS)}
    found = folder.verified(plain | {name: value.bfloat16() for name, value in exact.items()}, base, (a, ""))
    assert found.ok, found.messages
    assert found.noise["a"] < 0.02
    coded = quantised(plain | {name: value.float() for name, value in exact.items()}, dtype, rows)
    found = folder.verified(coded, base, (a, ""))
    assert found.ok, found.messages
    assert found.share["a"] == pytest.approx(1, abs=found.noise["a"])
    assert folder.verified(quantised(plain, dtype, rows), base, (a, "")).codes == [("missing", "a")]


def test_what_the_grid_of_fp8_loses_cannot_be_told(folder):
    base = quantised(base_of(), torch.float8_e4m3fn, True)
    a = lora(size=0.0005)
    plain = decoded(base)
    exact = {weight(n): (plain[weight(n)].double() + delta(a, n)).float() for n in range(BLOCKS)}
    found = folder.verified(quantised(plain | exact, torch.float8_e4m3fn, True), base, (a, ""))
    assert found.share == {"a": None}
    assert [code for code, _ in found.codes] == ["undetermined"]


def test_untouched_codes_that_are_scaled_anew_are_the_same_numbers(folder):
    base = quantised(base_of() | {"x.weight": drawn(3, 8, 8)}, torch.float8_e4m3fn, True)
    a = lora(size=0.05)
    plain = decoded(base)
    exact = {weight(n): (plain[weight(n)].double() + delta(a, n)).float() for n in range(BLOCKS)}
    coded = quantised(plain | exact, torch.float8_e4m3fn, False)
    assert folder.verified(coded, base, (a, "")).found.unexpected == {}
    moved = quantised(plain | exact | {"x.weight": 1.3 * plain["x.weight"]}, torch.float8_e4m3fn, False)
    assert folder.verified(moved, base, (a, "")).found.unexpected.keys() == {"x.weight"}
