"""The command line as a whole: help, exit statuses, signals, imports, foreign folders and odd terminals."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from adapters import base, loras

from lora_inspect import __version__
from lora_inspect.cli import plain_command
from lora_inspect.cli.group import cli
from lora_inspect.cli.verb import VERBS

HEAVY = {"torch", "numpy", "safetensors"}


@pytest.fixture
def pair(write_safetensors):
    return write_safetensors(base(), name="base.safetensors"), write_safetensors(loras(), name="adapter.safetensors")


def commands():
    """The words of every command: a verb, or one of a verb that is a group."""
    for verb in VERBS:
        command = command_of((verb,))
        yield from ((verb, name) for name in command.commands) if isinstance(command, click.Group) else [(verb,)]


def command_of(words):
    command = cli
    for word in words:
        command = command.get_command(click.Context(command), word)
    return command


COMMANDS = list(commands())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_help_with_an_example_of_itself(words, option, run):
    shown = run(*words, option)
    assert (shown.status, shown.stderr) == (0, "")
    assert f"Example: lora-inspect {' '.join(words)} " in shown.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_how_it_is_used(verb, run):
    assert f"lora-inspect {verb} " in run(verb, "--help").stdout.partition("\nCommon:")[0].replace("Usage: ", "", 1)
    assert sys.modules[command_of([verb]).callback.__module__].__doc__


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_option_of_every_command_is_explained(words):
    options = [parameter for parameter in command_of(words).params if parameter.param_type_name == "option"]
    assert [option.name for option in options if not option.help] == []
    # What prints a value alone has no second form for it.
    assert "--json" in {spelled for option in options for spelled in option.opts} or words == ("metadata", "get")


def test_the_group_lists_its_verbs_and_its_version(run):
    assert all(f"  {verb} " in run("--help").stdout for verb in VERBS)
    assert run("--version").stdout == f"lora-inspect, version {__version__}\n"


# What is typed wrong; ADAPTER and BASE stand for good files.
WRONG_USAGE = [
    [],
    ["melt"],
    ["info"],
    ["info", "--unknown", "ADAPTER"],
    ["merge", "BASE", "-o", "OUT"],
    ["merge", "BASE", "ADAPTER"],
    ["merge", "BASE", "ADAPTER", "-o", "OUT", "--dtype", "int8"],
    ["merge", "BASE", "ADAPTER", "-o", "OUT", "--rslora", "maybe"],
    ["merge", "BASE", "ADAPTER", "-o", "OUT", "--dora-multiplier", "outside"],
    ["merge", "BASE", "ADAPTER", "-o", "OUT", "--alpha", "four"],
    ["merge", "BASE", "ADAPTER", "-o", "OUT", "--alpha", "nan"],
    ["merge", "BASE", "ADAPTER", "-o", "OUT", "--alpha", "-inf"],
    ["convert", "ADAPTER", "--to-standard"],
    ["convert", "ADAPTER", "ADAPTER", "--to-standard", "-o", "OUT"],
    ["convert", "ADAPTER", "--to-standard", "-o", "OUT", "--keep-dora", "--drop-magnitude"],
    ["convert", "ADAPTER", "--to-standard", "-o", "OUT", "--keep-dora", "--base", "BASE", "--rank", "2"],
    ["convert", "ADAPTER", "--to-standard", "-o", "OUT", "--base", "BASE"],
    ["convert", "ADAPTER", "--to-standard", "-o", "OUT", "--rank", "2"],
    ["convert", "ADAPTER", "--to-standard", "-o", "OUT", "--base", "BASE", "--rank", "2", "--max-error", "0.1"],
    ["convert", "ADAPTER", "--to-standard", "-o", "OUT", "--base", "BASE", "--rank", "0"],
    ["convert", "ADAPTER", "--to-standard", "-o", "OUT", "--base", "BASE", "--max-error", "1"],
    ["convert", "ADAPTER", "--to-standard", "-o", "OUT", "--base", "BASE", "--max-error", "nan"],
]


@pytest.mark.parametrize("words", WRONG_USAGE, ids=" ".join)
def test_wrong_usage_ends_with_two_and_writes_nothing(words, run, pair, tmp_path):
    names = {"BASE": pair[0], "ADAPTER": pair[1], "OUT": tmp_path / "out.safetensors"}
    shown = run(*(names.get(word, word) for word in words))
    assert shown.status == 2, shown
    assert shown.stdout == ""
    assert "Usage: lora-inspect" in shown.stderr
    assert sorted(os.listdir(tmp_path)) == ["adapter.safetensors", "base.safetensors"]


def test_results_go_to_stdout_and_nothing_to_stderr(run, pair, tmp_path):
    for words in (
        ["info", pair[1]],
        ["merge", *pair, "-o", tmp_path / "m.safetensors"],
        ["convert", pair[1], "--to-standard", "-o", tmp_path / "c.safetensors"],
    ):
        shown = run(*words)
        assert (shown.status, shown.stderr) == (0, "")
        assert shown.stdout


WATCH = """
import sys
from lora_inspect.cli import main
try:
    main(sys.argv[1:])
