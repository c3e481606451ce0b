"""Command lines that are shown: a shell has the same words of them, and a terminal obeys nothing in them."""

import os
import shlex
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_inspect.sentences import printable
from lora_inspect.shell import command_line

pytestmark = pytest.mark.skipif(os.name == "nt", reason="cmd has rules of its own")

WORDS = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8), min_size=1)
HOSTILE = ["a b", "it's", '"', "$(reboot)", "`x`", "\\", "*", "~", "-x", "", "é\u0336\u0336", "\x1b[2J", "\n",
           "a\u202eb", "\udc9b2K", "\u3164", "#", "a;b", "!", "日本 x"]  # fmt: skip


@given(WORDS)
def test_a_terminal_obeys_nothing_in_a_command(words):
    line = command_line(words)
    assert printable(line) == line


def test_letters_that_are_drawn_as_a_blank_are_spelled():
    assert command_line(["a\u3164"]) == r"$'a\xe3\x85\xa4'"


@given(st.lists(st.text(st.sampled_from("ab '\"\\$`*~é日/.-"), max_size=6), min_size=1))
def test_printable_words_are_read_as_they_are(words):
    assert shlex.split(command_line(words)) == words


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")
def test_a_shell_reads_hostile_words_as_they_are():
    # Of the locale C.UTF-8, in which the bytes of a name are its letters.
    ended = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command_line(HOSTILE)}"],
        capture_output=True, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert [os.fsdecode(word) for word in ended.stdout.split(b"\0")[:-1]] == HOSTILE


def test_plain_words_stay_plain():
    assert command_line(["lora-inspect", "info", "a/b_c-1.safetensors:alpha=8,rslora=no"]) == (
        "lora-inspect info a/b_c-1.safetensors:alpha=8,rslora=no"
    )
