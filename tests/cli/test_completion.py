"""What a shell gets that asks how a command line goes on: files wherever a path stands, verbs, options."""

import os

import click
import pytest

from lora_inspect.cli.group import cli
from lora_inspect.cli.verb import VERBS, FilePath

FILES = "file"
# what is typed, with _ where the cursor is, and what may stand there: files, or words of which these are some
TYPED = {
    "_": {FILES, *VERBS},
    "mer_": {FILES, "merge"},
    "folder/ad_": {FILES},
    "info _": {FILES},
    "info a.safetensors folder/b_": {FILES},
    "info --json a_": {FILES},
    "merge _": {FILES},
    "compare a.safetensors _": {FILES},
    "merge base.safetensors _": {FILES},
    "merge base.safetensors a.safetensors:0.5 _": {FILES},
    "merge base.safetensors a.safetensors -o _": {FILES},
    "merge base.safetensors a.safetensors --output folder/_": {FILES},
    "merge base.safetensors a.safetensors --dtype _": {"float32", "float16", "bfloat16"},
    "convert _": {FILES},
    "convert a.safetensors --base _": {FILES},
    "convert a.safetensors --bas_": {"--base"},
    "a.safetensors _": {FILES},
    "a.safetensors --mod_": {"--modules"},
    "a.safetensors --json b_": {FILES},
    "--json _": {FILES},
    "--vers_": {"--version"},
}


def complete(run_process, typed, **environment):
    words, cursor = typed.split(), len(typed.split())
    words = words[:-1] + ([words[-1][:-1]] if words[-1] != "_" else [])
    return run_process(
        "-c",
        "from lora_inspect.cli import main; main()",
        _LORA_INSPECT_COMPLETE="bash_complete",
        COMP_WORDS=" ".join(["lora-inspect", *words]),
        COMP_CWORD=str(cursor),
        **environment,
    )


@pytest.mark.parametrize(("typed", "expected"), TYPED.items())
def test_what_may_stand_at_the_cursor(typed, expected, run_process):
    shown = complete(run_process, typed)
    assert (shown.status, shown.stderr) == (0, "")
    kinds = [line.partition(",") for line in shown.stdout.splitlines()]
    assert {FILES if kind == "file" else value for kind, _, value in kinds} >= expected
    assert (FILES in expected) == any(kind == "file" for kind, _, _ in kinds)
    assert [value for kind, _, value in kinds if kind == "file"] in ([], [typed.split()[-1][:-1]])
    # bash forgets the words before a file
    assert [kind for kind, _, _ in kinds].index("file") == 0 if FILES in expected else True


# Arguments that are no paths.
OF_METADATA = ("key", "keys", "pairs")


def commands_of(verb):
    """The commands of a verb: itself, or those below it."""
    command = cli.get_command(click.Context(cli), verb)
    is_group = isinstance(command, click.Group)
    return [command.get_command(None, name) for name in command.list_commands(None)] if is_group else [command]


@pytest.mark.parametrize(
    "command", [command for verb in VERBS for command in commands_of(verb)], ids=lambda one: one.name
)
def test_every_path_of_every_verb_is_completed(command):
    arguments = [one for one in command.params if isinstance(one, click.Argument) and one.name not in OF_METADATA]
    options = [option for option in command.params if option.name in ("output", "base") and option not in arguments]
    assert arguments
    assert [parameter.name for parameter in (*arguments, *options) if not isinstance(parameter.type, FilePath)] == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_each_shell_asks_under_the_right_name(shell, run_process):
    shown = run_process("-c", "from lora_inspect.cli import main; main()", _LORA_INSPECT_COMPLETE=f"{shell}_source")
    assert shown.status == 0
    assert f"_LORA_INSPECT_COMPLETE={shell}_complete" in shown.stdout
    assert "lora-inspect" in shown.stdout


def test_completion_imports_neither_torch_nor_numpy(run_process):
    watch = (
        "import atexit, sys; from lora_inspect.cli import main\n"
        "atexit.register(lambda: print('HEAVY', *sorted({'torch', 'numpy'} & set(sys.modules)), file=sys.stderr))\n"
        "main()"
    )
    for words in ("lora-inspect ", "lora-inspect merge ", "lora-inspect convert --"):
        shown = run_process("-c", watch, _LORA_INSPECT_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD="1")
        assert (shown.status, shown.stderr) == (0, "HEAVY\n")


@pytest.mark.skipif(os.name == "nt", reason="root and rights are other things there")
def test_a_path_is_taken_as_it_is(tmp_path):
    (tmp_path / "unreadable").touch(mode=0)
    for path in (str(tmp_path / "unreadable"), "missing", "a\0b", "-", "~/a", "a:0.5"):
        assert FilePath().convert(path, None, None) == path


def test_verbs_are_completed_without_their_files(run_process):
    watch = (
        "import atexit, sys; from lora_inspect.cli import main\n"
        "own = lambda: [name for name in sys.modules if name.startswith('lora_inspect.ops')]\n"
        "atexit.register(lambda: print('LOADED', *own(), file=sys.stderr))\nmain()"
    )
    asked = {"_LORA_INSPECT_COMPLETE": "zsh_complete", "COMP_WORDS": "lora-inspect me", "COMP_CWORD": "1"}
    shown = run_process("-c", watch, **asked)
    assert (shown.status, shown.stderr.split()) == (0, ["LOADED"])
    answers = shown.stdout.splitlines()
    assert answers[answers.index("merge") + 1] == VERBS["merge"]
