"""From a file to the scale of every module: alphas stored, configured, absent and broken; configs and their files."""

import json
import math

import pytest
from adapters import IN, OUT, lora, loras, split
from hypothesis import given
from hypothesis import strategies as st
from make_synthetic import element, encode
from strategies import alphas, ranks

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter

CONFIG = {"peft_type": "LORA", "r": 16, "lora_alpha": 8, "target_modules": ["q"]}
PEFT = lora("base_model.model.blocks.0.q", alpha=None, spelling="peft")
DIFFUSERS = lora("transformer.blocks.0.q", alpha=None, spelling="peft")


def only(adapter):
    (contribution,) = adapter.contributions
    return contribution


def errors(adapter):
    return [problem.code for problem in adapter.problems if problem.severity == "error"]


@pytest.mark.parametrize(
    ("module", "scheme"),
    [
        ("lora_unet_blocks_0_q", "kohya"),
        ("lora_te2_text_model_q", "kohya"),
        ("lora_transformer_blocks_0_q", "kohya"),
        ("lycoris_blocks_0_q", "lycoris"),
        ("transformer.blocks.0.q", "diffusers"),
        ("unet.down_blocks.0.q", "diffusers"),
        ("diffusion_model.blocks.0.q", "comfyui"),
        ("blocks.0.q", "dotted"),
    ],
)
@pytest.mark.parametrize("rank", [1, 16])
def test_no_alpha_means_scale_one_where_the_scheme_says_so(module, scheme, rank, read):
    adapter = read(lora(module, rank=rank, alpha=None))
    assert adapter.scheme == scheme
    assert only(adapter).scale == 1.0
    assert errors(adapter) == []


def test_peft_weights_without_their_config_have_an_unknown_scale(read):
    adapter = read(PEFT)
    assert (only(adapter).scale, errors(adapter)) == (None, ["scale-unknown"])
    assert "adapter_config.json" in only(adapter).why
    assert only(read(PEFT, alpha=8.0)).scale is None, "the rule is still unknown"
    assert only(read(PEFT, rslora=True)).scale is None, "the alpha is still unknown"
    assert only(read(PEFT, alpha=8.0, rslora=True)).scale == 2.0
    assert only(read(PEFT, alpha=8.0, rslora=False)).scale == 0.5


# tensors, config, scale
CONFIGURED = {
    "standard": (PEFT, CONFIG, 0.5),
    "stabilised": (PEFT, {**CONFIG, "use_rslora": True}, 2.0),
    "lora_alpha 0 is 0": (PEFT, {**CONFIG, "lora_alpha": 0}, 0.0),
    "negative alpha stands": (PEFT, {**CONFIG, "lora_alpha": -8}, -0.5),
    "alpha_pattern": (PEFT, {**CONFIG, "alpha_pattern": {"q": 32}}, 2.0),
    "alpha_pattern of another module": (PEFT, {**CONFIG, "alpha_pattern": {"k": 32}}, 0.5),
    "rank_pattern": (PEFT, {**CONFIG, "r": 4, "rank_pattern": {r"blocks\.0\.q": 16}}, 0.5),
    "no lora_alpha is PEFT's default of 8": (PEFT, {"peft_type": "LORA", "r": 16}, 0.5),
    "lora_alpha no number": (PEFT, {**CONFIG, "lora_alpha": "8"}, None),
    "rank of another file": (PEFT, {**CONFIG, "r": 8}, None),
}


@pytest.mark.parametrize(("tensors", "config", "scale"), CONFIGURED.values(), ids=CONFIGURED)
def test_the_scale_that_a_config_gives(tensors, config, scale, read):
    adapter = read(tensors, config=config, name="adapter_model.safetensors")
    assert only(adapter).scale == scale
    assert errors(adapter) == ([] if scale is not None else ["scale-unknown"])


# file name, tensors, config, whether it counts
BELONGING = {
    "named adapter_model": ("adapter_model.safetensors", PEFT, CONFIG, True),
    "a numbered adapter_model": ("adapter_model-2.safetensors", PEFT, {**CONFIG, "target_modules": ["v"]}, True),
    "rank and targets fit": ("style.safetensors", PEFT, CONFIG, True),
    "targets as a regular expression": ("style.safetensors", PEFT, {**CONFIG, "target_modules": r".*\.0\.q"}, True),
    "a whole name": ("style.safetensors", PEFT, {**CONFIG, "target_modules": ["blocks.0.q"]}, True),
    "all linear layers": ("style.safetensors", PEFT, {**CONFIG, "target_modules": "all-linear"}, True),
    "rank differs": ("style.safetensors", PEFT, {**CONFIG, "r": 8}, False),
    "targets differ": ("style.safetensors", PEFT, {**CONFIG, "target_modules": ["k"]}, False),
    "a target is no end of a name": ("style.safetensors", PEFT, {**CONFIG, "target_modules": ["0"]}, False),
    "a broken regular expression": ("style.safetensors", PEFT, {**CONFIG, "target_modules": "("}, False),
    "no targets": ("style.safetensors", PEFT, {**CONFIG, "target_modules": None}, False),
    "MLX's file of the same name": ("adapter_model.safetensors", PEFT, {"rank": 16, "scale": 20.0}, False),
    "names without dots": ("style.safetensors", loras(1, alpha=None), CONFIG, False),
}


