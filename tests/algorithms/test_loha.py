"""LoHa's shapes against the weights that LyCORIS made them for, and its exact products."""

import re

import pytest
import torch
from lycoris.modules.loha import LohaModule

from lora_inspect.algorithms import loha

pytestmark = pytest.mark.numeric

RANK, SIZE = 3, (8, 30)
FORMS = {
    "plain": {"w1_a": (8, RANK), "w1_b": (RANK, 30), "w2_a": (8, RANK), "w2_b": (RANK, 30)},
    "kernel apart": {
        "w1_a": (8, RANK, 1, 1), "w1_b": (RANK, 5, 3, 2), "w2_a": (8, RANK, 1, 1), "w2_b": (RANK, 5, 3, 2),
    },
    "Tucker": {
        "w1_a": (RANK, 8), "w1_b": (RANK, 5), "t1": (RANK, RANK, 3, 2),
        "w2_a": (RANK, 8), "w2_b": (RANK, 5), "t2": (RANK, RANK, 3, 2),
    },
}  # fmt: skip


def factors(form: str, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = FORMS[form].items()
    return {role: torch.randn(shape, generator=generator, dtype=torch.float64) for role, shape in shapes}


def built(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The whole change, added to nothing."""
    rows = torch.zeros(SIZE, dtype=torch.float64)
    loha.change(tensors, 1.0, None).fold(rows, 0, 1.0)
    return rows


def written_out(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Each entry of both products as a sum over the ranks, and the two multiplied."""
    products = []
    for number in (1, 2):
        left, right, core = (tensors.get(f"{role}{number}{end}") for role, end in (("w", "_a"), ("w", "_b"), ("t", "")))
        if core is None:
            products.append(torch.einsum("or,rc->oc", left.reshape(len(left), -1), right.reshape(len(right), -1)))
        else:
            products.append(torch.einsum("po,pqxy,qi->oixy", left, core, right).flatten(1))
    return products[0] * products[1]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_sum_written_out(form):
    tensors = factors(form)
    torch.testing.assert_close(built(tensors), written_out(tensors))


def test_a_kernel_apart_is_the_flattened_one():
    """As OneTrainer keeps it: two convolutions one after the other, whose product is that of the flattened factors."""
    tensors = factors("kernel apart")
    left, right = (
        torch.nn.functional.conv2d(tensors[f"w{n}_b"].transpose(0, 1), tensors[f"w{n}_a"]).transpose(0, 1)
        for n in (1, 2)
    )
    torch.testing.assert_close(built(tensors), (left * right).flatten(1))


@pytest.mark.parametrize("form", FORMS)
def test_the_thin_product_is_exact(form):
    tensors = factors(form)
    up, down = loha.low_rank(tensors)
    assert (up.shape, down.shape) == ((8, RANK**2), (RANK**2, 30))
    torch.testing.assert_close(up @ down, written_out(tensors))


@pytest.mark.parametrize("tucker", [False, True])
@pytest.mark.parametrize(
    ("layer", "flat", "full"),
    [
        (torch.nn.Linear(40, 24), (24, 40), (24, 40)),
        (torch.nn.Conv2d(40, 24, 3), (24, 360), (24, 40, 3, 3)),
        (torch.nn.Conv1d(40, 24, 3), (24, 120), (24, 40, 3)),
    ],
    ids=["linear", "conv2d", "conv1d"],
)
def test_shapes_tell_the_weight_that_lycoris_made_them_for(tucker, layer, flat, full):
    made = LohaModule("x", layer, lora_dim=2, alpha=1, use_tucker=tucker).named_parameters()
    shapes = {name.removeprefix("hada_"): tuple(value.shape) for name, value in made if name.startswith("hada_")}
    assert loha.check(shapes) is None
    assert loha.rank(shapes) == 2
    assert loha.weight_shape(shapes) == (full if tucker else flat)
    assert loha.misfit(shapes, full) is None
    assert loha.misfit(shapes, (full[0], full[1] + 1, *full[2:])) is not None
    assert loha.misfit(shapes, (full[0] + 1, *full[1:])) is not None


def test_a_core_of_two_dimensions_is_for_a_conv1d_too():
    """As PEFT writes it."""
    shapes = {**FORMS["Tucker"], "t1": (RANK, RANK, 3, 1), "t2": (RANK, RANK, 3, 1)}
    assert loha.misfit(shapes, (8, 5, 3)) is None


@pytest.mark.parametrize(
    ("form", "changed", "says"),
    [
        ("plain", {"w2_b": None}, "w2_b missing"),
        ("plain", {"w2_a": (8, 2)}, r"w2_a has shape \[8, 2\], not \[8, 3\]"),
        ("plain", {"w1_a": (8, 2)}, r"w1_a has shape \[8, 2\], not \[8, 3\]"),
        ("plain", {"w2_b": (3, 31)}, r"w2_b has shape \[3, 31\], not \[3, 30\]"),
        ("plain", {"w1_b": (3,)}, r"w1_b \[3\] is empty or has fewer than 2 dimensions"),
        ("plain", {"w1_a": (8, 0)}, r"w1_a \[8, 0\] is empty"),
        ("kernel apart", {"w1_a": (8, 3, 3, 2)}, r"w1_a has shape \[8, 3, 3, 2\], not \[8, 3, 1, 1\]"),
        ("Tucker", {"t2": None}, "t2 missing"),
        ("Tucker", {"t1": (3, 3)}, r"t1 \[3, 3\] is empty or has fewer than 3 dimensions"),
        ("Tucker", {"t1": (3, 2, 3, 2)}, r"t1 has shape \[3, 2, 3, 2\], not \[3, 3, 3, 2\]"),
        ("Tucker", {"t2": (3, 3, 2, 3)}, r"t2 has shape \[3, 3, 2, 3\], not \[3, 3, 3, 2\]"),
        ("Tucker", {"w1_b": (3, 5, 1)}, r"w1_b has shape \[3, 5, 1\], not \[3, 5\]"),
    ],
)
def test_wrong_shapes_are_named(form, changed, says):
    shapes = {role: shape for role, shape in {**FORMS[form], **changed}.items() if shape is not None}
    assert re.search(says, loha.check(shapes) or "")


@pytest.mark.parametrize("shape", [(), (0,), (7,), (1, 1), (0, 3), (2, 3, 4), (2, 3, 4, 5, 6)])
def test_shapes_that_fit_nothing_are_no_error(shape):
    roles = (*loha.ROLES, *loha.CORES)
    for count in range(len(roles) + 1):
        found = loha.check(dict.fromkeys(roles[:count], shape))
        assert found is None or isinstance(found, str)
