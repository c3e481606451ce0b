"""LoKr's shapes against the weights that LyCORIS made them for, and its exact products, blocks and rows."""

import json
import re

import pytest
import torch
from lycoris.modules.lokr import LokrModule
from safetensors.torch import save_file

from lora_inspect.algorithms import lokr
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter

pytestmark = pytest.mark.numeric

FORMS = {
    "whole": {"w1": (4, 3), "w2": (5, 2, 3, 2)},
    "large product": {"w1": (4, 3), "w2_a": (5, 2), "w2_b": (2, 12)},
    "kernel apart": {"w1": (4, 3), "w2_a": (5, 2), "w2_b": (2, 2, 3, 2)},
    "small product": {"w1_a": (4, 2), "w1_b": (2, 3), "w2": (5, 2, 3, 2)},
    "both": {"w1_a": (4, 2), "w1_b": (2, 3), "w2_a": (5, 2), "w2_b": (2, 12)},
    "Tucker": {"w1": (4, 3), "w2_a": (2, 5), "w2_b": (2, 2), "t2": (2, 2, 3, 2)},
    "Tucker of rank 1": {"w1": (4, 3), "w2_a": (1, 5), "w2_b": (1, 2), "t2": (1, 1, 3, 2)},
}


def factors(form: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(form))
    shapes = FORMS[form].items()
    return {role: torch.randn(shape, generator=generator, dtype=torch.float64) for role, shape in shapes}


