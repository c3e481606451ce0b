"""How a square weight is known to be stored as (out, in) or (in, out), and what --transposed may say."""

import pytest
from adapters import lora

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.matching.match import match
from lora_inspect.matching.orientation import check_answers, in_words, together
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.base.base_names import leaf_of

N, WIDE = 6, 10


def weight(path, *shape, bias=None):
    tensors = {f"{path}.weight": ("F32", shape, 1)}
    return tensors | ({} if bias is None else {f"{path}.bias": ("F32", (bias,), 1)})


@pytest.fixture
def oriented(write_safetensors, tmp_path):
    """The orientations of a PEFT adapter's square modules on a base, with a config's flag or none."""

    def orient(modules, weights, flag=None, option=None, scheme="base_model.model.", shapes=None):
        tensors = {}
        for module in modules:
            out, inputs = (shapes or {}).get(module, (N, N))
            tensors |= lora(f"{scheme}{module}", rank=2, out=out, inputs=inputs, spelling="peft", alpha=8.0)
        folder = "with" if flag is not None else "without"
        adapter = write_safetensors(tensors, name=f"{folder}/adapter_model.safetensors")
        if flag is not None:
            config = f'{{"peft_type": "LORA", "r": 2, "lora_alpha": 8, "fan_in_fan_out": {str(flag).lower()}}}'
            (adapter.parent / "adapter_config.json").write_text(config)
        base = open_checkpoint(str(write_safetensors(weights, name="base.safetensors")))
        matching = match(
            read_adapter(open_checkpoint(str(adapter))), base, transposed={} if option is None else {"*": option}
        )
        for name, changes in matching.targets.items():
            assert {placed.place.transposed for placed in changes} == {matching.orientations[name].transposed}
        return {
            name.removesuffix(".weight"): (item.transposed, item.source) for name, item in matching.orientations.items()
        }

    return orient


LINEAR, CONV1D = weight("b.up", WIDE, N, bias=WIDE), weight("b.up", N, WIDE, bias=WIDE)

# modules, base, config's flag, what is found
FOUND = {
    "a sibling of the same leaf that is Conv1D, by its bias": (
        ["a.proj"], weight("a.proj", N, N) | weight("mlp.proj", WIDE, N, bias=N), False, (True, "siblings")),
    "a sibling of the same leaf that is Linear, by its bias": (
        ["a.proj"], weight("a.proj", N, N) | weight("mlp.proj", N, WIDE, bias=N), True, (False, "siblings")),
    "GPT-2's table, where the other layers bear it out": (
        ["h.0.attn.c_proj"], weight("h.0.attn.c_proj", N, N) | weight("h.0.attn.c_attn", N, 3 * N, bias=3 * N), False,
        (True, "architecture")),
    "BigCode's table, where GPT-2's is belied": (
        ["h.0.attn.c_proj"], weight("h.0.attn.c_proj", N, N) | weight("h.0.attn.c_attn", 3 * N, N, bias=3 * N), True,
        (False, "architecture")),
    "the config's yes, for one leaf": (["a.odd"], weight("a.odd", N, N), True, (True, "config")),
    "the config's yes, that others bear out": (["a.odd"], weight("a.odd", N, N) | CONV1D, True, (True, "config")),
    "the config's no": (["a.odd"], weight("a.odd", N, N) | LINEAR, False, (False, "config")),
    "the config's no, for several leaves": (
        ["a.odd", "a.even"], weight("a.odd", N, N) | weight("a.even", N, N) | LINEAR, False, (False, "config")),
    "the config's no, where the base shows nothing": (
        ["a.odd", "a.even"], weight("a.odd", N, N) | weight("a.even", N, N), False, (False, "config")),
    "no config, and a base of Linear layers": (["a.odd"], weight("a.odd", N, N) | LINEAR, None, (False, "scheme")),
    "the config's no, for several leaves with biases": (
        ["a.fc1", "a.fc2"], weight("a.fc1", N, N, bias=N) | weight("a.fc2", N, N, bias=N), False, (False, "config")),
    "the config's no, for names of Conv1D without the bias that it has": (
        ["a.c_proj", "a.c_fc"], weight("a.c_proj", N, N) | weight("a.c_fc", N, N), False, (False, "config")),
    "the config's no, for the one leaf of the adapter, whatever its name": (
        ["a.c_proj", "b.c_proj"], weight("a.c_proj", N, N, bias=N) | weight("b.c_proj", N, N, bias=N), False,
        (False, "config")),
}  # fmt: skip


