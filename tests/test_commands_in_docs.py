"""Every command and every Python block of the pages is run; what cannot be stands in a table and is parsed."""

import contextlib
import re

import click
import pytest
from page_snippets import PAGES, Block, Command, Session, blocks_of, words_of

from lora_inspect.cli.group import cli

# What begins so is parsed and not run.
ONLY_PARSED = {
    "python3 -m venv .venv && ": "installs packages: the first two blocks of the README are run by .ci/run",
    'eval "$(_LORA_INSPECT_COMPLETE=zsh': "needs zsh: tests/cli/test_completion.py asks as shells do",
    "_LORA_INSPECT_COMPLETE=fish_source": "needs fish",
    'pip install ".[example]"': "installs packages: tests/networks/test_train_example.py runs the rest",
    "pip install lora-inspect": "installs packages: packaging/matrix.py does so with both forms",
    'pip install "lora-inspect[report]"': "installs packages: .ci/run does so with the light form",
    "pip uninstall lora-inspect": "changes the environment",
    "pip download lora-inspect-light": "fetches packages",
    "pip install --no-index": "installs packages: tests/integrations/test_docker.py does so without an index",
    "pip install gradio": "installs packages",
    "python integrations/space/app.py": "serves: tests/integrations/test_space.py starts it",
    "docker ": "needs Docker: tests/integrations/test_docker.py runs the commands of the Dockerfile",
    "hf ": "needs the network: tests/integrations/test_hf_lora.py installs and runs it without one",
    "uvx ": "needs uv and the network",
    "pipx ": "needs pipx and the network: tests/integrations/test_action.py runs it with another pipx",
    "python3 -m venv .venv-light && ": "installs packages: .ci/run does so",
    "pip install path/to/lora-inspect": "installs packages, into a trainer's environment",
    "python src/musubi_tuner/": "needs the trainer: tests/test_training_page.py parses it",
    "accelerate launch ": "needs the trainer, a model and a GPU: tests/test_training_page.py parses it",
    "make ": "installs packages and runs all tests: tests/test_makefile.py asks make what it would do",
    "source .venv/bin/activate": "belongs into the reader's own shell",
    "python benchmarks/": "takes minutes",
}
# Blocks of Python that begin so are compiled and not run.
ONLY_COMPILED = {
    '"""HiRA of PEFT': "a file of the package: tests/algorithms/test_extending.py compares it",
    '"""The names of LyCORIS': "a file of the package: tests/schemes/test_extending.py compares it",
    '"""LTX-Video.': "a file of the package: tests/architectures/test_extending.py compares it",
    "import subprocess\nimport ray": "needs a cluster: tests/test_several_machines_page.py runs it without one",
    '"""Easel: ': "an invented program: tests/programs/test_extending.py adds it",
}
# Pages of which another test runs the commands.
ELSEWHERE = {"symptoms.md": "tests/test_symptoms.py"}
RUN = [page for page in PAGES if page.exists() and page.name not in ELSEWHERE]


def reason(one: Command | Block) -> str | None:
    """Why this is not run; None where it is."""
    table = ONLY_PARSED if isinstance(one, Command) else ONLY_COMPILED
    return next((why for start, why in table.items() if one.text.startswith(start)), None)


def commands() -> list[Command]:
    return [
        command
        for page in PAGES
        if page.exists()
        for block in blocks_of(page)
        if block.language in ("sh", "console")
        for command in block.commands
    ]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_every_command_of_a_page_does_what_it_says(page, run, tmp_path, monkeypatch):
    folder = tmp_path / "reader"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "80")
    list(Session(folder, run).page(blocks_of(page), leave_out=reason))


@pytest.mark.parametrize("command", dict.fromkeys(command.text for command in commands()))
def test_every_command_of_this_program_is_one(command):
    words = words_of(command)
    if words is None or words[0] != "lora-inspect" or len(words) == 1 or words[1].startswith("-"):
        return
    verb = cli.get_command(None, words[1]) or cli.get_command(None, "info")
    arguments = words[2:] if cli.get_command(None, words[1]) else words[1:]
    with contextlib.suppress(click.exceptions.Exit):  # --help
        verb.make_context(words[1], arguments)


@pytest.mark.parametrize(
    "block",
    [block for page in PAGES if page.exists() for block in blocks_of(page) if block.language == "python"],
    ids=lambda block: block.place,
)
def test_every_block_of_python_compiles(block):
    compile(block.text, block.place, "exec")


def test_only_known_languages_stand_in_pages():
    known = {"sh", "console", "bash", "python", "toml", "json", "text", "yaml"}
    assert [b.place for page in PAGES if page.exists() for b in blocks_of(page) if b.language not in known] == []


@pytest.mark.parametrize("start", [*ONLY_PARSED, *ONLY_COMPILED])
def test_what_is_left_out_stands_in_a_page(start):
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.exists())
    assert re.search(rf"^(\$ )?{re.escape(start)}", text, re.MULTILINE)
