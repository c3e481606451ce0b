"""What happens where a library is missing that codecs are compared to, and that nothing asks for another one."""

import re
from pathlib import Path

import pytest
from oracles import oracle

ROOT = Path(__file__).parents[1]


def test_a_library_that_is_missing_skips_what_needs_it(monkeypatch):
    monkeypatch.delenv("ORACLES", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no_such_library"):
        oracle("no_such_library")


def test_a_library_that_is_missing_is_an_error_where_all_must_hold(monkeypatch):
    monkeypatch.setenv("ORACLES", "required")
    with pytest.raises(ImportError, match="no_such_library"):
        oracle("no_such_library")


def test_the_extra_has_the_libraries_that_tests_ask_for():
    extra = (ROOT / "pyproject.toml").read_text().partition("test-oracles = [")[2].partition("]")[0]
    installed = {name.replace("-", "_") for name in re.findall(r'"([\w-]+)', extra)}
    asked = {
        name.partition(".")[0]
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r'= oracle\("([\w.]+)"', path.read_text())
    }
    assert asked == installed


def test_the_checks_of_all_install_and_require_them():
    steps = (ROOT / ".ci" / "run").read_text()
    installed, required = steps.index('".[test-oracles]"'), steps.index("export ORACLES=required")
    assert installed < required < steps.index('\nother_processor "numeric and not slow"')
