"""llama.cpp's names and orders of rows, against the tables of its library and formulas written out."""

import numpy as np
import pytest
from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

from lora_inspect.architectures import by_name
from lora_inspect.architectures.correspondence import Correspondence
from lora_inspect.architectures.gguf import GGUF_NAMES, Heads
from lora_inspect.architectures.patterns import pattern_of, patterns_of
from lora_inspect.architectures.rows import PairedHalves, PartsOfHeads

ARCHITECTURES = {name: number for number, name in MODEL_ARCH_NAMES.items()}
HEADS = Heads(6, 2)


def order_of(arrangement, rows):
    """Which row of the whole stands at each row of the part."""
    (runs,) = arrangement.runs(rows, 5)
    assert runs.rows == rows
    order = [None] * rows
    for start, stop, source in runs.each():
        for row in range(start, stop):
            assert order[source + row - start] is None
            order[source + row - start] = row
    return order


@pytest.mark.parametrize("name", GGUF_NAMES)
def test_names_are_those_of_the_library(name):
    known = get_tensor_name_map(ARCHITECTURES[name], 7)
    names = GGUF_NAMES[name]
    root = names.roots[0]
    for path, expected in names.outside.items():
        assert known.get_name(f"{root}{path}") == expected
    stacked = {leaf.replace(".{i}", ""): expected for leaf, expected in names.experts.items()}
    stacked = {leaf.replace("block_sparse_moe", "feed_forward"): expected for leaf, expected in stacked.items()}
    for leaf, expected in stacked.items():
        # As the library calls what the converter has stacked.
        parent = "layers" if "feed_forward" in leaf else f"{root}{names.parent}"
        assert known.get_name(f"{parent}.5.{leaf}") == f"blk.5.{expected}", leaf
    for leaf, expected in names.layer.items():
        assert known.get_name(f"{root}{names.parent}.5.{leaf}") == f"blk.5.{expected}", leaf
    assert [known.get_name(path) for path in names.heads[:1]] == ["output" for _ in names.heads[:1]]


@pytest.mark.parametrize("name", GGUF_NAMES)
def test_a_name_means_one_module_below_a_root_and_is_in_the_layout(name):
    names = GGUF_NAMES[name]
    own = [*names.outside.values(), *names.layer.values(), *names.experts.values()]
    assert len(set(own)) == len(own)
    patterns = patterns_of(names.layout.paths, ".")
    relations = list(names.relations(HEADS))
    ours = {part for relation in relations if not relation.experts for part in relation.parts}
    ours |= {relation.whole for relation in relations if relation.experts}
    assert {pattern_of(path, ".") for path in ours} == patterns
    theirs = [(r.parts if r.experts else (r.whole,)) for r in relations]
    assert len(set(theirs)) == len(theirs)


@pytest.mark.parametrize("name", GGUF_NAMES)
def test_modules_are_of_the_family(name):
    names = GGUF_NAMES[name]
    known = {pattern_of(path, ".") for layout in by_name(names.family).layouts for path in layout.paths}
    root = names.roots[0]
    paths = [*(f"{root}{path}" for path in names.outside), *(f"{root}{names.parent}.0.{leaf}" for leaf in names.layer)]
    assert {pattern_of(path, ".") for path in (*paths, *names.heads)} <= known


@pytest.mark.parametrize("name", GGUF_NAMES)
def test_without_a_number_of_heads_the_rows_that_depend_on_it_have_no_place(name):
    names = GGUF_NAMES[name]
    left = {relation.whole for relation in names.relations(HEADS)} - {r.whole for r in names.relations(None)}
    assert {path.rpartition(".")[2] for path in left} == {leaf.rpartition(".")[2] for leaf in names.arranged}
    assert all(relation.arrangement is None or relation.alike for relation in names.relations(None))


def test_queries_and_keys_have_their_own_number_of_heads():
    links = Correspondence(lambda: GGUF_NAMES["llama"].relations(HEADS)).links
    found = {leaf: next(links(f"model.layers.3.self_attn.{leaf}")) for leaf in ("q_proj", "k_proj", "v_proj")}
    assert {leaf: link.path for leaf, link in found.items()} == {
        "q_proj": "blk.3.attn_q",
        "k_proj": "blk.3.attn_k",
        "v_proj": "blk.3.attn_v",
    }
    arrangements = [link.relation.arrangement for link in found.values()]
    assert arrangements == [PairedHalves(6), PairedHalves(2), None]


@pytest.mark.parametrize(("heads", "half"), [(1, 1), (1, 3), (3, 1), (4, 3), (2, 8)])
def test_halves_of_heads_take_turns(heads, half):
    # llama.cpp's permute, written out: (heads, 2, half) becomes (heads, half, 2).
    expected = np.arange(heads * 2 * half).reshape(heads, 2, half).transpose(0, 2, 1).ravel()
    assert order_of(PairedHalves(heads), len(expected)) == expected.tolist()


@pytest.mark.parametrize(("heads", "parts", "size"), [(1, 3, 2), (4, 3, 1), (4, 3, 5), (2, 2, 3)])
def test_parts_of_heads_stand_together(heads, parts, size):
    # GPT-NeoX's (heads, 3, size) becomes (3, heads, size).
    expected = np.arange(heads * parts * size).reshape(heads, parts, size).transpose(1, 0, 2).ravel()
    assert order_of(PartsOfHeads(heads, parts), len(expected)) == expected.tolist()


@pytest.mark.parametrize("arrangement", [PairedHalves(4), PartsOfHeads(4, 3)], ids=str)
def test_the_way_back_is_the_way_there(arrangement):
    (runs,) = arrangement.runs(24, 5)
    assert {(row, source) for start, stop, first in runs.inverted.each() for row, source in
            zip(range(start, stop), range(first, first + stop - start), strict=True)} == {
        (source, row) for start, stop, first in runs.each() for row, source in
        zip(range(start, stop), range(first, first + stop - start), strict=True)
    }  # fmt: skip
    assert runs.inverted.inverted == runs
    assert arrangement.rows(0, 24, 5) == 24


@pytest.mark.parametrize("arrangement", [PairedHalves(4), PartsOfHeads(4, 3)], ids=str)
@pytest.mark.parametrize("rows", [0, 4, 20, 23])
def test_rows_that_the_heads_do_not_divide_are_none(arrangement, rows):
    assert arrangement.runs(rows, 5) is None
