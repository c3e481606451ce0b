"""The scale rule module by module: own flags, configs of components, and configs that are not theirs."""

import json

import pytest
from adapters import base, lora

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter

# rank 16 and alpha 8: alpha/rank is 0.5 and alpha/sqrt(rank) is 2.
STANDARD, STABILISED, UNKNOWN = 0.5, 2.0, None


def flagged(module, value=None):
    """A module with its own flag, or with none."""
    flag = {} if value is None else {"use_rslora_flag": ("BOOL", (), value)}
    return lora(f"lora_unet_{module}", **flag)


def of_components(**use_rslora):
    configs = {name: {"r": 16, "lora_alpha": 8, "use_rslora": rule} for name, rule in use_rslora.items()}
    flat = {f"{name}.{key}": value for name, config in configs.items() for key, value in config.items()}
    return {"lora_adapter_metadata": json.dumps(flat)}


COMPONENTS = {
    key: tensor
    for name in ("transformer.a", "text_encoder.a")
    for key, tensor in lora(name, alpha=None, spelling="peft").items()
}


def scales(adapter):
    return {contribution.module.key: contribution.scale for contribution in adapter.contributions}


def errors(adapter):
    return [problem.code for problem in adapter.problems if problem.severity == "error"]


def test_flags_of_modules_decide_for_their_own_modules(read):
    adapter = read({**flagged("a", 1), **flagged("b", 0)})
    assert scales(adapter) == {"lora_unet_a": STABILISED, "lora_unet_b": STANDARD}
    assert [contribution.rslora for contribution in adapter.contributions] == [True, False]
    assert (adapter.rslora.value, adapter.rslora.source, errors(adapter)) == (None, "flag", [])


def test_a_module_without_the_flag_that_others_have_is_open(read):
    tensors = {**flagged("a", 1), **flagged("b")}
    adapter = read(tensors)
    assert scales(adapter) == {"lora_unet_a": STABILISED, "lora_unet_b": UNKNOWN}
    assert (adapter.rslora.value, errors(adapter), adapter.open) == (None, ["scale-unknown"], ("rslora",))
    settled = read(tensors, rslora=False)
    assert scales(settled) == {"lora_unet_a": STABILISED, "lora_unet_b": STANDARD}
    assert errors(settled) == []


def test_a_conflict_in_one_module_leaves_the_others_alone(read):
    about = {"ss_network_args": json.dumps({"use_rslora": "True"}), "ss_network_alpha": "8"}
    tensors = {**flagged("a", 1), **flagged("b", 0)}
    adapter = read(tensors, about)
    assert scales(adapter) == {"lora_unet_a": STABILISED, "lora_unet_b": UNKNOWN}
    assert (adapter.rslora.value, adapter.rslora.source) == (None, "conflict")
    assert scales(read(tensors, about, rslora=False)) == {"lora_unet_a": STABILISED, "lora_unet_b": STANDARD}


def test_a_flag_of_the_network_contradicts_that_of_a_module(read):
    adapter = read({**flagged("a", 1), **flagged("b", 0), "use_rslora_flag": ("BOOL", (), 1)})
    assert scales(adapter) == {"lora_unet_a": STABILISED, "lora_unet_b": UNKNOWN}


def test_configs_of_components_decide_for_their_own_component(read):
    adapter = read(COMPONENTS, of_components(transformer=True, text_encoder=False))
    assert scales(adapter) == {"transformer.a": STABILISED, "text_encoder.a": STANDARD}
    assert (adapter.rslora.value, adapter.rslora.source, errors(adapter)) == (None, "adapter_config", [])


def test_info_says_that_the_rule_differs_and_the_merge_records_both(write_safetensors, run, tmp_path):
    adapter = write_safetensors(
        {**flagged("blocks_0_attn_q", 1), **flagged("blocks_1_attn_q", 0)}, name="a.safetensors"
    )
    shown = run("info", adapter).stdout
    assert shown.startswith("LoRA and RS-LoRA for ")
    assert "why RS-LoRA: " in shown
    assert run("info", adapter, "--json").json["rslora"] == {"value": None, "source": "flag", "hint": None}
    write_safetensors(base(), name="base.safetensors")
    out = tmp_path / "out.safetensors"
    assert run("merge", tmp_path / "base.safetensors", f"{adapter}:0.5,*_0_*=0", "-o", out).status == 0
    (recorded,) = json.loads(open_checkpoint(str(out)).metadata["lora_inspect.merged"])["adapters"]
    assert recorded["scale"] == "alpha/rank and alpha/sqrt(rank)"
    assert recorded["multiplier"] == {"*": 0.5, "*_0_*": 0.0}


