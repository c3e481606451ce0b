"""Algorithms are imported when a key, a config or a name asks for them, and are found as if all were there at once."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lora_inspect import algorithms
from lora_inspect.algorithms.file_index import NAMES, SUFFIXES

WRITTEN = Path(__file__).parents[2] / "docs" / "write_algorithm_index.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("write_algorithm_index", WRITTEN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(*lines):
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True, text=True).stdout


def test_the_table_is_the_one_of_the_files(script):
    assert script.TABLE.read_text(encoding="utf-8") == script.table(), "run python docs/write_algorithm_index.py"


ASKED = {
    "a key": ("parse_key('a.lokr_w1')", "parse_key('a.lokr_w1').algorithm == 'lokr'"),
    "a name": ("by_name('lokr')", "by_name('lokr').name == 'lokr'"),
    "whether there is one": ("by_name('lokr')", "is_known('lokr')"),
    "a key with its name": ("parse_key('a.hira_A')", "parse_key('a.hira_A').algorithm == 'hira'"),
    "a type": ("of_peft_type('HIRA')", "[one.name for one in of_peft_type('HIRA')] == ['hira', 'hira_embedding']"),
    "a type of the table": ("of_peft_type('LOKR')", "[one.name for one in of_peft_type('LOKR')] == ['lokr']"),
}


@pytest.mark.parametrize("case", ASKED)
def test_what_another_thread_is_importing_is_waited_for(case):
    first, second = ASKED[case]
    found = python(
        "import threading, time",
        "from lora_inspect import algorithms",
        "from lora_inspect.algorithms import by_name, every, is_known, of_peft_type",
        "from lora_inspect.reading.keys.suffixes import parse_key",
        "began, add = threading.Event(), algorithms._add_file",
        "def slow(*asked):",
        "    began.set()",
        "    time.sleep(0.05)",
        "    add(*asked)",
        "algorithms._add_file = slow",
        f"other = threading.Thread(target=lambda: {first})",
        "other.start()",
        "began.wait()",
        f"print({second})",
        "other.join()",
    )
    assert found.strip() == "True"


def test_a_plain_lora_takes_its_own_file_alone():
    found = python(
        "from lora_inspect import algorithms",
        "from lora_inspect.reading.keys.suffixes import parse_key",
        "parse_key('a.lora_down.weight')",
        "print(*(name for name, one in algorithms.ALGORITHMS.items() if one.formula))",
    )
    assert found.split() == ["lora"]


def test_candidates_stand_in_the_order_of_their_files_whichever_is_asked_for_first(script):
    expected = {}
    for found in script.by_file().values():
        for one in found:
            for suffix in one.suffixes:
                expected.setdefault(suffix, []).append(one.name)
    assert expected.keys() == SUFFIXES.keys()
    for order in (sorted(expected), sorted(expected, reverse=True)):
        found = python(
            "import json; from lora_inspect import algorithms",
            f"print(json.dumps({{s: [name for name, _ in algorithms.candidates(s)] for s in {order!r}}}))",
        )
        assert json.loads(found) == expected


def test_names_and_types_find_what_nobody_asked_for_before():
    names = [name for found in NAMES.values() for name in found]
    checks = (
        "from lora_inspect import algorithms",
        f"assert all(algorithms.is_known(name) and algorithms.by_name(name).name == name for name in {names})",
        "assert not algorithms.is_known('none')",
    )
    python(*checks)
    found = python("from lora_inspect import algorithms", "print(*(a.name for a in algorithms.of_peft_type('LOKR')))")
    assert found.split() == [a.name for a in algorithms.every().values() if a.peft_type == "LOKR"] != []


def test_an_option_of_lora_is_found_by_its_setting():
    found = python(
        "from lora_inspect import algorithms",
        "print(*(a.name for a in algorithms.options_in({'use_bdlora': {}})), '-')",
        "print(*(a.name for a in algorithms.options_in({'use_bdlora': {'nblocks': 2}})))",
    )
    assert found.split() == ["-", "bdlora"]


def test_a_name_of_a_file_that_waits_is_taken():
    says = python(
        "from lora_inspect import algorithms",
        "from lora_inspect.algorithms.loha import ALGORITHM",
        "try: algorithms.add(ALGORITHM)",
        "except ValueError as error: print(error)",
    )
    assert "called loha already" in says


def test_a_file_that_is_not_in_the_table_is_imported_at_once():
    found = python(
        "from lora_inspect.algorithms import file_index",
        "file_index.NAMES = {k: v for k, v in file_index.NAMES.items() if k != 'tlora'}",
        "import importlib, lora_inspect.algorithms",
        "algorithms = importlib.reload(lora_inspect.algorithms)",
        "print(*(name for name, one in algorithms.ALGORITHMS.items() if one.formula))",
    )
    assert found.split() == ["tlora"]
