"""The places of layers in a heat map, and the numbers of its cells."""

import math

import pytest

from lora_inspect.architectures import by_name
from lora_inspect.architectures.detection import Detection
from lora_inspect.reporting.heat_map import OTHERS, LayerSize, heat_map, place_of


def family(name, layout=0):
    found = by_name(name)
    return (Detection(found, found.layouts[layout], None, ""),)


PLACES = {
    "Wan": ("wan", 0, "blocks.7.self_attn.q", ("blocks", 7, "self_attn.q")),
    "Wan by underscores": ("wan", 0, "blocks_17_cross_attn_v_img", ("blocks", 17, "cross_attn.v_img")),
    "a number that is a name": ("wan", 0, "blocks.39.ffn.2", ("blocks", 39, "ffn.2")),
    "outside of blocks": ("wan", 0, "text_embedding.0", (OTHERS, 0, "text_embedding.0")),
    "SDXL": ("sdxl", 0, "input_blocks_4_1_transformer_blocks_1_attn2_to_k", ("input_blocks", 4, "attn2.to_k")),
    "a middle block": (
        "sdxl", 0, "middle_block_1_transformer_blocks_9_ff_net_0_proj", ("middle_block", 1, "ff.net.0.proj")
    ),
    "diffusers": (
        "sdxl", 1, "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k", ("down_blocks", 1, "attn1.to_k")
    ),
    "FLUX": ("flux", 0, "single_blocks.37.linear1", ("single_blocks", 37, "linear1")),
    "no family": (None, 0, "model.layers.3.mlp.experts.5.up_proj", ("model.layers", 3, "mlp.experts.up_proj")),
    "no family, a feed-forward": (None, 0, "layers.3.net.0.proj", ("layers", 3, "net.0.proj")),
    "no family, by underscores": (None, 0, "layers_3_attn_q", ("layers", 3, "attn_q")),
    "no family, no block": (None, 0, "head", (OTHERS, 0, "head")),
    "no family, a number at the end": (None, 0, "proj.1", (OTHERS, 0, "proj.1")),
}  # fmt: skip


@pytest.mark.parametrize(("name", "layout", "path", "meant"), PLACES.values(), ids=PLACES)
def test_a_layer_stands_in_its_block_under_its_name(name, layout, path, meant):
    assert place_of(path, family(name, layout) if name else ())[:3] == meant


def size(path, norm, shape=(4, 9), weight=None):
    return LayerSize(path, path, shape, norm, weight)


SIZES = [
    size("blocks.0.self_attn.q", 6.0),
    size("blocks.2.self_attn.q", 3.0),
    size("blocks.2.cross_attn.k", 0.0),
    size("head.head", 0.3),
]


def test_cells_have_the_root_mean_square_of_the_change():
    ((table,),) = [heat_map(SIZES, {"blocks.2.self_attn.q"}, family("wan")).tables]
    # Blocks between the first and the last are there without a layer, and what is outside of blocks stands last.
    assert [one.title for one in table.columns] == ["blocks.0", "blocks.1", "blocks.2", "outside of blocks"]
    rows = dict(table.rows)
    assert [*rows] == ["self_attn.q", "cross_attn.k", "head.head"]
    first, missing, spiked, _ = rows["self_attn.q"]
    assert (first.strength, first.is_spiked, missing) == (pytest.approx(1.0), False, None)
    assert (spiked.strength, spiked.is_spiked) == (pytest.approx(0.5), True)
    assert [cell and cell.is_untrained for cell in rows["cross_attn.k"]] == [None, None, True, None]
    assert [one.norm for one in table.columns] == pytest.approx([6.0, 0.0, 3.0, 0.3])


def test_with_all_weights_cells_are_relative_to_them():
    sizes = [one._replace(weight_norm=10.0) for one in SIZES]
    found = heat_map(sizes, (), family("wan"))
    assert found.is_relative
    assert dict(found.tables[0].rows)["self_attn.q"][0].strength == pytest.approx(0.6)
    assert not heat_map([*sizes[:-1], SIZES[-1]], (), family("wan")).is_relative


def test_layers_of_one_name_in_a_block_share_a_cell():
    paths = [f"input_blocks.4.1.transformer_blocks.{number}.attn1.to_q" for number in (0, 1)]
    (row,) = (
        heat_map([size(path, norm) for path, norm in zip(paths, (3.0, 4.0), strict=True)], (), family("sdxl"))
        .tables[0]
        .rows
    )
    cell = row[1][4]
    assert (cell.layers, cell.norm, cell.strength) == (2, pytest.approx(5.0), pytest.approx(5.0 / math.sqrt(72.0)))


def test_many_blocks_take_several_tables():
    found = heat_map([size(f"layers.{number}.q", 1.0) for number in range(100)], (), ())
    assert [len(table.columns) for table in found.tables] == [50, 50]


def test_colours_are_shares_of_the_strength_that_nearly_all_are_below():
    found = heat_map([size(f"layers.{number}.q", (number + 1) * 6.0) for number in range(50)], (), ())
    assert found.top == pytest.approx(49.0)
    assert [found.colour(strength) for strength in (0.0, 4.8, 4.91, 24.0, 44.2, 49.0, 50.0)] == [0, 0, 1, 4, 9, 9, 9]


@pytest.mark.parametrize(
    ("units", "text"),
    {
        0.0: "0",
        0.01: "~0",
        0.3: "0.3",
        0.96: "1",
        1.6: "2",
        12.4: "12",
        99.6: "100",
        999.0: "999",
        4_321.0: "4e3",
    }.items(),
)
def test_a_cell_has_three_letters(units, text):
    found = heat_map([size("layers.0.q", 12.0 * 6.0)], (), ())
    assert found.exponent == 0
    assert found.number(units) == text


def test_no_layers_make_an_empty_map():
    found = heat_map([], (), ())
    assert (found.tables, found.top, found.most) == ((), 0.0, 0.0)
