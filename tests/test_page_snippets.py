"""The runner of pages notices what a page says wrongly."""

import pytest
from page_snippets import ROOT, Block, Session, blocks_of, compare, words_of

PAGE = ROOT / "docs" / "toy.md"


@pytest.fixture
def session(tmp_path, run, monkeypatch):
    folder = tmp_path / "reader"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Session(folder, run)


def block(language, text, prints=None):
    return Block(PAGE, 1, language, text, prints)


RIGHT = {
    "a command": block("sh", "lora-inspect info face.safetensors --json\n"),
    "one that refuses": block("sh", "lora-inspect merge base.safetensors dora.safetensors   # exit status 2: no -o\n"),
    "lines that are joined": block(
        "sh", "lora-inspect merge base.safetensors \\\n  face.safetensors -o out.safetensors\n"
    ),
    "a shell's doing": block("sh", "lora-inspect info face.safetensors --json | grep -c kohya > count && cat count\n"),
    "output": block("console", "$ lora-inspect --version\n...\n$ echo one; echo two\none\ntwo\n"),
    "a part of it": block("console", "$ printf '%s\\n' one two three\n...\nthree\n"),
    "times": block("console", "$ echo 12.5 s\n0.1 s\n"),
    "Python": block("python", "print(6 * 7)\n", ["42"]),
}
WRONG = {
    "an option that there is not": block("sh", "lora-inspect info face.safetensors --jsn\n"),
    "another status": block("sh", "lora-inspect info face.safetensors   # exit status 1\n"),
    "a file that is not there": block("sh", "lora-inspect info nothing.safetensors\n"),
    "another line": block("console", "$ echo one\ntwo\n"),
    "a line that is missing": block("console", "$ printf '%s\\n' one two\none\n"),
    "a line too many": block("console", "$ echo one\none\ntwo\n"),
    "a pipe that breaks": block("sh", "false | cat\n"),
    "a command that is not there": block("sh", "lora-inspekt info face.safetensors\n"),
    "another number": block("python", "print(6 * 7)\n", ["43"]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_holds_passes(name, session):
    assert list(session.page([RIGHT[name]]))


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_is_noticed(name, session):
    with pytest.raises(AssertionError):
        list(session.page([WRONG[name]]))


def test_a_page_goes_on_with_what_it_made(session):
    made = block("sh", "lora-inspect convert rslora.safetensors -o standard.safetensors\n")
    used = block(
        "sh", "lora-inspect info standard.safetensors\nlora-inspect convert standard.safetensors -o again.safetensors\n"
    )
    again = block("sh", "lora-inspect convert rslora.safetensors -o standard.safetensors\n")
    assert len(list(session.page([made, used, again]))) == 4


def test_python_keeps_its_names(session):
    blocks = [block("python", "value = 3\n"), block("python", "print(value)\n", ["3"])]
    assert len(list(session.page(blocks))) == 2


def test_a_text_behind_python_is_what_it_prints(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n```text\n1\n```\n\nA word.\n\n```text\nno output\n```\n")
    first, second = blocks_of(page)
    assert (first.language, first.prints, second.language) == ("python", ["1"], "text")


def test_what_needs_a_shell():
    assert words_of("lora-inspect info 'a b'") == ["lora-inspect", "info", "a b"]
    for command in ("a | b", "a > b", "X=1 a", "a && b", "a $(b)", "eval a"):
        assert words_of(command) is None


def test_any_lines_may_be_none():
    compare(["...", "a", "..."], ["a"], "here")