@pytest.mark.parametrize(("name", "tensors", "config", "counts"), BELONGING.values(), ids=BELONGING)
def test_a_config_counts_only_for_the_file_it_belongs_to(name, tensors, config, counts, read):
    adapter = read(tensors, config=config, name=name)
    assert (adapter.rslora.source == "adapter_config") == counts
    if not counts:
        assert only(adapter).scale == only(read(tensors, name="elsewhere/x.safetensors")).scale


def test_targets_that_are_refused_are_no_matter_where_ranks_differ(read):
    other = lora("base_model.model.layers.1.q", rank=4, alpha=None, spelling="peft")
    config = {**CONFIG, "target_modules": "(a+)+"}
    assert "pattern-unsupported" in {
        problem.code for problem in read(PEFT, config=config, name="style.safetensors").problems
    }
    adapter = read({**PEFT, **other}, config=config, name="style.safetensors")
    assert "pattern-unsupported" not in {problem.code for problem in adapter.problems}


def test_a_config_beside_a_kohya_file_changes_nothing(read):
    adapter = read(loras(1), config={**CONFIG, "use_rslora": True, "lora_alpha": 99, "init_lora_weights": "pissa"})
    assert (only(adapter).scale, adapter.rslora.source, errors(adapter)) == (0.5, "default", [])


def test_an_embedded_config_gives_alpha_and_rule_of_its_own_component(read):
    about = {"transformer.r": 16, "transformer.lora_alpha": 8, "text_encoder.r": 4, "text_encoder.lora_alpha": 16}
    tensors = {**DIFFUSERS, **lora("text_encoder.layers.0.q", rank=4, alpha=None, spelling="peft")}
    adapter = read(tensors, {"lora_adapter_metadata": json.dumps(about)})
    assert {c.module.component: c.scale for c in adapter.contributions} == {"model": 0.5, "text_encoder": 4.0}


# What is stored as alpha, and the scale at rank 16; None where no program agrees with another.
STORED = {
    "F32": (("F32", (), 8.0), 0.5),
    "F64 in a list": (("F64", (1,), 8.0), 0.5),
    "F16": (("F16", (), 8.0), 0.5),
    "BF16": (("BF16", (), 8.0), 0.5),
    "I64": (("I64", (), 8), 0.5),
    "I32 in a list": (("I32", (1,), 8), 0.5),
    "U8": (("U8", (), 8), 0.5),
    "BOOL": (("BOOL", (), 1), 1 / 16),
    "negative": (("F32", (), -8.0), -0.5),
    "zero": (("F32", (), 0.0), None),
    "minus zero": (("F32", (), -0.0), None),
    "integer zero": (("I64", (), 0), None),
    "NaN": (("F32", (), math.nan), None),
    "infinity": (("F16", (), math.inf), None),
    "no plain number": (("C64", (), bytes(8)), None),
}


@pytest.mark.parametrize(("stored", "scale"), STORED.values(), ids=STORED)
def test_a_stored_alpha_of_every_type(stored, scale, read):
    adapter = read(loras(1, alpha=stored))
    assert (only(adapter).scale, errors(adapter)) == (scale, [] if scale else ["scale-unknown"])
    if scale is None:
        assert only(adapter).why.startswith("the stored alpha is ")
        assert any("--alpha N" in problem.message for problem in adapter.problems)
        assert only(read(loras(1, alpha=stored), alpha=4.0)).scale == 0.25
    else:
        assert only(read(loras(1, alpha=stored), alpha=4.0)).scale == scale, "--alpha settles only what is unknown"


@pytest.mark.parametrize("alpha", [0.0, math.nan])
def test_modules_whose_alpha_is_as_useless_are_one_problem(alpha, read):
    (problem,) = read(loras(3, alpha=alpha)).problems
    assert problem.message.startswith("the scale of lora_unet_blocks_0_attn_q and 2 more modules is unknown")


@pytest.mark.parametrize("rank", ["16", 16.5, None])
def test_a_config_whose_rank_is_no_whole_number_is_not_theirs(rank, read):
    adapter = read(PEFT, None, {**CONFIG, "r": rank}, "adapter_model.safetensors")
    assert (
        only(adapter).why
        == "the config's rank is impossible but that of the tensors is 16, so the config does not match"
    )


def test_an_alpha_of_several_numbers_is_refused_by_key(read):
    with pytest.raises(LoraInspectError, match=r"lora_unet_blocks_0_attn_q\.alpha has shape"):
        read(loras(1, alpha=("F32", (3,), 1.0)))


def test_a_stored_alpha_that_contradicts_the_config_is_unknown(read):
    tensors = {**PEFT, "base_model.model.blocks.0.q.alpha": ("F32", (), 9.0)}
    adapter = read(tensors, config=CONFIG, name="adapter_model.safetensors")
    assert (only(adapter).scale, errors(adapter)) == (None, ["scale-unknown"])
    agreeing = {**PEFT, "base_model.model.blocks.0.q.alpha": ("F32", (), 8.0)}
    assert only(read(agreeing, config=CONFIG, name="adapter_model.safetensors")).scale == 0.5


