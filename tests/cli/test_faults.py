"""What nobody foresaw, and surroundings that fail: one sentence, no traceback, nothing left."""

import errno
import json
import os
import subprocess
import sys

import pytest
from adapters import base, loras

from lora_inspect import __version__

linux = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")

# What is raised, and the words that the sentence has.
UNFORESEEN = {
    "a defect": (KeyError("x\n\x1by"), [f"internal error in lora-inspect {__version__}", "KeyError", "report it with"]),
    "a path without end": (RecursionError("maximum depth"), ["internal error", "RecursionError", "report it with"]),
    "no memory": (MemoryError(), ["not enough memory; close other programs"]),
    "no memory for torch": (RuntimeError("[enforce fail] can't allocate memory: 8 bytes"), ["not enough memory;"]),
    "no memory for a library": (ImportError("libx.so: failed to map segment from it"), ["not enough memory;"]),
    "no library": (ModuleNotFoundError("No module named 'torch'"), ["No module named 'torch'", "install it again"]),
    "too many files": (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), ["Too many open files; raise the limit"]),
    "a broken disk": (OSError(errno.EIO, os.strerror(errno.EIO)), ["Input/output error; check the disk"]),
}


def raiser(error):
    def fail(*arguments, **options):
        raise error

    return fail


@pytest.fixture
def files(write_safetensors):
    return write_safetensors(base(), name="base.safetensors"), write_safetensors(loras(), name="adapter.safetensors")


@pytest.mark.parametrize(("error", "words"), UNFORESEEN.values(), ids=UNFORESEEN)
@pytest.mark.parametrize("verb", ["info", "merge", "convert"])
def test_what_nobody_foresaw_is_one_sentence(verb, error, words, run, files, tmp_path, monkeypatch):
    place = {"info": "reading.file_info.inspect", "merge": "ops.merge.merge", "convert": "ops.convert.convert_planned"}
    monkeypatch.setattr(f"lora_inspect.{place[verb]}", raiser(error))
    out = tmp_path / "out.safetensors"
    words_of = {"info": [files[1]], "merge": [*files, "-o", out], "convert": [files[1], "-o", out]}
    sentence = run(verb, *words_of[verb]).failure
    assert [word for word in words if word not in sentence] == [], sentence
    assert verb != "info" or sentence.startswith(str(files[1]))
    assert not out.exists()


def test_the_traceback_is_shown_where_it_is_asked_for(run, files, monkeypatch):
    monkeypatch.setattr("lora_inspect.reading.file_info.inspect", raiser(KeyError("x")))
    monkeypatch.setenv("LORA_INSPECT_DEBUG", "1")
    shown = run("info", files[1])
    assert shown.status == 3
    assert shown.stderr.startswith("Traceback (most recent call last):\n")
    assert "KeyError: 'x'\nError: " in shown.stderr


def test_info_goes_on_after_a_file_that_nobody_foresaw(run, files, monkeypatch):
    from lora_inspect.reading.file_info import inspect

    def fail_at_the_first(path, settings):
        return raiser(TypeError("odd"))() if path == str(files[0]) else inspect(path, settings)

    monkeypatch.setattr("lora_inspect.scanning.scan_file.inspect", fail_at_the_first)
    shown = run("info", *files, "--json")
    broken, whole = json.loads(shown.stdout)
    assert (shown.status, broken["path"], whole["kind"]) == (3, str(files[0]), "adapter")
    assert "TypeError: odd" in broken["error"]
    assert shown.stderr == f"Error: {broken['error']}\n"


def test_a_file_that_shrinks_after_its_header_was_read_is_refused(run, files, monkeypatch):
    from lora_inspect.files import checkpoint

    def open_and_cut(path):
        opened = checkpoint.open_checkpoint(path)
        os.truncate(path, os.path.getsize(path) - 4)
        return opened

    monkeypatch.setattr("lora_inspect.reading.file_info.open_checkpoint", open_and_cut)
    sentence = run("info", files[1]).failure
    assert str(files[1]) in sentence
    assert "internal error" not in sentence


