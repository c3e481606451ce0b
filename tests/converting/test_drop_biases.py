"""Biases that are left out, for programs that take none: all else is as it was."""

import json

import language_models
import peft_kinds
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from lora_inspect.ops.compat import compat

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore")]

MODEL = "Qwen2ForCausalLM"
KINDS = ("lora_bias", "biases", "biases of its layers")


@pytest.fixture
def made(tmp_path):
    return lambda kind: peft_kinds.make(MODEL, peft_kinds.KINDS[kind], tmp_path / "adapter").path


def is_bias(key):
    return key.endswith("bias")


@pytest.mark.parametrize("program", ["vllm", "sglang"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_program_takes_what_is_left(made, run, tmp_path, kind, program):
    folder, output = made(kind), tmp_path / "output"
    refusal = run("convert", folder, "--to", program, "-o", output).refusal
    assert "--drop-biases" in refusal
    record = run("convert", folder, "--to", program, "--drop-biases", "-o", output, "--json").json
    before, after = (load_file(one / peft_kinds.WEIGHTS) for one in (folder, output))
    assert set(record["dropped"]) == {key for key in before if is_bias(key)}
    assert after.keys() == {key for key in before if not is_bias(key)}
    assert all(torch.equal(after[key], before[key]) for key in after)
    lost = {key for key, error in record["relative_error"]["per_module"].items() if error is None}
    assert lost == {
        key.rpartition(".")[0].removesuffix(".lora_B").removesuffix(".base_layer") for key in record["dropped"]
    }
    assert record["exact"] is False
    assert compat(str(output), program).verdicts[0].verdict == "same meaning"


@pytest.mark.parametrize("kind", KINDS)
def test_peft_has_the_biases_of_the_base_with_it(made, run, tmp_path, kind):
    folder, output = made(kind), tmp_path / "output"
    assert run("convert", folder, "--drop-biases", "-o", output).status == 0
    config = json.loads((output / peft_kinds.CONFIG).read_text())
    assert (config["bias"], config["lora_bias"]) == ("none", False)
    network = PeftModel.from_pretrained(language_models.model(MODEL), str(output)).eval()
    theirs = {name: value for name, value in language_models.model(MODEL).named_parameters() if is_bias(name)}
    for name, parameter in network.named_parameters():
        if is_bias(name):
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(parameter, theirs[plain])


def test_a_file_without_biases_has_none_to_drop(run, tmp_path):
    folder = peft_kinds.make(MODEL, peft_kinds.KINDS["plain"], tmp_path / "adapter").path
    assert "no biases" in run("convert", folder, "--drop-biases", "-o", tmp_path / "output").refusal


def test_the_summary_names_what_is_lost(made, run, tmp_path):
    outcome = run("convert", made("biases of its layers"), "--drop-biases", "-o", tmp_path / "output")
    assert "not exact: the biases of 6 modules are left out" in outcome.stdout
