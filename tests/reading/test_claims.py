"""Which tensor belongs to which module: each claimed once, or left and named."""

import pytest
from adapters import IN, OUT, lora, split
from hypothesis import given
from hypothesis import strategies as st
from strategies import paths, ranks

from lora_inspect.files.safetensors.header import TensorInfo, count_elements
from lora_inspect.reading.keys.claims import claim


def infos(tensors):
    return {
        name: TensorInfo(name, dtype, tuple(shape), "f", 0, count_elements(shape) * 4)
        for name, (dtype, shape, *_) in tensors.items()
    }


def claimed(claims):
    return [info.name for module in claims.modules.values() for info in module.tensors]


def codes(claims):
    return [finding.code for finding in claims.findings]


@given(
    st.lists(paths, min_size=1, max_size=4, unique_by=lambda path: path.replace(".", "_")),
    ranks,
    st.booleans(),
    st.booleans(),
    st.sampled_from(["lora_unet_", "lycoris_", "base_model.model.", "diffusion_model.", "unet."]),
    st.sampled_from(["kohya", "peft"]),
    st.lists(st.text(max_size=5), max_size=3),
)
def test_every_tensor_is_claimed_once_or_left(modules, rank, alpha, magnitude, prefix, spelling, junk):
    tensors = {}
    for path in modules:
        name = prefix + (path.replace(".", "_") if prefix.endswith("_") else path)
        more = {"dora_scale": ("F32", (OUT, 1), 1.0)} if magnitude else {}
        tensors |= lora(name, rank, 1.0 if alpha else None, spelling=spelling, **more)
    stray = {f"stray {text} tensor": ("F32", (2,), 0) for text in junk}
    claims = claim(infos({**tensors, **stray, "use_dora_flag": ("BOOL", (), 1)}))
    assert sorted(claimed(claims)) == sorted(tensors)
    assert sorted(claims.unclaimed) == sorted(stray)
    assert claims.flags == ("use_dora_flag",)
    assert len(claims.modules) == len(modules)
    assert claims.findings == ()


SPLIT = "lora_unet_a"
PAIR = {"lora_unet_a.lora_down.weight": ("F32", (4, IN)), "lora_unet_a.lora_up.weight": ("F32", (OUT, 4))}
MISFITS = {
    "no up": ({"lora_unet_a.lora_down.weight": ("F32", (4, IN))}, "incomplete", "no up factor"),
    "no down": ({"lora_unet_a.lora_up.weight": ("F32", (OUT, 4))}, "incomplete", "no down factor"),
    "no up, PEFT": ({"base_model.model.a.lora_A.weight": ("F32", (4, IN))}, "incomplete", "no up factor"),
    "no up, adapter infix": ({"a.lora_A.default.weight": ("F32", (4, IN))}, "incomplete", "no up factor"),
    "no up, old UNet": ({"unet.a.processor.to_q_lora.down.weight": ("F32", (4, IN))}, "incomplete", "no up factor"),
    "no up, split": ({"a.lora_down.1.weight": ("F32", (4, IN))}, "incomplete", "no up factor"),
    "core alone": ({"a.lora_mid.weight": ("F32", (4, 4, 3, 3))}, "incomplete", "no down and no up factor"),
    "ranks differ": ({**PAIR, "lora_unet_a.lora_up.weight": ("F32", (OUT, 5))}, "shape-mismatch", "rank 4"),
    "down a scalar": ({**PAIR, "lora_unet_a.lora_down.weight": ("F32", ())}, "shape-mismatch", "two dimensions"),
    "up a vector": ({**PAIR, "lora_unet_a.lora_up.weight": ("F32", (OUT,))}, "shape-mismatch", "two dimensions"),
    "up with a kernel": ({**PAIR, "lora_unet_a.lora_up.weight": ("F32", (OUT, 4, 3, 3))}, "shape-mismatch", "kernel"),
    "rank 0": (
        {"a.lora_down.weight": ("F32", (0, IN)), "a.lora_up.weight": ("F32", (OUT, 0))}, "shape-mismatch", "empty"),
    "core of another rank": ({**PAIR, "lora_unet_a.lora_mid.weight": ("F32", (5, 4, 3, 3))}, "shape-mismatch", "mid"),
    "core and a kernel on down": (
        {"a.lora_down.weight": ("F32", (4, IN, 3, 3)), "a.lora_up.weight": ("F32", (OUT, 4, 1, 1)),
         "a.lora_mid.weight": ("F32", (4, 4, 3, 3))}, "shape-mismatch", "kernel"),
    "slices 0 and 2": (split(parts=(0, 2), alpha=None), "shape-mismatch", "numbered 0, 2"),
    "slices from 1": (split(parts=(1, 2), alpha=None), "shape-mismatch", "numbered 1, 2"),
    "slices of different inputs": (
        {**split("a", parts=(0,), alpha=None), "a.lora_down.1.weight": ("F32", (4, IN + 1)),
         "a.lora_up.1.weight": ("F32", (2, 4))}, "shape-mismatch", "different numbers of inputs"),
    "slices of a convolution": (
        {f"a.lora_{side}.{i}.weight": ("F32", (4, 4, 1, 1)) for i in (0, 1) for side in ("down", "up")},
        "shape-mismatch", "a split layer must be Linear"),
    "slices with a kernel on up": (
        {**split("a", parts=(0,), alpha=None), "a.lora_down.1.weight": ("F32", (4, IN)),
         "a.lora_up.1.weight": ("F32", (2, 4, 1, 1))}, "shape-mismatch", "a.lora_up.1.weight has the shape"),
    "whole and slices": (
        {**split("lora_unet_a", parts=(0, 1), alpha=None), **PAIR}, "shape-mismatch", "numbered"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "code", "says"), MISFITS.values(), ids=MISFITS)
