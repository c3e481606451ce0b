"""Adapters of PEFT that carry whole tensors of the base, on a tiny BERT: merged and converted, PEFT says the same."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.reading.file_info import inspect
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reporting.file_record import as_json

pytestmark = [pytest.mark.numeric, pytest.mark.filterwarnings("ignore")]

PREFIX = "base_model.model."
INPUTS = {"input_ids": torch.arange(24).reshape(3, 8), "attention_mask": torch.ones(3, 8, dtype=torch.long)}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert") / "base"
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(vocab_size=30, num_labels=3, **sizes)).save_pretrained(folder)
    return folder


def model_of(folder):
    from transformers import BertForSequenceClassification

    return BertForSequenceClassification.from_pretrained(folder).eval()


def logits(model):
    with torch.no_grad():
        return model.eval()(**INPUTS).logits


def trained(bert, folder, **options):
    """An adapter whose every trained tensor has other numbers, saved in `folder`; the model that it belongs to."""
    import peft

    options = {"r": 4, "lora_alpha": 6, "task_type": "SEQ_CLS", "target_modules": ["query", "value"], **options}
    model = peft.get_peft_model(model_of(bert), peft.LoraConfig(**options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model


def merged(bert, adapter, output, settings=1.0, **options):
    plan = plan_merge(str(bert), [(str(adapter), settings)], MergeOptions(**options))
    merge(plan, str(output), force=True)
    return plan


SETTINGS = {
    "a head": {},
    "biases of adapted layers": {"bias": "lora_only"},
    "biases of adapted layers under biases of up layers": {"bias": "lora_only", "lora_bias": True},
    "every bias": {"bias": "all"},
    "norms": {"modules_to_save": ["LayerNorm"]},
    "a module with others in it": {"modules_to_save": ["pooler"]},
    "embeddings": {"target_modules": ["query", "word_embeddings", "position_embeddings"]},
    "an embedding that is trained": {"modules_to_save": ["word_embeddings"]},
    "DoRA": {"use_dora": True, "bias": "all", "target_modules": ["query", "dense", "word_embeddings"]},
    "RS-LoRA": {"use_rslora": True, "bias": "lora_only", "target_modules": ["key", "token_type_embeddings"]},
    "patterns": {"rank_pattern": {"query": 2}, "alpha_pattern": {"value": 9}, "bias": "lora_only", "lora_bias": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_the_merged_model_says_what_peft_says(options, bert, tmp_path):
    model = trained(bert, tmp_path / "adapter", **options)
    expected = logits(model)
    plan = merged(bert, tmp_path / "adapter", tmp_path / "merged")
    assert plan.unmatched == ()
    adapter = plan.adapters[0][0]
    assert [item.message for item in adapter.problems] == []
    used = {info.name for module in adapter.modules.values() for info in module.tensors}
    assert used == set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    found = logits(model_of(tmp_path / "merged"))
    assert (logits(model_of(bert)) - expected).abs().max() > 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = model.merge_and_unload().state_dict()
    for name, tensor in load_file(tmp_path / "merged" / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
def test_peft_loads_the_standard_form_as_the_original(options, bert, tmp_path):
    import peft

    expected = logits(trained(bert, tmp_path / "adapter", **options))
    convert = ConvertOptions(keep_dora=bool(options.get("use_dora")))
    result = convert_to_standard(str(tmp_path / "adapter"), str(tmp_path / "standard"), convert)
    assert result.exact
    assert result.dropped == ()
    before = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert load_file(tmp_path / "standard" / "adapter_model.safetensors").keys() == before.keys()
    found = logits(peft.PeftModel.from_pretrained(model_of(bert), tmp_path / "standard"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_info_counts_and_names_what_is_saved(bert, tmp_path):
    trained(bert, tmp_path / "adapter", bias="all", target_modules=["query"])
    record = as_json(inspect(str(tmp_path / "adapter")), modules=True)
    # 2 layers with 8 biases each, of which two are of norms, and those of the embeddings' norm, the pooler, the head.
    assert record["algorithms"] == {"saved": 20, "lora": 2}
    assert record["ranks"] == {"4": 2}
    assert record["unclaimed"] == record["problems"] == []
    where = str(tmp_path / "adapter" / "adapter_config.json")
    says = [item["says"] for item in record["evidence"] if (item["about"], item["where"]) == ("saved", where)]
    assert [text.split(" (")[0] for text in says] == ["19 biases are saved whole", "1 tensors are saved whole"]
    assert says[1].endswith(f"({PREFIX}classifier)")
    (head,) = [item for item in record["module_list"] if item["shape"] == [3, 16]]
    assert head["module"] == f"{PREFIX}classifier"


@pytest.mark.parametrize("multiplier", [0.5, -1.0, 2.0])
def test_a_multiplier_that_is_neither_0_nor_1_is_refused_for_them(multiplier, bert, tmp_path):
    trained(bert, tmp_path / "adapter")
    says = rf"base_model.model.classifier is saved whole .* multiplier of {multiplier:g} has no meaning; .*classifier=1"
    with pytest.raises(LoraInspectError, match=says):
        merged(bert, tmp_path / "adapter", tmp_path / "merged", multiplier)


@pytest.mark.parametrize("of_head", [0.0, 1.0])
def test_they_may_have_a_multiplier_of_their_own_beside_half_a_lora(of_head, bert, tmp_path):
    model = trained(bert, tmp_path / "adapter")
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 0.5)
    settings = Settings(multiplier=0.5, part_multipliers=(("classifier", of_head),))
    merged(bert, tmp_path / "adapter", tmp_path / "merged", settings)
    if of_head:
        expected = logits(model)
    else:
        unloaded = model.merge_and_unload()
        unloaded.classifier.load_state_dict(model_of(bert).classifier.state_dict())
        expected = logits(unloaded)
    torch.testing.assert_close(logits(model_of(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-5)


def test_two_adapters_of_which_one_replaces_what_the_other_changes_are_refused(bert, tmp_path):
    trained(bert, tmp_path / "first")
    trained(bert, tmp_path / "second", bias="lora_only")
    pairs = [(str(tmp_path / name), 1.0) for name in ("first", "second")]
    with pytest.raises(LoraInspectError, match=r"replaces classifier.weight, but .*second changes that, too"):
        plan_merge(str(bert), pairs, MergeOptions())
    pairs[1] = (pairs[1][0], Settings(part_multipliers=(("classifier", 0.0),)))
    assert plan_merge(str(bert), pairs, MergeOptions()).unmatched == ()


def edited(folder, edit=None, **config):
    """The adapter in `folder` with other tensors and settings."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    tensors = load_file(folder / "adapter_model.safetensors")
    if edit:
        edit(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_without_the_word_of_the_config_they_are_copies_that_must_be_equal(bert, tmp_path):
    trained(bert, tmp_path / "adapter")
    edited(tmp_path / "adapter", modules_to_save=None)
    with pytest.raises(LoraInspectError, match=r"classifier.weight differs from classifier.weight of"):
        merged(bert, tmp_path / "adapter", tmp_path / "merged")


def test_saved_modules_that_were_lost_are_an_error(bert, tmp_path):
    trained(bert, tmp_path / "adapter")

    def lose(tensors):
        for name in ("weight", "bias"):
            del tensors[f"{PREFIX}classifier.{name}"]

    edited(tmp_path / "adapter", lose)
    with pytest.raises(
        LoraInspectError, match="lists classifier, score in modules_to_save, but the file has no tensor of them"
    ):
        merged(bert, tmp_path / "adapter", tmp_path / "merged")


@pytest.mark.parametrize("shape", [(31, 16), (16, 30), (480,), ()], ids=["resized", "turned round", "flat", "a number"])
def test_an_embedding_of_another_shape_is_refused_by_name(shape, bert, tmp_path):
    trained(bert, tmp_path / "adapter", modules_to_save=["word_embeddings"])
    name = "bert.embeddings.word_embeddings"

    def resize(tensors):
        tensors[f"{PREFIX}{name}.weight"] = torch.zeros(shape)

    edited(tmp_path / "adapter", resize)
    with pytest.raises(
        LoraInspectError, match=rf"{name} is saved with the shape {re.escape(str(list(shape)))}, but {name}.weight of"
    ):
        merged(bert, tmp_path / "adapter", tmp_path / "merged")


def test_a_base_without_the_head_is_refused_by_name(bert, tmp_path):
    trained(bert, tmp_path / "adapter")
    weights = load_file(bert / "model.safetensors")
    shutil.copytree(bert, tmp_path / "base")
    save_file(
        {key: value for key, value in weights.items() if "classifier" not in key},
        tmp_path / "base" / "model.safetensors",
    )
    with pytest.raises(LoraInspectError, match=r"classifier is saved whole .* name a base that has it"):
        merged(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")


def test_a_module_that_is_both_saved_and_adapted_is_no_guess(bert, tmp_path):
    trained(bert, tmp_path / "adapter")

    def add(tensors):
        tensors[f"{PREFIX}bert.encoder.layer.0.attention.self.query.weight"] = torch.ones(16, 16)

    edited(tmp_path / "adapter", add, modules_to_save=["classifier", "query"])
    with pytest.raises(LoraInspectError, match=r"query.weight differs from"):
        merged(bert, tmp_path / "adapter", tmp_path / "merged")
