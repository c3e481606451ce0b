"""Folders for a Llama and a Gemma 2 of two blocks as the converter of Ollama of 2026-08-21 wrote them.

The code is Go and cannot be installed here, so what it did is written out: the factors of the GGUF that it wrote were
multiplied, at llama.cpp's alpha over the rank, and compared with the change of PEFT in the order of the base's rows.
"""

import json

import peft_kinds
import pytest
from safetensors.torch import load_file, save_file

from lora_inspect.ops.compat import compat
from lora_inspect.programs.verdict import OTHER, REFUSED, SAME, STRENGTH, UNTESTED

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore")]

LLAMA, GEMMA = "meta-llama/Llama-3.2-1B", "google/gemma-2-2b-it"
# On a Gemma 2, by kind: the verdict and the factors.
SEEN = {
    "plain": (SAME, {1.0: 14}),
    "rank_pattern": (SAME, {1.0: 14}),
    "patterns and rslora": (STRENGTH, {0.5: 10, 0.25: 2, 0.707: 2}),
    "alpha 2.5": (REFUSED, {}),
    "alpha 0": (OTHER, None),
    "dora": (REFUSED, {}),
    "default inside": (REFUSED, {}),
    "lokr": (REFUSED, {}),
}
# Of tensors with one dimension its converter for Llama says something else than llama.cpp.
VECTORS = ("dora", "unknown key")


@pytest.fixture
def judged(tmp_path):
    def judge(kind, base, config=lambda own: own):
        folder = peft_kinds.make("LlamaForCausalLM", kind, tmp_path / "adapter")
        file = folder.path / peft_kinds.CONFIG
        own = {**json.loads(file.read_text()), "base_model_name_or_path": base}
        file.write_text(json.dumps(config(own)))
        return compat(str(folder.path), "ollama").verdicts[0]

    return judge


@pytest.mark.parametrize("kind", SEEN)
@pytest.mark.slow
def test_the_verdicts_on_gemma_2_are_what_was_seen(judged, kind):
    verdict, factors = SEEN[kind]
    found = judged(peft_kinds.KINDS[kind], GEMMA)
    assert found.verdict == verdict
    assert factors is None or {round(factor, 3): count for factor, count in found.factors.items()} == factors


@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.slow
def test_a_tensor_of_one_dimension_ends_the_converter_for_llama(judged, kind):
    found = judged(peft_kinds.KINDS[kind], LLAMA)
    assert (found.verdict, found.says) == (REFUSED, "panic: runtime error: index out of range [1] with length 1")


@pytest.mark.parametrize(
    ("leaves", "verdict"),
    [(("q_proj",), OTHER), (("v_proj", "k_proj"), OTHER), (("v_proj", "o_proj", "gate_proj", "up_proj"), SAME)],
)
def test_queries_and_keys_of_llama_become_another_change(judged, leaves, verdict):
    found = judged(peft_kinds.Kind({"target_modules": list(leaves)}), LLAMA)
    assert found.verdict == verdict


def test_an_alpha_with_a_point_is_refused(judged):
    found = judged(peft_kinds.Kind(), GEMMA, lambda config: {**config, "lora_alpha": 6.0})
    assert "cannot unmarshal number 6.0" in found.says


def test_a_base_of_another_architecture_is_refused(judged):
    found = judged(peft_kinds.Kind(), "Qwen/Qwen3-8B")
    assert (found.verdict, found.says) == (REFUSED, "unsupported architecture")


def test_without_a_name_of_the_base_queries_are_open(judged):
    assert judged(peft_kinds.Kind(), None).verdict == UNTESTED
    found = judged(peft_kinds.Kind({"target_modules": ["v_proj"]}), None)
    assert (found.verdict, found.says) == (SAME, "on a base of Llama or Gemma 2, as it refuses all others")


def test_the_scale_of_mlx_is_not_read(tmp_path, judged):
    judged(peft_kinds.Kind(), GEMMA)
    own = load_file(tmp_path / "adapter" / peft_kinds.WEIGHTS)
    folder = tmp_path / "mlx"
    folder.mkdir()
    renamed = {
        key.removeprefix("base_model.model.").replace("A.weight", "a").replace("B.weight", "b"): value.T.contiguous()
        for key, value in own.items()
    }
    save_file(renamed, folder / "adapters.safetensors")
    parameters = {"rank": 4, "dropout": 0.0, "scale": 1.5}
    config = {"model": GEMMA, "fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters}
    (folder / peft_kinds.CONFIG).write_text(json.dumps(config))
    (found,) = compat(str(folder), "ollama").verdicts
    assert (found.verdict, round(found.factor, 3)) == (STRENGTH, 0.667)


def test_convert_writes_a_file_that_needs_no_converter(judged, tmp_path, run):
    found = judged(peft_kinds.Kind({"use_rslora": True}), LLAMA)
    assert (found.verdict, "--to ollama --model-config" in found.fix) == (OTHER, True)
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16, "model_type": "llama"}
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**sizes, "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2}))
    made = tmp_path / "made.gguf"
    ended = run("convert", tmp_path / "adapter", "--to", "ollama", "--model-config", config, "-o", made)
    assert ended.status == 0, ended.stderr
    (verdict,) = compat(str(made), "ollama").verdicts
    assert (verdict.verdict, verdict.by) == (SAME, "read")
