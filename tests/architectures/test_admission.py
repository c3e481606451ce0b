"""A family is asked for wherever its names may be a file's, though its own file is not imported for that."""

import importlib.util
from pathlib import Path

import pytest

from lora_inspect import architectures
from lora_inspect.architectures import Architecture, Layout, admitted, every, marked, marks_of
from lora_inspect.architectures.patterns import layout_patterns

WRITTEN = Path(__file__).parents[2] / "docs" / "write_family_marks.py"
OWN = [
    (family, layout, separator)
    for family in every()
    for layout in family.layouts
    if not layout.borrowed
    for separator in "._"
]


def test_the_table_is_that_of_the_families():
    spec = importlib.util.spec_from_file_location("write_family_marks", WRITTEN)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.TABLE.read_text(encoding="utf-8") == script.table(), "run python docs/write_family_marks.py"


@pytest.mark.parametrize(
    ("family", "layout", "separator"), OWN, ids=lambda one: one if isinstance(one, str) else one.name
)
@pytest.mark.slow
def test_every_name_of_a_family_admits_it(family, layout, separator):
    for pattern in layout_patterns(layout.paths, separator):
        assert family in admitted({pattern: 1}, 1), pattern


def test_names_of_none_admit_none():
    assert admitted({"pagoda.#.roof": 3, "pagoda_#_wall": 2}, 1) == []
    assert admitted({"pagoda.#.roof": 9, "blocks.#.self_attn.q": 1}, 2) == []


def test_a_mark_tells_most_patterns_apart():
    patterns = {one for family in every() for layout in family.layouts for one in layout_patterns(layout.paths, "_")}
    assert len(marked(dict.fromkeys(patterns, 1))) > 0.98 * len(patterns)


def test_names_of_several_patterns_count_together():
    counts = {"blocks.#.self_attn.q": 3, "blocks.#.cross_attn.k": 2, "pagoda": 4}
    assert "wan" in [one.name for one in admitted(counts, 5)]
    assert "wan" not in [one.name for one in admitted(counts, 6)]


def test_a_family_that_stands_in_no_table_is_asked_too():
    pagoda = Architecture("pagoda", "Pagoda", (Layout("original", ("storeys.{i}.roof",)),))
    with architectures.added(pagoda):
        assert admitted({"storeys_#_roof": 1}, 1) == [pagoda]
        assert marks_of(pagoda).admit(marked({"storeys.#.roof": 1}), 1)
    assert admitted({"storeys_#_roof": 1}, 1) == []


@pytest.mark.parametrize("name", ["storeys\n.#.roof", "\udcff.#", "", "#" * 9999])
def test_odd_names_are_counted_as_well(name):
    assert admitted({name: 1}, 2) == []


def test_reading_imports_the_files_of_few_families(run_process, write_safetensors):
    tensors = {
        f"lora_unet_blocks_{block}_{leaf}.{part}": ("F32", shape, 0.5)
        for block in range(2)
        for leaf in ("self_attn_q", "cross_attn_k")
        for part, shape in (("lora_down.weight", (4, 5120)), ("lora_up.weight", (5120, 4)))
    }
    path = write_safetensors(tensors)
    code = (
        "import sys; from lora_inspect.reading.file_info import inspect; print(inspect(sys.argv[1]).detection);"
        "print(*sorted(name for name in sys.modules if '.families.' in name))"
    )
    shown = run_process("-c", code, str(path))
    assert shown.stdout.split("\n")[:2] == ["Wan 2.1 / 2.2 14B", "lora_inspect.architectures.families.wan"]
