"""`combine --drop-biases`: the sum without changes of biases, for names and programs that take none."""

import json

import numpy
import pytest
from safetensors.numpy import load_file, save_file

import lora_inspect
from lora_inspect import RefusedError

LAYERS = [f"lora_unet_blocks_{block}_self_attn_q" for block in range(2)]
ROWS, COLUMNS, RANK = 24, 20, 4
BIAS = f"{LAYERS[0]}.diff_b"


def write(name, seed, with_bias=True, with_factors=True):
    """Write an adapter of two layers, one of them with a changed bias; return the deltas (ROWS, COLUMNS) by layer."""
    numbers = numpy.random.default_rng(seed)
    tensors, deltas = {}, {}
    for layer in LAYERS if with_factors else ():
        up, down = (numbers.standard_normal(size, numpy.float32) for size in ((ROWS, RANK), (RANK, COLUMNS)))
        tensors |= {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down}
        tensors[f"{layer}.alpha"] = numpy.array(RANK, numpy.float32)
        deltas[layer] = up.astype(numpy.float64) @ down
    if with_bias:
        tensors[BIAS] = numbers.standard_normal(ROWS, numpy.float32)
    save_file(tensors, name, {"ss_base_model_version": "wan2.1"})
    return deltas


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("names", ["diffusers", "peft"])
def test_refusal_of_one_bias_names_drop_biases(names, run):
    write("a.safetensors", 1)
    write("b.safetensors", 2, with_bias=False)
    words = ("a.safetensors", "b.safetensors", "--to", names, "-o", "out")
    assert "--drop-biases" in run("combine", *words).refusal
    with pytest.raises(RefusedError, match="drop_biases"):
        lora_inspect.combine(["a.safetensors", "b.safetensors"], "out", to=names)


def test_drop_biases_writes_weights_and_lists_biases(run, folder):
    first, second = write("a.safetensors", 1), write("b.safetensors", 2)
    words = ("a.safetensors:0.5", "b.safetensors", "--to", "peft", "--drop-biases", "-o", "out", "--json")
    record = json.loads(run("combine", *words).stdout)
    assert record["left_out"] == {BIAS: "left out by --drop-biases"}
    config = json.loads((folder / "out" / "adapter_config.json").read_text())
    assert (config["bias"], config["lora_alpha"]) == ("none", config["r"])
    written = load_file("out/adapter_model.safetensors")
    assert len(written) == 2 * len(LAYERS)
    ups = sorted(key for key in written if key.endswith(".lora_B.weight"))
    for up, layer in zip(ups, LAYERS, strict=True):
        delta = written[up].astype(numpy.float64) @ written[up.replace("lora_B", "lora_A")]
        numpy.testing.assert_allclose(delta, 0.5 * first[layer] + second[layer], atol=1e-5)


def test_drop_biases_of_single_adapter_leaves_no_bias():
    deltas = write("a.safetensors", 1)
    result = lora_inspect.combine("a.safetensors", "out.safetensors", drop_biases=True)
    assert result.left_out == {BIAS: "left out by --drop-biases"}
    written = load_file("out.safetensors")
    assert BIAS not in written
    for layer in LAYERS:
        delta = written[f"{layer}.lora_up.weight"].astype(numpy.float64) @ written[f"{layer}.lora_down.weight"]
        numpy.testing.assert_allclose(delta, deltas[layer], atol=1e-5)


def test_drop_biases_without_bias_is_refused(run):
    write("a.safetensors", 1, with_bias=False)
    refusal = run("combine", "a.safetensors", "a.safetensors", "--drop-biases", "-o", "out.safetensors").refusal
    assert "no adapter changes a bias" in refusal


def test_drop_biases_of_adapter_with_only_biases_is_refused(run):
    write("a.safetensors", 1)
    write("b.safetensors", 2, with_factors=False)
    refusal = run("combine", "a.safetensors", "b.safetensors", "--drop-biases", "-o", "out.safetensors").refusal
    assert refusal.startswith("b.safetensors: it changes only biases")
