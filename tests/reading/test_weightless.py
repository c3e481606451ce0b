"""Methods of PEFT that change no weight are refused by their name and with what they do instead."""

import pytest

from lora_inspect.errors import LoraInspectError
from lora_inspect.reading.file_info import ADAPTER, kind_of
from lora_inspect.reading.peft.unsupported import METHODS

PATH = "base_model.model.model.layers.0.self_attn"
BY_KEYS = {
    "a method of virtual tokens": ["prompt_embeddings"],
    "multitask prompt tuning": ["prefix_task_cols", "prefix_task_rows", "prompt_embeddings"],
    "adaption prompt": [f"{PATH}.adaption_gate", f"{PATH}.adaption_prompt"],
    "Lily": [f"{PATH}.q_proj.lily_{part}.weight" for part in ("A", "B", "router")],
    "Poly": [f"{PATH}.q_proj.poly_{part}" for part in ("lora_A", "lora_B", "router.module_logits")],
    "ShadowPEFT": [f"{PATH}.shadow_up.default.weight", "base_model.shadow_backbone.default.norm.weight"],
    "X-LoRA": ["base_model.internal_xlora_classifier.layers.weight"],
}
REFUSED = r", and changes no weight; use the adapter with PEFT"


def refusal(adapter):
    assert kind_of(adapter)[0] == ADAPTER
    with pytest.raises(LoraInspectError, match=REFUSED) as raised:
        adapter.refuse()
    return str(raised.value)


@pytest.mark.parametrize("peft_type", METHODS)
def test_by_the_config(peft_type, read):
    adapter = read(
        {"prompt_embeddings": ("F32", (4, 8), 1)}, None, {"peft_type": peft_type}, "adapter_model.safetensors"
    )
    assert f"says {peft_type}: {METHODS[peft_type].title} {METHODS[peft_type].does}" in refusal(adapter)
    assert [problem.code for problem in adapter.problems] == ["no-weight-change"]
    assert [item.about for item in adapter.evidence][:1] == ["method"]


@pytest.mark.parametrize("title", BY_KEYS)
def test_by_the_tensors_alone(title, read):
    adapter = read(dict.fromkeys(BY_KEYS[title], ("F32", (4, 8), 1)))
    message = refusal(adapter)
    assert f": {title} " in message or f": {title}, as" in message
    assert BY_KEYS[title][0] in message


def test_beside_factors_of_a_lora_they_are_not_left_out(read):
    factors = {f"{PATH}.q_proj.lora_{side}.weight": ("F32", (4, 4), 1) for side in "AB"}
    refusal(read({**factors, "base_model.internal_xlora_classifier.layers.weight": ("F32", (1, 4), 1)}))


def test_names_that_only_look_alike_are_none(read):
    adapter = read({f"model.{name}.weight": ("F32", (4, 4), 1) for name in ("shadow_params", "prompt_embeddings")})
    assert adapter.problems == ()
