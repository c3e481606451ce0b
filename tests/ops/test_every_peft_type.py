"""Every method that PEFT knows: its adapter of a small model is named, and merged to what PEFT computes or refused.

The settings are those of the configs in PEFT's `method_comparison`, with sizes that fit the model. No test here knows
which methods are built.
"""

import json
import warnings

import peft
import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS
from transformers import LlamaConfig, LlamaForCausalLM

from lora_inspect import algorithms
from lora_inspect.reading.peft.peft_config import FOREIGN_SETTINGS
from lora_inspect.reading.peft.unsupported import METHODS

pytestmark = [pytest.mark.numeric, pytest.mark.slow]

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
IDS = torch.arange(1, 25).reshape(2, 12)
QV = {"target_modules": ["q_proj", "v_proj"]}
MLP = {"target_modules": ["gate_proj", "up_proj", "down_proj"]}
VIRTUAL = {"num_virtual_tokens": 5}
# More than one of a method where its settings decide what its tensors mean.
SETTINGS = {
    "ADALORA": [{"init_r": 6, "target_r": 4, "tinit": 2, "tfinal": 2, "total_step": 10, "lora_alpha": 32}],
    "ADAMSS": [{"num_subspaces": 3, "r": 8}],
    "ADAPTION_PROMPT": [{"adapter_layers": 2, "adapter_len": 5}],
    "BEFT": [{"target_modules": ["v_proj"]}],
    "BOFT": [{}, {"boft_n_butterfly_factor": 2, **QV}],
    "C3A": [{"block_size": 8, "init_weights": False, **QV}],
    "CARTRIDGE": [VIRTUAL],
    "CPT": [{"cpt_token_ids": [1, 2, 3], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]}],
    "DEFT": [{"decomposition_method": "qr", "para": True, "r": 4}, {"r": 4}, {"decomposition_method": "qr", "r": 4}],
    "DELORA": [{"r": 4}],
    "FOURIERFT": [{"n_frequency": 40, "scaling": 300, **QV}],
    "FROD": [{"runtime_offload_base_weight": True}, {"sparse_rate": 0.2}],
    "GLORA": [QV, {"config_A_B": "vector", "config_C": "vector", **QV}, {"r": 4, **MLP}],
    "GRALORA": [{"r": 4}, {"r": 4, "alpha": 32}],
    "HIRA": [{"r": 4, **QV}],
    "HRA": [{"r": 4, **QV}],
    "IA3": [
        {},
        {"target_modules": ["q_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    ],
    "LILY": [{"r": 4, "scaling": 2.0, "stride_A": 2, **MLP}],
    "LN_TUNING": [{}],
    "LOHA": [{"r": 4, "alpha": 8, **QV}],
    "LOKR": [{"r": 4, "alpha": 8, "decompose_factor": 4, **QV}],
    "LORA": [
        {"r": 4, "lora_alpha": 8, **MLP},
        {"r": 4, "lora_alpha": 8, "use_dora": True},
        {"r": 4, "lora_alpha": 8, "use_rslora": True},
        {"r": 4, "lora_alpha": 8, "init_lora_weights": "mica"},
        {"r": 4, "kasa_config": {"beta": 0.0001, "gamma": 0.001}},
        {
            "r": 4,
            "lora_alpha": 8,
            "use_bdlora": {
                "nblocks": 2,
                "target_modules_bd_a": ["down_proj"],
                "target_modules_bd_b": ["up_proj", "gate_proj"],
            },
            **MLP,
        },
    ],
    "MISS": [{"r": 4}, {"r": 4, "init_weights": "bat"}, {"r": 4, "init_weights": "mini", "mini_r": 4}],
    "MULTITASK_PROMPT_TUNING": [{**VIRTUAL, "num_tasks": 2}],
    "OFT": [{"r": 4, "oft_block_size": 0, **QV}],
    "OSF": [{"rank_pattern": {"q_proj": 30, "v_proj": 12}, **QV}, {"effective_rank": 8, **MLP}],
    "PEANUT": [{"r": 1, "scaling": 32.0, **QV}, {"r": 4, "scaling": 2.0, "depth": 1, **MLP}],
    "POLY": [{"r": 2, "n_tasks": 2, "n_skills": 2, "n_splits": 2, **QV}],
    "PREFIX_TUNING": [VIRTUAL],
    "PROMPT_TUNING": [VIRTUAL, {**VIRTUAL, "prompt_tuning_init": "SAMPLE_VOCAB"}],
    "PSOFT": [{"psoft_alpha": 4, "r": 4}, {"psoft_alpha": 4, "r": 4, "use_cayley_neumann": True}],
    "PVERA": [{"r": 8}],
    "P_TUNING": [{**VIRTUAL, "encoder_hidden_size": 8}],
    "RANDLORA": [{"r": 4}],
    "ROAD": [{"variant": "road_2", "group_size": 8}, {"variant": "road_1", "group_size": 8, **QV}],
    "SHADOW": [{}],
    "SHIRA": [{"r": 4, "random_seed": 42}],
    "SUPERTUNING": [
        {"sparsity": 0.974, **QV},
        {"r": 4, "lora_alpha": 16.0, **QV},
        {"select_top": False, "sparsity": 0.9, **QV},
    ],
    "TINYLORA": [{}, {"weight_tying": 1.0}],
    "TRAINABLE_TOKENS": [{"token_indices": [3, 1]}],
    "UNILORA": [{"r": 4, **QV}],
    "VBLORA": [{"r": 4, "num_vectors": 32, "vector_length": 8, "topk": 2, **QV}],
    "VERA": [{"r": 8}],
    "WAVEFT": [{"n_frequency": 50, **QV}],
}
EACH = [
    pytest.param(peft_type, settings, id=f"{peft_type} {number}")
    for peft_type, several in SETTINGS.items()
    for number, settings in enumerate(several)
]


def test_every_method_has_settings():
    # X-LoRA is made of adapters that were saved before.
    assert SETTINGS.keys() | {"XLORA"} == {str(peft_type.value) for peft_type in CONFIGS}


def small():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def trained(tmp_path):
    """Saves an adapter of the small model, and the model, and gives the logits of PEFT's own."""

    def made(peft_type, settings):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = CONFIGS[peft_type](task_type="CAUSAL_LM", **settings)
            small().save_pretrained(tmp_path / "base")
            model = peft.get_peft_model(small(), config)
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
            model.eval().save_pretrained(tmp_path / "adapter")
            return None if peft_type in METHODS else logits(model)

    return made


def is_named(record, peft_type):
    """Whether a computed module has an algorithm of this name, or what is said has the name itself."""
    own = {algorithm.name for algorithm in algorithms.of_peft_type(peft_type)}
    said = [item["says"] for item in record["evidence"]] + [item["message"] for item in record["problems"]]
    return own & record["algorithms"].keys() or any(
        f"({peft_type})" in one or f"says {peft_type}" in one for one in said
    )


@pytest.mark.parametrize(("peft_type", "settings"), EACH)
def test_its_adapter_is_named_and_merged_or_refused_by_name(peft_type, settings, trained, tmp_path, run):
    expected = trained(peft_type, settings)
    record = json.loads(run("info", tmp_path / "adapter", "--json").stdout)
    assert record["kind"] == "adapter"
    assert record["trainer"] == "PEFT"
    assert is_named(record, peft_type)
    assert len([problem for problem in record["problems"] if problem["code"] == "algorithm-unsupported"]) <= 1
    ended = run("merge", tmp_path / "base", tmp_path / "adapter", "-o", tmp_path / "merged")
    if ended.status == 0:
        found = logits(LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval())
        # A change that is none would agree with anything.
        assert not torch.equal(found, logits(small()))
        assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
        return
    assert not (tmp_path / "merged").exists()
    titles = [algorithm.title for algorithm in algorithms.of_peft_type(peft_type)]
    titles += [METHODS[peft_type].title] if peft_type in METHODS else []
    of_settings = [says for name, says in FOREIGN_SETTINGS.items() if name in settings]
    assert any(name in ended.refusal for name in of_settings or (peft_type, *titles)), ended.refusal


@pytest.mark.parametrize("peft_type", SETTINGS)
def test_its_config_alone_is_named(peft_type, tmp_path, run):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CONFIGS[peft_type](task_type="CAUSAL_LM", **SETTINGS[peft_type][0]).save_pretrained(tmp_path / "adapter")
    record = json.loads(run("info", tmp_path / "adapter", "--json").stdout)
    assert any(item["about"] == "method" and peft_type in item["says"] for item in record["evidence"])
    refusal = run("convert", tmp_path / "adapter", "-o", tmp_path / "converted").refusal
    assert "without the weights" in refusal
    assert peft_type in refusal