@pytest.mark.parametrize("alpha", [True, False])
def test_factors_that_do_not_fit_together_are_an_error_and_unclaimed(tensors, code, says, alpha):
    module = next(iter(tensors)).split(".lora_")[0].split(".processor")[0]
    tensors = {**tensors, **({f"{module}.alpha": ("F32", ())} if alpha else {})}
    claims = claim(infos(tensors))
    assert codes(claims)[0] == code
    assert claims.findings[0].keys
    assert says in claims.findings[0].message
    assert "; " in claims.findings[0].message, "the way out"
    assert sorted([*claims.unclaimed, *claimed(claims)]) == sorted(tensors)


@pytest.mark.parametrize(
    "second",
    ["lora_unet_a.lora_A.weight", "lora_unet_a.lora.down.weight", "lora_unet_a.lora_A", "lora_unet_a.lora_A.x.weight"],
)
def test_a_role_spelled_twice_is_an_error(second):
    claims = claim(infos({**PAIR, second: ("F32", (4, IN))}))
    assert codes(claims) == ["duplicate-tensor"]
    assert claims.unclaimed == (second,)


def test_a_magnitude_spelled_twice_is_an_error():
    tensors = {**PAIR, "lora_unet_a.dora_scale": ("F32", (OUT, 1)), "lora_unet_a.magnitude": ("F32", (OUT,))}
    assert codes(claim(infos(tensors))) == ["duplicate-tensor"]


@pytest.mark.parametrize("suffix", [".alpha", ".dora_scale", ".magnitude", ".use_rslora_flag"])
def test_what_belongs_to_no_factors_is_left(suffix):
    claims = claim(infos({f"activation{suffix}": ("F32", (1,))}))
    assert (claims.modules, claims.unclaimed, codes(claims)) == ({}, (f"activation{suffix}",), [])


