"""Programs that treat a file alike: by which words they are grouped, how they are called, and which of them count."""

from types import MappingProxyType

import pytest
from adapters import lora

from lora_inspect.programs import by_name
from lora_inspect.programs.verdict import (
    LOST,
    NOTHING,
    PARTLY,
    REFUSED,
    SAME,
    STRENGTH,
    UNTESTED,
    Verdict,
    concerned,
    decisive,
    fixing_multiplier,
    group_verdicts,
    judge,
)
from lora_inspect.reading.file_info import inspect


def verdict(name, what, factors=MappingProxyType({1.0: 3}), says="", silent=False):
    return Verdict(by_name(name), what, next(iter(factors), None), factors, silent, says=says)


def test_those_that_apply_the_same_strength_are_one_group_and_others_another():
    half, third = {0.5: 2}, {0.333: 2}
    groups = group_verdicts([
        verdict("comfyui", STRENGTH, half, "one says"), verdict("musubi", STRENGTH, half, "another"),
        verdict("forge", STRENGTH, third), verdict("diffusers", SAME),
    ])  # fmt: skip
    assert [(group.titles, group.factors) for group in groups] == [
        (("ComfyUI", "musubi-tuner"), (0.5,)),
        (("Forge",), (0.333,)),
        (("diffusers",), ()),
    ]


def test_versions_of_a_program_have_one_name_where_they_agree():
    same = [verdict("comfyui", SAME), verdict("comfyui-0.3.64", SAME)]
    assert group_verdicts(same)[0].titles == ("ComfyUI",)
    differ = [verdict("comfyui", SAME), verdict("comfyui-0.3.64", NOTHING)]
    assert [group.titles for group in group_verdicts(differ)] == [("ComfyUI 0.33.0",), ("ComfyUI 0.3.64",)]


def test_dora_that_is_lost_is_one_group_whatever_is_told_and_a_part_is_by_its_words():
    lost = [
        verdict("comfyui", LOST, says="it prints a message"),
        verdict("forge", LOST, says="it prints nothing", silent=True),
    ]
    assert [(group.titles, group.silent, group.factors) for group in group_verdicts(lost)] == [
        (("ComfyUI", "Forge"), True, ())
    ]
    parts = [verdict("comfyui", PARTLY, says="1 of 3"), verdict("forge", PARTLY, says="2 of 3")]
    assert [group.says for group in group_verdicts(parts)] == ["1 of 3", "2 of 3"]
    halved = group_verdicts([verdict("comfyui", LOST, {0.5: 3})])
    assert halved[0].factors == (0.5,)


def test_programs_for_other_models_do_not_count_unless_they_load_something(fixtures):
    wan = inspect(str(fixtures / "synthetic" / "i64_alpha.safetensors")).candidates
    names = ("comfyui", "a1111", "vllm", "peft", "lycoris")
    refused = [verdict(name, REFUSED if name == "peft" else UNTESTED) for name in names]
    assert [one.program.name for one in concerned(refused, wan)] == ["comfyui"]
    loaded = [verdict(name, SAME) for name in names]
    assert [one.program.name for one in concerned(loaded, wan)] == ["comfyui", "peft", "lycoris"]


def test_of_a_model_that_no_program_is_for_those_for_any_model_count():
    assert [one.program.name for one in concerned([verdict("comfyui", UNTESTED), verdict("peft", REFUSED)], ())] == [
        "peft"
    ]


def test_the_program_that_decides_is_comfyui_or_the_first_known_one_where_no_other_is_right():
    comfyui = verdict("comfyui", NOTHING)
    assert decisive([comfyui, verdict("forge", SAME)]) == comfyui
    unknown = verdict("comfyui", UNTESTED)
    assert decisive([unknown, verdict("forge", NOTHING), verdict("sdnext", SAME)]) is None
    forge = verdict("forge", NOTHING)
    assert decisive([unknown, forge, verdict("sdnext", PARTLY)]) == forge
    assert decisive([unknown]) is None
    assert decisive([]) is None


def wan(**ranks):
    """RS-LoRA of Wan with a flag, whose modules have such ranks."""
    tensors = {"use_rslora_flag": ("BOOL", (), True)}
    for leaf, rank in ranks.items():
        tensors |= lora(f"lora_unet_blocks_0_self_attn_{leaf}", rank=rank, alpha=3.0)
    return tensors


@pytest.mark.parametrize(
    ("tensors", "strength"),
    [
        (wan(q=4, k=4), 2.0),
        (wan(q=144), None),  # more than programs take
        (wan(q=4, k=16), None),
        (wan(q=4) | {"lora_unet_blocks_0_self_attn_k.diff": ("F32", (6, 5), 1)}, None),
        (wan(q=4) | {"lora_unet_blocks_0_self_attn_q.dora_scale": ("F32", (1, 5), 1)}, None),
        (lora("lora_unet_blocks_0_self_attn_q", alpha=3.0), None),  # right as it is
    ],
)
def test_a_multiplier_fixes_plain_lora_of_one_factor_where_a_user_sets_one(tensors, strength, write_safetensors):
    info = inspect(str(write_safetensors(tensors)))
    found = judge(info.adapter, info.candidates, by_name("comfyui"))
    assert fixing_multiplier(found) == strength
    unset = found._replace(program=found.program._replace(sets_multiplier=False))
    assert fixing_multiplier(unset) is None
    assert [one.multiplier for one in group_verdicts([found, unset])] == [None]
