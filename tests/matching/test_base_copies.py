"""Copies of base tensors that PEFT saves in an adapter: used up where equal, an error where not."""

import struct

import pytest
from adapters import lora

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.merge import MergeOptions, plan_merge

NUMBERS = [0.5, -1.0, 2.0, 0.0, 1.5, -0.25]


def floats(numbers):
    return "F32", (3, 2), struct.pack("<6f", *numbers)


def bfloats(numbers):
    return "BF16", (3, 2), b"".join(struct.pack("<f", number)[2:] for number in numbers)


@pytest.fixture
def planned(write_safetensors):
    def plan(extra, weights, **options):
        adapter = {**lora("base_model.model.lm_head", rank=2, out=3, inputs=2, spelling="peft", alpha=2.0), **extra}
        adapter_file = write_safetensors(adapter, name="adapter_model.safetensors")
        base_file = write_safetensors(weights, name="base.safetensors")
        return plan_merge(str(base_file), [(str(adapter_file), 1.0)], MergeOptions(**options))

    return plan


COPY = "base_model.model.lm_head.base_layer.weight"
BASE = {
    "lm_head.weight": floats(NUMBERS),
    "lm_head.bias": ("F32", (3,), 1),
    "model.embed_tokens.weight": floats(NUMBERS),
}


@pytest.mark.parametrize(
    "extra",
    [
        {COPY: floats(NUMBERS)},
        {COPY: bfloats(NUMBERS)},
        {COPY: floats(NUMBERS), "base_model.model.lm_head.base_layer.bias": ("F32", (3,), 1)},
        {COPY: floats(NUMBERS), "base_model.model.lm_head.lora_B.bias": ("F32", (3,), 1)},
        {"base_model.model.model.embed_tokens.weight": floats(NUMBERS)},
        {"base_model.model.embed_tokens.weight": floats(NUMBERS)},
    ],
    ids=[
        "the target's",
        "in another element type",
        "with its bias",
        "beside the bias of an up layer",
        "an embedding",
        "an embedding under another root",
    ],
)
def test_an_equal_copy_is_used_up(extra, planned):
    plan = planned(extra, BASE)
    assert plan.unmatched == ()
    assert plan.modules == 1


DIFFERENT = {
    "one number": {COPY: floats([*NUMBERS[:-1], -0.25000003])},
    "one more row": {COPY: ("F32", (4, 2), struct.pack("<8f", *NUMBERS, 0, 0))},
    "turned round": {COPY: ("F32", (2, 3), struct.pack("<6f", *NUMBERS))},
    "the bias": {"base_model.model.lm_head.base_layer.bias": ("F32", (3,), 2)},
    "a trained embedding": {"base_model.model.model.embed_tokens.weight": floats(NUMBERS[::-1])},
}


@pytest.mark.parametrize("extra", DIFFERENT.values(), ids=DIFFERENT)
def test_a_copy_with_other_numbers_is_an_error_that_names_both(extra, planned):
    (key,) = extra
    with pytest.raises(
        LoraInspectError, match=r"differs from .* another version of it; .*--allow-unmatched"
    ) as refused:
        planned(extra, BASE)
    assert key in str(refused.value)
    assert planned(extra, BASE, allow_unmatched=True).unmatched == (key,)


def test_what_copies_nothing_of_the_base_is_still_reported(planned):
    for key in (
        "base_model.model.other.base_layer.weight",
        "base_model.model.lm_head.base_layer.scale",
        "stray.weight",
    ):
        with pytest.raises(LoraInspectError, match=f"1 tensors belong to no known algorithm .{key}"):
            planned({key: floats(NUMBERS)}, BASE)


@pytest.mark.filterwarnings("ignore")
def test_what_peft_saves_for_a_head_that_is_a_target_is_used_up(tmp_path):
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, tie_word_embeddings=False, **sizes))
    model.save_pretrained(tmp_path / "base")
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head", "q_proj"], init_lora_weights=False))
    peft.save_pretrained(tmp_path / "adapter")
    assert COPY in load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    plan = plan_merge(str(tmp_path / "base"), [(str(tmp_path / "adapter"), 1.0)], MergeOptions())
    assert (plan.modules, plan.unmatched) == (2, ())