# suffixes and shapes of a kernel 3x3, shape of the change, is it Linear
SHAPES = {
    "linear": ({"lora_down.weight": (4, IN), "lora_up.weight": (OUT, 4)}, (OUT, IN), True),
    "conv 1x1": ({"lora_down.weight": (4, IN, 1, 1), "lora_up.weight": (OUT, 4, 1, 1)}, (OUT, IN, 1, 1), False),
    "conv 3x3": ({"lora_down.weight": (4, IN, 3, 3), "lora_up.weight": (OUT, 4, 1, 1)}, (OUT, IN, 3, 3), False),
    "conv 1d": ({"lora_A.weight": (4, IN, 3), "lora_B.weight": (OUT, 4, 1)}, (OUT, IN, 3), False),
    "conv 3d": ({"lora_A.weight": (4, IN, 1, 2, 2), "lora_B.weight": (OUT, 4, 1, 1, 1)}, (OUT, IN, 1, 2, 2), False),
    "Tucker": (
        {"lora_down.weight": (4, IN, 1, 1), "lora_mid.weight": (4, 4, 3, 3), "lora_up.weight": (OUT, 4, 1, 1)},
        (OUT, IN, 3, 3), False),
    "Mochi": ({"lora_A": (4, IN), "lora_B": (OUT, 4)}, (OUT, IN), True),
    "old diffusers": ({"lora.down.weight": (4, IN), "lora.up.weight": (OUT, 4)}, (OUT, IN), True),
    "old text encoder": (
        {"lora_linear_layer.down.weight": (4, IN), "lora_linear_layer.up.weight": (OUT, 4)}, (OUT, IN), True),
    "raw state dict": ({"lora_A.default.weight": (4, IN), "lora_B.default.weight": (OUT, 4)}, (OUT, IN), True),
}  # fmt: skip


@pytest.mark.parametrize(("suffixes", "shape", "linear"), SHAPES.values(), ids=SHAPES)
def test_the_shape_that_the_factors_change(suffixes, shape, linear):
    claims = claim(infos({f"x.{suffix}": ("F32", size) for suffix, size in suffixes.items()}))
    (contribution,) = claims.modules["x"].contributions
    assert (contribution.shape, contribution.is_linear) == (shape, linear)
    assert contribution.formula.rank(contribution.shapes) == 4
    assert (claims.unclaimed, claims.findings) == ((), ())


def test_the_old_unet_spelling_hides_the_end_of_the_path():
    names = {
        f"unet.a.attn1.processor.{leaf}_lora.{side}.weight": ("F32", (4, 4))
        for leaf in ("to_q", "to_out")
        for side in ("down", "up")
    }
    assert sorted(claim(infos(names)).modules) == ["unet.a.attn1.to_out.0", "unet.a.attn1.to_q"]


def test_differences_stand_beside_the_slices_of_a_split_layer():
    beside = {f"{SPLIT}.diff_b": ("F32", (6,)), f"{SPLIT}.diff": ("F32", (6, IN))}
    claims = claim(infos({**beside, **split(SPLIT, alpha=None)}))
    assert (claims.findings, claims.unclaimed) == ((), ())
    found = [(c.algorithm.name, c.rows) for c in claims.modules[SPLIT].contributions]
    assert found == [
        ("full", None), ("lora", (0, 2)), ("lora", (2, 4)), ("lora", (4, 6)), ("full_bias", None),
    ]  # fmt: skip


def test_a_slice_too_few_beside_a_difference_is_an_error():
    claims = claim(infos({**split(SPLIT, parts=(0, 2), alpha=None), f"{SPLIT}.diff_b": ("F32", (6,))}))
    assert (codes(claims), claims.modules) == (["shape-mismatch"], {})


@pytest.mark.parametrize("order", [1, -1])
def test_the_weight_comes_first_and_on_it_what_is_added(order):
    tensors = {
        "lora_unet_a.diff_b": ("F32", (OUT,)),
        "lora_unet_a.dora_scale": ("F32", (OUT, 1)),
        **PAIR,
        "lora_unet_a.diff": ("F32", (OUT, IN)),
    }
    claims = claim(infos(dict(list(tensors.items())[::order])))
    assert [c.algorithm.name for c in claims.modules["lora_unet_a"].contributions] == ["full", "lora", "full_bias"]