@pytest.mark.parametrize(("modules", "weights", "flag", "expected"), FOUND.values(), ids=FOUND)
def test_the_strongest_evidence_decides(modules, weights, flag, expected, oriented):
    assert set(oriented(modules, weights, flag).values()) == {expected}


# modules, base, config's flag
OPEN = {
    "a square Linear and a square Conv1D under one flag": (
        ["a.lin", "a.conv"], weight("a.lin", N, N) | weight("a.conv", N, N), True),
    "the same with the flag of the other, beside a Conv1D": (
        ["a.lin", "a.conv"], weight("a.lin", N, N) | weight("a.conv", N, N) | CONV1D, False),
    "a flag that the other layers belie": (["a.odd"], weight("a.odd", N, N) | LINEAR, True),
    "a flag of no that Conv1D layers belie": (["a.odd"], weight("a.odd", N, N) | CONV1D, False),
    "layers of both kinds": (
        ["a.odd"], weight("a.odd", N, N) | LINEAR | weight("c.down", N, WIDE, bias=WIDE), True),
    "siblings of both kinds": (
        ["a.odd"], weight("a.odd", N, N) | weight("b.odd", N, WIDE, bias=N) | weight("c.odd", N, WIDE, bias=WIDE),
        True),
    "no config and no other layer": (["a.odd"], weight("a.odd", N, N), None),
}  # fmt: skip


@pytest.mark.parametrize(("modules", "weights", "flag"), OPEN.values(), ids=OPEN)
@pytest.mark.parametrize("option", [True, False])
def test_what_stays_open_is_an_error_that_the_option_settles(modules, weights, flag, option, oriented):
    with pytest.raises(
        LoraInspectError, match=r"base\.safetensors: a\.\w+\.weight.*--transposed no or --transposed yes"
    ):
        oriented(modules, weights, flag)
    assert set(oriented(modules, weights, flag, option).values()) == {(option, "option")}


@pytest.mark.parametrize("conv", ["conv", "c_attn"])
def test_a_no_tells_nothing_of_what_looks_like_a_conv1d_beside_another_layer(conv, oriented):
    weights = weight("a.lin", N, N, bias=N) | weight(f"a.{conv}", N, N, bias=N)
    with pytest.raises(LoraInspectError, match=rf"a\.{conv}\.weight is square"):
        oriented(["a.lin", f"a.{conv}"], weights, False)
    found = oriented(["a.lin", f"a.{conv}"], weights, False, option=True)
    assert found == {"a.lin": (False, "config"), f"a.{conv}": (True, "option")}


def test_a_yes_is_believed_of_names_of_conv1d_beside_others_that_show_it(oriented):
    weights = weight("a.q_attn", N, N, bias=N) | weight("a.c_attn", N, WIDE, bias=WIDE)
    found = oriented(["a.q_attn", "a.c_attn"], weights, True, shapes={"a.c_attn": (WIDE, N)})
    assert found["a.q_attn"] == (True, "config")


def test_a_yes_that_an_adapted_conv1d_accounts_for_tells_nothing_of_a_linear_layer(oriented):
    """CLVP: PEFT wraps a Linear `out_proj` first and the Conv1D `c_fc` last."""
    weights = weight("a.out_proj", N, N, bias=N) | weight("a.c_fc", N, WIDE, bias=WIDE)
    adapted = {"modules": ["a.out_proj", "a.c_fc"], "shapes": {"a.c_fc": (WIDE, N)}}
    with pytest.raises(LoraInspectError, match=r"a\.out_proj\.weight is square"):
        oriented(weights=weights, flag=True, **adapted)
    found = oriented(weights=weight("a.out_proj", N, N) | weight("a.c_fc", N, WIDE, bias=WIDE), flag=True, **adapted)
    assert found["a.out_proj"] == (False, "bias")


def test_a_no_that_an_adapted_linear_layer_accounts_for_tells_nothing_of_a_conv1d(oriented):
    weights = weight("a.c_proj", N, N, bias=N) | weight("a.head", WIDE, N, bias=WIDE)
    with pytest.raises(LoraInspectError, match=r"a\.c_proj\.weight is square"):
        oriented(["a.c_proj", "a.head"], weights, False, shapes={"a.head": (WIDE, N)})


def test_a_square_layer_without_a_bias_is_linear_where_one_with_a_bias_accounts_for_the_yes(oriented):
    weights = weight("a.lin", N, N) | weight("a.conv", N, N, bias=N)
    assert oriented(["a.lin", "a.conv"], weights, True) == {"a.lin": (False, "bias"), "a.conv": (True, "config")}


