"""Names that differ by what transformers and other programs put in front of a model's own paths."""

import pytest
from adapters import IN, OUT, lora

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.matching.match import match
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.base.base_names import without_roots


@pytest.fixture
def found(write_safetensors):
    """The weight that a module changes, or None."""

    def find(module, *weights, only=()):
        adapter = read_adapter(open_checkpoint(str(write_safetensors(lora(module), name="adapter.safetensors"))))
        tensors = {f"{path}.weight": ("F32", (OUT, IN), 1) for path in weights}
        base = open_checkpoint(str(write_safetensors(tensors, name="base.safetensors")))
        return next(iter(match(adapter, base, only).targets), None)

    return find


P = "base_model.model."
# adapter's module, base's path
ROOTED = {
    "GPT-2 with a head on its backbone": (f"{P}transformer.h.0.attn.c_attn", "h.0.attn.c_attn"),
    "GPT-2's backbone on a model with a head": (f"{P}h.0.attn.c_attn", "transformer.h.0.attn.c_attn"),
    "diffusers' prefix is GPT-2's root": ("transformer.h.0.attn.c_attn", "h.0.attn.c_attn"),
    "BERT with a head on its encoder": (f"{P}bert.encoder.layer.0.output.dense", "encoder.layer.0.output.dense"),
    "a sentence encoder on BERT with a head": (f"{P}encoder.layer.0.output.dense", "bert.encoder.layer.0.output.dense"),
    "the same for RoBERTa": (f"{P}roberta.encoder.layer.0.output.dense", "encoder.layer.0.output.dense"),
    "DistilBERT": (f"{P}distilbert.transformer.layer.0.ffn.lin1", "transformer.layer.0.ffn.lin1"),
    "GPT-NeoX": (f"{P}gpt_neox.layers.0.mlp.dense_h_to_4h", "layers.0.mlp.dense_h_to_4h"),
    "Llama on its backbone": (f"{P}model.layers.0.self_attn.q_proj", "layers.0.self_attn.q_proj"),
    "Llama's backbone": (f"{P}layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
    "a multimodal model's newer nesting": (
        f"{P}language_model.model.layers.0.self_attn.q_proj", "model.language_model.layers.0.self_attn.q_proj"),
    "a language model on a multimodal one": (
        f"{P}model.layers.0.self_attn.q_proj", "model.language_model.layers.0.self_attn.q_proj"),
    "a wrapped model": (f"{P}base_model.layers.0.self_attn.q_proj", "layers.0.self_attn.q_proj"),
    "a CLIP text encoder without its root": (
        "lora_te_text_model_encoder_layers_0_mlp_fc1", "encoder.layers.0.mlp.fc1"),
    "an underscored name without the root": (
        "lycoris_encoder_layer_0_output_dense", "bert.encoder.layer.0.output.dense"),
    "an underscored name with a root": ("lycoris_bert_encoder_layer_0_output_dense", "encoder.layer.0.output.dense"),
    "Cosmos and Anima": ("lora_unet_blocks_0_mlp_layer1", "net.blocks.0.mlp.layer1"),
    "Anima under ComfyUI's names": ("diffusion_model.blocks.0.mlp.layer1", "net.blocks.0.mlp.layer1"),
    "a conditional transformer": ("conditional_transformer.layers.0.attn.q", "conditional_transformer.layers.0.attn.q"),
    "a conditional transformer's own file": ("conditional_transformer.layers.0.attn.q", "layers.0.attn.q"),
    "the second expert's own file": ("transformer_2.blocks.0.attn1.to_q", "blocks.0.attn1.to_q"),
    "the second expert's file for ComfyUI": (
        "transformer_2.blocks.0.attn1.to_q", "model.diffusion_model.blocks.0.attn1.to_q"),
    "both experts in one file": ("transformer_2.blocks.0.attn1.to_q", "transformer_2.blocks.0.attn1.to_q"),
}  # fmt: skip


@pytest.mark.parametrize(("module", "path"), ROOTED.values(), ids=ROOTED)
def test_a_root_more_or_less_is_the_same_module(module, path, found):
    assert found(module, path, "unrelated.layer") == f"{path}.weight"


# adapter's module, base's path
OTHERS = {
    "one root for another": (f"{P}bert.encoder.layer.0.output.dense", "roberta.encoder.layer.0.output.dense"),
    "a word that begins like a root": (f"{P}h.0.attn.c_attn", "transformers.h.0.attn.c_attn"),
    "a segment of an underscored name": ("lora_unet_transformer_blocks_0_attn_to_q", "blocks.0.attn.to_q"),
    "a text encoder's side": (f"{P}encoder.block.0.layer", "decoder.block.0.layer"),
    "the first expert in a file of the second": (
        "transformer.blocks.0.attn1.to_q", "transformer_2.blocks.0.attn1.to_q"),
}  # fmt: skip


@pytest.mark.parametrize(("module", "path"), OTHERS.values(), ids=OTHERS)
def test_what_is_no_root_is_another_module(module, path, found):
    assert found(module, path) is None


def test_a_bare_path_that_fits_two_towers_is_ambiguous(found):
    towers = "model.language_model.layers.0.q_proj", "model.vision_tower.layers.0.q_proj"
    with pytest.raises(LoraInspectError, match=r"matches both model\.language_model.*and model\.vision_tower"):
        found(f"{P}layers.0.q_proj", *towers)
    assert found(f"{P}model.language_model.layers.0.q_proj", *towers) == f"{towers[0]}.weight"
    assert found(f"{P}language_model.layers.0.q_proj", *towers) == f"{towers[0]}.weight"


def test_the_own_name_comes_before_one_with_another_root(found):
    assert found(f"{P}bert.layer.0.q", "bert.layer.0.q", "layer.0.q") == "bert.layer.0.q.weight"


@pytest.mark.parametrize(
    ("path", "flat", "expected"),
    [
        ("model.language_model.layers.0.q", False, ({"model", "language_model"}, "layers.0.q")),
        ("layers.0.q", False, (set(), "layers.0.q")),
        ("model", False, (set(), "model")),
        ("gpt_neox_layers_0_q", True, ({"gpt_neox"}, "layers_0_q")),
        ("transformer_blocks_0_q", True, (set(), "transformer_blocks_0_q")),
    ],
)
def test_roots_are_whole_segments(path, flat, expected):
    assert without_roots(path, flat) == expected


BOTH = {**lora("transformer.blocks.0.attn1.to_q"), **lora("transformer_2.blocks.0.attn1.to_q")}


def test_two_experts_on_the_file_of_one_are_told_apart_by_only(write_safetensors):
    adapter = read_adapter(open_checkpoint(str(write_safetensors(BOTH, name="adapter.safetensors"))))
    weights = {"blocks.0.attn1.to_q.weight": ("F32", (OUT, IN), 1)}
    base = open_checkpoint(str(write_safetensors(weights, name="high_noise.safetensors")))
    with pytest.raises(
        LoraInspectError, match=r"which holds one of model and model_2; choose .*--only model or --only model_2"
    ):
        match(adapter, base)
    for only, prefix in (("model", "transformer."), ("model_2", "transformer_2.")):
        matching = match(adapter, base, (only,))
        ((placed,),) = matching.targets.values()
        assert placed.contribution.module.prefix == prefix
        assert len(matching.left_out) == 1
