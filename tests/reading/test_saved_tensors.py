"""Which tensors of the base are taken for saved ones: those that a config speaks of, and no others."""

import json

import pytest
import torch
from adapters import IN, OUT, lora
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.maths.change import Replaced
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.identify import adapter_candidates
from lora_inspect.reading.model.evidence import ERROR
from lora_inspect.reading.peft.saved_tensors import BaseTensor

P = "base_model.model."
Q = f"{P}a.q"
BIAS, WEIGHT = ("F32", (OUT,), 2.0), ("F32", (OUT, IN), 2.0)
CONFIG = {"peft_type": "LORA", "r": 16, "lora_alpha": 8, "target_modules": ["q"]}


@pytest.fixture
def read(write_safetensors):
    def read_tensors(extra, **config):
        tensors = lora(Q, alpha=None, spelling="peft") | extra
        file = write_safetensors(tensors, name="peft/adapter_model.safetensors")
        (file.parent / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
        return read_adapter(open_checkpoint(str(file)))

    return read_tensors


def saved(adapter):
    return {
        (c.module.body, c.algorithm.parameter): sorted(c.factors)
        for c in adapter.contributions
        if c.algorithm.name == "saved"
    }


# extra tensors, settings, what is taken: module, parameter and roles
TAKEN = {
    "the bias below a target": ({f"{Q}.base_layer.bias": BIAS}, {"bias": "lora_only"}, {("a.q", "bias"): ["saved"]}),
    "the bias of a target": ({f"{Q}.bias": BIAS}, {"bias": "lora_only"}, {("a.q", "bias"): ["saved"]}),
    "a bias of no target": ({f"{P}a.k.bias": BIAS}, {"bias": "lora_only"}, {}),
    "any bias": ({f"{P}a.k.bias": BIAS}, {"bias": "all"}, {("a.k", "bias"): ["saved"]}),
    "a weight where biases were trained": ({f"{P}a.k.weight": WEIGHT}, {"bias": "all"}, {}),
    "a bias where none was trained": ({f"{Q}.base_layer.bias": BIAS}, {"bias": "none"}, {}),
    "a module by its last name": (
        {f"{P}b.head.weight": WEIGHT}, {"modules_to_save": ["head"]}, {("b.head", "weight"): ["saved"]}),
    "a module by the end of its last name": (
        {f"{P}b.my_head.weight": WEIGHT}, {"modules_to_save": ["head"]}, {("b.my_head", "weight"): ["saved"]}),
    "a module within": (
        {f"{P}head.out.weight": WEIGHT}, {"modules_to_save": ["head"]}, {("head.out", "weight"): ["saved"]}),
    "the beginning of a name": ({f"{P}headless.weight": WEIGHT}, {"modules_to_save": ["x", "head"]}, {}),
    "other parameters": (
        {f"{P}head.running_mean": BIAS}, {"modules_to_save": ["head"]}, {("head", "running_mean"): ["saved"]}),
    "the weight below a target": ({f"{Q}.base_layer.weight": WEIGHT}, {"modules_to_save": ["q"]}, {}),
    "the weight of a target": ({f"{Q}.weight": WEIGHT}, {"modules_to_save": ["q"]}, {}),
    "what PEFT does not run beside it": (
        {f"{P}head.bias": BIAS, f"{P}head.modules_to_save.bias": BIAS, f"{P}head.original_module.bias": BIAS},
        {"modules_to_save": ["head"], "bias": "all"}, {("head", "bias"): ["original", "saved", "twin"]}),
    "what PEFT does not run alone": ({f"{P}head.original_module.bias": BIAS}, {"bias": "all"}, {}),
}  # fmt: skip


@pytest.mark.parametrize(("extra", "config", "expected"), TAKEN.values(), ids=TAKEN)
def test_the_config_says_what_was_saved(extra, config, expected, read):
    adapter = read(extra, **config)
    assert saved(adapter) == expected
    assert adapter.unclaimed == (() if expected else tuple(extra))
    assert adapter.dora.modules == 0


def test_a_config_that_is_embedded_speaks_of_its_component(write_safetensors):
    def read_tensors(bias_of):
        names = {"text_encoder": "text_encoder.a.k", "transformer": "transformer.a.k"}
        tensors = {key: t for name in names for key, t in lora(f"{name}.a.q", alpha=None, spelling="peft").items()}
        tensors |= {f"{name}.bias": BIAS for name in names.values()}
        says = {f"{name}.r": 16 for name in names} | {f"{bias_of}.bias": "all"}
        metadata = {"lora_adapter_metadata": json.dumps(says)}
        return read_adapter(open_checkpoint(str(write_safetensors(tensors, metadata))))

    for component in ("text_encoder", "transformer"):
        adapter = read_tensors(component)
        assert [c.module.prefix for c in adapter.contributions if c.algorithm.name == "saved"] == [f"{component}."]


def test_a_single_number_tells_no_sizes(read):
    adapter = read({f"{Q}.base_layer.bias": ("F32", (), 2.0)}, bias="lora_only")
    assert [c.features for c in adapter.contributions] == [(OUT, IN), (None, None)]
    assert adapter_candidates(adapter) == ()


def test_a_second_tensor_for_the_same_bias_is_an_error(read):
    adapter = read({f"{Q}.base_layer.bias": BIAS, f"{Q}.bias": BIAS}, bias="all")
    assert [problem.code for problem in adapter.problems if problem.severity == ERROR] == ["duplicate-tensor"]


def test_the_saved_bias_is_there_before_that_of_the_up_layer_is_added(read):
    adapter = read({f"{Q}.lora_B.bias": BIAS, f"{Q}.base_layer.bias": BIAS}, bias="lora_only", lora_bias=True)
    assert [c.algorithm.name for c in adapter.contributions] == ["lora", "saved", "lora_bias"]
    assert [c.scale for c in adapter.contributions] == [0.5, 1.0, 0.5]


def test_the_evidence_counts_and_names_them(read):
    adapter = read({f"{P}head.weight": WEIGHT}, modules_to_save=["head"])
    assert [(e.says, e.about) for e in adapter.evidence if e.about == "saved"] == [
        (f"1 tensors are saved whole ({P}head)", "saved")
    ]


def test_names_that_take_too_long_to_compare_are_refused(read):
    extra = {f"{P}m{i}.weight": WEIGHT for i in range(300)}
    adapter = read(extra, modules_to_save=[f"n{i}" for i in range(100_000)])
    assert any("modules_to_save takes too long" in problem.message for problem in adapter.problems)


@given(st.text("ab._", max_size=8), st.sampled_from(["", ".base_layer", ".modules_to_save", ".original_module"]))
def test_a_key_is_taken_apart_and_put_together(module, wrapper):
    assert BaseTensor.of(f"{module}{wrapper}.weight") == (module, "weight", wrapper)


def test_a_weight_is_replaced_whole_or_not():
    values = torch.arange(6.0).reshape(2, 3)
    for change, expected in ((Replaced(values), values), (Replaced(values).transposed(), values.T)):
        rows = torch.zeros(expected.shape)
        change.fold(rows[1:], 1, 1.0)
        assert torch.equal(rows[1:], expected[1:])
        assert not rows[0].any()
        with pytest.raises(ValueError, match=r"a multiplier of 0.5"):
            change.fold(rows, 0, 0.5)


@pytest.mark.filterwarnings("ignore")
def test_the_embedding_that_peft_copies_below_a_target_is_known_as_merge_knows_it(tmp_path, run):
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, tie_word_embeddings=False, **sizes))
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    key = f"{P}model.embed_tokens.base_layer.weight"
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", "pt") as file:
        assert key in file.keys()  # noqa: SIM118 (no dict)
    record = run("info", tmp_path / "adapter", "--json").json
    assert record["unclaimed"] == []
    assert "unclaimed" not in {problem["code"] for problem in record["problems"]}
    assert key in next(one["says"] for one in record["evidence"] if one["about"] == "saved")
    assert run("check", tmp_path / "adapter").status == 0
    assert run("merge", tmp_path / "base", tmp_path / "adapter", "-o", tmp_path / "out").status == 0


@pytest.mark.parametrize("key", [f"{P}a.other.base_layer.weight", f"{Q}.base_layer.scale", f"{P}a.other.weight"])
def test_what_copies_nothing_below_a_module_stays_unknown(key, read):
    adapter = read({key: WEIGHT, f"{Q}.base_layer.weight": WEIGHT})
    assert adapter.unknown == (key,)
    assert [problem.keys for problem in adapter.problems if problem.code == "unclaimed"] == [(key,)]
