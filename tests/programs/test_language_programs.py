"""What the rules say of folders of PEFT, beside what programs that serve language models were seen to do with them.

Their own code ran aside on such folders of a Llama of two blocks: vLLM 0.33.0's config, validation and loading (given
a rank of up to 512), SGLang 0.5.23's config, loading, fusing and copy into buffers, over stand-ins, llama.cpp's
converter and then llama.cpp itself (October 2026), whose probabilities were compared with PEFT's, and mlx-lm 0.32.2.
"""

import json
import shutil

import peft_kinds
import pytest

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.compat import compat
from lora_inspect.programs.verdict import OTHER, PARTLY, REFUSED, SAME, STRENGTH, UNTESTED, VERDICTS
from lora_inspect.reading.model.settings import Settings

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore")]

MODEL = "LlamaForCausalLM"
# By kind of folder: vLLM, SGLang, llama.cpp. Of embeddings and heads it depends on the model, so that it is unknown.
SEEN = {
    "plain": (SAME, SAME, SAME),
    "two layers": (SAME, REFUSED, SAME),
    "one layer": (SAME, REFUSED, SAME),
    "rank 24": (SAME, SAME, SAME),
    "negative alpha": (SAME, SAME, SAME),
    "alpha 0": (SAME, SAME, OTHER),
    "alpha 2.5": (SAME, SAME, SAME),
    "half precision": (SAME, SAME, SAME),
    "rslora": (SAME, STRENGTH, STRENGTH),
    "dora": (REFUSED, REFUSED, REFUSED),
    "dora and rslora": (REFUSED, REFUSED, REFUSED),
    "rank_pattern": (SAME, REFUSED, SAME),
    "alpha_pattern": (SAME, STRENGTH, STRENGTH),
    "patterns and rslora": (SAME, REFUSED, STRENGTH),
    "embeddings": (UNTESTED, SAME, SAME),
    "head": (UNTESTED, SAME, UNTESTED),
    "copies of embeddings": (UNTESTED, SAME, SAME),
    "saved head": (REFUSED, PARTLY, REFUSED),
    "saved embeddings": (REFUSED, PARTLY, REFUSED),
    "saved norms": (REFUSED, REFUSED, PARTLY),
    "tokens": (REFUSED, PARTLY, REFUSED),
    "lora_bias": (REFUSED, PARTLY, REFUSED),
    "pissa": (REFUSED, OTHER, OTHER),
    "layers_to_transform": (SAME, SAME, SAME),
    "excluded": (SAME, SAME, SAME),
    "expression": (SAME, REFUSED, SAME),
    "default inside": (REFUSED, SAME, REFUSED),
    "unknown key": (REFUSED, SAME, REFUSED),
    "narrow targets": (SAME, REFUSED, SAME),
    "narrow layers": (SAME, SAME, SAME),
    "narrow exclusion": (SAME, SAME, SAME),
    "ia3": (REFUSED, REFUSED, REFUSED),
    "loha": (REFUSED, REFUSED, REFUSED),
    "lokr": (REFUSED, REFUSED, REFUSED),
    "oft": (REFUSED, REFUSED, REFUSED),
    "vera": (REFUSED, REFUSED, REFUSED),
}
# A Llama has no biases that PEFT could train; this one has.
# SGLang takes them for factors, with an effect that nobody tried.
WITH_BIASES = {
    "biases": (REFUSED, UNTESTED, REFUSED),
    "biases of its layers": (REFUSED, UNTESTED, REFUSED),
}


@pytest.fixture
def verdicts(tmp_path):
    """`verdicts(kind)`: what each program makes of such a folder, by its name."""

    def judge(kind, model=MODEL):
        folder = peft_kinds.make(model, kind, tmp_path / "adapter")
        return {one.program.name: one for one in compat(str(folder.path)).verdicts}

    return judge


@pytest.mark.parametrize(
    ("kind", "seen", "model"),
    [
        *((kind, seen, MODEL) for kind, seen in SEEN.items()),
        *((kind, seen, "Qwen2ForCausalLM") for kind, seen in WITH_BIASES.items()),
    ],
)
@pytest.mark.slow
def test_the_verdicts_are_what_was_seen(verdicts, kind, seen, model):
    found = verdicts(peft_kinds.KINDS[kind], model)
    assert tuple(found[name].verdict for name in ("vllm", "sglang", "llama-cpp")) == seen
    assert found["mlx-lm"].verdict == REFUSED
    assert "num_layers" in found["mlx-lm"].says


def test_rslora_is_applied_at_alpha_over_rank(verdicts):
    found = verdicts(peft_kinds.Kind({"use_rslora": True, "r": 16, "lora_alpha": 8}))
    assert (found["llama-cpp"].factor, found["sglang"].factor) == (0.25, 0.25)
    assert found["llama-cpp"].silent


def test_alphas_of_single_modules_are_passed_over(verdicts):
    found = verdicts(peft_kinds.Kind({"alpha_pattern": {"q_proj": 12}}))
    assert found["llama-cpp"].factors == found["sglang"].factors == {0.5: 2, 1.0: 12}


@pytest.mark.parametrize(("rank", "option"), [(16, ""), (17, "32"), (64, "64"), (200, "256"), (300, "320")])
def test_vllm_has_to_be_told_of_higher_ranks(verdicts, rank, option):
    found = verdicts(peft_kinds.Kind({"r": rank}))["vllm"]
    assert found.verdict == SAME
    assert (f"--max-lora-rank {option}," in found.says) if option else not found.says


