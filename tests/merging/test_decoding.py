"""Merging into fp8: every weight is what its codes and its scale stand for, and what said so is gone."""

import json
import math

import pytest
import torch
from adapters import drawn_lora
from bases import write_shards
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_inspect.files.safetensors.dtypes import decode_number
from lora_inspect.merging import fold as folded_weights
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

pytestmark = pytest.mark.numeric

Q, OTHER = "blocks.0.attn.q", "blocks.0.attn.k"
MODULE = "lora_unet_blocks_0_attn_q"
OUT, IN, RANK = 6, 8, 2
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
STORED = {E4M3: "F8_E4M3", E5M2: "F8_E5M2"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lora(out=OUT, inputs=IN, seed=5, **extra):
    tensors = drawn_lora(MODULE, seed, rank=RANK, alpha=1.0, out=out, inputs=inputs)
    return tensors | {f"{MODULE}.{key}": tensor for key, tensor in extra.items()}


def codes(*shape, dtype=E4M3, seed=1):
    return numbers(*shape, seed=seed).mul(20).to(dtype)


def by_hand(weight, scale):
    """q · scale in float64, where scale is () or has an entry for each element of the weight, rounded to float32."""
    return (weight.double() * scale.double()).float()


def spread(scale, out=OUT, inputs=IN):
    """The scale with an entry for each element: one for rows, or for blocks of neighbouring columns of a row."""
    if scale.numel() == 1:
        return scale.reshape(1, 1).expand(out, inputs)
    blocks = scale.reshape(out, -1)
    return blocks.repeat_interleave(inputs // blocks.shape[1], dim=1)


SCALES = {
    "none": (None, ()),
    "scale_weight, a number": ("scale_weight", ()),
    "scale_weight, one number": ("scale_weight", (1,)),
    "scale_weight of rows": ("scale_weight", (OUT, 1)),
    "scale_weight of blocks": ("scale_weight", (OUT, 4, 1)),
    "scale_weight of one block a row": ("scale_weight", (OUT, 1, 1)),
    "weight_scale, a number": ("weight_scale", ()),
    "weight_scale, one number": ("weight_scale", (1,)),
    "weight_scale of rows, flat": ("weight_scale", (OUT,)),
    "weight_scale of rows": ("weight_scale", (OUT, 1)),
}
every_scale = pytest.mark.parametrize(("suffix", "shape"), SCALES.values(), ids=SCALES)


def scaled(suffix, shape, dtype=E4M3, stored=torch.float32, name=Q):
    """A base of one weight, and what it stands for."""
    weight = codes(OUT, IN, dtype=dtype)
    if suffix is None:
        return {f"{name}.weight": weight}, weight.float()
    scale = torch.rand(shape, generator=torch.Generator().manual_seed(2)).add(0.1).to(stored)
    return {f"{name}.weight": weight, f"{name}.{suffix}": scale}, by_hand(weight, spread(scale))


@pytest.fixture
def fold(tmp_path, run):
    """`fold(base, adapter, "fp32")`: the tensors of the output and the record of the merge; or the refusal."""

    def run_merge(base, adapter, dtype="fp32", metadata=None, multiplier=1, refused=False, options=()):
        save_file({name: tensor.clone() for name, tensor in base.items()}, tmp_path / "base.safetensors", metadata)
        save_file(adapter, tmp_path / "adapter.safetensors")
        out = tmp_path / "out.safetensors"
        out.unlink(missing_ok=True)
        given = ("--dtype", dtype) if dtype else ()
        ended = run(
            "merge", tmp_path / "base.safetensors", f"{tmp_path / 'adapter.safetensors'}:{multiplier}", "-o", out,
            *given, *options, "--json",
        )  # fmt: skip
        if refused:
            assert not out.exists()
            return ended.refusal
        return load_file(out), ended.json

    return run_merge


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float64])
@every_scale
def test_a_weight_without_a_change_is_what_its_codes_stand_for(suffix, shape, stored, dtype, fold):
    base, expected = scaled(suffix, shape, stored=stored, name=OTHER)
    found, _ = fold({**base, f"{Q}.weight": numbers(OUT, IN)}, lora(), dtype)
    assert found.keys() == {f"{OTHER}.weight", f"{Q}.weight"}
    if stored == torch.float64 and suffix:  # the scale is rounded to float32, and then the product
        expected = expected.double()
        assert (found[f"{OTHER}.weight"].double() - expected).abs().max() <= expected.abs().max() * (
            2.0**-22 + torch.finfo(DTYPES[dtype]).eps
        )
    else:
        assert torch.equal(found[f"{OTHER}.weight"], expected.to(DTYPES[dtype]))


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_every_code_is_the_number_of_its_bits(dtype, fold):
    every = torch.arange(256, dtype=torch.uint8)
    expected = torch.tensor([decode_number(STORED[dtype], bytes([code])) for code in range(256)])
    real = ~expected.isnan()
    base = {f"{OTHER}.weight": every[real].view(dtype).reshape(-1, 1), f"{Q}.weight": numbers(OUT, IN)}
    found, _ = fold(base, lora(), "fp32")
    assert torch.equal(found[f"{OTHER}.weight"].flatten(), expected[real])
    assert int(real.sum()) == {E4M3: 254, E5M2: 250}[dtype]
    for code in every[~real].tolist():
        base[f"{OTHER}.weight"] = torch.tensor([[1], [code]], dtype=torch.uint8).view(dtype)
        if dtype == E4M3 or code & 0x7F > 0x7C:
            refusal = fold(base, lora(), "fp32", refused=True)
            assert f"{OTHER}.weight holds codes in row 1 that mean no number (NaN)" in refusal


