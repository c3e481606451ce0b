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


@pytest.fixture(autouse=True)
def quiet():
    """PEFT warns of patterns of parameters, which it does apply."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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

    return make


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


def single_adapter(folder, ranks=(RANK,), ends=("gate_proj", "up_proj", "down_proj"), alpha=3, left_out=()):
    """An adapter of PEFT whose modules are the layers of single experts, and the query."""
    generator = torch.Generator().manual_seed(9)
    sizes = {"gate_proj": (6, 8), "up_proj": (6, 8), "down_proj": (8, 6)}
    tensors, ranked, number = {}, {}, 0
    for layer in range(2):
        paths = {f"model.layers.{layer}.self_attn.q_proj": (8, 8)}
        for expert in range(EXPERTS):
            paths |= {f"model.layers.{layer}.mlp.experts.{expert}.{end}": sizes[end] for end in ends}
        for path, (out, inputs) in paths.items():
            if path.endswith(left_out or "-"):
                continue
            rank, number = ranks[number % len(ranks)], number + 1
            ranked[path] = rank
            tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) * 0.3
            tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.3
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "r": ranks[0], "lora_alpha": alpha, "target_modules": ["q_proj", *ends],
        "peft_version": "0.17.0", "task_type": "CAUSAL_LM",
        "rank_pattern": {path.replace(".", r"\."): rank for path, rank in ranked.items() if rank != ranks[0]},
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def base_files(tmp_path):
    """The base as transformers saves it, with the experts one by one, and as its class has them."""
    own = model()
    own.save_pretrained(tmp_path / "saved")
    state = {key: value.detach().clone().contiguous() for key, value in own.state_dict().items()}
    save_file(state, tmp_path / "fused.safetensors")
    return tmp_path / "saved", tmp_path / "fused.safetensors"


def merged_here(run, base, adapter, out):
    assert run("merge", base, adapter, "-o", out).status == 0
    return load_file(out / "model.safetensors" if base.is_dir() else out)


def assert_close(found, other):
    assert found.keys() == other.keys()
    assert all(float((found[key] - other[key]).abs().max()) <= 1e-6 for key in found)


SINGLE = {
    "one rank": {},
    "several ranks and scales": {"ranks": (2, 1, 3)},
    "one layer of each": {"ends": ("up_proj",)},
    "the last layer": {"ends": ("down_proj",)},
    "layers left out": {"left_out": ("experts.0.up_proj", "experts.1.down_proj")},
}


@pytest.mark.parametrize("options", SINGLE.values(), ids=SINGLE)
def test_single_experts_become_a_parameter_of_all(options, run, tmp_path):
    adapter, together = single_adapter(tmp_path / "single", **options), tmp_path / "all"
    assert run("convert", adapter, "--layout", "all-experts", "-o", together).status == 0
    saved, fused = base_files(tmp_path)
    before = merged_here(run, fused, adapter, tmp_path / "before.safetensors")
    assert_close(merged_here(run, fused, together, tmp_path / "after.safetensors"), before)
    assert_close(merged_here(run, saved, together, tmp_path / "o"), merged_here(run, saved, adapter, tmp_path / "p"))
    assert_same(together, before)


@pytest.mark.parametrize("form", ["saved", "fused"])
def test_a_parameter_of_all_becomes_single_experts(form, adapter, run, tmp_path):
    folder, theirs = adapter()
    bases = dict(zip(("saved", "fused"), base_files(tmp_path), strict=True))
    single = tmp_path / "single"
    ended = run("convert", folder, "--layout", "single-experts", "--base", bases[form], "-o", single)
    assert ended.status == 0, ended.stderr
    names = load_file(single / "adapter_model.safetensors")
    assert len(names) == 2 * 2 * (1 + 3 * EXPERTS)
    assert config_of(single)["target_parameters"] is None
    assert_close(
        merged_here(run, bases["fused"], single, tmp_path / "after.safetensors"),
        merged_here(run, bases["fused"], folder, tmp_path / "before.safetensors"),
    )
    assert_same(single, theirs)


def test_there_and_back_the_change_is_the_same(adapter, run, tmp_path):
    folder, theirs = adapter()
    saved, _ = base_files(tmp_path)
    single, back = tmp_path / "single", tmp_path / "back"
    assert run("convert", folder, "--layout", "single-experts", "--base", saved, "-o", single).status == 0
    assert run("convert", single, "--layout", "all-experts", "-o", back).status == 0
    assert_same(back, theirs)


@pytest.mark.parametrize("case", ["0.17.1-gpt-oss", "0.18.1-qwen3-moe", "0.19.0-gpt-oss", "0.19.0-qwen3-moe-square"])
def test_each_version_of_peft_is_taken_apart_as_it_was_meant(case, fixtures, run, tmp_path):
    base = fixtures / "experts" / ("gpt-oss.safetensors" if "gpt" in case else "qwen3-moe.safetensors")
    adapter, single = fixtures / "experts" / f"peft-{case}", tmp_path / "single"
    assert run("convert", adapter, "--layout", "single-experts", "--base", base, "-o", single).status == 0
    found = merged_here(run, base, single, tmp_path / "merged.safetensors")
    for key, value in load_file(adapter / "oracle_merged.safetensors").items():
        assert float((found[key] - value).abs().max()) <= 2e-6 * float(value.abs().max()), key


def test_layers_that_unsloth_makes_of_gpt_oss_become_parameters(fixtures, run, tmp_path):
    base, generator = fixtures / "experts" / "gpt-oss.safetensors", torch.Generator().manual_seed(4)
    tensors = {}
    for part, (out, inputs) in {"gate_up_projs": (8, 4), "down_projs": (4, 4)}.items():
        for expert in range(EXPERTS):
            name = f"base_model.model.model.layers.0.mlp.experts.{part}.{expert}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(RANK, inputs, generator=generator)
            tensors[f"{name}.lora_B.weight"] = torch.randn(out, RANK, generator=generator)
    adapter, together = tmp_path / "single", tmp_path / "all"
    adapter.mkdir()
    save_file(tensors, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 3, "target_modules": list(map(str, range(EXPERTS)))}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert run("convert", adapter, "--layout", "all-experts", "-o", together).status == 0
    assert config_of(together)["peft_version"] == "0.19.1"
    found = merged_here(run, base, together, tmp_path / "after.safetensors")
    before = merged_here(run, base, adapter, tmp_path / "before.safetensors")
    assert found.keys() == before.keys()
    assert all(float((found[key] - before[key]).abs().max()) <= 2e-6 * float(before[key].abs().max()) for key in found)


def renamed(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_config.json").unlink()
    tensors = {key.removeprefix("base_model.model."): value for key, value in tensors.items()}
    save_file(tensors, folder / "other.safetensors")


def with_bias(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.model.layers.0.mlp.experts.1.up_proj.lora_B.bias"] = torch.zeros(6)
    save_file(tensors, path)


def of_two_sizes(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.model.model.layers.0.mlp.experts.1.up_proj.lora_B.weight"
    save_file(tensors | {key: torch.zeros(5, RANK)}, path)


def far_away(folder):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    renamed = {key.replace("experts.2.", "experts.99999999."): value for key, value in tensors.items()}
    save_file(renamed, path)


REFUSED = {
    "other names": (renamed, ["only PEFT's names"]),
    "a bias": (with_bias, ["more than the factors"]),
    "two sizes": (of_two_sizes, ["differ in size"]),
    "an expert far away": (far_away, ["--allow-growth"]),
}


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_parameter_is_refused(change, words, run, tmp_path):
    folder = single_adapter(tmp_path / "single")
    change(folder)
    name = next(path.name for path in folder.iterdir() if path.suffix == ".safetensors")
    refusal = run("convert", folder / name, "--layout", "all-experts", "-o", tmp_path / "out").refusal
    assert [word for word in words if word not in refusal] == []


@pytest.mark.parametrize("name", ["0.17.1-gpt-oss", "0.18.1-qwen3-moe", "0.19.0-gpt-oss-square"])
def test_layers_of_all_experts_that_are_asked_for_in_peft_s_names_keep_them(name, run, tmp_path, fixtures):
    folder = fixtures / "experts" / f"peft-{name}"
    ended = run("convert", folder, "--to", "peft", "-o", tmp_path / "out")
    assert ended.status == 0, ended.stderr
    saved, found = (load_file(path / "adapter_model.safetensors") for path in (folder, tmp_path / "out"))
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[key], saved[key]) for key in saved)


def test_an_adapter_without_experts_has_nothing_to_arrange(adapter, run, tmp_path, fixtures):
    plain = fixtures / "minilm-peft-lora-r8"
    for layout in ("all-experts", "single-experts"):
        assert "leave --layout out" in run("convert", plain, "--layout", layout, "-o", tmp_path / "out").refusal
    folder, _ = adapter()
    refusal = run("convert", folder, "--layout", "single-experts", "-o", tmp_path / "out").refusal
    assert "--base" in refusal
    base = fixtures / "experts" / "gpt-oss.safetensors"
    refusal = run("convert", folder, "--layout", "single-experts", "--base", base, "-o", tmp_path / "out").refusal
    assert "base_model.model" in refusal


def test_magnitudes_are_settled_before_experts_are_taken_apart(adapter, run, tmp_path):
    folder, _ = adapter()
    saved, _ = base_files(tmp_path)
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for layer in range(2):
        tensors[f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_magnitude_vector"] = torch.ones(8)
    save_file(tensors, path)
    rewrite(folder, use_dora=True)
    refusal = run("convert", folder, "--layout", "single-experts", "--base", saved, "-o", tmp_path / "out").refusal
    assert "DoRA" in refusal