except SystemExit as ended:
    assert not ended.code, ended.code
print("IMPORTED", *sorted(sys.modules))
"""


@pytest.mark.parametrize(
    "words",
    [["--help"], ["info", "--help"], ["merge", "--help"], ["convert", "--help"], ["info", "FILE"],
     ["info", "FILE", "--json", "--modules", "--metadata"], ["info", "FILE", "FILE"]],
    ids=" ".join,
)  # fmt: skip
def test_reading_and_help_import_neither_torch_nor_numpy(words, run_process, fixtures):
    file = fixtures / "synthetic" / "dora_and_rslora_flags.safetensors"
    shown = run_process("-c", WATCH, *(file if word == "FILE" else word for word in words))
    assert shown.status == 0, shown.stderr
    imported = shown.stdout.rsplit("IMPORTED", 1)[1].split()
    # Click reads all but a command for one file with flags alone.
    assert ("click" in imported) is (words[:2] != ["info", "FILE"] or words == ["info", "FILE", "FILE"])
    assert HEAVY & set(imported) == set()


# `FILE` can be read, `BROKEN` is cut short, `GONE` is not there.
PLAIN = [
    "info FILE", "FILE", "FILE --json", "info --why FILE --json --modules", "info FILE --metadata --modules",
    "info --json --json FILE", "info GONE", "info GONE --json", "GONE", "info BROKEN", "BROKEN --json --why",
]  # fmt: skip
FOR_CLICK = [
    "info", "info --json", "info FILE FILE", "info FILE:alpha=4", "info FILE:0.5", "info FOLDER", "info PEFT --json",
    "info FILE --jsonl", "info FILE --nope", "info FILE --json=1", "info FILE --", "info -- FILE", "info FILE -h",
    "--json FILE", "check FILE", "FILE FILE", "info --modules=x FILE", "info FILE ''", "info FILE*", "nope",
]  # fmt: skip


@pytest.fixture
def words_of(fixtures, write_safetensors, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = write_safetensors(loras(2), {"title": "T"})
    Path("broken.safetensors").write_bytes(file.read_bytes()[:90])
    Path("folder").mkdir()
    shutil.copytree(fixtures / "minilm-peft-dora-r8", "peft")
    named = {"FILE": file.name, "GONE": "gone.safetensors", "BROKEN": "broken.safetensors", "FOLDER": "folder",
             "PEFT": "peft"}  # fmt: skip

    def words_of(line):
        for name, path in named.items():
            line = line.replace(name, path)
        return shlex.split(line)

    return words_of


@pytest.mark.parametrize("line", PLAIN)
def test_click_says_the_same_of_a_command_that_runs_without_it(line, words_of, run, monkeypatch):
    words = words_of(line)
    assert plain_command(words)
    plain = run(*words)
    monkeypatch.setattr("lora_inspect.cli.plain_command", lambda words: None)
    assert run(*words) == plain
    assert plain.stdout or plain.stderr


@pytest.mark.parametrize("line", FOR_CLICK)
def test_click_reads_every_other_command(line, words_of):
    assert plain_command(words_of(line)) is None


def test_info_loads_what_it_reads_with_alone(run_process, fixtures):
    shown = run_process("-c", WATCH, "info", fixtures / "synthetic" / "i64_alpha.safetensors")
    parts = {".".join(name.split(".")[1:]) for name in shown.stdout.split() if name.startswith("lora_inspect.")}
    assert {"reading.adapter", "architectures.families.wan"} <= parts
    assert "architectures.families.flux" not in parts
    assert {part.split(".")[0] for part in parts} & {"converting", "matching", "merging", "networks"} == set()
    assert parts & {"architectures.rows", "files.safetensors.writer", "cli.progress_bar"} == set()


@pytest.mark.parametrize(
    ("verb", "others"), [("info", ()), ("check", ("tabulate",)), ("compat", ("tabulate", "hashlib"))]
)
def test_reading_loads_no_change_and_no_slow_library(verb, others, run_process, fixtures):
    # Every algorithm that spells its factors as PEFT's LoRA does is loaded for such a file.
    shown = run_process("-c", WATCH, verb, fixtures / "minilm-peft-dora-r8" / "adapter_model.safetensors")
    imported = shown.stdout.rsplit("IMPORTED", 1)[1].split()
    assert "lora_inspect.algorithms.kasa" in imported
    assert {"lora_inspect.maths.change", *others} & set(imported) == set()


@pytest.mark.slow
def test_every_command_works_from_a_folder_with_a_foreign_networks_package(run_process, pair, tmp_path):
    (tmp_path / "networks").mkdir()
    (tmp_path / "networks" / "__init__.py").write_text("raise RuntimeError('a foreign package was imported')\n")
    for words in (
        ["info", "adapter.safetensors"],
        ["merge", "base.safetensors", "adapter.safetensors", "-o", "merged.safetensors"],
        ["convert", "adapter.safetensors", "-o", "standard.safetensors"],
    ):
        shown = run_process("-m", "lora_inspect", *words)
        assert (shown.status, shown.stderr) == (0, "")
    assert run_process("-c", "import lora_inspect.networks.lora_wan").status == 0
    assert run_process("-c", "import networks").status == 1


# The signal arrives while the second changed tensor is being written.
INTERRUPTED = """
import os, signal, sys
from lora_inspect.files.safetensors import writer
from lora_inspect.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
write, seen = writer.Writer.write_at, []
def write_and_signal(self, name, position, buffer):
    seen.append(name)
    if len(seen) == 2:
        assert any(entry.endswith(".partial") for entry in os.listdir())
        os.kill(os.getpid(), int(sys.argv[1]))
    return write(self, name, position, buffer)
