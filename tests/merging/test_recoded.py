"""Merging into fp8 and int8 without another element type: the output has the same format, and says the truth of it."""

import json
from fractions import Fraction

import pytest
import torch
from adapters import change, drawn, drawn_lora
from bases import (
    BF16,
    E4M3,
    E5M2,
    F32,
    I8,
    IN,
    LARGEST,
    OUT,
    SPELLINGS,
    Q,
    bits,
    coded,
    decoded,
    described,
    grid,
    write_shards,
)  # fmt: skip
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_inspect.merging import fold as folded_weights

pytestmark = pytest.mark.numeric

OTHER, MODULE, RANK = "blocks.0.attn.k", "lora_unet_blocks_0_attn_q", 4


def lora(size=1.0, rows=OUT):
    """A change of the first `rows` rows alone."""
    tensors = drawn_lora(MODULE, seed=5, rank=RANK, alpha=float(RANK), out=OUT, inputs=IN)
    tensors[f"{MODULE}.lora_up.weight"] *= size
    tensors[f"{MODULE}.lora_up.weight"][rows:] = 0
    return tensors


def sizes(adapter):
    """The sums of the absolute values of the terms that make the change."""
    return change({key: tensor.abs() for key, tensor in adapter.items()}, MODULE)


every_spelling = pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)


@pytest.fixture
def fold(tmp_path, run):
    """`fold(base, adapter)`: the tensors of the output and the record of the merge; or the refusal.

    The codes are looked at here, also where they keep little of the change.
    """

    def run_merge(base, adapter, *options, multiplier=1, refused=False, metadata=None):
        save_file({name: tensor.clone() for name, tensor in base.items()}, tmp_path / "base.safetensors", metadata)
        save_file(adapter, tmp_path / "adapter.safetensors")
        out = tmp_path / "out.safetensors"
        out.unlink(missing_ok=True)
        ended = run(
            "merge", tmp_path / "base.safetensors", f"{tmp_path / 'adapter.safetensors'}:{multiplier}", "-o", out,
            *options, "--allow-loss", "--json",
        )  # fmt: skip
        if refused:
            assert not out.exists()
            return ended.refusal
        return load_file(out), ended.json

    return run_merge


def steps(dtype, exact):
    """Half the distance between the codes at each of the numbers."""
    if dtype == I8:
        return torch.full_like(exact, 0.5)
    mantissa, least = {E4M3: (3, -6), E5M2: (2, -14)}[dtype]
    exponent = torch.frexp(exact).exponent.sub(1).clamp(min=least)
    return torch.ldexp(torch.ones_like(exact), exponent - mantissa) / 2


@pytest.mark.parametrize("elements", [1 << 18, 1 << 10])
@pytest.mark.parametrize("size", [0.002, 0.05, 30.0])
@every_spelling
def test_the_output_has_the_same_format_and_carries_the_change(spelling, size, elements, fold, monkeypatch):
    monkeypatch.setattr(folded_weights, "BLOCK_ELEMENTS", elements)
    dtype, name, *_ = spelling
    base, adapter = coded(*spelling), lora(size)
    found, record = fold(base, adapter)
    assert found.keys() == base.keys()
    assert all((found[key].dtype, found[key].shape) == (base[key].dtype, base[key].shape) for key in base)
    for key in base.keys() - {f"{Q}.weight", f"{Q}.{name}"}:
        assert bits(found[key]).equal(bits(base[key]))
    assert (record["recoded"], record["decoded"], record["dropped"]) == ([f"{Q}.weight"], [], [])
    wanted = decoded(base, name) + change(adapter, MODULE)
    exact = wanted / grid((OUT, IN), found[f"{Q}.{name}"].double())
    codes = found[f"{Q}.weight"].double()
    # Of RANK products and a sum in float32, and of the code times the scale.
    terms = decoded(base, name).abs() + sizes(adapter)
    arithmetic = (RANK + 4) * 2.0**-24 * terms / grid((OUT, IN), found[f"{Q}.{name}"].double())
    assert ((codes - exact).abs() <= steps(dtype, exact) + arithmetic).all()
    # Where a scale changed it is the least one that its type has; a number that has no nearest code is in its block.
    before, after = base[f"{Q}.{name}"].flatten(), found[f"{Q}.{name}"].flatten()
    owner = grid((OUT, IN), torch.arange(before.numel()).reshape(base[f"{Q}.{name}"].shape)).flatten()
    peaks = torch.zeros(before.numel(), dtype=torch.float64).scatter_reduce_(0, owner, wanted.abs().flatten(), "amax")
    for old, new, peak in zip(before, after, peaks.tolist(), strict=True):
        if old == new:
            assert peak / old.item() <= {E4M3: 464, E5M2: 61440, I8: 128.5}[dtype] * (1 + 2.0**-20)
            continue
        assert peak / old.item() > {E4M3: 464, E5M2: 61440, I8: 127.5}[dtype] * (1 - 2.0**-20)
        assert Fraction(new.item()) * LARGEST[dtype] >= Fraction(peak) * Fraction(1 - 2.0**-21)
        less = new.nextafter(torch.zeros_like(new)).item()
        assert Fraction(less) * LARGEST[dtype] <= Fraction(peak) * Fraction(1 + 2.0**-21)
    if size == 30.0:
        assert not before.equal(after)
    if size == 0.002:
        assert (before == after).float().mean() > 0.5