@pytest.mark.parametrize("stored", [(N, WIDE), (WIDE, N)])
@pytest.mark.parametrize("flag", [True, False, None])
def test_a_weight_that_is_not_square_shows_it_whatever_the_config_says(flag, stored, oriented):
    found = oriented(["a.odd"], weight("a.odd", *stored), flag, shapes={"a.odd": (WIDE, N)})
    assert found == {"a.odd": (stored == (N, WIDE), "shape")}


def test_an_adapted_layer_that_is_not_square_is_a_sibling_too(oriented):
    weights = weight("a.proj", N, N) | weight("b.proj", N, WIDE)  # without a bias
    found = oriented(["a.proj", "b.proj"], weights, False, shapes={"b.proj": (WIDE, N)})
    assert found == {"a.proj": (True, "siblings"), "b.proj": (True, "shape")}


def test_names_that_only_linear_layers_have_need_no_config(oriented):
    weights = weight("a.odd", N, N) | weight("b.proj", N, WIDE)
    assert oriented(["a.odd"], weights, scheme="diffusion_model.") == {"a.odd": (False, "scheme")}
    with pytest.raises(LoraInspectError, match="--transposed"):
        oriented(["a.odd"], weights | CONV1D, scheme="diffusion_model.")


def test_a_convolution_has_no_orientation(write_safetensors):
    tensors = lora("lora_unet_a", rank=2, out=N, inputs=N, kernel=(3, 3))
    adapter = read_adapter(open_checkpoint(str(write_safetensors(tensors, name="adapter.safetensors"))))
    base = open_checkpoint(str(write_safetensors({"a.weight": ("F32", (N, N, 3, 3), 1)}, name="base.safetensors")))
    assert match(adapter, base, transposed={"*": True}).orientations == {}
    assert [placed.place.transposed for placed in match(adapter, base).targets["a.weight"]] == [False]


def test_the_option_that_repeats_is_a_note_and_the_one_that_contradicts_an_error(oriented):
    shown = {"a.odd": oriented(["a.odd"], weight("a.odd", N, N) | LINEAR, False)["a.odd"]}
    from lora_inspect.matching.orientation import Orientation

    decided = [{name: Orientation(*item) for name, item in shown.items()}]
    assert check_answers(decided, {}) == []
    assert check_answers(decided, {"*": False}) == ["--transposed no is not needed, as the weights already show it"]
    with pytest.raises(
        LoraInspectError, match=r"a\.odd is stored as \(out, in\) according to its config, but --transposed yes"
    ):
        check_answers(decided, {"*": True})
    with pytest.raises(LoraInspectError, match="has no effect, as no changed Linear weight"):
        check_answers([{}], {"*": True})
    settled = [{"a": Orientation(False, "shape"), "b": Orientation(True, "option")}]
    assert check_answers(settled, {"*": True}) == []


def test_each_answer_is_judged_by_the_weights_that_it_decides():
    from lora_inspect.matching.orientation import Orientation

    found = [{"x.a.weight": Orientation(False, "shape"), "x.b.weight": Orientation(True, "option")}]
    assert check_answers(found, {"b": True, "*": False}) == [
        "--transposed no is not needed, as the weights already show it"
    ]
    assert check_answers(found, {"*.b": True}) == []
    with pytest.raises(LoraInspectError, match=r"x\.a\.weight .* but --transposed x\.a=yes contradicts"):
        check_answers(found, {"x.a": True, "*": True})
    with pytest.raises(LoraInspectError, match="--transposed c=yes has no effect"):
        check_answers(found, {"b": True, "c": True})


def test_two_adapters_must_agree_on_a_weight(write_safetensors):
    from lora_inspect.matching.orientation import Orientation

    base = open_checkpoint(str(write_safetensors(weight("a", N, WIDE), name="base.safetensors")))
    one, other = {"a.weight": Orientation(True, "shape")}, {"a.weight": Orientation(False, "shape")}
    assert together([one, one], base) == one
    with pytest.raises(
        LoraInspectError, match=r"a\.weight is stored as \(in, out\) according to one adapter's shape, but as"
    ):
        together([one, other], base)


def test_the_words_leave_shapes_out():
    from lora_inspect.matching.orientation import Orientation

    found = {"a": Orientation(True, "siblings"), "b": Orientation(True, "siblings"), "c": Orientation(False, "shape")}
    assert in_words(found) == "from siblings 2 as (in, out)"
    assert in_words({"c": found["c"]}) == ""


@pytest.mark.parametrize(
    ("path", "leaf"), [("h.0.attn.c_proj", "c_proj"), ("a.to_out.0", "to_out.0"), ("0", "0"), ("net.0.proj", "proj")]
)
def test_the_leaf_keeps_the_numbers_after_its_name(path, leaf):
    assert leaf_of(path) == leaf
