"""The epochs of one training have one row, and files that only look like them rows of their own."""

import json
import os

import pytest
from adapters import loras

from lora_inspect.scanning.trainings import EPOCH, STEP, SeriesPlace, series_place
from lora_inspect.sentences import width


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("style-000002.safetensors", ("style", EPOCH, 2)),
        ("in/style-step00001000.safetensors", ("in/style", STEP, 1000)),
        ("style_e10.safetensors", ("style", EPOCH, 10)),
        ("style-epoch-3.safetensors", ("style", EPOCH, 3)),
        ("style_000000500.safetensors", ("style", STEP, 500)),
        ("out/checkpoint-500/adapter_model.safetensors", ("out/adapter_model", STEP, 500)),
        ("out/epoch20/adapter_model.safetensors", ("out/adapter_model", EPOCH, 20)),
        ("out/adapter_model.safetensors", ("out/adapter_model", "", None)),
        ("style.safetensors", ("style", "", None)),
        ("style-2024.safetensors", ("style-2024", "", None)),
        ("style_v2.safetensors", ("style_v2", "", None)),
        ("one10.safetensors", ("one10", "", None)),
    ],
)
def test_the_number_in_a_name(path, place):
    series, *rest = place
    assert series_place(path.replace("/", os.sep)) == SeriesPlace(series.replace("/", os.sep), *rest)


@pytest.fixture
def many(write_safetensors, tmp_path):
    """`many({name: metadata})`: a folder of adapters of one shape but other numbers."""

    def written(named, **options):
        for number, (name, metadata) in enumerate(named.items()):
            tensors = {
                key: (dtype, shape, value if key.endswith("alpha") else number + 1.5)
                for key, (dtype, shape, value) in loras(**options).items()
            }
            write_safetensors(tensors, metadata=metadata, name=f"many/{name}.safetensors")
        return tmp_path / "many"

    return written


def rows(shown):
    """The names of rows, and whole lines that stand below a row."""
    return [line.strip() if line.startswith(" ") else line.split()[0] for line in shown.stdout.splitlines()[1:-1]]


ONE = {"ss_session_id": "7"}


def test_epochs_of_one_session_have_one_row(many, run):
    folder = many({"a": {}, "style-000002": ONE, "style-000004": ONE, "style": ONE | {"ss_epoch": "6"}, "z": {}})
    shown = run("info", folder)
    assert rows(shown) == ["a", "style", "3 epochs: 2 to 6; --all lists each", "z"]
    assert shown.stdout.splitlines()[-1].startswith("5 adapters: ")


def test_a_last_file_without_a_number_is_called_the_last(many, run):
    assert "2 epochs: 2 to the last; --all lists each" in rows(run("info", many({"style-000002": ONE, "style": ONE})))


def test_steps_in_folders_are_in_the_order_of_their_numbers(many, run):
    folder = many({f"checkpoint-{step}/adapter_model": {} for step in (500, 1000, 1500)})
    assert rows(run("info", folder)) == ["checkpoint-1500/", "3 checkpoints: step 500 to 1500; --all lists each"]


def test_epochs_and_steps_of_one_training_are_in_the_order_of_their_times(many, run):
    names = ["style-step00000500", "style-000001", "style-step00001000", "style-000002"]
    folder = many(dict.fromkeys(names, ONE))
    for number, name in enumerate(names):
        os.utime(folder / f"{name}.safetensors", (number + 1, number + 1))
    assert rows(run("info", folder)) == ["style-000002", "4 states of one training; --all lists each"]


def test_all_lists_each_epoch(many, run):
    folder = many({"style-000002": ONE, "style-000004": ONE, "style": ONE})
    assert rows(run("info", folder, "--all")) == ["style-000002", "style-000004", "style"]


@pytest.mark.parametrize("other", [{"ss_session_id": "8"}, {}], ids=["another session", "no session"])
def test_another_session_is_another_training(other, many, run):
    assert rows(run("info", many({"style-000002": other, "style": ONE}))) == ["style-000002", "style"]


def test_the_start_of_a_training_stands_for_its_session(many, run):
    began = {"ss_training_started_at": "1700000000.5"}
    folder = many({"style-000002": began, "style-000004": began, "style": {"ss_training_started_at": "1700000001"}})
    assert rows(run("info", folder)) == ["style-000004", "2 epochs: 2 to 4; --all lists each", "style"]