@every_spelling
def test_rows_that_do_not_change_keep_every_bit(spelling, fold):
    """A change of some rows, small enough for the scales of the base."""
    name, shape = spelling[1], spelling[2]
    base = coded(*spelling)
    found, _ = fold(base, lora(0.01, rows=7))
    kept = slice(7, None) if len(shape) and shape[0] == OUT else slice(128, None)
    if found[f"{Q}.{name}"].equal(base[f"{Q}.{name}"]):
        kept = slice(7, None)
    assert bits(found[f"{Q}.weight"][kept]).equal(bits(base[f"{Q}.weight"][kept]))
    assert found[f"{Q}.{name}"].numel() == 1 or found[f"{Q}.{name}"][-1].equal(base[f"{Q}.{name}"][-1])
    assert not bits(found[f"{Q}.weight"][:7]).equal(bits(base[f"{Q}.weight"][:7]))


@every_spelling
def test_multiplier_0_and_untouched_weights_keep_every_bit(spelling, fold):
    base = coded(*spelling) | coded(*spelling, module=OTHER)
    found, record = fold(base, lora(), multiplier=0)
    assert record["recoded"] == []
    found_other, _ = fold(base, lora(0.1))
    for key, tensor in base.items():
        assert bits(found[key]).equal(bits(tensor))
        assert not key.startswith(OTHER) or bits(found_other[key]).equal(bits(tensor))


@pytest.mark.parametrize("size", [1.0, 1e-7])
@every_spelling
def test_what_has_a_scale_of_0_is_0_and_gets_one_for_what_is_folded_into_it(spelling, size, fold):
    dtype, name, *_ = spelling
    base, adapter = coded(*spelling), lora(size)
    base[f"{Q}.{name}"].view(-1)[:1] = 0
    found, _ = fold(base, adapter)
    wanted, scale = change(adapter, MODULE), found[f"{Q}.{name}"]
    of_0 = (grid((OUT, IN), base[f"{Q}.{name}"].double()) == 0) & (wanted != 0)
    assert of_0.any()
    assert scale.isfinite().all()
    assert (grid((OUT, IN), scale.double()) != 0)[of_0].all()
    step = grid((OUT, IN), scale.double()) * steps(dtype, wanted / grid((OUT, IN), scale.double()))
    assert ((decoded(found, name) - wanted).abs() <= 1.001 * step + 2.0**-20 * sizes(adapter))[of_0].all()


@every_spelling
def test_a_scale_of_0_stays_where_nothing_is_folded_in(spelling, fold):
    name = spelling[1]
    base = coded(*spelling)
    base[f"{Q}.{name}"].zero_()
    found, _ = fold(base, lora(0.0))
    assert found[f"{Q}.{name}"].equal(base[f"{Q}.{name}"])
    assert decoded(found, name).eq(0).all()


@every_spelling
def test_a_change_of_nothing_keeps_every_bit(spelling, fold):
    base = coded(*spelling)
    found, record = fold(base, lora(0.0))
    assert record["recoded"] == [f"{Q}.weight"]
    assert all(bits(found[key]).equal(bits(tensor)) for key, tensor in base.items())


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_codes_without_a_scale_are_written_again(dtype, fold):
    base, adapter = {f"{Q}.weight": drawn(0, OUT, IN).to(dtype)}, lora(0.3)
    found, _ = fold(base, adapter)
    wanted = base[f"{Q}.weight"].double() + change(adapter, MODULE)
    off = (found[f"{Q}.weight"].double() - wanted).abs()
    assert (off <= steps(dtype, wanted) + wanted.abs() * 2.0**-20).all()
    refusal = fold(base, lora(1e6), refused=True)
    assert f"folding {MODULE} into {Q}.weight gives" in refusal
    assert "has no code for" in refusal
    assert "--changed-dtype" in refusal


