"""Sums of adapters that change an embedding and the head that shares its weight, as the real PEFT computes them."""

import json
import warnings

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tuned_models import distance, logits, save_model

import lora_inspect

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore")]

MODEL = "LlamaForCausalLM"
CLOSE = 1e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model(MODEL, tmp_path_factory.mktemp("model") / "base", tied=True)


@pytest.fixture
def trained(base, tmp_path):
    """A maker of folders that PEFT saves, with random factors."""

    def train(name, targets, tied, rank=4):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, ensure_weight_tying=tied)
            model = peft.get_peft_model(transformers.LlamaForCausalLM.from_pretrained(base), config)
            numbers = torch.Generator().manual_seed(sum(map(ord, name)))
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    # in place: the head's factors are views of the embedding's
                    parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=numbers))
            model.save_pretrained(tmp_path / name, save_embedding_layers=False)
        return tmp_path / name

    return train


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def dense_sum(base, *folders):
    """The base with the changes of all folders, in float64; a tied head has no weight of its own."""
    weights = load_file(base / "model.safetensors")
    found = {name: value.double() for name, value in weights.items()}
    for folder in folders:
        tensors = load_file(folder / "adapter_model.safetensors")
        for key, down in tensors.items():
            if key.endswith(".lora_A.weight") and "lm_head" not in key:
                path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                found[f"{path}.weight"] += tensors[key.replace("lora_A", "lora_B")].double() @ down.double()
        if (key := "base_model.model.model.embed_tokens.lora_embedding_A") in tensors:
            product = tensors[key.replace("_A", "_B")].double() @ tensors[key].double()
            found["model.embed_tokens.weight"] += product.T
    return {name: value.float() for name, value in found.items()}


def assert_is_sum(out, base, folder, *summands):
    """Assert that PEFT and a merge make the same logits of the output as of the sum."""
    expected = folder / "expected"
    expected.mkdir()
    (expected / "config.json").write_bytes((base / "config.json").read_bytes())
    save_file(dense_sum(base, *summands), expected / "model.safetensors", {"format": "pt"})
    of_sum, of_base = logits(MODEL, expected), logits(MODEL, base)
    assert distance(logits(MODEL, base, out), of_sum, of_base) < CLOSE
    lora_inspect.merge(base, [out], folder / "merged", dtype="fp32")
    assert distance(logits(MODEL, folder / "merged"), of_sum, of_base) < CLOSE


EMBEDDING = ["embed_tokens", "q_proj"]


def test_combine_of_tied_adapters_is_tied(trained, base, tmp_path):
    folders = [trained("first", EMBEDDING, True), trained("second", EMBEDDING, True, rank=6)]
    result = lora_inspect.combine(folders, tmp_path / "out")
    assert config_of(tmp_path / "out")["ensure_weight_tying"] is True
    assert "base_model.model.lm_head" in result.left_out
    assert_is_sum(tmp_path / "out", base, tmp_path, *folders)


@pytest.mark.parametrize("is_first", [True, False])
def test_combine_with_adapter_of_attention_is_tied(is_first, trained, base, tmp_path):
    """The config of the output is that of the first input, which may say nothing of the embedding."""
    folders = [trained("tied", EMBEDDING, True), trained("attention", ["q_proj"], False)]
    lora_inspect.combine(folders if is_first else folders[::-1], tmp_path / "out")
    assert config_of(tmp_path / "out")["ensure_weight_tying"] is True
    assert_is_sum(tmp_path / "out", base, tmp_path, *folders)


def test_resize_of_tied_adapter_is_tied(trained, base, tmp_path):
    folder = trained("tied", EMBEDDING, True)
    lora_inspect.resize(folder, tmp_path / "out", rank=4)
    assert config_of(tmp_path / "out")["ensure_weight_tying"] is True
    assert_is_sum(tmp_path / "out", base, tmp_path, folder)


def test_average_of_tied_adapters_is_tied(trained, base, tmp_path):
    folder = trained("tied", EMBEDDING, True)
    lora_inspect.average([folder, folder], tmp_path / "out")
    assert config_of(tmp_path / "out")["ensure_weight_tying"] is True
    assert_is_sum(tmp_path / "out", base, tmp_path, folder)


@pytest.mark.parametrize("to", [None, "peft", "vllm"])
def test_convert_of_tied_adapter_is_tied(to, trained, base, tmp_path):
    folder = trained("tied", EMBEDDING, True)
    lora_inspect.convert(folder, tmp_path / "out", to=to)
    assert config_of(tmp_path / "out")["ensure_weight_tying"] is True
    assert_is_sum(tmp_path / "out", base, tmp_path, folder)


def test_combine_without_embedding_is_not_tied(trained, tmp_path):
    folders = [trained("first", EMBEDDING, True), trained("second", EMBEDDING, True)]
    lora_inspect.combine(folders, tmp_path / "out", exclude=["model.embed_tokens", "lm_head"])
    assert config_of(tmp_path / "out")["ensure_weight_tying"] is False


@pytest.mark.parametrize("targets", [EMBEDDING, ["lm_head", "q_proj"]])
def test_combine_of_tied_and_separate_layers_is_refused(targets, trained, tmp_path):
    folders = [trained("tied", EMBEDDING, True), trained("separate", targets, False)]
    with pytest.raises(lora_inspect.RefusedError, match=r"of this layer alone, .*ensure_weight_tying.*exclude"):
        lora_inspect.combine(folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_combine_of_tied_head_with_other_factors_is_refused(trained, tmp_path):
    folder = trained("tied", EMBEDDING, True)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({key: 2 * value if "lm_head" in key else value for key, value in tensors.items()}, file)
    with pytest.raises(lora_inspect.RefusedError, match=r"ties .*lm_head to the embedding .* but their factors differ"):
        lora_inspect.combine([folder, trained("other", EMBEDDING, True)], tmp_path / "out")
