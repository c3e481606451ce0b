"""combine, resize and average of PEFT's folders, loaded by PEFT itself: the logits of both adapters, or of the mean."""

import json
import warnings

import language_models
import peft_kinds
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import lora_inspect

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
    # Patterns name layers of several models.
    pytest.mark.filterwarnings("ignore:.*_pattern keys did not match:RuntimeWarning"),
]

MULTIPLIERS = (0.7, -0.3)
SAME = 1e-5
MODELS = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Phi3ForCausalLM", "GPT2LMHeadModel")
# One that stores weights as (out, in), and one that stores them the other way round.
WAYS = ("LlamaForCausalLM", "GPT2LMHeadModel")
KINDS = {
    "plain": peft_kinds.Kind({"r": 4, "lora_alpha": 6}),
    "rslora": peft_kinds.Kind({"r": 3, "lora_alpha": 5, "use_rslora": True}),
    "uneven": peft_kinds.Kind({"rank_pattern": {"o_proj": 2, "c_fc": 2}, "alpha_pattern": {"down_proj": 12}}),
    "embeddings": peft_kinds.Kind({"r": 2, "lora_alpha": 3}, leaves=("embed_tokens", "wte")),
    "rslora embeddings": peft_kinds.Kind({"r": 3, "use_rslora": True}, leaves=("embed_tokens", "wte")),
}
PAIRS = [
    ("plain", "rslora"),
    ("rslora", "plain"),
    ("rslora", "uneven"),
    ("plain", "embeddings"),
    ("embeddings", "rslora"),
    ("rslora embeddings", "embeddings"),
]


def folder_of(model, kind, folder, seed):
    """A folder of a kind, whose factors are drawn anew."""
    path = folder / f"{kind} {seed}"
    peft_kinds.make(model, KINDS[kind], path)
    file, numbers = path / peft_kinds.WEIGHTS, torch.Generator().manual_seed(seed)
    drawn = {key: 0.2 * torch.randn(value.shape, generator=numbers) for key, value in load_file(file).items()}
    save_file(drawn, file)
    return path


def weights_with(model, folders, multipliers):
    """The model's tensors with all adapters merged by PEFT at their multipliers, in float64, by their own names."""
    names = [f"own{number}" for number in range(len(folders))]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        network = PeftModel.from_pretrained(language_models.model(model).double(), folders[0], names[0])
        for name, folder in zip(names[1:], folders[1:], strict=True):
            network.load_adapter(folder, name)
    for layer in network.modules():
        for name, multiplier in zip(names, multipliers, strict=True):
            if hasattr(layer, "set_scale") and name in layer.scaling:
                layer.set_scale(name, multiplier)
    return network.merge_and_unload(adapter_names=names).state_dict()


def plain_weights(model):
    return language_models.model(model).double().state_dict()


def assert_same(found, meant, model):
    """Every change within the bound, relative to its norm, and no other one."""
    base = plain_weights(model)
    assert found.keys() == meant.keys() == base.keys()
    wrong = {}
    for name, value in meant.items():
        change, error = float((value - base[name]).norm()), float((found[name] - value).norm())
        if error > SAME * change:
            wrong[name] = (error, change)
    assert wrong == {}
    assert sum(not torch.equal(value, base[name]) for name, value in meant.items()) >= 8


@pytest.mark.parametrize("to", [None, "peft"])
@pytest.mark.parametrize("kinds", PAIRS, ids=" and ".join)
@pytest.mark.parametrize("model", MODELS)
def test_the_sum_of_two_folders(model, kinds, to, tmp_path):
    folders = [folder_of(model, kind, tmp_path, seed) for seed, kind in enumerate(kinds)]
    lora_inspect.combine(list(zip(folders, MULTIPLIERS, strict=True)), tmp_path / "out", to=to)
    meant = weights_with(model, folders, MULTIPLIERS)
    assert_same(weights_with(model, [tmp_path / "out"], [1.0]), meant, model)


@pytest.mark.parametrize("rank", [7, 6])
@pytest.mark.parametrize("kind", ["plain", "rslora", "uneven"])
@pytest.mark.parametrize("model", WAYS)
def test_a_higher_rank_is_the_same(model, kind, rank, tmp_path):
    folder, out = folder_of(model, kind, tmp_path, 0), tmp_path / "out"
    lora_inspect.resize(folder, out, rank=rank)
    assert_same(weights_with(model, [out], [1.0]), weights_with(model, [folder], [1.0]), model)
    config = json.loads((out / peft_kinds.CONFIG).read_text())
    assert config["use_rslora"] == (kind == "rslora")
    assert (config["r"], config["rank_pattern"]) == (rank, {})


