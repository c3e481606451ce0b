"""What is said of modules without a target: nothing false, and no advice that loses what it does not name."""

import pytest
from adapters import IN, OUT, base, lora, loras

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.matching.match import match
from lora_inspect.matching.unmatched import accept_unmatched
from lora_inspect.reading.adapter import read_adapter

CLIP = "text_model.encoder.layers.{}.mlp.fc1"
UNET = "input_blocks.4.1.transformer_blocks.{}.attn2.to_q"
SPLIT = "transformer.transformer_blocks.{}.attn2.to_q"


def weights(template, *numbers):
    return {f"{template.format(number)}.weight": ("F32", (OUT, IN), 1) for number in numbers}


def modules(template, *numbers):
    return {key: t for number in numbers for key, t in lora(template.format(number), out=OUT, inputs=IN).items()}


def te(number, *layers):
    return modules(f"lora_te{number}_" + CLIP.replace(".", "_"), *layers)


SDXL = {
    **weights(f"model.diffusion_model.{UNET}", *range(10)),
    **weights(f"conditioner.embedders.0.transformer.{CLIP}", 0, 1, 2),
    **weights("conditioner.embedders.1.model.transformer.resblocks.{}.mlp.c_fc", 0, 1),
}
# How its layouts correspond is not known here.
SD3 = {
    **weights("model.diffusion_model.joint_blocks.{}.x_block.attn.qkv", *range(10)),
    **weights(f"text_encoders.clip_l.transformer.{CLIP}", 0, 1, 2),
}


@pytest.fixture
def said(write_safetensors):
    """The refusal, and what `only` merges and leaves out."""

    def say(adapter, tensors, only=()):
        read = read_adapter(open_checkpoint(str(write_safetensors(adapter, name="adapter.safetensors"))))
        opened = open_checkpoint(str(write_safetensors(tensors, name="base.safetensors")))
        matching = match(read, opened, only)
        if only:
            accept_unmatched(read, opened, matching, allowed=False)
            return len(matching.targets), len(matching.left_out)
        with pytest.raises(LoraInspectError) as refused:
            accept_unmatched(read, opened, matching, allowed=False)
        return str(refused.value)

    return say


def test_advice_keeps_every_component_that_fits(said):
    """At b986b5d `--only model merges the rest` dropped the first text encoder."""
    adapter = modules("lora_unet_" + UNET.replace(".", "_"), 0, 1) | te(1, 0, 1, 2) | te(2, 7)
    sentence = said(adapter, SDXL)
    assert (
        "give --only model --only text_encoder to merge model (2 modules), text_encoder (3 modules) and leave out "
        "text_encoder_2 (1 modules)."
    ) in sentence
    assert said(adapter, SDXL, only=("model", "text_encoder")) == (5, 1)


def test_a_text_encoder_without_the_layer_is_not_called_absent(said):
    sentence = said(te(1, 0) | te(2, 7), SDXL)
    assert "does not hold" not in sentence
    assert "holds text_encoder_2 under other names than the adapter's (conditioner.embedders.1.model.…)" in sentence


def test_a_model_in_another_layout_is_not_called_absent(said):
    adapter = modules(SPLIT, 0, 1) | te(1, 0)
    sentence = said(adapter, SD3)
    assert "does not hold" not in sentence
    assert "holds model in the original layout of" in sentence
    assert "not in the adapter's diffusers one" in sentence
    assert "give --only text_encoder to merge text_encoder (1 modules) and leave out model (2 modules)." in sentence


def test_a_model_of_an_unknown_family_is_not_called_absent(said):
    tensors = weights("model.diffusion_model.odd.{}.layer", 0) | weights(f"text_encoders.clip_l.transformer.{CLIP}", 0)
    sentence = said(loras(2) | te(1, 0), tensors)
    assert "does not hold" not in sentence
    assert "holds model under other names than the adapter's (model.diffusion_model.…)" in sentence


def test_a_packed_model_is_not_called_absent(said):
    tensors = {"blocks.0.attn.q.qweight": ("I32", (1, OUT), 1)} | weights(f"text_encoder.{CLIP}", 0)
    assert "holds model in packed weights (blocks.0.attn.q.qweight)" in said(loras(1) | te(1, 0), tensors)


def test_a_component_that_is_absent_is_called_so(said):
    sentence = said(loras(2) | te(1, 0, 1), base(2))
    assert (
        "does not hold text_encoder (2 modules); give --only model to merge model (2 modules) and leave out" in sentence
    )


def test_an_adapter_in_another_layout_is_not_called_one_of_another_model(said):
    sentence = said(modules(SPLIT, 0, 1), {key: t for key, t in SD3.items() if "diffusion_model" in key})
    assert "no module matches" in sentence
    assert "use a base of the adapter's model" not in sentence
    assert "use a base in the adapter's layout" in sentence


def test_an_adapter_of_another_family_is_told_by_both_names(said):
    wan = modules("lora_unet_blocks_{}_self_attn_k", 0, 1, 2)
    sentence = said(wan, {key: t for key, t in SDXL.items() if "diffusion_model" in key})
    assert "the adapter is of Wan" in sentence
    assert "but the base is of" in sentence


def test_what_allow_unmatched_leaves_out_is_counted_by_component(said):
    adapter = loras(3) | te(1, 0)
    sentence = said(adapter, base(2))
    assert "2 of 4 modules have no target" in sentence
    assert "or leave out model (1 modules), text_encoder (1 modules) with --allow-unmatched." in sentence


def test_two_text_encoders_on_the_file_of_one_are_told_apart_by_only(said):
    tensors = weights(CLIP, 0, 1)
    adapter = te(1, 0) | te(2, 0)
    with pytest.raises(LoraInspectError, match="--only text_encoder or --only text_encoder_2"):
        said(adapter, tensors)
    assert said(adapter, tensors, only=("text_encoder_2",)) == (1, 1)