def test_vllm_has_a_highest_rank(verdicts):
    found = verdicts(peft_kinds.Kind({"r": 513}))["vllm"]
    assert (found.verdict, "513" in found.says) == (REFUSED, True)


@pytest.mark.parametrize("leaves", [("k_proj", "v_proj"), ("up_proj",)])
def test_sglang_refuses_a_part_of_a_fused_layer_without_its_first(verdicts, leaves):
    found = verdicts(peft_kinds.Kind({"target_modules": list(leaves)}))["sglang"]
    assert (found.verdict, "Cannot find target module name" in found.says) == (REFUSED, True)


@pytest.mark.parametrize("leaves", [("q_proj", "v_proj"), ("gate_proj",)])
def test_sglang_takes_zeros_for_other_parts(verdicts, leaves):
    assert verdicts(peft_kinds.Kind({"target_modules": list(leaves)}))["sglang"].verdict == SAME


@pytest.mark.parametrize("field", ["lora_alpha", "target_modules"])
def test_vllm_and_sglang_refuse_a_config_without_one_of_their_fields(verdicts, field):
    without = peft_kinds.Kind(config=lambda config: {key: value for key, value in config.items() if key != field})
    found = verdicts(without)
    for program in ("vllm", "sglang"):
        assert (found[program].verdict, field in found[program].says) == (REFUSED, True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda folder: (folder / peft_kinds.WEIGHTS).rename(folder / "lora.safetensors"), "adapter_model.safetensors"),
        (lambda folder: (folder / peft_kinds.CONFIG).unlink(), "adapter_config.json"),
    ],
)
def test_programs_of_peft_folders_take_nothing_else(tmp_path, change, says):
    folder = peft_kinds.make(MODEL, peft_kinds.Kind(), tmp_path).path
    change(folder)
    settings = Settings(rslora=False, alpha=6.0) if says == "adapter_config.json" else Settings()
    for one in compat(str(folder), settings=settings).verdicts:
        if one.program.name in ("peft", "vllm", "sglang", "llama-cpp"):
            assert (one.verdict, says in one.says) == (REFUSED, True)


@pytest.mark.parametrize("name", ["lora", "dora", "square-lora", "square-dora"])
def test_mlx_lm_loads_its_own_folders(fixtures, name):
    found = {one.program.name: one for one in compat(str(fixtures / "mlx" / name)).verdicts}
    assert found["mlx-lm"].verdict == SAME
    assert found["peft"].verdict == found["vllm"].verdict == REFUSED


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_layers": None}, "num_layers"),
        ({"keys": ["self_attn.q_proj"]}, "not an adapter parameter"),
        ({"dropout": None}, "missing"),
    ],
)
def test_mlx_lm_refuses_a_config_of_other_layers(fixtures, tmp_path, change, says):
    shutil.copytree(fixtures / "mlx" / "lora", tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / peft_kinds.CONFIG).read_text())
    for field, value in change.items():
        where = config["lora_parameters"] if field in ("keys", "dropout") else config
        where.pop(field) if value is None else where.update({field: value})
    (tmp_path / "adapter" / peft_kinds.CONFIG).write_text(json.dumps(config))
    (found,) = compat(str(tmp_path / "adapter"), "mlx-lm").verdicts
    assert (found.verdict, says in found.says) == (REFUSED, True)


def test_llama_cpp_loads_its_own_files(fixtures):
    for model in ("llama", "qwen3", "gptneox", "phi3"):
        (found,) = compat(str(fixtures / "gguf" / model / "adapter.gguf"), "llama-cpp").verdicts
        assert (found.verdict, found.by) == (SAME, "run")


@pytest.mark.parametrize(
    "odd",
    [
        {"target_modules": 5},
        {"target_modules": [{}, 3]},
        {"layers_to_transform": ["x", [], True], "target_modules": ["q_proj"]},
        {"exclude_modules": 7},
        {"modules_to_save": [{}, 1.5]},
        {"init_lora_weights": [], "bias": {}},
        {"r": [], "rank_pattern": 3},
        {"lora_alpha": {}},
        {"lora_alpha": True},
    ],
)
def test_an_odd_config_ends_in_a_verdict_or_a_sentence(verdicts, odd):
    kind = peft_kinds.Kind(config=lambda config: {**config, **odd})
    try:
        found = verdicts(kind)
    except LoraInspectError:
        return
    assert found["peft"].verdict in VERDICTS


# vLLM 0.33.0's `parse_fine_tuned_lora_name` was run with the mappings of Gemma 3, Mistral 3, Qwen2.5-VL and Qwen3-VL.
# It makes `language_model.model.layers.…` of either root, the path in its own models, which were not run.
@pytest.mark.parametrize("root", ["model.language_model", "language_model.model"])
def test_vllm_takes_the_language_model_of_a_multimodal_one(root, tmp_path, write_safetensors):
    name = f"base_model.model.{root}.layers.0.self_attn.q_proj"
    tensors = {f"{name}.lora_A.weight": ("F32", (2, 8), 0.5), f"{name}.lora_B.weight": ("F32", (8, 2), 0.5)}
    file = write_safetensors(tensors, name="adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (file.parent / "adapter_config.json").write_text(json.dumps(config))
    (found,) = compat(str(file.parent), "vllm").verdicts
    assert (found.verdict, found.by) == (SAME, "read")