def test_equal_rules_of_all_parts_are_the_rule_of_the_file(read):
    assert read(COMPONENTS, of_components(transformer=True, text_encoder=True)).rslora.value is True
    assert read({**flagged("a", 0), **flagged("b", 0)}).rslora.value is False
    # A component without any alpha has scale 1 under either rule.
    assert read(COMPONENTS, of_components(transformer=True)).rslora.value is True


def test_a_component_with_an_alpha_that_no_config_speaks_of_has_a_rule_of_its_own(read):
    tensors = {**COMPONENTS, "text_encoder.a.alpha": ("F32", (), 8.0)}
    adapter = read(tensors, of_components(transformer=True))
    assert scales(adapter) == {"transformer.a": STABILISED, "text_encoder.a": STANDARD}
    assert (adapter.rslora.value, adapter.rslora.source) == (None, "adapter_config")


def test_a_contradiction_is_told_before_what_is_only_missing(read):
    tensors = {**flagged("a", 1), **flagged("b"), **flagged("c", 0)}
    assert read(tensors).rslora.source == "default"
    contradicting = {**COMPONENTS, "transformer.a.use_rslora_flag": ("BOOL", (), 0)}
    adapter = read(contradicting, of_components(transformer=True))
    assert (adapter.rslora.value, adapter.rslora.source) == (None, "conflict")


# What a config of another rank says must not bind anybody.
STRANGER = {"peft_type": "LORA", "r": 4, "lora_alpha": 99, "use_rslora": True, "target_modules": ["q"]}
PEFT = lora("base_model.model.blocks.0.q", alpha=None, spelling="peft")


def test_a_config_of_another_rank_has_no_vote_and_both_settings_can_be_given(read):
    adapter = read(PEFT, config=STRANGER, name="adapter_model.safetensors")
    assert (adapter.rslora.value, adapter.rslora.source) == (None, "default")
    assert adapter.open == ("alpha", "rslora")
    (problem,) = (problem for problem in adapter.problems if problem.severity == "error")
    assert "the config's rank is 4 but that of the tensors is 16" in problem.message
    assert problem.message.endswith("give --alpha N and --rslora yes|no")
    for rule, scale in ((False, STANDARD), (True, STABILISED)):
        settled = read(PEFT, config=STRANGER, name="adapter_model.safetensors", alpha=8.0, rslora=rule)
        assert scales(settled) == {"base_model.model.blocks.0.q": scale}
        assert errors(settled) == []


def test_a_config_of_another_rank_does_not_question_a_stored_alpha(read):
    tensors = {**PEFT, "base_model.model.blocks.0.q.alpha": ("F32", (), 8.0)}
    adapter = read(tensors, config=STRANGER, name="adapter_model.safetensors")
    assert (scales(adapter), errors(adapter)) == ({"base_model.model.blocks.0.q": STANDARD}, [])


def test_a_config_speaks_for_the_modules_whose_rank_it_gives(read):
    tensors = {**PEFT, **lora("base_model.model.blocks.1.q", rank=4, alpha=None, spelling="peft")}
    adapter = read(
        tensors, config={**STRANGER, "lora_alpha": 8}, name="adapter_model.safetensors", alpha=8.0, rslora=False
    )
    # rank 4, alpha 8 with the square root by the config; rank 16 without by the settings
    assert scales(adapter) == {"base_model.model.blocks.1.q": 4.0, "base_model.model.blocks.0.q": STANDARD}


