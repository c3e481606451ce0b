"""Trigger words as a column of a folder's table, a condition, and a value of `metadata get`."""

import json

import pytest
from adapters import lora, loras

from lora_inspect.sentences import width


@pytest.fixture
def folder(write_safetensors, tmp_path):
    """One adapter with trigger words in its metadata, one with some in a sidecar, and one without any."""
    write_safetensors(loras(), {"modelspec.trigger_phrase": "ink drawing, sketch"}, name="many/ink.safetensors")
    write_safetensors(loras(alpha=2.0), name="many/plain.safetensors")
    write_safetensors(loras(alpha=4.0), name="many/wash.safetensors")
    (tmp_path / "many" / "wash.civitai.info").write_text(json.dumps({"trainedWords": ["wet wash"]}))
    return tmp_path / "many"


@pytest.fixture
def table(folder, run, monkeypatch):
    """`table(columns, *options)`: the lines of the folder in a terminal of so many columns, None for a pipe."""

    def lines(columns, *options):
        if columns is None:
            monkeypatch.delenv("COLUMNS", raising=False)
        else:
            monkeypatch.setenv("COLUMNS", str(columns))
        return run("info", folder, *options).stdout.splitlines()

    return lines


@pytest.mark.parametrize("columns", [None, 120])
def test_a_wide_table_has_a_column_of_them(columns, table):
    headers, ink, plain, wash, _ = table(columns)
    at = headers.index("trigger ")
    assert ink[at:].startswith("ink d")
    assert plain[at:].strip() == plain[at:].lstrip()
    assert not plain[at : at + 8].strip()
    assert wash[at:].startswith("wet wash  ")


def test_nothing_of_them_is_cut_in_a_pipe(table, folder, write_safetensors):
    words = "a very long phrase of many words that no column has the room for"
    write_safetensors(loras(alpha=5.0), {"modelspec.trigger_phrase": words}, name="many/long.safetensors")
    assert any(words in line for line in table(None))


def test_a_table_without_any_has_no_such_column(table, folder):
    (folder / "wash.civitai.info").unlink()
    (folder / "ink.safetensors").unlink()
    assert "trigger" not in table(120)[0]
    assert "trigger" not in table(None)[0]


def test_80_columns_have_no_room_but_for_a_condition_on_them(table):
    assert table(80)[0].split() == ["name", "model", "type", "rank", "scale", "size", "note"]
    headers, ink, wash, _ = table(80, "--where", "trigger=*")
    assert headers.split() == ["name", "model", "type", "rank", "trigger", "note"]
    assert (ink.split()[0], wash.split()[0]) == ("ink", "wash")


@pytest.mark.parametrize("columns", [40, 59, 60, 80, 99, 100, 101, 200])
@pytest.mark.parametrize("options", [[], ["--where", "trigger=*"]], ids=["all", "asked"])
def test_no_row_is_wider_than_the_terminal(columns, options, table, folder, write_safetensors):
    for number, words in enumerate(("日本語" * 30, "a" * 300, "x\x1b[31m" * 20)):
        metadata = {"modelspec.trigger_phrase": words}
        write_safetensors(loras(alpha=10.0 + number), metadata, name=f"many/{number}.safetensors")
    lines = table(columns, *options)[:-1]
    assert max(map(width, lines)) <= columns
    assert not any("\x1b" in line for line in lines)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("ink", ["ink"]),
        ("INK D", ["ink"]),
        ("sketch", ["ink"]),
        ("*wash", ["wash"]),
        ("*", ["ink", "wash"]),
        ("s h", []),
    ],
)
def test_a_condition_is_about_each_word_or_phrase(value, names, run, folder):
    listed = run("info", folder, "--where", f"trigger={value}", "--json").json
    assert [one["path"].rpartition("/")[2].split(".")[0] for one in listed] == names


def test_json_names_the_sidecar(run, folder):
    wash = run("info", folder, "--where", "name=wash", "--json").json[0]
    assert wash["trigger_words"] == ["wet wash"]
    assert wash["sidecars"] == [{"file": "wash.civitai.info", "fields": ["trigger_words"], "problem": None}]


def test_get_prints_them_alone(run, folder):
    shown = run("metadata", "get", folder / "ink.safetensors", "trigger-words")
    assert (shown.status, shown.stdout, shown.stderr) == (0, "ink drawing, sketch", "")


def test_get_names_a_sidecar_as_the_source(run, folder):
    shown = run("metadata", "get", folder / "wash.safetensors", "trigger-words")
    assert shown.stdout == "wet wash"
    note = f"Note: {folder / 'wash.safetensors'}: the trigger words are from wash.civitai.info beside it."
    assert shown.stderr.strip() == note


def test_get_refuses_a_file_without_any(run, folder):
    shown = run("metadata", "get", folder / "plain.safetensors", "trigger-words")
    assert (shown.status, shown.stdout) == (1, "")
    assert "neither its metadata nor a file beside it states trigger words" in shown.stderr


@pytest.mark.parametrize(
    "key", ["modelspec.trigger_phrase", "ss_trigger_words", "trigger_phrase", "ssmd_keywords", "trigger_word"]
)
def test_get_reads_them_under_any_key(key, run, write_safetensors):
    file = write_safetensors(lora("lora_unet_a"), {key: "ink"})
    assert run("metadata", "get", file, "trigger-words").stdout == "ink"


def test_get_prints_those_that_set_writes(run, folder):
    assert run("metadata", "set", folder / "plain.safetensors", "--trigger-words", "a, b c").status == 0
    assert run("metadata", "get", folder / "plain.safetensors", "trigger-words").stdout == "a, b c"