@pytest.mark.parametrize("kind", ["plain", "rslora"])
@pytest.mark.parametrize("model", WAYS)
def test_a_lower_rank_is_the_nearest_change(model, kind, tmp_path):
    folder, out = folder_of(model, kind, tmp_path, 0), tmp_path / "out"
    said = lora_inspect.resize(folder, out, rank=2)
    base, whole = plain_weights(model), weights_with(model, [folder], [1.0])
    found, lost, total = weights_with(model, [out], [1.0]), 0.0, 0.0
    for name, value in whole.items():
        change = value - base[name]
        if not change.any():
            continue
        tail = torch.linalg.svdvals(change)[2:].square().sum()
        assert float((value - found[name]).square().sum()) == pytest.approx(float(tail), rel=1e-4)
        lost, total = lost + float(tail), total + float(change.square().sum())
    assert said.error == pytest.approx((lost / total) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("kinds", [("plain", "plain", "plain"), ("plain", "rslora", "uneven")], ids=" and ".join)
@pytest.mark.parametrize("model", WAYS)
def test_the_average_of_folders(model, kinds, tmp_path):
    folders = [folder_of(model, kind, tmp_path, seed) for seed, kind in enumerate(kinds)]
    lora_inspect.average(folders, tmp_path / "out", exact=True)
    meant = weights_with(model, folders, [1 / 3] * 3)
    assert_same(weights_with(model, [tmp_path / "out"], [1.0]), meant, model)


@pytest.mark.parametrize("model", WAYS)
def test_the_average_of_a_rank_is_the_nearest_one(model, tmp_path):
    folders = [folder_of(model, "plain", tmp_path, seed) for seed in range(3)]
    lora_inspect.average(folders, tmp_path / "out")
    base, mean = plain_weights(model), weights_with(model, folders, [1 / 3] * 3)
    found = weights_with(model, [tmp_path / "out"], [1.0])
    for name, value in mean.items():
        change = value - base[name]
        tail = torch.linalg.svdvals(change)[4:].square().sum() if change.any() else torch.zeros(())
        assert float((value - found[name]).square().sum()) == pytest.approx(float(tail), rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("model", WAYS)
def test_the_average_of_factors(model, tmp_path):
    folders = [folder_of(model, "rslora", tmp_path, seed) for seed in range(3)]
    lora_inspect.average(folders, tmp_path / "out", of="factors")
    files = [load_file(folder / peft_kinds.WEIGHTS) for folder in folders]
    mean = tmp_path / "mean"
    mean.mkdir()
    factors = {key: (sum(one[key].double() for one in files) / 3).float() for key in files[0]}
    save_file(factors, mean / peft_kinds.WEIGHTS)
    (mean / peft_kinds.CONFIG).write_text((folders[0] / peft_kinds.CONFIG).read_text())
    meant = weights_with(model, [mean], [1.0])
    assert_same(weights_with(model, [tmp_path / "out"], [1.0]), meant, model)


@pytest.mark.parametrize("kinds", PAIRS[:3], ids=" and ".join)
@pytest.mark.parametrize("model", WAYS)
def test_a_merge_of_the_sum_is_the_merge_of_both_and_verify_finds_it(model, kinds, tmp_path):
    folders = [folder_of(model, kind, tmp_path, seed) for seed, kind in enumerate(kinds)]
    both, out = list(zip(folders, MULTIPLIERS, strict=True)), tmp_path / "out"
    lora_inspect.combine(both, out)
    weights = {name: value.float().contiguous().clone() for name, value in plain_weights(model).items()}
    base, first, second = (tmp_path / f"{name}.safetensors" for name in ("base", "first", "second"))
    save_file(weights, base)
    lora_inspect.merge(base, [out], first)
    lora_inspect.merge(base, both, second)
    one, other, meant = load_file(first), load_file(second), weights_with(model, folders, MULTIPLIERS)
    for name, value in meant.items():
        change = float((value - weights[name]).norm())
        assert float((one[name] - other[name]).norm()) <= SAME * change
        assert float((one[name] - value).norm()) <= SAME * change
    for merged, adapters in ((first, [out]), (second, [out]), (first, both)):
        result = lora_inspect.verify(merged, base, adapters)
        assert result.ok
        assert all(share == pytest.approx(1, abs=1e-3) for share in result.share.values())
        assert result.residual < 1e-3