# A config that fits, beside names of other programs that carry no alpha: there the factors are the whole change.
FITTING = {"peft_type": "LORA", "r": 16, "lora_alpha": 128, "target_modules": ["q"]}
REWRITTEN = {
    "comfyui": "diffusion_model.blocks.0.q",
    "dotted": "blocks.0.q",
    "diffusers": "transformer.blocks.0.q",
}
ELSEWHERE = [(scheme, name, "style.safetensors") for scheme, name in REWRITTEN.items()] + [
    ("kohya", "lora_unet_blocks_0_q", "adapter_model.safetensors"),
    ("comfyui", "diffusion_model.blocks.0.q", "adapter_model.safetensors"),
]


@pytest.mark.parametrize(("use_rslora", "factor", "neutral"), [(False, 8.0, 16), (True, 32.0, 4)])
@pytest.mark.parametrize(("scheme", "module", "name"), ELSEWHERE)
def test_a_fitting_config_is_not_applied_to_factors_that_hold_the_scale(
    scheme, module, name, use_rslora, factor, neutral, read
):
    tensors = lora(module, alpha=None, spelling="kohya" if scheme == "kohya" else "peft")
    config = {**FITTING, "use_rslora": use_rslora}
    adapter = read(tensors, config=config, name=name)
    assert (scales(adapter), adapter.open) == ({module: UNKNOWN}, ("alpha",))
    (problem,) = (problem for problem in adapter.problems if problem.severity == "error")
    assert f"no alpha means scale 1 in the {scheme} scheme" in problem.message
    assert f"says scale {factor:g} at rank 16: alpha={neutral} means the first, alpha=128 the second" in problem.message
    assert scales(read(tensors, config=config, name=name, alpha=float(neutral))) == {module: 1.0}
    assert scales(read(tensors, config=config, name=name, alpha=128.0)) == {module: factor}


@pytest.mark.parametrize("module", REWRITTEN.values())
def test_a_config_that_says_scale_one_as_well_is_no_conflict(module, read):
    tensors = lora(module, alpha=None, spelling="peft")
    adapter = read(tensors, config={**FITTING, "lora_alpha": 16})
    assert (scales(adapter), errors(adapter)) == ({module: 1.0}, [])


def test_peft_names_have_no_other_place_for_the_scale(read):
    adapter = read(PEFT, config=FITTING, name="style.safetensors")
    assert (scales(adapter), errors(adapter)) == ({"base_model.model.blocks.0.q": 8.0}, [])


def test_what_diffusers_embeds_decides_for_its_own_names_and_not_for_others(read):
    about = {"lora_adapter_metadata": json.dumps({"transformer.r": 16, "transformer.lora_alpha": 128})}
    own = read(lora("transformer.blocks.0.q", alpha=None, spelling="peft"), about)
    assert (scales(own), errors(own)) == ({"transformer.blocks.0.q": 8.0}, [])
    renamed = read(lora("diffusion_model.blocks.0.q", alpha=None, spelling="peft"), about)
    assert (scales(renamed), renamed.open) == ({"diffusion_model.blocks.0.q": UNKNOWN}, ("alpha",))
    # Bare names are those of a model that saved itself, which embeds no component.
    bare = read(lora("blocks.0.q", alpha=None, spelling="peft"), about)
    assert (scales(bare), bare.open) == ({"blocks.0.q": UNKNOWN}, ("alpha",))
    itself = read(lora("blocks.0.q", alpha=None, spelling="peft"), embedded("", r=16, lora_alpha=128))
    assert (scales(itself), errors(itself)) == ({"blocks.0.q": 8.0}, [])


def embedded(prefix="transformer.", **config):
    return {"lora_adapter_metadata": json.dumps({f"{prefix}{key}": value for key, value in config.items()})}


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("module", ["transformer.a", "base_model.model.a"])
@pytest.mark.parametrize(
    ("beside", "why"),
    [
        ({"lora_alpha": 32}, "says alpha 8, but"),
        ({"lora_alpha": 8, "use_rslora": True}, "the evidence for RS-LoRA conflicts"),
        ({"lora_alpha": "8"}, "says no number"),
    ],
)
def test_a_config_beside_the_file_and_one_in_it_that_contradict_each_other_leave_the_scale_open(
    prefix, module, beside, why, read
):
    tensors = lora(module, alpha=None, spelling="peft")
    config = {"peft_type": "LORA", "r": 16, "target_modules": ["a"], **beside}
    adapter = read(tensors, embedded(prefix, r=16, lora_alpha=8), config, "adapter_model.safetensors")
    assert (scales(adapter), errors(adapter)) == ({module: UNKNOWN}, ["scale-unknown"])
    assert why in next(adapter.contributions).why


