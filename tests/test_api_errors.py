"""What errors of the Python API say: keywords in the place of options."""

import inspect
from pathlib import Path

import click
import pytest

import lora_inspect
from lora_inspect.api.arguments import KEYWORDS, in_keywords
from lora_inspect.cli.group import cli

SYNTHETIC = Path(__file__).parents[1] / "fixtures" / "synthetic"


SAID = {
    "leave --rank and --max-error out": "leave rank and max_error out",
    "choose --keep-dora, --base BASE with --rank N": "choose keep_dora=True, base=BASE with rank=N",
    "choose one with --architecture wan": 'choose one with architecture="wan"',
    "say which it is of with --architecture flux, chroma or hunyuan_video": (
        'say which it is of with architecture="flux", "chroma" or "hunyuan_video"'
    ),
    "give --architecture flux or hunyuan_video, or leave it out": (
        'give architecture="flux" or "hunyuan_video", or leave it out'
    ),
    "give --architecture wan, convert it or merge it": 'give architecture="wan", convert it or merge it',
    "name it with --base": "name it with base",
    "raise --rank 4, or lower --max-error 0.5.": "raise rank=4, or lower max_error=0.5.",
    "take them apart with --layout single-experts": 'take them apart with layout="single-experts"',
    "settle it with --transposed no or --transposed yes": "settle it with transposed=False or transposed=True",
    "give --rslora yes|no": "give rslora=True or rslora=False",
    "settle it with --transposed q=yes|no": 'settle it with transposed={"q": True} or {"q": False}',
    "write them with --changed-dtype bf16": 'write them with changed_dtype="bf16"',
    "report this, or give --no-verify to write the output": "report this, or give verify=False to write the output",
    "choose another output, or run it again with --force": "choose another output, or run it again with force=True",
    "run `lora-inspect convert FILE --base BASE`": "run `lora-inspect convert FILE --base BASE`",
    "a file that is called --base-of-all": "a file that is called --base-of-all",
}


@pytest.mark.parametrize("said", SAID)
def test_errors_name_keywords_in_the_place_of_options(said):
    assert in_keywords(said) == SAID[said]


def test_every_keyword_that_an_error_may_name_is_one_of_a_function():
    functions = (
        lora_inspect.average,
        lora_inspect.check,
        lora_inspect.compare,
        lora_inspect.compat,
        lora_inspect.convert,
        lora_inspect.merge,
        lora_inspect.scan,
    )
    every = (*functions, lora_inspect.unmerge, lora_inspect.extract, lora_inspect.combine, lora_inspect.resize)
    known = {name for one in every for name in inspect.signature(one).parameters}
    unknown = {keyword.partition("=")[0] for keyword, _ in KEYWORDS.values()} - known
    assert not unknown, f"errors would name {sorted(unknown)}, which no function takes"


def test_every_option_that_is_a_keyword_has_it_in_errors():
    options = {
        option
        for verb in ("check", "compat", "convert", "merge", "unmerge", "verify")
        for parameter in cli.get_command(click.Context(cli), verb).params
        for option in parameter.opts
        if option.startswith("--")
    }
    of_the_command_line = {
        *("--all", "--all-files", "--dry-run", "--fail-on", "--finish", "--format"),
        *("--json", "--output", "--quiet", "--shard", "--strict", "--timeout", "--verbose"),
    }
    without = options - of_the_command_line - {"--to-standard"} - set(KEYWORDS)
    assert not without, f"add {sorted(without)} to KEYWORDS of lora_inspect/api/arguments.py, or declare it in a record"


def test_an_error_of_a_call_names_its_keywords(tmp_path):
    path = SYNTHETIC / "dora_without_flag.safetensors"
    with pytest.raises(lora_inspect.RefusedError) as raised:
        lora_inspect.convert(path, tmp_path / "out.safetensors")
    assert "keep_dora=True" in raised.value.fix
    assert "--" not in str(raised.value)
    assert raised.value.path == str(path)