ADAPTERS = {
    "LoRA": {},
    "DoRA over rows": {"dora_scale": numbers(OUT, 1, seed=8).abs() + 1},
    "DoRA over columns": {"dora_scale": numbers(1, IN, seed=8).abs() + 1},
    "DoRA over rows, ours": {"dora_layer.weight": numbers(OUT, seed=8).abs() + 1},
}


@pytest.mark.parametrize("elements", [1, 2 * IN])
@pytest.mark.parametrize("extra", ADAPTERS.values(), ids=ADAPTERS)
@every_scale
def test_a_change_of_codes_is_the_change_of_the_decoded_weight(suffix, shape, extra, elements, fold, monkeypatch):
    monkeypatch.setattr(folded_weights, "BLOCK_ELEMENTS", elements)
    base, expected = scaled(suffix, shape)
    found, record = fold(base, lora(**extra), "fp32", multiplier=0.5)
    alone, _ = fold({f"{Q}.weight": expected}, lora(**extra), "fp32", multiplier=0.5)
    assert torch.equal(found[f"{Q}.weight"], alone[f"{Q}.weight"])
    assert not torch.equal(found[f"{Q}.weight"], expected)
    assert record["modules_merged"] == 1
    assert record["decoded"] == [f"{Q}.weight"]


def test_a_lora_on_scaled_codes_is_the_formula(fold):
    base, expected = scaled("scale_weight", (OUT, 4, 1))
    adapter = lora()
    up, down = (adapter[f"{MODULE}.lora_{name}.weight"].double() for name in ("up", "down"))
    found, _ = fold(base, adapter, "fp32", multiplier=0.5)
    merged = expected.double() + 0.5 * (1 / RANK) * up @ down
    assert (found[f"{Q}.weight"].double() - merged).abs().max() <= 2.0**-20 * merged.abs().max()


def test_one_scale_a_row_of_a_square_weight_scales_rows(fold):
    scale = torch.arange(1.0, IN + 1)
    base = {f"{OTHER}.weight": torch.ones(IN, IN).to(E4M3), f"{OTHER}.weight_scale": scale}
    found, _ = fold({**base, f"{Q}.weight": numbers(OUT, IN)}, lora(), "fp32")
    assert found[f"{OTHER}.weight"].tolist() == [[row] * IN for row in scale.tolist()]