def test_a_scale_in_another_shard_is_written_there(tmp_path, run):
    folder = tmp_path / "base"
    folder.mkdir()
    base = coded(E4M3, "weight_scale_inv", (2, 2), F32, {})
    others = coded(E4M3, "scale_weight", (), F32, {}, OTHER)
    names = [f"m-0000{number}-of-00002.safetensors" for number in (1, 2)]
    scales = {f"{Q}.weight_scale_inv": 0, f"{Q}.weight": 1, f"{OTHER}.weight": 0, f"{OTHER}.scale_weight": 1}
    parts = [{key: t for key, t in (base | others).items() if scales[key] == number} for number in (0, 1)]
    write_shards(folder, dict(zip(names, parts, strict=True)), "m.safetensors.index.json")
    both = lora(30.0) | {key.replace("attn_q", "attn_k"): tensor for key, tensor in lora(30.0).items()}
    save_file(both, tmp_path / "adapter.safetensors")
    run("merge", folder, tmp_path / "adapter.safetensors", "-o", tmp_path / "out")
    found = load_file(tmp_path / "out" / names[0]) | load_file(tmp_path / "out" / names[1])
    save_file(base | others, tmp_path / "base.safetensors")
    run("merge", tmp_path / "base.safetensors", tmp_path / "adapter.safetensors", "-o", tmp_path / "one.safetensors")
    alone = load_file(tmp_path / "one.safetensors")
    assert found.keys() == alone.keys() == base.keys() | others.keys()
    assert all(bits(found[key]).equal(bits(tensor)) for key, tensor in alone.items())
    assert not found[f"{Q}.weight_scale_inv"].equal(base[f"{Q}.weight_scale_inv"])
    assert not found[f"{OTHER}.scale_weight"].equal(others[f"{OTHER}.scale_weight"])


def test_rotated_int8_is_refused_by_name(fold):
    base = coded(I8, "weight_scale", (OUT, 1), F32, {})
    for layer in ({"convrot": True, "convrot_groupsize": 256}, {"params": {"convrot": True}}):
        rotated = base | {f"{Q}.comfy_quant": described({"format": "int8_tensorwise", **layer})}
        refusal = fold(rotated, lora(), refused=True)
        assert f"cannot read the quantisation of {Q}.weight (its inputs are rotated, convrot)" in refusal
        assert "F32, F16 or BF16 version of the base" in refusal
    plain = base | {f"{Q}.comfy_quant": described({"format": "int8_tensorwise", "convrot": False})}
    assert fold(plain, lora())[1]["recoded"] == [f"{Q}.weight"]


@every_spelling
def test_what_a_change_touches_alone_is_decoded(spelling, fold):
    dtype, name, shape, stored, beside = spelling
    base = coded(*spelling) | coded(dtype, name, shape, stored, beside, OTHER)
    base["norm.weight"] = drawn(0, 4)
    adapter = lora(0.3)
    found, record = fold(base, adapter, "--changed-dtype", "bf16")
    gone = {key for key in base if key.startswith(f"{Q}.") and key != f"{Q}.weight"}
    assert found.keys() == base.keys() - gone
    assert (record["decoded"], record["recoded"], set(record["dropped"])) == ([f"{Q}.weight"], [], gone)
    wanted = (decoded(base, name).float() + change(adapter, MODULE).float()).bfloat16()
    assert found[f"{Q}.weight"].dtype == BF16
    assert (found[f"{Q}.weight"].double() - wanted.double()).abs().max() <= wanted.abs().max() * 2.0**-7
    for key in found.keys() - {f"{Q}.weight"}:
        assert bits(found[key]).equal(bits(base[key]))


def test_a_marker_stays_as_long_as_one_weight_is_scaled(fold):
    base = coded(*SPELLINGS["ComfyUI's first form"])
    found, record = fold(base, lora(), "--changed-dtype", "fp16")
    assert found.keys() == {f"{Q}.weight"}
    assert "scaled_fp8" in record["dropped"]


