"""What errors of the Python API say: keywords in the place of options."""

import inspect
from pathlib import Path

import click
import pytest

import lora_inspect
from lora_inspect.api.arguments import KEYWORDS, in_keywords
from lora_inspect.cli import cli

SYNTHETIC = Path(__file__).parents[1] / "fixtures" / "synthetic"


SAID = {
    "leave --rank and --max-error out": "leave rank and max_error out",
    "choose --keep-dora, --base BASE with --rank N": "choose keep_dora=True, base=BASE with rank=N",
    "say which with --architecture wan": 'say which with architecture="wan"',
    "give --architecture wan": 'give architecture="wan"',
    "name it with --base": "name it with base",
    "settle it with --transposed no or --transposed yes": "settle it with transposed=False or transposed=True",
    "settle it with --transposed q=yes|no": 'settle it with transposed={"q": True} or {"q": False}',
    "write them with --changed-dtype bf16": 'write them with changed_dtype="bf16"',
    "report it, or use --no-verify to write it": "report it, or use verify=False to write it",
    (
        "choose another output, or run the command again with --force"
    ): "choose another output, or run the command again with force=True",
    "run `lora-inspect convert FILE --base BASE`": "run `lora-inspect convert FILE --base BASE`",
    "a file that is called --base-of-all": "a file that is called --base-of-all",
}


@pytest.mark.parametrize("said", SAID)
def test_errors_name_keywords_in_the_place_of_options(said):
    assert in_keywords(said) == SAID[said]


def test_every_keyword_that_an_error_may_name_is_one_of_a_function():
    functions = (lora_inspect.check, lora_inspect.compat, lora_inspect.convert, lora_inspect.merge, lora_inspect.scan)
    known = {name for one in (*functions, lora_inspect.unmerge) for name in inspect.signature(one).parameters}
    assert {keyword.partition("=")[0] for keyword, _ in KEYWORDS.values()} <= known


def test_every_option_that_is_a_keyword_has_it_in_errors():
    options = {
        option
        for verb in ("check", "compat", "convert", "merge", "unmerge", "verify")
        for parameter in cli.get_command(click.Context(cli), verb).params
        for option in parameter.opts
        if option.startswith("--")
    }
    of_the_command_line = {"--dry-run", "--fail-on", "--finish", "--format", "--json", "--output", "--shard"}
    assert options - of_the_command_line - {"--to-standard"} <= set(KEYWORDS)


def test_an_error_of_a_call_names_its_keywords(tmp_path):
    path = SYNTHETIC / "dora_without_flag.safetensors"
    with pytest.raises(lora_inspect.RefusedError) as raised:
        lora_inspect.convert(path, tmp_path / "out.safetensors")
    assert "keep_dora=True" in raised.value.fix
    assert "--" not in str(raised.value)
    assert raised.value.path == str(path)
