"""The help page of every command: groups of options, one spelling for JSON, uniform words for values, and its end."""

import re
from pathlib import Path

import click
import pytest

from lora_inspect.cli.group import cli
from lora_inspect.cli.verb import ENDS, GROUPS, METADATA_VERBS, METAVARS, VERBS, Verb, group_of

ROOT = Path(__file__).parents[2]
COMMANDS = [(), *((verb,) for verb in VERBS), *(("metadata", verb) for verb in METADATA_VERBS)]
# The titles as the requirement names them, in its order.
TITLES = ["Common", "Selection", "Facts that the file leaves open", "Output", "Rare"]


def command_of(words):
    command = cli
    for word in words:
        command = command.get_command(click.Context(command), word)
    return command


def options_of(words):
    command = command_of(words)
    return [one for one in command.get_params(click.Context(command)) if isinstance(one, click.Option)]


def titles(page):
    return re.findall(r"^(\w[\w ]*):$", page, re.MULTILINE)


every_command = pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words) or "the group")


@every_command
def test_every_option_has_a_group(words):
    lacking = [one.opts for one in options_of(words) if not any(f"--{name}" in one.opts for name in sum(_groups(), ()))]
    assert lacking == [], "add them to GROUPS in lora_inspect/cli/verb.py"


def _groups():
    return list(GROUPS.values())


def test_no_group_names_an_option_twice_or_one_that_is_gone():
    named = [name for names in _groups() for name in names]
    assert len(named) == len(set(named))
    known = {option.removeprefix("--") for words in COMMANDS for one in options_of(words) for option in one.opts}
    assert set(named) <= known


@every_command
def test_the_page_has_the_titles_in_order_and_none_without_options(words, run):
    page = run(*words, "--help").stdout
    present = {group_of(one) for one in options_of(words)}
    below = ["Commands"] if words in ((), ("metadata",)) else []
    assert titles(page) == [*(title for title in TITLES if title in present), *below, "Exit status"]
    for one in options_of(words):
        section = page.partition(f"\n{group_of(one)}:\n")[2].partition("\n\n")[0]
        assert max(one.opts, key=len) in section


def test_an_option_without_a_group_is_an_error():
    lone = click.Option(["--lone"], is_flag=True)
    with pytest.raises(KeyError, match="--lone"):
        Verb("lone", params=[lone]).get_help(click.Context(Verb("lone")))


@every_command
def test_json_is_spelled_and_described_in_one_way(words):
    flags = [one for one in options_of(words) if any("json" in option for option in one.opts)]
    said = {one.opts[-1]: one.help for one in flags if one.opts[-1] != "--jsonl"}
    assert said in ({}, {"--json": "Print the result as JSON."})
    assert said or words in ((), ("metadata",), ("metadata", "get"))


def words_for_values(text):
    """The words for values in a metavar: PATH and SETTING are in PATH[:SETTING,...]..."""
    return set(re.findall(r"I/N|[A-Z]+", text))


@every_command
def test_the_words_for_values_are_those_of_the_table(words):
    context = click.Context(command_of(words))
    for one in command_of(words).params:
        if isinstance(one, click.Option) and (one.is_flag or one.count):
            continue
        if isinstance(one.type, click.Choice) and one.metavar is None:
            continue
        metavar = one.make_metavar(context)
        # SETTING and VALUE stand behind the colon of a path and the = of a key.
        unknown = words_for_values(metavar) - METAVARS.keys() - {"SETTING", "VALUE"}
        assert not unknown, f"{one.opts}: {metavar}"
        assert words_for_values(metavar) or metavar == "[GLOB=]yes|no"


def test_every_word_for_values_is_used():
    pages = [command_of(words).get_help(click.Context(command_of(words), info_name="cli")) for words in COMMANDS[1:]]
    found = set().union(*map(words_for_values, pages))
    assert METAVARS.keys() - found == set()


@every_command
def test_the_page_fits_80_columns(words, run):
    page = run(*words, "--help").stdout
    assert [line for line in page.splitlines() if len(line) > 80] == []


def test_the_pages_need_neither_torch_nor_numpy(run_process):
    code = (
        "import sys\n"
        "from lora_inspect.cli.group import cli\n"
        f"for words in {[[*words, '--help'] for words in COMMANDS]}:\n"
        "    cli.main(words, standalone_mode=False)\n"
        "print('IMPORTED', *sys.modules)"
    )
    shown = run_process("-c", code)
    assert shown.stdout.count("Exit status:") == len(COMMANDS)
    imported = shown.stdout.rpartition("IMPORTED ")[2].split()
    assert "click" in imported
    assert {"torch", "numpy", "safetensors"} & set(imported) == set()


@every_command
def test_the_page_ends_with_the_statuses_and_a_page_of_the_docs(words, run):
    page = run(*words, "--help").stdout
    end = page.partition("\nExit status:\n")[2]
    statuses = [line.split()[0] for line in end.splitlines() if re.match(r"  \d", line)]
    assert statuses == ["0", "1", "2", "3"]
    last = page.splitlines()[-1]
    assert re.fullmatch(r"More: docs/\w+\.md", last)
    text = (ROOT / last.removeprefix("More: ")).read_text(encoding="utf-8")
    assert f"lora-inspect {words[0]}" in text if words else "Exit status" in text


# Status 1 of a command that is no refusal, and the words for it; a run of each is in the tests of its command.
ANSWERS = {
    "info": "--fail-on", "check": "--fail-on", "verify": "shares", "compare": "--max-difference", "compat": "--for",
}  # fmt: skip


def test_only_commands_that_answer_no_say_so():
    assert {verb: answer for verb, (_, answer) in ENDS.items() if answer}.keys() == ANSWERS.keys()
    assert all(word in ENDS[verb][1] for verb, word in ANSWERS.items())
    assert ENDS.keys() == {"", *VERBS}
