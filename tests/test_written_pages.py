"""The pages that are written from the source are those that would be written now."""

import importlib.util
import re
from pathlib import Path

import click
import pytest

from lora_inspect.cli.group import cli
from lora_inspect.schemes import SCHEMES, recognise

DOCS = Path(__file__).parents[1] / "docs"


def script(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["cli", "formats"])
def test_a_page_is_that_of_its_source(page):
    written = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert written == script(f"write_{page}").page(), f"run python docs/write_{page}.py"


def every_command(command, words=()):
    yield words
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            yield from every_command(command.get_command(click.Context(command), name), (*words, name))


def test_every_command_has_a_section_with_an_example_that_is_run():
    page = (DOCS / "cli.md").read_text(encoding="utf-8")
    for words in every_command(cli):
        called = " ".join(("lora-inspect", *words))
        section = re.search(rf"^#+ {called}\n(.*?)(?=^#|\Z)", page, re.MULTILINE | re.DOTALL)
        assert section, called
        assert "```sh\nlora-inspect " in section[1] or len(words) > 1, f"the help of {called} has no example"


def test_the_modules_of_the_page_are_of_the_schemes_that_they_stand_under():
    page = (DOCS / "formats.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### `(\w+)`\n\n[^\n]*`([^`\n]+)`\n\n.*?LoRA \| (.*?) \|$", page, re.MULTILINE | re.DOTALL)
    assert {name for name, _, _ in sections} == {scheme.name for scheme in SCHEMES.values() if scheme.writing}
    for name, module, suffixes in sections:
        read_as = name if SCHEMES[name].prefixes else "kohya"
        assert recognise(module, re.findall(r"`([^`]+)`", suffixes)).scheme == read_as
