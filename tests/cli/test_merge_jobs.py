"""`merge --shard` and `--finish` on the command line: what they print, and what is wrong usage."""

import json
import os
from pathlib import Path

import pytest
from bases import SHARDS, content, write_adapter, write_base

MERGE = ("merge", "base", "lora", "-o", "out")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_base("base")
    write_adapter("lora")


def test_a_job_says_what_is_left_and_the_last_one_what_came_of_it(run, place):
    first = run(*MERGE, "--shard", "1/2")
    made, left = first.stdout.splitlines()
    assert made.startswith("job 1/2: made 3 shards in ")
    assert left == (
        f"out.parts: 2 shards left for other jobs ({SHARDS[2]}, {SHARDS[3]}); "
        "the job that makes the last one writes out"
    )
    again = run(*MERGE, "--shard", "1/2")
    assert again.stdout.splitlines()[0].endswith(" s, 3 existed already")
    assert "made 0 shards" in again.stdout
    last = run(*MERGE, "--shard", "2/2")
    assert last.stdout.splitlines()[1] == "merged 11 modules (lora at 1) into out"
    assert (first.stderr, again.stderr, last.stderr) == ("", "", "")


def test_json_says_which_shards_there_are(run, place):
    first = run(*MERGE, "--shard", "1/2", "--json").json
    assert {key: first[key] for key in ("output", "shard", "parts", "merged")} == {
        "output": "out",
        "shard": "1/2",
        "parts": "out.parts",
        "merged": None,
    }
    assert (first["made"], first["held"], first["left"]) == (
        [SHARDS[0], SHARDS[1], SHARDS[4]],
        [],
        SHARDS[2:4],
    )
    again = run(*MERGE, "--shard", "1/2", "--json").json
    assert (again["made"], again["held"]) == ([], first["made"])
    last = run(*MERGE, "--shard", "2/2", "--json").json
    whole = run("merge", "base", "lora", "-o", "one", "--json").json
    assert last["left"] == []
    assert {**last["merged"], "output": "one", "seconds": whole["seconds"]} == whole


def test_a_dry_run_says_which_shards_a_job_would_make(run, place):
    for output in ((), ("-o", "out")):
        record = run("merge", "base", "lora", *output, "--shard", "2/2", "--dry-run", "--json").json
        assert (record["dry_run"], record["shard"], record["shards"]) == (True, "2/2", SHARDS[2:4])
    record = run(*MERGE, "--finish", "--dry-run", "--json").json
    assert (record["shard"], record["shards"]) == (None, SHARDS)
    assert sorted(os.listdir()) == ["base", "lora"]


def test_the_end_by_itself(run, place):
    assert run(*MERGE, "--finish").failure == (
        "out.parts: there is no such folder; make the shards with --shard first."
    )
    run("merge", "base", "lora", "-o", "one")
    run(*MERGE, "--shard", "1/2")
    run(*MERGE, "--shard", "2/2")
    os.rename("out", "whole")
    assert run(*MERGE, "--finish").status == 3
    assert content("whole") == content("one")


def test_what_one_process_says_beside_parts(run, place):
    run(*MERGE, "--shard", "1/2")
    merged = run(*MERGE)
    assert merged.status == 0
    assert merged.stderr.startswith(
        "Note: out.parts: it holds 3 shards of an unfinished merge by several jobs; repeat the missing jobs, or "
        "remove it"
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--shard", "3/2"), "Invalid value for '--shard': '3/2' is no share from 1/N to N/N, such as 3/8."),
        (("--shard", "1"), "'1' is no share"),
        (
            ("--shard", "1/2", "--finish"),
            "--shard makes shards and --finish makes the output of them; give only one.",
        ),
    ],
)
def test_wrong_usage(words, says, run, place):
    ended = run(*MERGE, *words)
    assert ended.status == 2
    assert says in ended.stderr
    assert sorted(os.listdir()) == ["base", "lora"]


def test_names_in_entries_do_no_harm_to_the_terminal(run, place):
    """An entry of another merge, whose adapter has a name that a terminal would obey."""
    os.rename("lora", "lo\x1b[31mra")
    run("merge", "base", "lo\x1b[31mra", "-o", "out", "--shard", "1/2")
    os.rename("lo\x1b[31mra", "lora")
    said = run(*MERGE, "--shard", "2/2").refusal
    assert "\x1b" not in said
    assert "the adapters are lo" in said
    entry = json.loads(Path(f"out.parts/entries/{SHARDS[0]}.json").read_text(encoding="utf-8"))
    assert entry["made_of"]["adapters"][0]["file"] == "lo\x1b[31mra"