@settings(max_examples=25)
@given(
    out=st.integers(1, 5), blocks=st.integers(1, 3), width=st.integers(1, 3), elements=st.integers(1, 40),
    dtype=st.sampled_from([E4M3, E5M2]), kind=st.sampled_from(["number", "rows", "blocks"]), seed=st.integers(0, 999),
)  # fmt: skip
def test_blocks_of_any_size_hold_their_own_scales(tmp_path_factory, out, blocks, width, elements, dtype, kind, seed):
    folder = tmp_path_factory.mktemp("blocks")
    inputs = blocks * width
    shape = {"number": (1,), "rows": (out, 1), "blocks": (out, blocks, 1)}[kind]
    scale = numbers(*shape, seed=seed)
    weight = codes(out, inputs, dtype=dtype, seed=seed)
    save_file({f"{Q}.weight": weight, f"{Q}.scale_weight": scale}, folder / "base.safetensors")
    adapter = lora(out, inputs)
    adapter[f"{MODULE}.lora_up.weight"].zero_()
    save_file(adapter, folder / "adapter.safetensors")
    plan = plan_merge(
        str(folder / "base.safetensors"), [(str(folder / "adapter.safetensors"), 1.0)], MergeOptions("F32")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folded_weights, "BLOCK_ELEMENTS", elements)
        merge(plan, str(folder / "out.safetensors"))
    found = load_file(folder / "out.safetensors")
    assert torch.equal(found[f"{Q}.weight"], by_hand(weight, spread(scale, out, inputs)))


def test_convolutions_are_decoded(fold):
    weight = codes(OUT, 4, 3, 3)
    scale = torch.arange(1.0, OUT + 1).reshape(OUT, 1)
    base = {"conv.weight": weight, "conv.scale_weight": scale, f"{Q}.weight": numbers(OUT, IN)}
    found, _ = fold(base, lora(), "fp32")
    assert torch.equal(found["conv.weight"], by_hand(weight, scale.reshape(-1, 1, 1, 1)))


# What stands in a base beside `other`, and which of it is gone once that is decoded.
SCALE = torch.tensor(0.5)
JSON_OF = {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}


def described(layer):
    return torch.tensor(list(json.dumps(layer).encode()), dtype=torch.uint8)


MARKED = {"scaled_fp8": torch.empty(0, dtype=E4M3)}
LEFT_OUT = {
    "ComfyUI's first form": {
        f"{OTHER}.scale_weight": SCALE, f"{OTHER}.scale_input": SCALE, **MARKED},
    "a marker of two elements": {f"{OTHER}.scale_weight": SCALE, "scaled_fp8": torch.zeros(2)},
    "ComfyUI's second form": {
        f"{OTHER}.weight_scale": SCALE, f"{OTHER}.input_scale": SCALE, f"{OTHER}.comfy_quant": described(JSON_OF)},
    "musubi's": {f"{OTHER}.scale_weight": SCALE.reshape(1, 1).expand(OUT, 1).contiguous()},
}  # fmt: skip


@pytest.mark.parametrize("beside", LEFT_OUT.values(), ids=LEFT_OUT)
def test_what_said_how_codes_are_read_is_left_out_and_told(beside, fold):
    weight = codes(OUT, IN)
    base = {f"{OTHER}.weight": weight, f"{OTHER}.bias": numbers(OUT), f"{Q}.weight": numbers(OUT, IN), **beside}
    found, record = fold(base, lora(), "bf16")
    assert found.keys() == base.keys() - beside.keys()
    assert torch.equal(found[f"{OTHER}.weight"], (weight.float() * 0.5).bfloat16())
    assert record["dropped"] == sorted(beside)
    assert record["decoded"] == [f"{OTHER}.weight"]
    assert record["tensors_copied"] == 1
    assert record["dtype_counts"] == {"BF16": 3}


def test_a_marker_speaks_of_what_stands_below_its_own_place(fold):
    base = {
        "model.diffusion_model.scaled_fp8": torch.empty(0), f"model.diffusion_model.{Q}.weight": codes(OUT, IN),
        f"model.diffusion_model.{Q}.scale_weight": SCALE, "vae.scaled_fp8": torch.empty(0),
        "text_encoders.x.weight": codes(2, 2),
    }  # fmt: skip
    found, record = fold(base, lora(), "bf16")
    assert record["dropped"] == [f"model.diffusion_model.{Q}.scale_weight", "model.diffusion_model.scaled_fp8"]
    assert "vae.scaled_fp8" in found
    assert torch.equal(found["text_encoders.x.weight"].float(), codes(2, 2).float())


