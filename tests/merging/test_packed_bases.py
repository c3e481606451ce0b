"""Merges into bases in codecs that are only read, against what the programs' own code makes of their weights."""

import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
from adapters import Factors, drawn, kohya
from bases import CODECS, CODED, COLUMNS, PLAIN, ROWS, described, plain
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from gguf_files import write_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.numeric

RANK = 4


class Delta(NamedTuple):
    """The change that an adapter adds to a weight, and the sum of the magnitudes of its terms, in float64."""

    sum: torch.Tensor
    terms: torch.Tensor


def write_lora(path, names=(CODED[0], PLAIN)):
    """Writes a LoRA of some of the layers, and returns what it adds to each of them."""
    layers = {
        name: Factors(drawn(100 + seed, RANK, COLUMNS), 0.1 * drawn(200 + seed, ROWS, RANK), 2.0)
        for seed, name in enumerate(names)
    }
    save_file(kohya("lora_unet_", layers), path)
    deltas = {}
    for name, own in layers.items():
        scaled, inner = own.alpha / RANK * own.up.double(), own.down.double()
        deltas[f"{name}.weight"] = Delta(scaled @ inner, scaled.abs() @ inner.abs())
    return deltas


@pytest.fixture(params=CODECS)
def base(request, tmp_path):
    return CODECS[request.param](tmp_path)


def shapes(path):
    """What stands in the header alone."""
    with safe_open(path, "pt") as opened:
        slices = {name: opened.get_slice(name) for name in load_file(path)}
        return {name: (own.get_dtype(), own.get_shape()) for name, own in slices.items()}


