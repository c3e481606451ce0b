"""Folders whose weights are all in formats that are never read: each file is named, and the exit status is 1."""

import json
import pickle

import pytest

import lora_inspect

NAMES = ("a.pt", "b.ckpt", "sub/c.bin")
COMMANDS = {
    "check": ["check", "in"],
    "info": ["info", "in"],
    "compat": ["compat", "in", "--for", "comfyui"],
    "convert": ["convert", "in", "-o", "out"],
    "convert to a program": ["convert", "in", "--to", "comfyui", "-o", "out"],
    "resize": ["resize", "in", "--rank", "2", "-o", "out"],
}


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write_pickles(*names):
        for name in names:
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps({}))

    return write_pickles


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_command_names_every_pickle_and_fails(words, write, run, tmp_path):
    write(*NAMES, "optimizer.pt")
    ended = run(*words)
    printed = ended.stdout + ended.stderr
    assert ended.status == 1
    assert all(name in printed for name in NAMES), printed
    assert "optimizer.pt" not in printed
    # The command for each of them stands there once.
    assert printed.count("FILE NEW.safetensors`") == 1
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_json_of_pickles_is_list_of_files(words, write, run):
    write(*NAMES)
    ended = run(*words, "--json")
    records = json.loads(ended.stdout)
    assert ended.status == 1
    assert [record["path"] for record in records] == [f"in/{name}" for name in NAMES]
    assert all("it is a pickle" in json.dumps(record) for record in records)


def test_jsonl_of_pickles_has_line_per_file(write, run):
    write(*NAMES)
    ended = run("info", "in", "--jsonl")
    records = [json.loads(line) for line in ended.stdout.splitlines()]
    assert (ended.status, [record["path"] for record in records]) == (1, [f"in/{name}" for name in NAMES])
    assert ended.stderr.startswith("Error: in: none of its 3 weight files can be read (in/a.pt: it is a pickle")


def test_rows_of_pickles_precede_error_on_folder(write, run):
    write(*NAMES)
    ended = run("info", "in")
    header, *rows, totals = ended.stdout.splitlines()
    assert header.split()[0] == "name"
    assert [row.split()[0] for row in rows] == list(NAMES)
    assert totals == "0 adapters; 3 pickles"
    assert ended.stderr.startswith("Error: in: none of its 3 weight files can be read (in/a.pt: it is a pickle")
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_single_pickle_keeps_error_with_whole_command(words, write, run):
    write("a.pt")
    error = run(*words).refusal
    assert error.startswith("in/a.pt: it is a pickle")
    assert error.endswith(" in/a.pt in/a.safetensors`.")


def test_single_pickle_in_folder_below_has_row(write, run):
    write("sub/a.pt")
    ended = run("info", "in", "--json")
    assert (ended.status, [record["path"] for record in json.loads(ended.stdout)]) == (1, ["in/sub/a.pt"])


def test_folder_of_pickles_beside_folder_of_adapters_keeps_status_1(write, run, fixtures):
    write(*NAMES)
    ended = run("info", "in", fixtures / "synthetic")
    assert ended.status == 1
    assert "Error: in: none of its 3 weight files can be read" in ended.stderr
    assert "8 adapters: " in ended.stdout


def test_scan_of_pickles_has_account_per_file(write):
    write(*NAMES)
    accounts = list(lora_inspect.scan("in"))
    assert [account.path for account in accounts] == [f"in/{name}" for name in NAMES]
    assert all("it is a pickle" in str(account.error) for account in accounts)


def test_folder_of_gguf_models_names_each(write, run, tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "in" / name).write_bytes(b"GGUF" + bytes(20))
    ended = run("info", "in")
    assert ended.status == 1
    assert [line.split()[0] for line in ended.stdout.splitlines()[1:-1]] == ["a.gguf", "b.gguf"]
    assert ended.stderr.startswith("Error: in: none of its 2 weight files can be read (in/a.gguf: ")
