"""Adapters of mlx-lm: what kind of layer their factors are of, and what the config beside them says."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.mlx_config import MlxConfig, is_mlx_config

RANK, SCALE = 4, 2.5
PARAMETERS = {"rank": RANK, "scale": SCALE, "dropout": 0.0}
CONFIG = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": PARAMETERS}
NAME = "adapters.safetensors"


def factors(path="model.layers.0.self_attn.q_proj", inputs=5, out=6, rank=RANK):
    return {f"{path}.lora_a": ("F32", (inputs, rank), 0.5), f"{path}.lora_b": ("F32", (rank, out), 0.25)}


def experts(path="model.layers.0.mlp.switch_mlp.up_proj", count=3, inputs=5, out=6, rank=RANK):
    return {f"{path}.lora_a": ("F32", (count, rank, inputs), 1), f"{path}.lora_b": ("F32", (count, out, rank), 1)}


def only(adapter):
    (contribution,) = adapter.contributions
    return contribution


def errors(adapter):
    return [problem.code for problem in adapter.problems if problem.severity == "error"]


def said(adapter, code):
    return [problem.message for problem in adapter.problems if problem.code == code]


def test_a_file_with_its_config(read):
    adapter = read(factors(), config=CONFIG, name=NAME)
    contribution = only(adapter)
    assert (adapter.scheme, adapter.trainer, adapter.problems) == ("mlx", "mlx-lm", ())
    assert (contribution.shape, contribution.rank, contribution.alpha, contribution.scale) == (
        (6, 5),
        RANK,
        None,
        SCALE,
    )
    assert "lora_parameters.scale 2.5 in" in contribution.why
    assert (adapter.rslora.value, adapter.dora.value) == (False, False)
    assert {(one.about, one.says) for one in adapter.evidence} == {
        ("scale", "lora_parameters.scale is 2.5"),
        ("dora", "fine_tune_type is lora"),
    }


@pytest.mark.parametrize(
    ("parameters", "scale", "why"),
    [
        ({"rank": RANK, "scale": 10.0}, 10.0, "lora_parameters.scale 10 in"),
        ({"rank": RANK, "scale": 0}, 0.0, "lora_parameters.scale 0 in"),
        ({"rank": RANK, "scale": -1}, -1.0, "lora_parameters.scale -1 in"),
        ({"scale": 3}, 3.0, "lora_parameters.scale 3 in"),
        ({"rank": 8, "scale": 3}, None, "is 8 but that of the tensors is 4, so the config does not match"),
        ({"rank": True, "scale": 3}, None, "is not a number but that of the tensors is 4"),
        ({"rank": "4", "scale": 3}, None, "is not a number but that of the tensors is 4"),
        ({"rank": None, "scale": 3}, None, "is not a number but that of the tensors is 4"),
        ({"rank": RANK}, None, "is not a number"),
        ({"rank": RANK, "alpha": 16}, None, "is not a number"),
        ({"rank": RANK, "scale": True}, None, "is not a number"),
        ({"rank": RANK, "scale": "3"}, None, "is not a number"),
        ({"rank": RANK, "scale": 10**400}, None, "is not a number"),
        ({"rank": RANK, "scale": [3]}, None, "is not a number"),
        ([RANK, 3], None, "is not a number"),
        (None, None, "is not a number"),
    ],
    ids=str,
)
def test_the_scale_that_a_config_gives(parameters, scale, why, read):
    adapter = read(factors(), config={**CONFIG, "lora_parameters": parameters}, name=NAME)
    assert only(adapter).scale == scale
    assert why in only(adapter).why
    assert errors(adapter) == ([] if scale is not None else ["scale-unknown"])


def test_without_a_config_alpha_is_the_way_out(read):
    adapter = read(factors(), name=NAME)
    assert (only(adapter).scale, adapter.open, errors(adapter)) == (None, ("alpha",), ["scale-unknown"])
    (message,) = said(adapter, "scale-unknown")
    assert "lora_parameters.scale in adapter_config.json, which is missing" in message
    assert message.endswith("take the rank times the trained scale as alpha; give --alpha N")
    settled = read(factors(), name=NAME, alpha=10.0)
    assert (only(settled).scale, only(settled).why, errors(settled)) == (2.5, "10/4", [])


def test_settings_cannot_change_what_a_config_says(read):
    (message,) = said(read(factors(), config=CONFIG, name=NAME, alpha=3.0), "setting-contradicts")
    assert "alpha=3 cannot apply" in message
    assert "which has lora_parameters.scale 2.5 in" in message
    (message,) = said(read(factors(), config=CONFIG, name=NAME, rslora=True), "setting-contradicts")
    assert "no module has RS-LoRA's rule" in message


def test_a_config_of_peft_is_not_theirs(read):
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj"]}
    adapter = read(factors(), config=config, name=NAME)
    assert (only(adapter).scale, errors(adapter)) == (None, ["scale-unknown"])


def test_their_config_is_none_of_other_adapters(read):
    tensors = {"blocks.0.q.lora_down.weight": ("F32", (4, 5), 1), "blocks.0.q.lora_up.weight": ("F32", (6, 4), 1)}
    adapter = read(tensors, config=CONFIG, name=NAME)
    assert (only(adapter).scale, adapter.scheme) == (1.0, "dotted")


@pytest.mark.parametrize("config", [{"rank": 16, "scale": 20.0}, {"peft_type": "LORA", "lora_parameters": {}}, {}])
def test_what_is_no_config_of_theirs(config):
    assert not is_mlx_config(config)


# What the config says beside rank 4, and the note.
EARLIER = {
    "up to 0.13.0": ({"lora_layers": 4}, 16, "mlx-lm up to 0.14.1 trained this at scale · alpha/rank, 10, and"),
    "up to 0.16": ({"lora_layers": 4, "use_dora": False}, 16, "mlx-lm up to 0.14.1 would have trained this at"),
    "of one": ({"lora_layers": 4}, 4, None),
    "later": ({"num_layers": 4, "fine_tune_type": "lora"}, 16, None),
    "no alpha": ({"lora_layers": 4}, None, None),
    "alpha is no number": ({"lora_layers": 4}, True, None),
}


@pytest.mark.parametrize(("says", "alpha", "note"), EARLIER.values(), ids=EARLIER)
def test_scales_that_early_versions_trained_with_are_a_note(says, alpha, note, read):
    parameters = {**PARAMETERS, **({} if alpha is None else {"alpha": alpha})}
    adapter = read(factors(), config={**says, "lora_parameters": parameters}, name=NAME)
    assert only(adapter).scale == SCALE
    notes = said(adapter, "trained-scale")
    assert len(notes) == (note is not None)
    assert all(one.startswith(note) and "a multiplier of 4 gives the trained scale" in one for one in notes)
    if alpha == 16:
        assert any("does not use the alpha of 16" in one.says for one in adapter.evidence)


M = ".m"


@pytest.mark.parametrize(
    ("path", "size", "axis", "transposed"),
    [
        ("model.layers.0.self_attn.q_proj", 6, "output", None),
        ("model.embed_tokens", 5, "input", True),
        ("model.rare_name", 5, "input", True),
        ("model.embed_tokens", 6, "output", None),
    ],
)
def test_the_size_of_a_magnitude_tells_an_embedding(path, size, axis, transposed, read):
    tensors = {**factors(path), path + M: ("F32", (size,), 1)}
    contribution = only(read(tensors, config={**CONFIG, "fine_tune_type": "dora"}, name=NAME))
    assert (contribution.magnitude.axis, contribution.algorithm.transposed) == (axis, transposed)


@pytest.mark.parametrize(
    ("path", "axis"), [("model.embed_tokens", "input"), ("wte", "input"), ("model.layers.0.self_attn.o_proj", "output")]
)
def test_the_name_tells_it_where_the_size_does_not(path, axis, read):
    tensors = {**factors(path, inputs=6), path + M: ("F32", (6,), 1)}
    contribution = only(read(tensors, config={**CONFIG, "fine_tune_type": "dora"}, name=NAME))
    assert (contribution.magnitude.axis, contribution.algorithm.transposed) == (axis, axis == "input" or None)


@pytest.mark.parametrize("shape", [(7,), (1, 6), (6, 1), (), (0,)])
def test_a_magnitude_of_another_shape_is_refused(shape, read):
    tensors = {**factors(), "model.layers.0.self_attn.q_proj.m": ("F32", shape, 1)}
    assert "magnitude-shape" in errors(read(tensors, config={**CONFIG, "fine_tune_type": "dora"}, name=NAME))


@pytest.mark.parametrize(
    ("says", "has", "code"),
    [
        ({"fine_tune_type": "dora"}, True, None),
        ({"fine_tune_type": "lora"}, True, "dora-conflict"),
        ({"fine_tune_type": "dora"}, False, "dora-missing"),
        ({"fine_tune_type": "odd"}, True, None),
        ({"use_dora": True}, False, "dora-missing"),
        ({"use_dora": False}, True, "dora-conflict"),
        ({"use_dora": "no"}, True, None),
        ({}, True, None),
    ],
    ids=str,
)
def test_what_the_config_says_of_dora_is_held_against_the_tensors(says, has, code, read):
    tensors = {**factors(), **({"model.layers.0.self_attn.q_proj.m": ("F32", (6,), 1)} if has else {})}
    assert errors(read(tensors, config={**says, "lora_parameters": PARAMETERS}, name=NAME)) == ([code] if code else [])


def test_layers_of_experts(read):
    adapter = read({**experts(), **factors()}, config=CONFIG, name=NAME)
    found = {c.algorithm.name: c for c in adapter.contributions}
    assert found.keys() == {"mlx", "mlx_experts"}
    own = found["mlx_experts"]
    assert (own.algorithm.experts, own.rank, own.scale, own.shape) == (3, RANK, SCALE, (None, None))
    assert "1 layers have the factors of 3 experts each" in {one.says for one in adapter.evidence}
    assert errors(adapter) == []


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4, 5), (3, 6, 2)),
        ((2, 4, 5), (3, 6, 4)),
        ((11, 5), (3, 6, 4)),
        ((5,), (3, 6, 4)),
        ((3, 4, 5), (4, 6)),
        ((5, 4), (3, 6)),
        ((5, 4, 1), (4, 6)),
        ((5, 0), (0, 6)),
        ((), ()),
    ],
    ids=str,
)
def test_factors_that_do_not_fit_together_are_refused(a, b, read):
    tensors = {"x.q.lora_a": ("F32", a, 1), "x.q.lora_b": ("F32", b, 1)}
    assert errors(read(tensors, config=CONFIG, name=NAME)) == ["shape-mismatch"]


def test_one_factor_alone_is_refused(read):
    assert errors(read({"x.q.lora_a": ("F32", (5, 4), 1)}, config=CONFIG, name=NAME)) == ["incomplete"]


def test_what_has_no_place_beside_them_is_refused(read):
    path = "model.layers.0.mlp.switch_mlp.up_proj"
    magnitude = {**experts(path), path + M: ("F32", (6,), 1)}
    assert "is a magnitude of experts" in said(read(magnitude, config=CONFIG, name=NAME), "magnitude-shape")[0]
    both = {**factors("x.q"), "x.q.lora_A.weight": ("F32", (4, 5), 1), "x.q.lora_B.weight": ("F32", (6, 4), 1)}
    assert said(read(both, config=CONFIG, name=NAME), "duplicate-tensor") == [
        "x.q has LoRA next to factors of MLX; leave one of them out"
    ]
    alpha = {**factors("x.q"), "x.q.alpha": ("F32", (), 3.0)}
    assert read(alpha, config=CONFIG, name=NAME).unclaimed == ("x.q.alpha",)


@pytest.mark.parametrize(
    ("name", "is_told"), [(NAME, True), ("0000100_adapters.safetensors", True), ("model.safetensors", False)]
)
def test_whole_weights_are_told_by_config_and_name(name, is_told, read):
    adapter = read({"model.layers.0.q.weight": ("F32", (6, 5), 1)}, config={"fine_tune_type": "full"}, name=name)
    assert errors(adapter) == (["no-adapter"] if is_told else [])


def test_a_config_alone_names_the_file_that_lacks(read):
    (message,) = said(read(config=CONFIG), "weights-missing")
    assert "of LoRA of mlx-lm without the weights; fetch the adapters.safetensors that belongs to it" in message


def test_a_folder_is_its_last_weights(write_safetensors, tmp_path):
    for name in (NAME, "0000100_adapters.safetensors", "0000200_adapters.safetensors"):
        write_safetensors(factors(), None, name)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    assert open_checkpoint(str(tmp_path)).name == NAME
    write_safetensors(factors(), None, "model.safetensors")
    with pytest.raises(LoraInspectError, match=r"holds 4 \.safetensors files"):
        open_checkpoint(str(tmp_path))


def test_weights_on_the_way_have_the_same_config(read):
    assert only(read(factors(), config=CONFIG, name="0000100_adapters.safetensors")).scale == SCALE


odd = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(parameters=odd | st.fixed_dictionaries({}, optional=dict.fromkeys(("rank", "scale", "alpha"), odd)), kind=odd)
@example(parameters={"scale": 2**53 + 1}, kind=None)
def test_no_config_is_a_traceback(parameters, kind):
    config = MlxConfig("here", {"lora_parameters": parameters, "fine_tune_type": kind, "use_dora": parameters})
    scale, why = config.scale(4)
    assert (scale is None) or scale == float(parameters["scale"])
    assert why
    assert config.trained_ratio is None or config.trained_ratio
    assert config.method
    assert config.dora is None or isinstance(config.dora[0], bool)


# As the configs of public adapters begin: ml-explore/mlx-examples @2a06af69 and wyek1n/MLX-CLI @8ad1c6c8 (MIT).
REAL = {
    "of MiniCPM": ({"lora_layers": 4, "grad_checkpoint": False, "config": None}, 2.0),
    "of Qwen 2.5": ({"fine_tune_type": "lora", "num_layers": 4, "mask_prompt": False}, None),
}


@pytest.mark.parametrize(("says", "ratio"), REAL.values(), ids=REAL)
def test_real_configs(says, ratio, read):
    parameters = {"rank": 8, "alpha": 16, "dropout": 0.0, "scale": 10.0}
    adapter = read(factors(rank=8), config={**says, "lora_parameters": parameters}, name=NAME)
    assert (only(adapter).scale, errors(adapter)) == (10.0, [])
    assert bool(said(adapter, "trained-scale")) == (ratio is not None)