def built(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The whole change, added to nothing."""
    rows = torch.zeros(lokr.delta_size({role: tensor.shape for role, tensor in tensors.items()}), dtype=torch.float64)
    lokr.change(tensors, 1.0, None).fold(rows, 0, 1.0)
    return rows


def written_out(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """delta[a·o2 + c, b·n + d] = w1[a, b] · w2[c, d], entry by entry."""
    small = tensors["w1"] if "w1" in tensors else torch.einsum("ar,rb->ab", tensors["w1_a"], tensors["w1_b"])
    if "t2" in tensors:
        large = torch.einsum("pc,pqxy,qd->cdxy", tensors["w2_a"], tensors["t2"], tensors["w2_b"]).flatten(1)
    elif "w2" in tensors:
        large = tensors["w2"].flatten(1)
    else:
        large = torch.einsum("cr,rd->cd", tensors["w2_a"], tensors["w2_b"].flatten(1))
    rows = [
        [small[a, b] * large[c, d] for b in range(small.shape[1]) for d in range(large.shape[1])]
        for a in range(small.shape[0])
        for c in range(large.shape[0])
    ]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_product_written_out(form):
    tensors = factors(form)
    torch.testing.assert_close(built(tensors), written_out(tensors))


@pytest.mark.parametrize("form", FORMS)
def test_any_block_of_rows_is_that_of_the_product(form):
    tensors = factors(form)
    expected, change = written_out(tensors), lokr.change(tensors, 2.0, None)
    for first in range(20):
        for last in range(first + 1, 21):
            rows = torch.zeros(last - first, 36, dtype=torch.float64)
            change.fold(rows, first, 0.5)
            torch.testing.assert_close(rows, expected[first:last])


@pytest.mark.parametrize("form", FORMS)
def test_the_thin_product_is_exact(form):
    tensors = factors(form)
    found = lokr.low_rank(tensors)
    if form == "whole":
        assert found is None
        return
    up, down = found
    assert up.shape[1] == {"small product": 2 * 5, "both": 4, "Tucker of rank 1": 3}.get(form, 3 * 2)
    torch.testing.assert_close(up @ down, written_out(tensors))


@pytest.mark.parametrize("options", [{}, {"factor": 4}, {"decompose_both": True}, {"full_matrix": True}])
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
def test_shapes_tell_the_weight_that_lycoris_made_them_for(options, tucker, layer, flat, full):
    made = LokrModule("x", layer, lora_dim=2, alpha=1, use_tucker=tucker, **options).named_parameters()
    shapes = {name.removeprefix("lokr_"): tuple(value.shape) for name, value in made if name.startswith("lokr_")}
    assert lokr.check(shapes) is None
    assert lokr.rank(shapes) == (None if "w2" in shapes and "w1" in shapes else 2)
    assert lokr.weight_shape(shapes) == (full if tucker or "w2" in shapes else flat)
    assert lokr.misfit(shapes, full) is None
    assert lokr.misfit(shapes, (full[0], full[1] + 1, *full[2:])) is not None
    assert lokr.misfit(shapes, (full[0] + 1, *full[1:])) is not None


def test_the_layout_of_2023_flattens_the_kernel_before_it_is_parted():
    shapes = {"w1": (16, 48), "w2": (20, 60)}
    assert lokr.misfit(shapes, (320, 320, 3, 3)) is None
    generator = torch.Generator().manual_seed(0)
    tensors = {role: torch.randn(shape, generator=generator, dtype=torch.float64) for role, shape in shapes.items()}
    delta = built(tensors).reshape(320, 320, 3, 3)
    # Column 100 of 2880 is channel 11, row 0, column 1 of the kernel: 1 · 60 + 40 of the factors.
    torch.testing.assert_close(delta[25, 11, 0, 1], tensors["w1"][1, 1] * tensors["w2"][5, 40])


@pytest.mark.parametrize(
    ("form", "changed", "says"),
    [
        ("whole", {"w1": None}, "either w1 or both w1_a and w1_b are needed"),
        ("both", {"w2_b": None}, "either w2 or both w2_a and w2_b are needed"),
        ("both", {"w1": (4, 3)}, "either w1 or both"),
        ("whole", {"w1": (4, 3, 1)}, r"w1 \[4, 3, 1\] is not a matrix"),
        ("whole", {"w2": (5,)}, r"w2 \[5\] has fewer than two dimensions"),
        ("whole", {"w2": (5, 0)}, r"w2 \[5, 0\] is empty"),
        ("whole", {"t2": (2, 2, 3)}, "t2 is a core between w2_a and w2_b, but w2 is whole"),
        ("both", {"w1_b": (3, 3)}, r"w1_a \[4, 2\] and w1_b \[3, 3\] cannot be multiplied"),
        ("both", {"w1_a": (4, 3), "w1_b": (3, 3)}, "w1_a has rank 3 and w2_a has rank 2"),
        ("large product", {"w2_a": (5, 3)}, r"w2_a \[5, 3\] and w2_b \[2, 12\] cannot be multiplied"),
        ("Tucker", {"t2": (2, 3, 3, 2)}, r"t2 \[2, 3, 3, 2\] does not match"),
        ("Tucker", {"t2": (2, 2)}, r"t2 \[2, 2\] does not match"),
        ("Tucker", {"w2_b": (3, 2)}, "does not match"),
        ("whole", {"t1": (2, 2)}, "t1 changes the product"),
        ("whole", {"row_offset": ()}, "row_offset changes the product"),
    ],
)
def test_wrong_shapes_are_named(form, changed, says):
    shapes = {role: shape for role, shape in {**FORMS[form], **changed}.items() if shape is not None}
    assert re.search(says, lokr.check(shapes) or "")


@pytest.mark.parametrize("shape", [(), (0,), (7,), (1, 1), (0, 3), (2, 3, 4), (2, 3, 4, 5, 6)])
def test_shapes_that_fit_nothing_are_no_error(shape):
    roles = sorted(lokr.ALGORITHM.suffixes.values())
    for first in range(len(roles)):
        for last in range(first, len(roles) + 1):
            found = lokr.check(dict.fromkeys(roles[first:last], shape))
            assert found is None or isinstance(found, str)


def save_lokr(path, alpha=None, layer=None, rs_lora=False, full_matrix=False, dim=64, args=None, recorded=True):
    """Save LyCORIS's module of two whole factors, or of thin ones, with its alpha or another one."""
    layer = layer or torch.nn.Linear(48, 48)
    module = LokrModule("lora_unet_q", layer, 1.0, dim, 1.0, factor=4, full_matrix=full_matrix, rs_lora=rs_lora)
    tensors = {f"lora_unet_q.{key}": value.contiguous() for key, value in module.custom_state_dict().items()}
    if alpha is not None:
        tensors["lora_unet_q.alpha"] = torch.tensor(alpha)
    metadata = {"ss_network_module": "lycoris.kohya", "ss_network_args": json.dumps(args or {})}
    if recorded:
        metadata["ss_network_dim"] = "64" if args else str(dim)
    save_file(tensors, path, metadata)
    return read_adapter(open_checkpoint(str(path)))


def notes_on_scale(adapter):
    return [problem.message for problem in adapter.problems if problem.code == "trained-scale"]


@pytest.mark.parametrize("recorded", [True, False])
def test_lokr_alpha_of_whole_factors_other_than_dim_is_noted(recorded, tmp_path):
    adapter = save_lokr(tmp_path / "a.safetensors", alpha=4.0, recorded=recorded)
    (note,) = notes_on_scale(adapter)
    assert f"a multiplier of {'0.0625' if recorded else '4/dim'} gives the trained scale" in note
    assert [contribution.scale for contribution in adapter.contributions] == [1.0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recorded": False},
        {"rs_lora": True},
        {"dim": 2, "full_matrix": True},
        {"dim": 2, "alpha": 1.0},
        {"layer": torch.nn.Conv2d(48, 48, 64), "dim": 8, "recorded": False},
        {"layer": torch.nn.Conv2d(48, 48, 3), "dim": 8, "args": {"conv_dim": "8"}},
    ],
    ids=str,
)
def test_lokr_alpha_that_lycoris_stores_has_no_note(options, tmp_path):
    assert notes_on_scale(save_lokr(tmp_path / "a.safetensors", **options)) == []