def test_metadata_says_no_more_of_what_a_change_touches(fold, tmp_path):
    layer = {"format": "float8_e4m3fn"}
    base = coded(E4M3, "weight_scale", (), F32, {}) | coded(E4M3, "weight_scale", (), F32, {}, OTHER)
    metadata = {"_quantization_metadata": json.dumps({"layers": {Q: layer, OTHER: layer}})}
    for options, layers in (((), {Q: layer, OTHER: layer}), (("--changed-dtype", "bf16"), {OTHER: layer})):
        fold(base, lora(0.1), *options, metadata=metadata)
        with safe_open(tmp_path / "out.safetensors", "pt") as opened:
            assert json.loads(opened.metadata()["_quantization_metadata"])["layers"] == layers


def test_the_touched_type_is_that_of_plain_weights_too(fold):
    base = {f"{Q}.weight": drawn(0, OUT, IN), "bias": drawn(0, 3)}
    found, _ = fold(base, lora(), "--changed-dtype", "bf16")
    assert (found[f"{Q}.weight"].dtype, found["bias"].dtype) == (BF16, F32)
    found, _ = fold(base, lora(), "--changed-dtype", "bf16", multiplier=0)
    assert found[f"{Q}.weight"].dtype == F32


CONFIG = {
    "torch_dtype": "float32", "a": 1,
    "text_config": {"dtype": "float32", "rope": {"dtype": "float32"}},
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [1, 2], "modules_to_not_convert": ["lm_head"]},
}  # fmt: skip


@pytest.mark.parametrize("options", [(), ("--changed-dtype", "bf16"), ("--dtype", "bf16")])
def test_the_config_of_a_folder_says_how_it_is_stored(options, tmp_path, run):
    folder = tmp_path / "base"
    folder.mkdir()
    spelling = SPELLINGS["DeepSeek's blocks"]
    save_file(coded(*spelling) | coded(*spelling, module=OTHER), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(lora(), tmp_path / "adapter.safetensors")
    run("merge", folder, tmp_path / "adapter.safetensors", *options, "-o", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    if not options:
        assert (tmp_path / "out" / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    elif options[0] == "--changed-dtype":
        left_out = {**CONFIG["quantization_config"], "modules_to_not_convert": ["lm_head", Q]}
        assert written == {**CONFIG, "quantization_config": left_out}
    else:
        text = {"dtype": "bfloat16", "rope": {"dtype": "float32"}}
        assert written == {"torch_dtype": "bfloat16", "a": 1, "text_config": text}


def test_a_config_that_cannot_say_it_is_refused(tmp_path, run):
    folder = tmp_path / "base"
    folder.mkdir()
    spelling = SPELLINGS["DeepSeek's blocks"]
    save_file(coded(*spelling) | coded(*spelling, module=OTHER), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "odd"}}))
    save_file(lora(), tmp_path / "adapter.safetensors")
    pair = (folder, tmp_path / "adapter.safetensors")
    ended = run("merge", *pair, "--changed-dtype", "bf16", "-o", tmp_path / "out")
    assert "quantization_config that only some weights are codes" in ended.refusal
    assert not (tmp_path / "out").exists()
    run("merge", *pair, "--dtype", "bf16", "-o", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {}


def test_only_one_of_both_types_is_chosen(tmp_path, run):
    save_file({f"{Q}.weight": drawn(0, OUT, IN)}, tmp_path / "base.safetensors")
    save_file(lora(), tmp_path / "adapter.safetensors")
    pair = (tmp_path / "base.safetensors", tmp_path / "adapter.safetensors")
    ended = run("merge", *pair, "--changed-dtype", "bf16", "--dtype", "fp16", "-o", tmp_path / "out.safetensors")
    assert ended.status == 2
    assert "--dtype" in ended.stderr


@every_spelling
def test_a_bias_of_floats_beside_codes_is_changed_as_any(spelling, fold):
    base = coded(*spelling) | {f"{Q}.bias": drawn(8, OUT)}
    change = drawn(9, OUT)
    found, record = fold(base, {f"{MODULE}.diff_b": change}, multiplier=0.5)
    assert found[f"{Q}.bias"].equal(base[f"{Q}.bias"] + 0.5 * change)
    assert all(bits(found[key]).equal(bits(base[key])) for key in base.keys() - {f"{Q}.bias"})
    assert (record["recoded"], record["decoded"], record["dropped"]) == ([], [], [])
    touched, _ = fold(base, {f"{MODULE}.diff_b": change}, "--changed-dtype", "bf16")
    assert touched[f"{Q}.bias"].equal((base[f"{Q}.bias"] + change).to(BF16))
    assert bits(touched[f"{Q}.weight"]).equal(bits(base[f"{Q}.weight"]))
