"""Adapters of all experts taken apart for the published checkpoint of the model, which transformers itself writes.

Every class is built tiny; the names are those of its `save_pretrained`, and the numbers are those of PEFT's own merge.
"""

import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers", minversion="5.0")
peft = pytest.importorskip("peft", minversion="0.20")

pytestmark = pytest.mark.numeric

EXPERTS = 4
SIZES = {
    "vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "pad_token_id": 0, "tie_word_embeddings": False, "num_experts_per_tok": 2, "head_dim": 4, "intermediate_size": 6,
}  # fmt: skip
_GROUPS = {
    "n_routed_experts": EXPERTS,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 6,
    "first_k_dense_replace": 0,
}
_LATENT = {"q_lora_rank": 4, "kv_lora_rank": 4, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4}
_OF_QWEN = {"num_experts": EXPERTS, "moe_intermediate_size": 6}
MODELS = {
    "Mixtral": {"num_local_experts": EXPERTS},
    "Phimoe": {"num_local_experts": EXPERTS},
    "MiniMax": {"num_local_experts": EXPERTS, "layer_types": ["full_attention"]},
    "MiniMaxM2": {"num_local_experts": EXPERTS},
    "Qwen2Moe": {**_OF_QWEN, "shared_expert_intermediate_size": 6},
    "Qwen3Moe": _OF_QWEN,
    "Qwen3Next": {**_OF_QWEN, "shared_expert_intermediate_size": 6, "layer_types": ["full_attention"]},
    "Olmoe": {"num_experts": EXPERTS},
    "FlexOlmo": {"num_experts": EXPERTS},
    "DeepseekV2": {**_GROUPS, **_LATENT},
    "DeepseekV3": {**_GROUPS, **_LATENT},
    "Glm4Moe": _GROUPS,
    "Ernie4_5_Moe": {"moe_num_experts": EXPERTS, "moe_intermediate_size": 6, "moe_k": 2, "moe_layer_start_index": 0},
    "HunYuanMoEV1": {"num_experts": EXPERTS, "moe_topk": 2},
}  # fmt: skip
# Whose routers are parameters that PEFT adapts by the name of their module.
ROUTERS = {"Mixtral": "mlp.gate.weight", "Phimoe": "mlp.router.weight", "Qwen3Moe": "mlp.gate.weight"}
BLOCK_SPARSE = {"Mixtral", "Phimoe", "MiniMax", "MiniMaxM2"}


class Published:
    """A model, saved by transformers and as its class has it, with an adapter, and what PEFT's merge makes of it."""

    def __init__(self, name, folder):
        torch.manual_seed(3)
        kind, config = (getattr(transformers, f"{name}{end}") for end in ("ForCausalLM", "Config"))
        model = kind(config(**{**SIZES, **MODELS[name]}))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        self.saved, self.adapter, self.fused = folder / "saved", folder / "adapter", folder / "fused.safetensors"
        model.save_pretrained(self.saved)
        save_file({key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}, self.fused)
        targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", *([ROUTERS[name]] if name in ROUTERS else [])]
        config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["v_proj"], target_parameters=targets)
        adapted = peft.get_peft_model(model, config)
        for key, parameter in adapted.named_parameters():
            if "lora_" in key:
                torch.nn.init.normal_(parameter, std=0.3)
        adapted.save_pretrained(self.adapter)
        adapted.merge_and_unload().save_pretrained(folder / "theirs")
        self.theirs = load_file(folder / "theirs" / "model.safetensors")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    made = {}

    def make(name):
        if name not in made:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[name] = Published(name, tmp_path_factory.mktemp(name))
        return made[name]

    return make


def base_of(own, form, tmp_path):
    """The base: its published checkpoint, a file as its class has it, or that file beside its config."""
    if form == "published":
        return own.saved
    if form == "file":
        return own.fused
    shutil.copy(own.fused, tmp_path / "fused.safetensors")
    shutil.copy(own.saved / "config.json", tmp_path / "config.json")
    return tmp_path / "fused.safetensors"


@pytest.mark.parametrize("form", ["file", "file with config", "published"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_single_experts_have_the_names_of_the_published_checkpoint(name, form, published, run, tmp_path):
    own = published(name)
    single = tmp_path / "single"
    ended = run(
        "convert", own.adapter, "--layout", "single-experts", "--base", base_of(own, form, tmp_path), "-o", single
    )
    assert ended.status == 0, ended.stderr
    there = {key.removesuffix(".weight") for key in load_file(own.saved / "model.safetensors")}
    keys = load_file(single / "adapter_model.safetensors")
    modules = {key.removeprefix("base_model.model.").rpartition(".lora_")[0] for key in keys}
    assert modules <= there
    assert sum(".experts." in module for module in modules) == 3 * EXPERTS
    assert all(("block_sparse_moe" in module) == (name in BLOCK_SPARSE) for module in modules if ".experts." in module)


@pytest.mark.parametrize("name", ["Mixtral", "Phimoe", "MiniMaxM2", "Qwen3Moe"])
def test_single_experts_change_the_published_checkpoint_as_peft_does(name, published, run, tmp_path):
    own = published(name)
    single = tmp_path / "single"
    assert run("convert", own.adapter, "--layout", "single-experts", "--base", own.fused, "-o", single).status == 0
    assert run("merge", own.saved, single, "-o", tmp_path / "merged").status == 0
    found = load_file(tmp_path / "merged" / "model.safetensors")
    assert found.keys() == own.theirs.keys()
    assert all(float((found[key] - value).abs().max()) <= 1e-6 for key, value in own.theirs.items())


@pytest.mark.parametrize("name", ["Mixtral", "MiniMaxM2", "Qwen3Moe"])
def test_peft_reads_the_published_names(name, published, run, tmp_path):
    """PEFT puts them together again for these types; of PhiMoE it knows no names of single experts."""
    own = published(name)
    single = tmp_path / "single"
    assert run("convert", own.adapter, "--layout", "single-experts", "--base", own.fused, "-o", single).status == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, f"{name}ForCausalLM").from_pretrained(own.saved)
        peft.PeftModel.from_pretrained(model, single).merge_and_unload().save_pretrained(tmp_path / "theirs")
    found = load_file(tmp_path / "theirs" / "model.safetensors")
    assert all(float((found[key] - value).abs().max()) <= 1e-6 for key, value in own.theirs.items())
