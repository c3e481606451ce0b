"""Every command that mends a folder of PEFT for a program of language models runs, and the program's rules then agree.

What is a folder of PEFT gives the real PEFT the logits of the trained model.
"""

import json
import shlex

import language_models
import peft_kinds
import pytest
from peft import PeftModel
from safetensors.torch import load_file

from lora_inspect.ops.compat import compat
from lora_inspect.programs.verdict import SAME, UNTESTED, needs_fix

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore")]

MODEL = "LlamaForCausalLM"
PROGRAMS = ("peft", "vllm", "sglang", "llama-cpp", "mlx-lm")
# What no command mends: it has no place in the program's files, or nothing but a merge says it.
LEFT = {
    "vllm": {"saved norms", "tokens", "lora_bias", "pissa"},
    "sglang": {"saved norms", "tokens", "lora_bias", "pissa", "one layer", "two layers", "vera"},
    "llama-cpp": {"saved norms", "tokens", "lora_bias", "pissa", "ia3", "oft", "vera", "lokr"},
    "mlx-lm": {"saved norms", "tokens", "lora_bias", "pissa"},
    "peft": set(),
}


@pytest.fixture
def base(tmp_path):
    language_models.model(MODEL).save_pretrained(str(tmp_path / "base"))
    return tmp_path / "base"


@pytest.mark.parametrize("kind", [kind for kind in peft_kinds.KINDS if not kind.startswith("biases")])
@pytest.mark.slow
def test_every_fix_runs_and_mends(run, base, tmp_path, kind):
    folder = peft_kinds.make(MODEL, peft_kinds.KINDS[kind], tmp_path / "adapter")
    found = {one.program.name: one for one in compat(str(folder.path)).verdicts}
    for program in PROGRAMS:
        verdict = found[program]
        assert (verdict.fix is None) == (not needs_fix(verdict) or kind in LEFT[program]), (program, verdict)
        # Of the tiny model's embedding the rank is the vocabulary, so that llama.cpp's two orders have one shape.
        if verdict.fix is None or (program, kind) == ("llama-cpp", "saved embeddings"):
            continue
        output = str(tmp_path / program) + (".gguf" if program == "llama-cpp" else "")
        words = ["1e-6" if word == "0.01" else word for word in shlex.split(verdict.fix)[1:-1]]
        words = [str(base) if word in ("BASE", "CONFIG") else word for word in words]
        assert run(*words, output).status == 0, words
        (after,) = compat(output, program).verdicts
        assert after.verdict in (SAME, UNTESTED), after
        if program in ("vllm", "sglang", "peft"):
            network = PeftModel.from_pretrained(language_models.model(MODEL), output).eval()
            assert folder.is_like_trained(language_models.output(network))


def test_dora_of_peft_has_the_names_of_mlx_lm(run, tmp_path):
    folder = peft_kinds.make(MODEL, peft_kinds.KINDS["dora"], tmp_path / "adapter").path
    output = tmp_path / "output"
    assert run("convert", folder, "--to", "mlx-lm", "-o", output).status == 0
    before, after = load_file(folder / peft_kinds.WEIGHTS), load_file(output / "adapters.safetensors")
    magnitudes = {key.removesuffix(".lora_magnitude_vector"): v for key, v in before.items() if "magnitude" in key}
    assert {key.removesuffix(".m") for key in after if key.endswith(".m")} == {
        key.removeprefix("base_model.model.") for key in magnitudes
    }
    assert all((after[f"{key.removeprefix('base_model.model.')}.m"] == v).all() for key, v in magnitudes.items())
    assert json.loads((output / peft_kinds.CONFIG).read_text())["fine_tune_type"] == "dora"
    assert compat(str(output), "mlx-lm").verdicts[0].verdict == SAME