@pytest.mark.parametrize(
    ("dtype", "stored"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_every_weight_is_that_of_the_program(base, dtype, stored, run, tmp_path):
    deltas = write_lora(tmp_path / "a.safetensors")
    out = tmp_path / "out.safetensors"
    record = run("merge", base.path, tmp_path / "a.safetensors", "--dtype", dtype, "-o", out, "--json").json
    assert set(record["decoded"]) == {f"{name}.weight" for name in CODED}
    merged = load_file(out)
    assert merged.keys() == base.weights.keys()
    for name, weight in base.weights.items():
        assert merged[name].dtype == stored
        if name not in deltas:
            assert torch.equal(merged[name], weight.to(stored)), name
            continue
        exact, terms = weight.double() + deltas[name].sum, weight.double().abs() + deltas[name].terms
        half = torch.finfo(stored).eps / 2
        # Each product, sum and scale of a float32 merge rounds once.
        bound = half * exact.abs() + (RANK + 2) * 2**-24 * terms + torch.finfo(stored).tiny
        assert ((merged[name].double() - exact).abs() <= bound).all(), name


def test_a_multiplier_of_0_leaves_the_weight(base, run, tmp_path):
    write_lora(tmp_path / "a.safetensors")
    out = tmp_path / "out.safetensors"
    assert run("merge", base.path, f"{tmp_path / 'a.safetensors'}:0", "--dtype", "fp32", "-o", out).status == 0
    assert all(torch.equal(tensor, base.weights[name]) for name, tensor in load_file(out).items())


def test_codes_that_are_changed_need_a_type_to_be_written_in(base, run, tmp_path):
    write_lora(tmp_path / "a.safetensors")
    out = tmp_path / "out.safetensors"
    said = run("merge", base.path, tmp_path / "a.safetensors", "-o", out).refusal
    assert base.path in said
    assert "--dtype bf16" in said
    assert not out.exists()


def test_codes_that_are_not_changed_are_copied(run, tmp_path):
    base = CODECS["nvfp4"](tmp_path)
    write_lora(tmp_path / "a.safetensors", (PLAIN,))
    out = tmp_path / "out.safetensors"
    assert run("merge", base.path, tmp_path / "a.safetensors", "-o", out).status == 0
    assert shapes(out) == shapes(base.path)
    before, after = load_file(base.path), load_file(out)
    changed = [name for name in before if before[name].ne(after[name].to(before[name].dtype)).any()]
    assert changed == [f"{PLAIN}.weight"]


@pytest.mark.parametrize("kind", ["nvfp4", "mxfp8"])
def test_what_is_changed_alone_is_decoded_where_each_layer_says_what_it_is(kind, run, tmp_path):
    base = CODECS[kind](tmp_path)
    deltas = write_lora(tmp_path / "a.safetensors", CODED[:1])
    out = tmp_path / "out.safetensors"
    assert run("merge", base.path, tmp_path / "a.safetensors", "--changed-dtype", "bf16", "-o", out).status == 0
    before, after = load_file(base.path), load_file(out)
    gone = {name for name in before if name.startswith(f"{CODED[0]}.")} - {f"{CODED[0]}.weight"}
    assert before.keys() - after.keys() == gone
    name = f"{CODED[0]}.weight"
    exact = base.weights[name].double() + deltas[name].sum
    assert after.pop(name).double().sub(exact).abs().le(2**-8 * exact.abs() + 2**-20).all()
    assert shapes(out).items() >= {name: shapes(base.path)[name] for name in after}.items()
    stored = {name: (tensor.reshape(-1).view(torch.uint8), before[name].reshape(-1)) for name, tensor in after.items()}
    assert all(torch.equal(tensor, other.view(torch.uint8)) for tensor, other in stored.values())


@pytest.mark.parametrize("kind", ["nf4", "fp4", "GGUF"])
def test_what_is_changed_alone_is_not_decoded_where_programs_take_all_layers_for_codes(kind, run, tmp_path):
    base = CODECS[kind](tmp_path)
    write_lora(tmp_path / "a.safetensors", CODED[:1])
    out = tmp_path / "out.safetensors"
    said = run("merge", base.path, tmp_path / "a.safetensors", "--changed-dtype", "bf16", "-o", out).refusal
    assert f"{CODED[0]}.weight would be floats next to {CODED[1]}.weight" in said
    assert not out.exists()


def test_the_config_of_a_folder_lists_what_is_decoded_alone(run, tmp_path):
    base = CODECS["nf4"](tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "nf4.safetensors").rename(folder / "model.safetensors")
    method = {"quant_method": "bitsandbytes", "load_in_4bit": True, "llm_int8_skip_modules": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps({"quantization_config": method}))
    write_lora(tmp_path / "a.safetensors", CODED[:1])
    out = tmp_path / "out"
    assert run("merge", folder, tmp_path / "a.safetensors", "--changed-dtype", "bf16", "-o", out).status == 0
    written = json.loads((out / "config.json").read_text())["quantization_config"]
    assert written == method | {"llm_int8_skip_modules": ["lm_head", CODED[0]]}
    after = load_file(out / "model.safetensors")
    assert after[f"{CODED[0]}.weight"].dtype == torch.bfloat16
    assert after[f"{CODED[1]}.weight"].dtype == torch.uint8
    assert base.weights.keys() < after.keys()


def test_metadata_of_the_file_say_what_layers_are(run, tmp_path):
    base = CODECS["nvfp4"](tmp_path)
    tensors = {name: tensor for name, tensor in load_file(base.path).items() if not name.endswith("comfy_quant")}
    layers = {"layers": {name: {"format": "nvfp4"} for name in CODED}}
    save_file(tensors, base.path, {"_quantization_metadata": json.dumps(layers)})
    write_lora(tmp_path / "a.safetensors", (PLAIN,))
    out = tmp_path / "out.safetensors"
    assert run("merge", base.path, tmp_path / "a.safetensors", "--dtype", "fp32", "-o", out).status == 0
    merged = load_file(out)
    assert all(torch.equal(merged[f"{name}.weight"], base.weights[f"{name}.weight"]) for name in CODED)


def test_scales_of_blocks_may_be_stored_as_bytes(run, tmp_path):
    base = CODECS["nvfp4"](tmp_path)
    tensors = load_file(base.path)
    for name in CODED:
        tensors[f"{name}.weight_scale"] = tensors[f"{name}.weight_scale"].view(torch.uint8)
    save_file(tensors, base.path)
    write_lora(tmp_path / "a.safetensors", (PLAIN,))
    out = tmp_path / "out.safetensors"
    assert run("merge", base.path, tmp_path / "a.safetensors", "--dtype", "fp32", "-o", out).status == 0
    merged = load_file(out)
    assert all(torch.equal(merged[f"{name}.weight"], base.weights[f"{name}.weight"]) for name in CODED)


def test_inputs_that_are_smoothed_are_refused(run, tmp_path):
    base = CODECS["nvfp4"](tmp_path)
    smoothed = {f"{CODED[0]}.pre_quant_scale": torch.ones(COLUMNS)}
    save_file(load_file(base.path) | smoothed, base.path)
    write_lora(tmp_path / "a.safetensors")
    out = tmp_path / "out.safetensors"
    said = run("merge", base.path, tmp_path / "a.safetensors", "--dtype", "bf16", "-o", out).refusal
    assert f"{CODED[0]}.pre_quant_scale scales it" in said


def test_every_row_is_decoded_where_a_block_of_rows_is_smaller_than_the_weight(base, run, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_inspect.merging.fold.BLOCK_ELEMENTS", 5 * COLUMNS)
    write_lora(tmp_path / "a.safetensors", (PLAIN,))
    out = tmp_path / "out.safetensors"
    assert run("merge", base.path, tmp_path / "a.safetensors", "--dtype", "fp32", "-o", out).status == 0
    merged = load_file(out)
    assert all(torch.equal(merged[f"{name}.weight"], base.weights[f"{name}.weight"]) for name in CODED)


def test_verify_weighs_what_is_merged(base, run, tmp_path):
    write_lora(tmp_path / "a.safetensors")
    out = tmp_path / "out.safetensors"
    assert run("merge", base.path, tmp_path / "a.safetensors", "--dtype", "bf16", "-o", out).status == 0
    record = run("verify", out, base.path, tmp_path / "a.safetensors", "--json").json
    assert record["ok"]
    assert list(record["share"].values()) == [pytest.approx(1, abs=0.01)]
    other = load_file(out)
    other[f"{CODED[1]}.weight"] += 0.5
    save_file(other, out)
    said = run("verify", out, base.path, tmp_path / "a.safetensors")
    assert said.status == 1
    assert CODED[1] in said.stdout


@pytest.mark.parametrize("kind", ["nvfp4", "GGUF"])
def test_convert_sees_the_weights_of_a_base(kind, run, tmp_path):
    base = CODECS[kind](tmp_path)
    write_lora(tmp_path / "a.safetensors")
    dora = load_file(tmp_path / "a.safetensors")
    for name in (CODED[0], PLAIN):
        dora[f"lora_unet_{name.replace('.', '_')}.dora_scale"] = drawn(5, ROWS, 1).abs() * 30
    save_file(dora, tmp_path / "dora.safetensors")
    save_file(base.weights, tmp_path / "floats.safetensors")
    written = []
    for source in (base.path, tmp_path / "floats.safetensors"):
        out = tmp_path / f"{len(written)}.safetensors"
        options = ["--base", source, "--rank", "6", "--allow-loss", "-o", out]
        assert run("convert", tmp_path / "dora.safetensors", *options).status == 0
        written.append(load_file(out))
    assert written[0].keys() == written[1].keys()
    assert all(torch.equal(tensor, written[1][name]) for name, tensor in written[0].items())


def test_a_gguf_base_becomes_a_safetensors_file(run, tmp_path):
    base = CODECS["GGUF"](tmp_path)
    write_lora(tmp_path / "a.safetensors")
    (tmp_path / "folder").mkdir()
    record = run(
        "merge", base.path, tmp_path / "a.safetensors", "--dtype", "bf16", "-o", tmp_path / "folder", "--json"
    ).json
    assert record["output"] == str(tmp_path / "folder" / "gguf.safetensors")
    with safe_open(record["output"], "pt") as opened:
        assert not [key for key in opened.metadata() if key.startswith("general.")]
    said = run("merge", base.path, tmp_path / "a.safetensors", "--dtype", "bf16", "-o", tmp_path / "x.gguf").refusal
    assert "the output is a safetensors file" in said


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0"])
def test_blocks_that_end_within_a_row_are_decoded_with_the_rows_that_they_touch(kind, run, tmp_path, monkeypatch):
    monkeypatch.setattr("lora_inspect.merging.fold.BLOCK_ELEMENTS", 500)
    shape, number = (32, 16, 3, 3), GGMLQuantizationType[kind]
    block, size = GGML_QUANT_SIZES[number]
    # Kernels of stable diffusion, whose numbers ComfyUI-GGUF arranges in rows of 256.
    blocks = np.random.default_rng(1).integers(0, 0x30, (18, 256 // block * size), dtype=np.uint8)
    tensors = {name: (values.numpy(), None) for name, values in plain().items()}
    path = tmp_path / "base.gguf"
    write_model(path, tensors | {"conv.weight": (blocks, number)}, "sdxl", {"conv.weight": shape})
    write_lora(tmp_path / "a.safetensors", (PLAIN,))
    out = tmp_path / "out.safetensors"
    assert run("merge", path, tmp_path / "a.safetensors", "--dtype", "fp32", "-o", out).status == 0
    found = load_file(out)["conv.weight"]
    assert torch.equal(found, torch.from_numpy(dequantize(blocks, number)).view(shape))


def test_a_gguf_base_of_floats_is_written_as_it_is_stored(run, tmp_path):
    tensors = {name: (values.numpy(), None) for name, values in plain().items()}
    base = write_model(tmp_path / "floats.gguf", tensors)
    write_lora(tmp_path / "a.safetensors", (PLAIN,))
    out = tmp_path / "out.safetensors"
    assert run("merge", base, tmp_path / "a.safetensors", "-o", out).status == 0
    assert {name: tensor.dtype for name, tensor in load_file(out).items()} == dict.fromkeys(tensors, torch.float32)


def test_a_gguf_base_of_codes_cannot_be_kept(run, tmp_path):
    base = CODECS["GGUF"](tmp_path)
    write_lora(tmp_path / "a.safetensors", (PLAIN,))
    said = run("merge", base.path, tmp_path / "a.safetensors", "-o", tmp_path / "out.safetensors").refusal
    assert "is stored as Q4_K, which a .safetensors file cannot hold" in said


def test_a_gguf_adapter_is_still_no_base(run, tmp_path):
    from gguf_files import pair, write_adapter

    path = write_adapter(tmp_path / "a.gguf", pair("blk.0.attn_q", 8, 8, 2))
    write_lora(tmp_path / "a.safetensors")
    said = run("merge", path, tmp_path / "a.safetensors", "-o", tmp_path / "out.safetensors").refusal
    assert "it is an adapter itself, not a base" in said


def test_a_model_of_llama_cpp_is_refused_by_name(run, tmp_path):
    tensors = {"blk.0.attn_q.weight": (drawn(1, 8, 8).numpy(), None)}
    base = write_model(tmp_path / "llama.gguf", tensors, "llama")
    write_lora(tmp_path / "a.safetensors")
    said = run("merge", base, tmp_path / "a.safetensors", "-o", tmp_path / "out.safetensors").refusal
    assert "GGUF file of llama.cpp (general.architecture llama)" in said


@pytest.mark.parametrize(
    ("kind", "name", "says"),
    [
        ("nvfp4", "comfy_quant", "nothing gives nvfp4"),
        ("mxfp8", "comfy_quant", "nothing gives mxfp8"),
        ("nf4", "weight.quant_state.bitsandbytes__nf4", "no quant_state says its shape"),
    ],
)
def test_codes_of_which_nothing_says_how_they_are_laid_out_are_refused(kind, name, says, run, tmp_path):
    base = CODECS[kind](tmp_path)
    save_file({key: value for key, value in load_file(base.path).items() if not key.endswith(name)}, base.path)
    write_lora(tmp_path / "a.safetensors")
    out = tmp_path / "out.safetensors"
    said = run("merge", base.path, tmp_path / "a.safetensors", "--dtype", "bf16", "-o", out).refusal
    assert f"{CODED[0]}.weight" in said
    assert says in said


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("nvfp4", "weight_scale", torch.zeros(128, 28, dtype=torch.uint8)),
        ("nvfp4", "weight_scale_2", torch.ones(2)),
        ("nvfp4", "weight_scale_2", torch.tensor(torch.inf)),
        ("mxfp8", "weight_scale", torch.zeros(96, 16, dtype=torch.uint8)),
        ("mxfp8", "weight_scale", torch.full((128, 16), 255, dtype=torch.uint8)),
        ("nf4", "weight.absmax", torch.ones(5)),
        ("nf4", "weight.absmax", torch.full((768,), torch.nan)),
        ("nf4", "weight.quant_map", torch.ones(15)),
        ("nf4 nested", "weight.nested_absmax", torch.ones(9)),
        ("nf4 nested", "weight.nested_quant_map", torch.ones(255)),
        ("nf4", "weight.quant_state.bitsandbytes__nf4", described({"shape": [96, 511], "blocksize": 64})),
        ("nf4", "weight.quant_state.bitsandbytes__nf4", described({"shape": [96, 256], "blocksize": 64})),
        ("nf4", "weight.quant_state.bitsandbytes__nf4", described({"shape": [-96, -512], "blocksize": 64})),
        ("nf4", "weight.quant_state.bitsandbytes__nf4", described({"shape": [96, 512], "blocksize": 0})),
        ("nf4", "weight.quant_state.bitsandbytes__nf4", described({"shape": [96, 512], "blocksize": True})),
        ("nf4", "weight.quant_state.bitsandbytes__nf4", described({"shape": "96", "blocksize": 64})),
        ("nf4", "weight.quant_state.bitsandbytes__nf4", torch.tensor([0x5B], dtype=torch.uint8)),
    ],
)
def test_what_fits_no_weight_is_refused(kind, name, value, run, tmp_path):
    base = CODECS[kind](tmp_path)
    tensors = load_file(base.path)
    assert f"{CODED[0]}.{name}" in tensors
    save_file(tensors | {f"{CODED[0]}.{name}": value}, base.path)
    write_lora(tmp_path / "a.safetensors")
    out = tmp_path / "out.safetensors"
    said = run("merge", base.path, tmp_path / "a.safetensors", "--dtype", "bf16", "-o", out).refusal
    assert f"{CODED[0]}.weight" in said
    assert not out.exists()


def test_codes_of_another_number_than_the_shape_are_refused(run, tmp_path):
    base = CODECS["nf4"](tmp_path)
    # Two numbers fewer, in as many blocks.
    other = described({"shape": [25, 1966], "blocksize": 64})
    save_file(load_file(base.path) | {f"{CODED[0]}.weight.quant_state.bitsandbytes__nf4": other}, base.path)
    write_lora(tmp_path / "a.safetensors", (PLAIN,))
    out = tmp_path / "out.safetensors"
    said = run("merge", base.path, tmp_path / "a.safetensors", "--dtype", "bf16", "-o", out).refusal
    assert f"does not match {CODED[0]}.weight" in said


@pytest.mark.parametrize("name", ["convrot_w4a4", "asym_w4a8_int8", "awq_w4a16", "svdquant", 7])
def test_other_codes_are_refused_by_name(name, run, tmp_path):
    tensors = plain()
    tensors[f"{CODED[0]}.weight"] = torch.zeros(ROWS, COLUMNS // 2, dtype=torch.int8)
    tensors |= {f"{CODED[0]}.weight_scale": torch.ones(1), f"{CODED[0]}.comfy_quant": described({"format": name})}
    save_file(tensors, tmp_path / "base.safetensors")
    write_lora(tmp_path / "a.safetensors")
    out = tmp_path / "out.safetensors"
    said = run("merge", tmp_path / "base.safetensors", tmp_path / "a.safetensors", "--dtype", "bf16", "-o", out).refusal
    assert f"says {name!r}" in said
    assert "lora-inspect cannot read the quantisation of " in said
