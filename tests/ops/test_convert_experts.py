"""Adapters of all experts made standard: PEFT reads the output, and merges it as it did the input."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers", minversion="5.0")
peft = pytest.importorskip("peft", minversion="0.20")

pytestmark = pytest.mark.numeric

EXPERTS, RANK = 3, 2
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
SIZES = {
    "vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "pad_token_id": 0, "tie_word_embeddings": False, "num_experts_per_tok": 2, "head_dim": 4, "intermediate_size": 12,
    "moe_intermediate_size": 6, "num_experts": EXPERTS,
}  # fmt: skip


def model():
    torch.manual_seed(5)
    found = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**SIZES))
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return found


def merged_by_peft(folder):
    return peft.PeftModel.from_pretrained(model(), folder).merge_and_unload().state_dict()


@pytest.fixture
def adapter(tmp_path):
    """`adapter(**config)`: a folder of PEFT, and what PEFT merges it to."""

    def make(**config):
        config = {"r": RANK, "lora_alpha": 3, "target_modules": ["q_proj"], "target_parameters": BOTH, **config}
        adapted = peft.get_peft_model(model(), peft.LoraConfig(**config))
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.3)
        adapted.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter", adapted.merge_and_unload().state_dict()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield make


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def rewrite(folder, **config):
    (folder / "adapter_config.json").write_text(json.dumps(config_of(folder) | config))


CONFIGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {r".*\\.gate_up_proj": 4}, "alpha_pattern": {"layers.1.mlp.experts.down_proj": 5},
        "use_rslora": True,
    },
    "parameters alone": {"target_modules": []},
}  # fmt: skip


def assert_same(converted, theirs):
    found = merged_by_peft(converted)
    for key, value in theirs.items():
        assert float((found[key] - value).abs().max()) <= 1e-6, key


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_peft_reads_the_standard_form(config, adapter, run, tmp_path):
    folder, theirs = adapter(**config)
    assert run("convert", folder, "-o", tmp_path / "out").status == 0
    assert config_of(tmp_path / "out")["use_rslora"] is False
    assert_same(tmp_path / "out", theirs)


def grouped(folder):
    path = folder / "adapter_model.safetensors"
    columns = [k * EXPERTS + e for e in range(EXPERTS) for k in range(RANK)]
    tensors = load_file(path)
    save_file({k: v[:, columns].contiguous() if ".experts" in k and "_B" in k else v for k, v in tensors.items()}, path)


DETAIL = {"parameters": {name: {"lora_B_layout": "grouped_by_expert"} for name in ("gate_up_proj", "down_proj")}}
MARKS = {
    "marked": ({"lora_B_layout": "grouped_by_expert", "unsloth_fused_expert_lora": DETAIL}, ()),
    "not marked": ({"auto_mapping": {"unsloth_fixed": True}}, ("--expert-packing", "grouped_by_expert")),
    "marked beside the class": ({"auto_mapping": {"lora_B_layout": "grouped_by_expert"}}, ()),
}


@pytest.mark.parametrize(("config", "options"), MARKS.values(), ids=MARKS)
def test_unsloths_packing_becomes_pefts_and_says_so(config, options, adapter, run, tmp_path):
    folder, theirs = adapter()
    grouped(folder)
    rewrite(folder, **config)
    assert run("convert", folder, *options, "-o", tmp_path / "out").status == 0
    says = config_of(tmp_path / "out")
    assert says["lora_B_layout"] == "rank_major"
    assert "grouped" not in json.dumps(says)
    assert run("info", tmp_path / "out", "--json").json["problems"] == []
    rewrite(tmp_path / "out", auto_mapping=None)
    assert_same(tmp_path / "out", theirs)


def test_vllms_flat_names_get_a_config_that_peft_reads(adapter, run, tmp_path):
    folder, theirs = adapter()
    rewrite(folder, target_parameters=None)
    assert run("convert", folder, "-o", tmp_path / "out").status == 0
    assert_same(tmp_path / "out", theirs)


def test_the_tensors_of_a_plain_file_stay_as_they_are(adapter, run, tmp_path):
    folder, _ = adapter()
    assert run("convert", folder, "-o", tmp_path / "out").status == 0
    before, after = (load_file(path / "adapter_model.safetensors") for path in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert "lora_B_layout" not in config_of(tmp_path / "out")
