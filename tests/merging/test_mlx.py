"""Adapters of mlx-lm, merged into bases of each form.

What is expected is what mlx-lm's own `fuse` made of them (fixtures/make_mlx.py), arranged as the base is.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.merging import fold

pytestmark = pytest.mark.numeric

EXPERTS, LAYERS = 3, 2
MODELS = {
    "lora": "llama",
    "dora": "llama",
    "square-lora": "llama-square",
    "square-dora": "llama-square",
    "experts": "qwen3-moe",
}
NAMES = ("gate_proj", "up_proj", "down_proj")


@pytest.fixture
def merge(tmp_path, run):
    """`merge(base, adapter, …)`: the tensors of the output, or with `refused` the refusal."""

    def merge_paths(base, adapter, *options, refused=False):
        out = tmp_path / "out.safetensors"
        if isinstance(base, dict):
            save_file(base, tmp_path / "base.safetensors")
            base = tmp_path / "base.safetensors"
        ended = run("merge", base, adapter, "-o", out, "--force", *options)
        if refused:
            return ended.refusal
        assert ended.status == 0, ended.stderr
        return load_file(out)

    return merge_paths


@pytest.fixture
def folder(fixtures):
    return fixtures / "mlx"


@pytest.fixture(params=[1 << 20, 20], ids=["in one block", "in tiny blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(fold, "BLOCK_ELEMENTS", request.param)


def assert_equal(found, theirs):
    """Within some roundings of float32 of the largest numbers that are added."""
    assert found.keys() == theirs.keys()
    for key, value in theirs.items():
        assert float((found[key] - value).abs().max()) <= 2.0**-20 * max(4.0, float(value.abs().max())), key


def changed(found, base):
    return {key for key in found if not torch.equal(found[key], base[key])}


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("case", MODELS)
def test_it_is_what_mlx_lm_fuses(case, folder, merge):
    base, theirs = load_file(folder / f"{MODELS[case]}.safetensors"), load_file(folder / f"oracle_{case}.safetensors")
    found = merge(folder / f"{MODELS[case]}.safetensors", folder / case)
    assert changed(found, base) == theirs.keys()
    assert_equal(found, {**base, **theirs})


def single(tensors, names=NAMES, parent="mlp", leaves=NAMES):
    """The experts one by one, as checkpoints of transformers have them."""
    found = {}
    for key, value in tensors.items():
        start, mark, rest = key.partition("mlp.switch_mlp.")
        if not mark:
            found[key] = value
            continue
        leaf = dict(zip(names, leaves, strict=True))[rest.removesuffix(".weight")]
        for expert in range(EXPERTS):
            found[f"{start}{parent}.experts.{expert}.{leaf}.weight"] = value[expert].clone()
    return found


def fused(tensors, transposed=False):
    """The experts in two parameters: (experts, out, in), or as gpt-oss has them, where gate and up take turns."""
    found = {key: value for key, value in tensors.items() if "switch_mlp" not in key}
    for layer in range(LAYERS):
        parent = f"model.layers.{layer}.mlp"
        gate, up, down = (tensors[f"{parent}.switch_mlp.{name}.weight"] for name in NAMES)
        both = torch.stack([gate, up], 2).flatten(1, 2) if transposed else torch.cat([gate, up], 1)
        for name, value in (("gate_up_proj", both), ("down_proj", down)):
            found[f"{parent}.experts.{name}"] = (value.mT if transposed else value).contiguous()
        if transposed:
            found[f"{parent}.experts.gate_up_proj_bias"] = torch.zeros(EXPERTS, both.shape[1])
    return found


FORMS = {"one by one": single, "in two parameters": fused, "as in gpt-oss": lambda found: fused(found, transposed=True)}


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_experts_land_in_bases_of_every_form(form, folder, merge):
    base = load_file(folder / "qwen3-moe.safetensors")
    theirs = {**base, **load_file(folder / "oracle_experts.safetensors")}
    found = merge(form(base), folder / "experts")
    assert_equal(found, form(theirs))
    # The weights of queries, and those of all experts.
    assert len(changed(found, form(base))) == LAYERS * (1 + (9 if form is single else 2))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_one_layer_of_the_experts_leaves_the_others_as_they_are(form, folder, merge, tmp_path):
    base = load_file(folder / "qwen3-moe.safetensors")
    oracle = load_file(folder / "oracle_experts.safetensors")
    only = renamed(
        folder / "experts", tmp_path / "only", lambda key: key if "layers.1.mlp.switch_mlp.up" in key else None
    )
    theirs = {**base, **{key: value for key, value in oracle.items() if "layers.1.mlp.switch_mlp.up" in key}}
    assert_equal(merge(form(base), only), form(theirs))


def renamed(source, target, name):
    """The adapter with other names of its tensors; those without one are left out."""
    target.mkdir()
    shutil.copy(source / "adapter_config.json", target)
    tensors = load_file(source / "adapters.safetensors")
    save_file({name(key): value for key, value in tensors.items() if name(key)}, target / "adapters.safetensors")
    return target


def test_mixtral_has_names_of_its_own(folder, merge, tmp_path):
    base = load_file(folder / "qwen3-moe.safetensors")
    theirs = {**base, **load_file(folder / "oracle_experts.safetensors")}
    adapter = renamed(
        folder / "experts", tmp_path / "mixtral", lambda key: key.replace("mlp.switch", "block_sparse_moe.switch")
    )

    def form(tensors):
        return single(tensors, parent="block_sparse_moe", leaves=("w1", "w3", "w2"))

    assert_equal(merge(form(base), adapter), form(theirs))
    assert_equal(merge(fused(base), adapter), fused(theirs))


def test_gpt_oss_has_names_of_its_own(folder, merge, tmp_path):
    base = load_file(folder / "qwen3-moe.safetensors")
    theirs = {**base, **load_file(folder / "oracle_experts.safetensors")}
    adapter = renamed(folder / "experts", tmp_path / "oss", lambda key: key.replace("mlp.switch_mlp", "mlp.experts"))
    assert_equal(merge(fused(base, transposed=True), adapter), fused(theirs, transposed=True))


def test_the_shape_of_a_weight_tells_an_embedding_of_any_name(folder, merge, tmp_path):
    adapter = renamed(folder / "lora", tmp_path / "rare", lambda key: key.replace("embed_tokens", "rare_name"))
    base = {k.replace("embed_tokens", "rare_name"): v for k, v in load_file(folder / "llama.safetensors").items()}
    theirs = load_file(folder / "oracle_lora.safetensors")
    # Beside it nothing shows how a square weight is stored.
    assert "settle it with --transposed no" in merge(base, adapter, refused=True)
    found = merge(base, adapter, "--transposed", "q_proj=no")
    assert_equal(found, {**base, **{k.replace("embed_tokens", "rare_name"): v for k, v in theirs.items()}})


def test_factors_of_earlier_versions_are_the_same(folder, merge, tmp_path):
    adapter = renamed(folder / "experts", tmp_path / "earlier", lambda key: key)
    tensors = load_file(adapter / "adapters.safetensors")
    flat = {key: t.flatten(0, 1) if key.endswith("lora_a") and t.dim() == 3 else t for key, t in tensors.items()}
    assert sum(flat[key].dim() < tensor.dim() for key, tensor in tensors.items()) == 3 * LAYERS
    save_file(flat, adapter / "adapters.safetensors")
    now = merge(folder / "qwen3-moe.safetensors", folder / "experts")
    earlier = merge(folder / "qwen3-moe.safetensors", adapter)
    assert all(torch.equal(now[key], earlier[key]) for key in now)


def test_single_experts_of_peft_land_in_a_base_of_mlx(folder, merge, tmp_path):
    base = load_file(folder / "qwen3-moe.safetensors")
    generator = torch.Generator().manual_seed(7)
    path = "model.layers.1.mlp.experts.2.down_proj"
    a, b = torch.randn(2, 6, generator=generator), torch.randn(8, 2, generator=generator)
    save_file(
        {f"base_model.model.{path}.lora_A.weight": a, f"base_model.model.{path}.lora_B.weight": b},
        tmp_path / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": [path]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    found = merge(folder / "qwen3-moe.safetensors", tmp_path / "adapter_model.safetensors")
    key = "model.layers.1.mlp.switch_mlp.down_proj.weight"
    theirs = base[key].clone()
    theirs[2] += 1.5 * b @ a
    assert_equal(found, {**base, key: theirs})


def test_a_multiplier_is_one_of_the_scale(folder, merge, tmp_path):
    twice = renamed(folder / "dora", tmp_path / "twice", lambda key: key)
    config = json.loads((twice / "adapter_config.json").read_text())
    config["lora_parameters"]["scale"] *= 2
    (twice / "adapter_config.json").write_text(json.dumps(config))
    base = folder / "llama.safetensors"
    assert_equal(merge(base, f"{folder / 'dora'}:2"), merge(base, twice))


def test_another_number_of_experts_is_refused(folder, merge):
    base = single(load_file(folder / "qwen3-moe.safetensors"))
    fewer = {key: value for key, value in base.items() if ".experts.2." not in key}
    assert "has the factors of 3 experts, but in" in merge(fewer, folder / "experts", refused=True)


def test_a_layer_of_another_size_is_refused(folder, merge):
    base = load_file(folder / "qwen3-moe.safetensors")
    key = "model.layers.0.mlp.switch_mlp.gate_proj.weight"
    narrow = {**base, key: base[key][:, :, :-1].contiguous()}
    assert "changes 3 experts of [6, 8], but" in merge(narrow, folder / "experts", refused=True)
    assert "changes a weight of [8, 12], but" in merge(
        {**load_file(folder / "llama.safetensors"), "model.layers.1.mlp.down_proj.weight": torch.zeros(8, 13)},
        folder / "lora",
        refused=True,
    )


def test_whole_weights_are_no_adapter(folder, merge):
    says = merge(folder / "llama.safetensors", folder / "full", refused=True)
    assert "fine_tune_type full" in says
    assert "mlx_lm.fuse" in says


def test_without_its_config_the_scale_is_asked_for(folder, merge, tmp_path):
    adapter = renamed(folder / "lora", tmp_path / "alone", lambda key: key)
    (adapter / "adapter_config.json").unlink()
    says = merge(folder / "llama.safetensors", adapter, refused=True)
    assert "lora_parameters.scale in adapter_config.json" in says
    assert "--alpha N" in says
    theirs = merge(folder / "llama.safetensors", folder / "lora")
    # The rank is 2 and the scale 2.5.
    assert_equal(merge(folder / "llama.safetensors", adapter, "--alpha", "5"), theirs)