def test_rank_one_has_the_same_scale_under_both_rules_even_where_they_conflict(read):
    tensors = {**loras(1, rank=1, alpha=3.0), "use_rslora_flag": ("BOOL", (), 1)}
    adapter = read(tensors, {"lora_inspect.scale": "alpha/rank"})
    assert adapter.rslora.source == "conflict"
    assert (only(adapter).scale, errors(adapter)) == (3.0, [])


def test_the_rank_is_each_modules_own(read):
    tensors = {**lora("lora_unet_a", 4, 8.0), **lora("lora_unet_b", 16, 8.0), "use_rslora_flag": ("BOOL", (), 1)}
    assert {c.rank: c.scale for c in read(tensors).contributions} == {4: 4.0, 16: 2.0}


def test_the_slices_of_a_split_layer_share_the_alpha_and_lie_below_each_other(read):
    adapter = read(split(parts=(1, 0, 2), rank=4, alpha=2.0, out=2))
    assert [(c.rows, c.scale) for c in adapter.contributions] == [((0, 2), 0.5), ((2, 4), 0.5), ((4, 6), 0.5)]


def test_fan_in_fan_out_says_that_the_base_is_transposed(read):
    adapter = read(PEFT, config={**CONFIG, "fan_in_fan_out": True}, name="adapter_model.safetensors")
    assert only(adapter).fan_in_fan_out
    assert not only(read(PEFT, config=CONFIG, name="adapter_model.safetensors")).fan_in_fan_out


@given(rank=ranks, alpha=alphas, rslora=st.booleans(), dtype=st.sampled_from(["F32", "BF16", "F64"]))
def test_scale_is_alpha_over_rank_or_its_root_for_any_adapter(tmp_path_factory, rank, alpha, rslora, dtype):
    tensors = {
        "lora_unet_a.lora_down.weight": ("F32", (rank, IN), bytes(4 * rank * IN)),
        "lora_unet_a.lora_up.weight": ("F32", (OUT, rank), bytes(4 * OUT * rank)),
        "lora_unet_a.alpha": (dtype, (), element(dtype, alpha)),
        "use_rslora_flag": ("BOOL", (), bytes([rslora])),
    }
    path = tmp_path_factory.mktemp("adapter") / "a.safetensors"
    path.write_bytes(encode(tensors))
    contribution = only(read_adapter(open_checkpoint(str(path))))
    assert contribution.scale == pytest.approx(alpha / (rank**0.5 if rslora else rank), rel=1e-15)


@pytest.mark.parametrize(("setting", "says"), [({}, "8/16"), ({"use_rslora": True}, "8/sqrt(16)")])
def test_a_scale_is_said_as_the_quotient_that_it_is(setting, says, read):
    assert only(read(PEFT, config={**CONFIG, **setting}, name="adapter_model.safetensors")).why == says
    assert only(read(lora("lora_unet_a", rank=16, alpha=8.0), rslora=bool(setting))).why == says


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": "corda"}, "corda"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga"),
        ({"modules_to_save": ["head"]}, "modules_to_save"),
        ({"modules_to_save": "head"}, "modules_to_save is not a list"),
        ({"modules_to_save": [1]}, "modules_to_save is not a list"),
        ({"bias": "some"}, "bias is some"),
        ({"bias": ["all"]}, "bias is ['all']"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"peft_type": "POLY"}, "POLY"),
    ],
)  # fmt: skip
def test_a_config_that_means_more_than_factors_is_an_error_by_name(setting, says, read):
    adapter = read(PEFT, config={**CONFIG, **setting}, name="adapter_model.safetensors")
    messages = [problem.message for problem in adapter.problems if problem.severity == "error"]
    assert messages
    assert says in messages[0]


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal"])
def test_an_initialisation_that_leaves_the_base_alone_is_no_problem(init, read):
    adapter = read(PEFT, config={**CONFIG, "init_lora_weights": init}, name="adapter_model.safetensors")
    assert errors(adapter) == []


@pytest.mark.parametrize("init", ["", "True", "gaussian", "orthogonal"])
def test_an_initialisation_in_the_metadata_that_leaves_the_base_alone_is_no_problem(init, read):
    assert errors(read(loras(1), {"ss_init_lora_weights": init})) == []


def test_an_initialisation_in_the_metadata_that_changes_the_base_is_an_error(read):
    assert errors(read(loras(1), {"ss_init_lora_weights": "pissa_niter_4"})) == ["residual-base"]
    included = {"ss_init_lora_weights": "pissa", "lora_inspect.initial_factors": "included"}
    assert errors(read(loras(1), included)) == []


def test_evidence_that_was_lost_is_told_by_every_command(write_safetensors):
    file = write_safetensors(loras(), {"lora_adapter_metadata": "{"})
    (note,) = read_adapter(open_checkpoint(str(file))).notes
    assert "lora_adapter_metadata is not a JSON object" in note