@pytest.mark.parametrize("path", [OTHER, f"model.diffusion_model.{OTHER}"])
def test_the_metadata_says_no_more_of_what_is_decoded(path, fold, tmp_path):
    base = {f"{path}.weight": codes(OUT, IN), f"{path}.weight_scale": SCALE, f"{Q}.weight": numbers(OUT, IN)}
    layers = {OTHER: {"format": "float8_e4m3fn"}}
    found, record = fold(base, lora(), "bf16", {"_quantization_metadata": json.dumps({"layers": layers}), "a": "b"})
    assert record["dropped"] == [f"{path}.weight_scale", "_quantization_metadata"]
    assert torch.equal(found[f"{path}.weight"], (codes(OUT, IN).float() * 0.5).bfloat16())
    with safe_open(tmp_path / "out.safetensors", "pt") as opened:
        assert opened.metadata().keys() == {"a", "lora_inspect.merged"}


def test_the_metadata_keeps_what_it_says_of_others(fold, tmp_path):
    base = {
        f"{OTHER}.weight": codes(OUT, IN), f"{OTHER}.weight_scale": SCALE, f"{Q}.weight": numbers(OUT, IN),
        "y.weight": codes(32, 32), "y.weight_scale": torch.full((32, 1), 127, dtype=torch.uint8),
        "z.weight": torch.ones(4, 4, dtype=torch.int8), "z.weight_scale": SCALE,
    }  # fmt: skip
    others = {"y": {"format": "svdquant_w4a4"}, "z": {"format": "awq_w4a16"}}
    layers = {OTHER: {"format": "float8_e4m3fn"}, **others}
    text = json.dumps({"layers": layers, "version": 1})
    found, record = fold(base, lora(), "bf16", {"_quantization_metadata": text})
    with safe_open(tmp_path / "out.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["_quantization_metadata"]) == {"layers": others, "version": 1}
    assert found["y.weight"].view(torch.uint8).equal(base["y.weight"].view(torch.uint8))
    assert found["z.weight_scale"].dtype == torch.float32
    assert record["decoded"] == [f"{OTHER}.weight"]
    _, record = fold({**base, f"{OTHER}.weight": numbers(2, 2)}, lora(), None, {"_quantization_metadata": text})
    with safe_open(tmp_path / "out.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["_quantization_metadata"]) == {"layers": layers, "version": 1}


UNKNOWN = {
    "blocks under a plain name": {f"{OTHER}.scale": torch.ones(1, 1)},
    "mxfp8": {f"{OTHER}.weight_scale": torch.ones(OUT, 1, dtype=torch.uint8)},
    "another format": {f"{OTHER}.weight_scale": SCALE, f"{OTHER}.comfy_quant": described({"format": "mxfp8"})},
    "two scales": {f"{OTHER}.weight_scale": SCALE, f"{OTHER}.weight_scale_2": SCALE},
}


@pytest.mark.parametrize("beside", UNKNOWN.values(), ids=UNKNOWN)
def test_codes_of_another_kind_pass_as_they_are_and_take_no_change(beside, fold):
    base = {f"{OTHER}.weight": codes(OUT, IN), f"{Q}.weight": numbers(OUT, IN), **beside}
    found, record = fold(base, lora(), "bf16")
    for name in base.keys() - {f"{Q}.weight"}:
        assert found[name].dtype == base[name].dtype
        assert found[name].view(torch.uint8).equal(base[name].view(torch.uint8)) if found[name].dim() else True
    assert (record["decoded"], record["dropped"]) == ([], [])
    named = {name.replace(OTHER, Q): tensor for name, tensor in base.items() if name.startswith(OTHER)}
    refusal = fold(named, lora(), "bf16", refused=True)
    assert f"cannot read the quantisation of {Q}.weight (" in refusal
    assert f"{Q}." in refusal or "nothing gives mxfp8" in refusal
    assert "F32, F16 or BF16 version of the base" in refusal


BROKEN = {
    "a scale of columns": ({"scale_weight": torch.ones(IN)}, ["scale_weight has shape [8]", "[6, 8]"]),
    "a flat scale that could be of columns": ({"scale_weight": torch.ones(OUT)}, ["scale_weight has shape [6]"]),
    "blocks that do not divide": ({"scale_weight": torch.ones(OUT, 3, 1)}, ["has shape [6, 3, 1]", "[6, 8]"]),
    "blocks of rows": ({"weight_scale": torch.ones(2, 2)}, ["weight_scale has shape [2, 2]"]),
    "both": ({"scale_weight": SCALE, "weight_scale": SCALE}, ["two scales", "scale_weight", "weight_scale"]),
    "a scale that is missing": ({"comfy_quant": described(JSON_OF)}, ["comfy_quant says", "weight_scale"]),
    "another element type": (
        {"weight_scale": SCALE, "comfy_quant": described({"format": "float8_e5m2"})},
        ["stored as F8_E4M3", "comfy_quant says 'float8_e5m2'"]),
    "no JSON": ({"weight_scale": SCALE, "comfy_quant": torch.tensor([123], dtype=torch.uint8)}, ["comfy_quant is no"]),
    "no format": ({"weight_scale": SCALE, "comfy_quant": described({"x": 1})}, ["comfy_quant is not a JSON object"]),
    "no object": ({"weight_scale": SCALE, "comfy_quant": described([])}, ["comfy_quant is not a JSON object"]),
    "no bytes": ({"weight_scale": SCALE, "comfy_quant": torch.ones(2)}, ["comfy_quant is not a JSON object"]),
    "an infinite scale": ({"scale_weight": torch.tensor(math.inf)}, ["scale_weight has a number", "not finite"]),
    "a scale that is none": ({"scale_weight": torch.tensor(math.nan)}, ["scale_weight has a number", "not finite"]),
    "a scale beyond float32": ({"scale_weight": torch.tensor(1e37)}, ["too large to scale"]),
}  # fmt: skip


@pytest.mark.parametrize("changed", [True, False])
@pytest.mark.parametrize(("beside", "words"), BROKEN.values(), ids=BROKEN)
def test_what_contradicts_itself_is_refused_by_name(beside, words, changed, fold):
    name = Q if changed else OTHER
    base = {f"{name}.weight": codes(OUT, IN), **{f"{name}.{suffix}": tensor for suffix, tensor in beside.items()}}
    refusal = fold(base if changed else {**base, f"{Q}.weight": numbers(OUT, IN)}, lora(), "bf16", refused=True)
    assert [word for word in words if word not in refusal] == [], refusal
    assert f"{name}.weight" in refusal or f"{name}.comfy_quant" in refusal


@pytest.mark.parametrize(("dtype", "largest"), [(E4M3, 448.0), (E5M2, 57344.0)])
def test_a_scale_is_too_large_only_where_the_largest_code_leaves_float32(dtype, largest, fold):
    """Whatever codes there are: 1 is one that any scale leaves in the range."""
    base = {f"{OTHER}.weight": torch.ones(2, 2).to(dtype), f"{Q}.weight": numbers(OUT, IN)}
    most = torch.finfo(torch.float32).max / largest
    found, _ = fold({**base, f"{OTHER}.scale_weight": torch.tensor(most * 0.99)}, lora())
    assert torch.equal(found[f"{OTHER}.weight"], torch.tensor(most * 0.99).expand(2, 2))
    refusal = fold({**base, f"{OTHER}.scale_weight": torch.tensor(most * 1.01)}, lora(), refused=True)
    assert f"scale_weight has a number that is not finite or is too large to scale {OTHER}.weight" in refusal


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"layers": []}', "3", '{"layers": {"blocks.0.attn.q": 3}}'])
def test_metadata_that_cannot_be_read_is_refused(text, fold):
    refusal = fold({f"{Q}.weight": codes(OUT, IN)}, lora(), "bf16", {"_quantization_metadata": text}, refused=True)
    assert "_quantization_metadata is not a JSON object" in refusal


def test_a_scale_that_a_marker_promises_is_missing(fold):
    base = {f"{Q}.weight": codes(OUT, IN), **MARKED}
    refusal = fold(base, lora(), "bf16", refused=True)
    assert f"scaled_fp8 says that {Q}.weight is scaled, but there is no {Q}.scale_weight" in refusal
    norm = {"norm.weight": codes(OUT), f"{Q}.weight": codes(OUT, IN), f"{Q}.scale_weight": SCALE, **MARKED}
    found, _ = fold(norm, lora(), "fp32")
    assert torch.equal(found["norm.weight"], codes(OUT).float())


def test_codes_stay_bit_for_bit_where_nothing_changes_them(fold):
    base, _ = scaled("scale_weight", (OUT, 1))
    base |= {f"{OTHER}.weight": numbers(OUT, IN), **MARKED}
    found, record = fold(base, lora(), None, multiplier=0)
    assert found.keys() == base.keys()
    assert found[f"{Q}.weight"].view(torch.uint8).equal(base[f"{Q}.weight"].view(torch.uint8))
    assert (record["decoded"], record["dropped"]) == ([], [])
    other = {name.replace("lora_unet_blocks_0_attn_q", "lora_unet_blocks_0_attn_k"): t for name, t in lora().items()}
    found, record = fold(base, other, None)
    assert found[f"{Q}.weight"].view(torch.uint8).equal(base[f"{Q}.weight"].view(torch.uint8))
    assert record["dtype_counts"] == {"F8_E4M3": 2, "F32": 2}


def test_infinity_in_codes_without_a_change_stays_so(fold):
    odd = torch.tensor([[1.0, math.inf], [-math.inf, 2.0]]).to(E5M2)
    found, _ = fold({"mask": odd, f"{Q}.weight": numbers(OUT, IN)}, lora(), "bf16")
    assert found["mask"].tolist() == [[1.0, math.inf], [-math.inf, 2.0]]


def test_a_number_that_overflows_is_an_error(fold):
    base = {f"{OTHER}.weight": torch.full((2, 2), 448.0).to(E4M3), f"{OTHER}.scale_weight": torch.tensor(1e3)}
    refusal = fold({**base, f"{Q}.weight": numbers(OUT, IN)}, lora(), "fp16", refused=True)
    assert f"{OTHER}.weight holds 448000, which is inf in F16" in refusal


def test_a_folder_has_its_index_and_its_counts(tmp_path, run):
    folder = tmp_path / "base"
    folder.mkdir()
    shards = {
        "m-00001-of-00002.safetensors": {f"{Q}.weight": codes(OUT, IN), f"{OTHER}.scale_weight": SCALE},
        "m-00002-of-00002.safetensors": {f"{OTHER}.weight": codes(OUT, IN), f"{Q}.scale_weight": SCALE, "n": SCALE + 1},
    }
    write_shards(folder, shards, "m.safetensors.index.json")
    save_file(lora(), tmp_path / "adapter.safetensors")
    pair = (folder, tmp_path / "adapter.safetensors")
    planned = run("merge", *pair, "--dtype", "bf16", "--dry-run", "--json").json
    done = run("merge", *pair, "--dtype", "bf16", "-o", tmp_path / "out", "--json").json
    for record in (planned, done):
        assert record["decoded"] == [f"{Q}.weight", f"{OTHER}.weight"]
        assert record["dropped"] == [f"{OTHER}.scale_weight", f"{Q}.scale_weight"]
        assert record["tensors_copied"] == 1
    index = json.loads((tmp_path / "out" / "m.safetensors.index.json").read_text())
    kept = {key: name for name, own in shards.items() for key in own if not key.endswith("scale_weight")}
    assert index["weight_map"] == kept
    assert index["metadata"]["total_size"] == 2 * (2 * OUT * IN + 1)
    found = {key: name for name in shards for key in load_file(tmp_path / "out" / name)}
    assert found == kept
    assert done["dtype_counts"] == {"BF16": 3}
    again = run("info", tmp_path / "out", "--json")
    assert again.status == 0


@pytest.mark.parametrize("stays", [False, True])
def test_the_config_of_a_folder_says_no_more_of_codes_where_none_stay(stays, tmp_path, run):
    folder = tmp_path / "base"
    folder.mkdir()
    base = {f"{Q}.weight": codes(OUT, IN), f"{Q}.weight_scale": SCALE, "ids": torch.arange(3)}
    others = {"y.weight": torch.ones(4, 4, dtype=torch.int8), "y.weight_zero_point": SCALE + 1} if stays else {}
    save_file(base | others, folder / "model.safetensors")
    config = {"model_type": "x", "quantization_config": {"quant_method": "compressed-tensors"}, "a": [1, {"b": "é"}]}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(lora(), tmp_path / "adapter.safetensors")
    out = tmp_path / "out"
    done = run("merge", folder, tmp_path / "adapter.safetensors", "--dtype", "bf16", "-o", out, "--json").json
    written = json.loads((out / "config.json").read_text())
    rest = {"model_type": "x", "a": [1, {"b": "é"}]}
    if stays:
        assert written == {**rest, "quantization_config": {"quant_method": "compressed-tensors", "ignore": [Q]}}
    else:
        assert written == rest
    told = [] if stays else ["config.json: quantization_config"]
    assert done["dropped"] == [f"{Q}.weight_scale", *told]
    assert "config.json" in done["files_copied"]


def test_a_config_that_says_nothing_of_codes_is_copied(tmp_path, run):
    folder = tmp_path / "base"
    folder.mkdir()
    save_file({f"{Q}.weight": codes(OUT, IN)}, folder / "model.safetensors")
    save_file(lora(), tmp_path / "adapter.safetensors")
    for content in ('{ "a":1}', "[1]"):
        (folder / "config.json").write_text(content)
        done = run(
            "merge", folder, tmp_path / "adapter.safetensors", "--dtype", "bf16", "-o", tmp_path / "out", "--json",
            "--force",
        )  # fmt: skip
        assert done.json["dropped"] == []
        assert (tmp_path / "out" / "config.json").read_text() == content


def test_the_metadata_of_a_module_whose_name_ends_alike_stays(fold, tmp_path):
    base = {
        f"{Q}.weight": codes(OUT, IN), f"{Q}.weight_scale": SCALE,
        "q.weight": torch.ones(4, 4, dtype=torch.int8), "q.weight_scale": SCALE,
    }  # fmt: skip
    layers = {Q: {"format": "float8_e4m3fn"}, "q": {"format": "awq_w4a16"}}
    fold(base, lora(), "bf16", {"_quantization_metadata": json.dumps({"layers": layers})})
    with safe_open(tmp_path / "out.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["_quantization_metadata"]) == {"layers": {"q": layers["q"]}}


def test_the_summary_says_what_was_decoded_and_left_out(tmp_path, run):
    base, _ = scaled("scale_weight", (OUT, 1))
    save_file(base | MARKED, tmp_path / "base.safetensors")
    save_file(lora(), tmp_path / "adapter.safetensors")
    pair = (tmp_path / "base.safetensors", tmp_path / "adapter.safetensors")
    done = run("merge", *pair, "-v", "-o", tmp_path / "out.safetensors", "--dtype", "bf16")
    assert "1 scaled fp8 tensors decoded" in done.stdout
    assert f"left out, as they only describe codes: {Q}.scale_weight, scaled_fp8" in done.stdout + done.stderr
    planned = run("merge", *pair, "--dtype", "bf16", "--dry-run")
    assert "1 scaled fp8 tensors would be decoded" in planned.stdout


@pytest.mark.parametrize("shape", [(0, IN), (OUT, 0)])
@pytest.mark.parametrize("scale", [SCALE, torch.ones(1)])
def test_a_weight_without_entries_has_no_codes(shape, scale, fold):
    base = {
        f"{OTHER}.weight": torch.empty(shape).to(E4M3),
        f"{OTHER}.scale_weight": scale,
        f"{Q}.weight": numbers(OUT, IN),
    }
    found, record = fold(base, lora(), "bf16")
    assert found[f"{OTHER}.weight"].shape == shape
    assert record["decoded"] == [f"{OTHER}.weight"]


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "torch.float16", "float32"])
def test_the_config_of_a_folder_names_the_new_type_and_nothing_else_of_it_is_dropped(name, tmp_path, run):
    folder, out = tmp_path / "base", tmp_path / "out"
    folder.mkdir()
    save_file({f"{Q}.weight": codes(OUT, IN)}, folder / "model.safetensors")
    save_file(lora(), tmp_path / "adapter.safetensors")
    config = {"torch_dtype": name, "text_config": {"dtype": name}, "vision_config": {"dtype": "auto"}}
    (folder / "config.json").write_text(json.dumps(config))
    done = run("merge", folder, tmp_path / "adapter.safetensors", "--dtype", "bf16", "-o", out, "--json").json
    assert json.loads((out / "config.json").read_text()) == {
        "torch_dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}, "vision_config": {"dtype": "auto"},
    }  # fmt: skip
    assert done["dropped"] == []