writer.Writer.write_at = write_and_signal
main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["SIGINT", "SIGTERM", "the terminal's end"],
)
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.slow
def test_a_signal_during_a_merge_leaves_nothing(number, status, sharded, run_process, fixtures, tmp_path):
    synthetic = fixtures / "synthetic"
    (tmp_path / "kept.safetensors").write_text("old")
    words = [synthetic / ("base_sharded" if sharded else "base_f32.safetensors"), synthetic / "rslora_flag.safetensors"]
    output = ["-o", "out"] if sharded else ["-o", "kept.safetensors", "--force"]
    shown = run_process("-c", INTERRUPTED, str(int(number)), "merge", *words, *output)
    assert shown.status == status, shown
    assert "Traceback" not in shown.stderr
    assert shown.stdout == ""
    assert os.listdir(tmp_path) == ["kept.safetensors"]
    assert (tmp_path / "kept.safetensors").read_text() == "old"


# The signal arrives while the old folder is being removed, whose place the new one has taken.
INTERRUPTED_LATE = """
import os, shutil, signal, sys
from lora_inspect.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
remove = shutil.rmtree
def remove_and_signal(path):
    shutil.rmtree = remove
    os.kill(os.getpid(), signal.SIGINT)
    remove(path)
shutil.rmtree = remove_and_signal
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_an_interrupt_after_the_output_has_its_place_does_not_deny_it(run_process, fixtures, tmp_path):
    base, adapter = (fixtures / "synthetic" / name for name in ("base_sharded", "rslora_flag.safetensors"))
    shutil.copytree(base, tmp_path / "out")
    shown = run_process("-c", INTERRUPTED_LATE, "merge", base, adapter, "-o", "out", "--force")
    assert (shown.status, shown.stderr.strip()) == (130, "Error: interrupted; nothing half-written is left.")
    assert os.listdir(tmp_path) == ["out"]
    shards = [path.read_bytes() for path in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert shards != [path.read_bytes() for path in sorted(base.glob("*.safetensors"))]


@pytest.mark.slow
def test_a_command_under_nohup_survives_its_terminal(run_process, fixtures, tmp_path):
    synthetic = fixtures / "synthetic"
    under_nohup = INTERRUPTED.replace("SIG_DFL", "SIG_IGN").replace("time.sleep(30)", "")
    words = [synthetic / "base_f32.safetensors", synthetic / "rslora_flag.safetensors", "-o", "out.safetensors"]
    assert run_process("-c", under_nohup, str(int(signal.SIGHUP)), "merge", *words).status == 0
    assert os.listdir(tmp_path) == ["out.safetensors"]


def test_a_reader_that_leaves_early_causes_no_traceback(fixtures):
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(
        [sys.executable, "-m", "lora_inspect", "info", fixtures / "synthetic" / "split.safetensors"],
        stdout=write, stderr=subprocess.PIPE, timeout=60, cwd=fixtures.parent,
    )  # fmt: skip
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_a_terminal_that_lacks_the_letters_is_served(run_process, write_safetensors):
    file = write_safetensors(loras(1), {"title": "日本"})
    shown = run_process("-m", "lora_inspect", "info", file, "--metadata", PYTHONIOENCODING="cp1252")
    assert shown.status == 0, shown.stderr
    assert "\\u65e5" in shown.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse names that are not UTF-8")
def test_a_path_that_is_not_unicode_is_read_and_named(run_process, write_safetensors):
    file = os.fsencode(write_safetensors(loras(1)))
    odd = os.path.join(os.path.dirname(file), b"\xff.safetensors")
    os.rename(file, odd)
    for name, status in ((odd, 0), (odd + b"x", 3)):
        shown = run_process("-m", "lora_inspect", "info", os.fsdecode(name))
        assert shown.status == status
        assert "Traceback" not in shown.stderr
        assert "udcff.safetensors" in shown.stdout + shown.stderr
