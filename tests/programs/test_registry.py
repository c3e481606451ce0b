"""What every program's record says exists: families, layouts, schemes, dialects, algorithms, magnitudes."""

import importlib.util
import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from lora_inspect import algorithms, programs, schemes
from lora_inspect.algorithms import RECOGNISED, lora_experts
from lora_inspect.architectures import every
from lora_inspect.architectures.text_encoders import ROOTS
from lora_inspect.maths.dora import INPUT, OUTPUT, SPELLINGS
from lora_inspect.programs.record import (
    BASE_NORM,
    COMPUTES,
    FAILS,
    LEAVES,
    MISREADS,
    ODD,
    OTHER_AXIS,
    READ,
    RUN,
    SILENT,
    TEXT_ENCODERS,
    UNTRAINED,
    WARNS,
)

WRITTEN = Path(__file__).parents[2] / "docs" / "write_program_index.py"
NAMES = sorted(programs.PROGRAMS)
FAMILIES = {architecture.name: architecture for architecture in every()}
LAYOUTS = {name for family in every() for layout in family.layouts for name in layout.names}
ALGORITHMS = algorithms.every() | {one.name: one for one in RECOGNISED}
DIALECTS = {name for one in ALGORITHMS.values() for name in one.dialects} | set(ODD)


@pytest.fixture(params=NAMES)
def program(request):
    return programs.by_name(request.param)


def rules(program):
    return [rule for loader in program.loaders for rule in loader.rules]


def test_a_record_is_found_by_its_name(program):
    assert programs.by_name(program.name) is program
    assert program.title
    assert program.version
    assert date.fromisoformat(program.ran).year >= 2026


def test_families_and_layouts_exist(program):
    for loader in program.loaders:
        assert set(loader.families) <= FAMILIES.keys() | {""}
    for rule in rules(program):
        assert set(rule.families) <= FAMILIES.keys()
        assert set(rule.layouts) <= LAYOUTS | {TEXT_ENCODERS} | ROOTS.keys()
        own = [FAMILIES[name] for name in rule.families]
        paths = {path for family in own or every() for layout in family.layouts for path in layout.named}
        assert set(rule.lacks) <= paths


def test_what_it_loads_best_is_written(program):
    assert program.schemes.keys() <= FAMILIES.keys() | {""}
    assert all(schemes.by_name(scheme).writing for scheme in program.schemes.values() if scheme)


def test_spellings_exist(program):
    magnitudes = {f"{suffix} {axis}" for suffix in SPELLINGS for axis in (OUTPUT, INPUT)}
    for rule in rules(program):
        assert set(rule.dialects) <= DIALECTS
        assert rule.kinds.keys() <= ALGORITHMS.keys() | {"", lora_experts.NAME}
        assert set(rule.kinds.values()) <= {COMPUTES, LEAVES, MISREADS, FAILS, ""}
        assert rule.magnitudes.keys() <= magnitudes
        assert set(rule.magnitudes.values()) <= {COMPUTES, LEAVES, BASE_NORM, OTHER_AXIS, UNTRAINED, FAILS}
        assert rule.by in (RUN, READ)
        for part in rule.parts:
            name, _, role = part.partition(".")
            known = ALGORITHMS[name]
            roles = {role for dialect in known.dialects.values() for role in dialect}
            assert role in {*roles, *known.unmarked, *known.numbers, *known.shared}


def test_what_it_does_with_strangers_is_one_of_three(program):
    for loader in program.loaders:
        for strangers in filter(None, (loader.strangers, loader.others)):
            assert strangers.does in (SILENT, WARNS, FAILS)
            assert bool(strangers.beyond) == (strangers.most is not None)


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="already"):
        programs.add(programs.by_name(NAMES[0]))


def test_the_table_is_that_of_the_files():
    spec = importlib.util.spec_from_file_location("write_program_index", WRITTEN)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.TABLE.read_text(encoding="utf-8") == script.table(), "run python docs/write_program_index.py"


def test_a_program_is_what_its_file_says(program):
    (own,) = (one for file in programs.files() for one in programs.in_file(file) if one.name == program.name)
    assert own._replace(loaders=tuple(own.loaders)) == program._replace(loaders=tuple(program.loaders))
    assert own.loaders[:1] == program.loaders[:1]
    assert len(program.reads) == len(own.loaders) == len(program.loaders)


def test_files_of_programs_wait_until_one_of_their_loaders_is_asked_for():
    code = (
        "import sys; from lora_inspect import programs; "
        "from lora_inspect.programs.adapter_view import FramedKeys, loader_for; "
        "keys = FramedKeys(['a.lora_A.weight']); "
        "loaded = lambda: sorted({f for f in programs.INDEX if programs.INDEX[f] "
        "and f'lora_inspect.programs.known.{f}' in sys.modules}); print(loaded()); "
        "print([one.name for one in programs.PROGRAMS.values() if loader_for(one, 'framepack', keys)]); "
        "print(loaded())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, asked, after = map(json.loads, told.replace("'", '"').splitlines())
    assert before == []
    assert asked == ["diffusers", "lycoris", "lycoris-merge", "peft", "blissful", "musubi", "musubi-networks"]
    assert after == ["diffusers", "lycoris", "peft", "trainers.blissful", "trainers.musubi"]
