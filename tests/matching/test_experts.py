"""Which rows of a parameter of all experts a module of one of them changes, and what is refused."""

import pytest
from adapters import lora

from lora_inspect.architectures.rows import Runs

MLP = "model.layers.0.mlp"
WIDTH, INNER, EXPERTS = 4, 6, 3


def modules(*names, out=INNER, inputs=WIDTH, prefix="base_model.model.", **extra):
    found = {}
    for name in names:
        found |= lora(f"{prefix}{name}", rank=2, out=out, inputs=inputs, spelling="peft", **extra)
        found[f"{prefix}{name}.alpha"] = ("F32", (), 2.0)
    return found


def base(first=(EXPERTS, 2 * INNER, WIDTH), last=(EXPERTS, WIDTH, INNER), root="model.", **others):
    tensors = {
        f"{root}layers.0.self_attn.q_proj.weight": ("F32", (WIDTH, WIDTH), 1),
        f"{root}layers.0.mlp.gate.weight": ("F32", (EXPERTS, WIDTH), 1),
    }
    for name, shape in (("gate_up_proj", first), ("down_proj", last)):
        if shape:
            tensors[f"{root}layers.0.mlp.experts.{name}"] = ("F32", shape, 1)
    return tensors | others


@pytest.fixture
def matched(places_of):
    """The rows and the shape of the matrix by target and module; or the refusal."""

    def match_tensors(adapter, tensors, refused=False):
        found = places_of(adapter, tensors, refused)
        if refused:
            return found
        return {
            (name.rpartition(".")[2], placed.contribution.module.body.partition("experts.")[2]): (
                placed.place.target.shape, placed.place.runs,
            )
            for name, placed in found
        }  # fmt: skip

    return match_tensors


@pytest.mark.parametrize("root", ["", "model.", "model.language_model.", "language_model.model."])
@pytest.mark.parametrize("names", [("gate_proj", "up_proj"), ("w1", "w3")])
def test_first_layers_are_halves_of_the_rows_of_their_expert(names, root, matched):
    parent = {"gate_proj": f"{MLP}.experts", "w1": "model.layers.0.block_sparse_moe.experts"}[names[0]]
    found = matched(
        modules(f"{parent}.0.{names[0]}", f"{parent}.2.{names[0]}", f"{parent}.2.{names[1]}"), base(root=root)
    )
    matrix = (EXPERTS * 2 * INNER, WIDTH)
    assert found == {
        ("gate_up_proj", f"0.{names[0]}"): (matrix, Runs(0, INNER)),
        ("gate_up_proj", f"2.{names[0]}"): (matrix, Runs(2 * 2 * INNER, INNER)),
        ("gate_up_proj", f"2.{names[1]}"): (matrix, Runs(2 * 2 * INNER + INNER, INNER)),
    }


@pytest.mark.parametrize("path", [f"{MLP}.experts.1.down_proj", "model.layers.0.block_sparse_moe.experts.1.w2"])
def test_a_last_layer_is_all_rows_of_its_expert(path, matched):
    ((shape, runs),) = matched(modules(path, out=WIDTH, inputs=INNER), base()).values()
    assert (shape, runs) == ((EXPERTS * WIDTH, INNER), Runs(WIDTH, WIDTH))


def placed_turned(places_of, *names, bias=None, out=INNER, inputs=WIDTH):
    """The places in a base that stores (experts, in, out), by module."""
    stored = base((EXPERTS, WIDTH, 2 * INNER), (EXPERTS, INNER, WIDTH), **(bias or {}))
    found = places_of(modules(*names, out=out, inputs=inputs), stored)
    return {placed.contribution.module.body.partition("experts.")[2]: placed.place for _, placed in found}