@pytest.mark.parametrize("words", [["merge", "BASE", "ADAPTER", "-o", "a\0b"], ["convert", "ADAPTER", "-o", "a\0b"],
                                   ["merge", "a\0b", "ADAPTER", "-o", "OUT"], ["merge", "BASE", "a\0b", "-o", "OUT"],
                                   ["convert", "a\0b", "-o", "OUT"], ["info", "a\0b"]], ids=" ".join)  # fmt: skip
def test_a_path_with_a_nul_character_is_refused(words, run, files, tmp_path):
    names = {"BASE": files[0], "ADAPTER": files[1], "OUT": tmp_path / "out.safetensors"}
    shown = run(*(names.get(word, word) for word in words))
    sentence = shown.refusal if words[-1] == "a\0b" and "-o" in words else shown.failure
    assert sentence.startswith("a\\x00b: ")


FULL, ON_FULL = "Error: No space left on device; free space, or send the output elsewhere.\n", ">/dev/full"
# A command in a shell, FILE being an adapter: exit status, and what stderr has.
SURROUNDINGS = {
    "stdout full": (f"PYTHON info FILE {ON_FULL}", 3, FULL),
    "JSON to a full disk": (f"PYTHON info --json FILE {ON_FULL}", 3, FULL),
    "help to a full disk": (f"PYTHON --help {ON_FULL}", 3, FULL),
    "stderr full": ("PYTHON info nothing 2>/dev/full", 3, ""),
    "usage to a full disk": ("PYTHON merge 2>/dev/full", 2, ""),
    "usage without arguments to a full disk": ("PYTHON 2>/dev/full", 2, ""),
    "stdout closed": ("PYTHON info FILE >&-", 0, ""),
    "stderr closed": ("PYTHON info nothing 2>&-", 3, ""),
    "all closed": ("PYTHON info FILE <&- >&- 2>&-", 0, ""),
    "a reader that leaves": ("PYTHON --help | true", 0, ""),
    "no home": ("env -u HOME PYTHON info FILE >/dev/null", 0, ""),
    "plain letters": ("env LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 PYTHON info FILE >/dev/null", 0, ""),
    "a folder that is gone": ("mkdir gone && cd gone && rmdir ../gone && PYTHON info FILE >/dev/null", 0, ""),
    "warnings are errors": ("PYTHONWARNINGS=error PYTHON info FILE >/dev/null", 0, ""),
}


@linux
@pytest.mark.parametrize(("line", "status", "stderr"), SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_surroundings_that_fail_cause_no_traceback(line, status, stderr, files, fixtures, tmp_path):
    line = line.replace("PYTHON ", f"'{sys.executable}' -m lora_inspect ").replace("FILE", str(files[1]))
    ended = subprocess.run(
        ["/bin/sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(fixtures.parent)},
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (status, stderr)


@pytest.mark.parametrize("words", [[], ["info"], ["merge"], ["convert"]], ids=" ".join)
def test_help_is_there_without_docstrings(words, run_process):
    shown = run_process("-OO", "-m", "lora_inspect", *words, "--help")
    assert shown == run_process("-m", "lora_inspect", *words, "--help")
    assert "lora-inspect " in shown.stdout.partition("Options:")[0].partition("\n")[2]


@linux
@pytest.mark.slow
def test_a_merge_without_streams_writes_its_output(files, fixtures, tmp_path):
    line = f"'{sys.executable}' -m lora_inspect merge {files[0]} {files[1]} -o out.safetensors <&- >&- 2>&-"
    environment = {**os.environ, "PYTHONPATH": str(fixtures.parent)}
    assert subprocess.run(["/bin/sh", "-c", line], cwd=tmp_path, env=environment, timeout=60).returncode == 0
    assert (tmp_path / "out.safetensors").exists()
