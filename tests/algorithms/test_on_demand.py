"""Algorithms that are imported when a file has their name are found by every suffix and by their `peft_type`."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import lora_inspect.algorithms.on_demand as folder
from lora_inspect.algorithms import every

FILES = sorted(path.stem for path in Path(folder.__file__).parent.glob("*.py") if path.stem != "__init__")


def algorithms_of(file):
    module = import_module(f"{folder.__name__}.{file}")
    return getattr(module, "ALGORITHMS", None) or [module.ALGORITHM]


@pytest.mark.parametrize("file", FILES)
def test_every_suffix_has_the_name_of_its_file(file):
    for algorithm in algorithms_of(file):
        for suffix in algorithm.suffixes:
            assert any(part == file or part.startswith(f"{file}_") for part in suffix.split(".")), suffix


@pytest.mark.parametrize("file", FILES)
def test_the_type_in_a_config_is_the_name_of_the_file(file):
    types = {algorithm.peft_type for algorithm in algorithms_of(file)} - {None}
    # What stands beside LoRA's factors is found by its keys.
    assert not types or file.upper() in types
    assert types <= {file.upper(), "LORA"}


@pytest.mark.parametrize("file", FILES)
def test_it_is_imported_for_such_a_key_and_type_and_not_before(file):
    first = algorithms_of(file)[0]
    suffix = next(iter(first.suffixes))
    checks = [
        f"from lora_inspect import algorithms; assert {first.name!r} not in algorithms.ALGORITHMS",
        "from lora_inspect.reading.keys.suffixes import parse_key",
        f"assert parse_key('a.b{suffix}').meanings[0][0] in {[each.name for each in algorithms_of(file)]}",
        "assert parse_key('a.b.weight') is None and not algorithms.load_for('a.b.weight')",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(checks)], check=True)


def test_all_of_them_are_known():
    assert {algorithm.name for file in FILES for algorithm in algorithms_of(file)} <= every().keys()