def test_other_ranks_or_modules_are_another_training(many, run):
    many({"style-000002": {}, "style-000004": {}})
    many({"style-000006": {}}, rank=8)
    folder = many({"style-000008": {}}, count=2)
    shown = rows(run("info", folder))
    assert shown == ["style-000004", "2 epochs: 2 to 4; --all lists each", "style-000006", "style-000008"]


def test_a_numbered_file_alone_is_no_group(many, run):
    assert rows(run("info", many({"style-000002": ONE, "ink": ONE}))) == ["ink", "style-000002"]


def test_a_damaged_and_a_broken_epoch_keep_their_rows(many, run, write_safetensors):
    folder = many({"style-000002": ONE, "style-000004": ONE, "style": ONE | {"ss_epoch": "9"}})
    (folder / "style-000006.safetensors").write_bytes(b"{}")
    half = loras()
    half["lora_unet_blocks_0_self_attn_q.alpha"] = ("F32", (), float("nan"))
    del half[next(key for key in half if key.endswith("lora_up.weight"))]
    write_safetensors(half, metadata=ONE, name="many/style-000008.safetensors")
    shown = run("info", folder)
    assert set(rows(shown)) == {
        "style-000006", "style-000008", "style", "3 epochs: 2 to 9; --all lists each"
    }  # fmt: skip


def test_epochs_of_other_strengths_keep_their_rows(many, run):
    many({"style-000002": {}, "style-000004": {}})
    folder = many({"style-000006": {}}, alpha=2.0)
    assert rows(run("info", folder)) == ["style-000004", "2 epochs: 2 to 4; --all lists each", "style-000006"]


def test_a_copy_of_an_epoch_keeps_its_row(many, run):
    folder = many({"style-000002": ONE, "style-000004": ONE, "style": ONE})
    content = (folder / "style-000004.safetensors").read_bytes()
    (folder / "style-000006.safetensors").write_bytes(content)
    shown = rows(run("info", folder))
    assert shown == ["style-000006", "style", "3 epochs: 2 to the last; --all lists each"]


def test_named_files_keep_their_rows(many, run):
    folder = many({"style-000002": ONE, "style": ONE})
    shown = run("info", folder / "style-000002.safetensors", folder / "style.safetensors")
    assert len(rows(shown)) == 2


def test_a_condition_counts_only_files_that_it_keeps(many, run):
    folder = many({"style-000002": ONE, "style-000004": ONE, "style": ONE | {"ss_epoch": "6"}})
    shown = rows(run("info", folder, "--where", "name=style-*"))
    assert shown == ["style-000004", "2 epochs: 2 to 4; --all lists each"]


def test_sorted_rows_have_the_group_at_the_place_of_its_row(many, run):
    folder = many({"style-000002": ONE, "style": ONE | {"ss_epoch": "6"}, "ink": {}, "zebra": {}})
    for number, name in enumerate(["zebra", "style", "ink", "style-000002"]):
        os.utime(folder / f"{name}.safetensors", (number + 1, number + 1))
    shown = rows(run("info", folder, "--sort", "modified"))
    assert shown == ["zebra", "style", "2 epochs: 2 to 6; --all lists each", "ink"]


@pytest.mark.parametrize("columns", [40, 80])
def test_no_line_of_a_group_is_wider_than_the_terminal(columns, many, run, monkeypatch):
    folder = many({"style-step00100000": ONE, "style-step12000000": ONE})
    monkeypatch.setenv("COLUMNS", str(columns))
    (line,) = (line for line in run("info", folder).stdout.splitlines() if line.startswith("  2 check"))
    assert width(line) <= columns


def test_json_has_a_key_of_each_training(many, run):
    folder = many({"style-000002": ONE, "style": ONE, "ink": ONE})
    (folder / "other.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    listed = run("info", folder, "--json").json
    keys = {os.path.basename(one["path"]).split(".")[0]: one["training_group"] for one in listed}
    assert keys["style"] == keys["style-000002"] != keys["ink"]
    assert keys["other"] is None
    assert [json.loads(line) for line in run("info", folder, "--jsonl").stdout.splitlines()] == listed