def test_a_last_layer_is_a_block_of_a_base_that_stores_it_as_in_out(places_of):
    (place,) = placed_turned(places_of, f"{MLP}.experts.1.down_proj", out=WIDTH, inputs=INNER).values()
    assert place.transposed
    assert place.block == (INNER, INNER)
    assert place.target.shape == (EXPERTS * INNER, WIDTH)
    assert (place.runs, place.shape) == (Runs(0, WIDTH), (WIDTH, INNER))


BIASES = {f"{MLP}.experts.gate_up_proj_bias": ("F32", (EXPERTS, 2 * INNER), 1)}


@pytest.mark.parametrize(
    ("bias", "gate", "up"),
    [
        (None, Runs(0, INNER), Runs(INNER, INNER)),
        (BIASES, Runs(0, 1, 0, INNER, 2, 1), Runs(1, 1, 0, INNER, 2, 1)),
        (BIASES | {"score.weight": ("F32", (2, WIDTH), 1)}, Runs(0, INNER), Runs(INNER, INNER)),
    ],
    ids=["gate before up", "taking turns", "gate before up of a classifier"],
)
def test_first_layers_are_columns_of_a_base_that_stores_them_as_in_out(bias, gate, up, places_of):
    names = [f"{MLP}.experts.2.{part}" for part in ("gate_proj", "up_proj")]
    found = placed_turned(places_of, *names, bias=bias)
    assert {name: (place.runs, place.block, place.transposed) for name, place in found.items()} == {
        "2.gate_proj": (gate, (2 * WIDTH, WIDTH), True),
        "2.up_proj": (up, (2 * WIDTH, WIDTH), True),
    }


def test_the_router_of_mixtral_is_renamed(matched):
    found = matched(modules("model.layers.0.block_sparse_moe.gate", out=EXPERTS), base())
    assert list(found.values()) == [((EXPERTS, WIDTH), None)]


ONE = f"{MLP}.experts.1.gate_proj"
REFUSED = {
    "an expert that is not there": (modules(f"{MLP}.experts.3.gate_proj"), base(), ["no module matches"]),
    "a layer of another width": (
        modules(ONE, out=INNER + 1), base(), ["[7, 4]", "gate_up_proj", f"has {[EXPERTS, 2 * INNER, WIDTH]}"]),
    "experts of sizes that do not go together": (
        modules(ONE), base((EXPERTS, WIDTH, 2 * INNER), (EXPERTS, INNER, WIDTH + 1)),
        ["gate_up_proj [3, 4, 12]", "down_proj [3, 6, 5]", "has the experts one by one"]),
    "the first layers alone": (modules(ONE), base(last=None), ["gate_up_proj [3, 12, 4], but"]),
    "other numbers of experts": (modules(ONE), base(last=(2, WIDTH, INNER)), ["[2, 4, 6]"]),
    "the expert twice": (
        modules(ONE) | modules(ONE, prefix="transformer."), base(), ["both change", "gate_up_proj"]),
    "the expert by both names": (
        modules(ONE) | modules("model.layers.0.block_sparse_moe.experts.1.w1"), base(), ["both change"]),
    "an expert beside all of them": (
        modules(ONE), base() | {f"{ONE}.weight": ("F32", (INNER, WIDTH), 1)}, ["matches both"]),
    "quantised": (
        modules(ONE), base() | {f"{MLP}.experts.gate_up_proj": ("I8", (EXPERTS, 2 * INNER, WIDTH), bytes(144))},
        ["I8 without a scale"]),
}  # fmt: skip


@pytest.mark.parametrize(("adapter", "tensors", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_known_is_refused(adapter, tensors, words, matched):
    sentence = matched(adapter, tensors, refused=True)
    assert [word for word in words if word not in sentence] == []
    assert sentence.endswith(".")


def test_a_parameter_of_more_experts_than_any_model_has_is_not_spelled_out(matched):
    many = {f"{MLP}.experts.gate_up_proj": ("F32", (1 << 40, 0, 1), bytes(0))}
    assert "no module matches" in matched(modules(ONE), base() | many, refused=True)