@pytest.mark.parametrize("module", ["transformer.a", "base_model.model.a"])
def test_two_configs_that_agree_give_their_scale(module, read):
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 8, "use_rslora": True, "target_modules": ["a"]}
    tensors = lora(module, alpha=None, spelling="peft")
    adapter = read(tensors, embedded(r=16, lora_alpha=8, use_rslora=True), config, "adapter_model.safetensors")
    assert (scales(adapter), errors(adapter)) == ({module: STABILISED}, [])
    assert [item.where for item in adapter.evidence if item.about == "rslora"] == [
        "metadata lora_adapter_metadata transformer.",
        adapter.checkpoint.config_path,
    ]


def test_of_two_configs_the_one_of_another_rank_is_not_theirs(read):
    config = {"peft_type": "LORA", "r": 16, "lora_alpha": 8, "target_modules": ["a"]}
    tensors = lora("base_model.model.a", alpha=None, spelling="peft")
    adapter = read(tensors, embedded("", r=4, lora_alpha=64, use_rslora=True), config, "adapter_model.safetensors")
    assert (scales(adapter), errors(adapter)) == ({"base_model.model.a": STANDARD}, [])


# What is stored under a name where yes or no is expected: NaN, and types that Python has no number for.
NO_NUMBERS = {
    "NaN": ("F32", (), float("nan")),
    "F8_E8M0": ("F8_E8M0", (), b"\x7f"),
    "F8_E4M3FNUZ": ("F8_E4M3FNUZ", (), b"\x40"),
}


@pytest.mark.parametrize("flag", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_a_flag_that_is_no_number_is_neither_yes_nor_no(flag, read):
    adapter = read({**lora("lora_unet_a"), "use_rslora_flag": flag})
    assert (scales(adapter), adapter.rslora.source) == ({"lora_unet_a": UNKNOWN}, "conflict")
    assert ("the flag is not a number", "use_rslora_flag") in [(item.says, item.where) for item in adapter.evidence]
    assert scales(read({**lora("lora_unet_a"), "use_rslora_flag": flag}, rslora=True)) == {"lora_unet_a": STABILISED}


@pytest.mark.parametrize("flag", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_a_flag_of_a_module_that_is_no_number_leaves_that_module_open(flag, read):
    tensors = {**flagged("a", 1), **lora("lora_unet_b", use_rslora_flag=flag)}
    assert scales(read(tensors)) == {"lora_unet_a": STABILISED, "lora_unet_b": UNKNOWN}


SHARDS = ("x-00001-of-00002.safetensors", "x-00002-of-00002.safetensors")


def test_shards_that_contradict_each_other_are_no_evidence(write_safetensors):
    paths = [
        write_safetensors(lora(f"lora_unet_{part}"), {"lora_inspect.scale": rule}, name)
        for part, rule, name in zip("ab", ("alpha/sqrt(rank)", "alpha/rank"), SHARDS, strict=True)
    ]
    adapter = read_adapter(open_checkpoint(str(paths[0])))
    assert errors(adapter) == ["shards-contradict"]
    message = next(problem.message for problem in adapter.problems if problem.code == "shards-contradict")
    assert all(str(path) in message for path in paths)
    assert "lora_inspect.scale" in message


def test_shards_of_which_one_says_the_rule_are_read_together(write_safetensors):
    first = write_safetensors(lora("lora_unet_a"), {"lora_inspect.scale": "alpha/sqrt(rank)", "note": "a"}, SHARDS[0])
    write_safetensors(lora("lora_unet_b"), {"note": "b"}, SHARDS[1])
    adapter = read_adapter(open_checkpoint(str(first)))
    assert (scales(adapter), errors(adapter)) == ({"lora_unet_a": STABILISED, "lora_unet_b": STABILISED}, [])
