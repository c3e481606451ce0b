"""A scan gives an account of every file, in the order of the paths, whatever becomes of single ones."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from adapters import base, loras

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.scan import files_of, scan
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reporting.file_record import as_json
from lora_inspect.scanning import scan_file, workers


@pytest.fixture
def many(write_safetensors, tmp_path):
    """A folder with two adapters and a base, one of them deeper, and a broken file."""
    write_safetensors(loras(rank=4), name="many/b.safetensors")
    write_safetensors(base(), name="many/base.safetensors")
    write_safetensors(loras(rank=8), name="many/inner/a.safetensors")
    (tmp_path / "many" / "bad.safetensors").write_bytes(b"{}")
    return tmp_path / "many"


def names(files):
    return [Path(one.path).name for one in files]


def test_every_file_has_an_account_in_the_order_of_the_listing(many):
    files = list(scan([many]))
    assert names(files) == ["b.safetensors", "bad.safetensors", "base.safetensors", "a.safetensors"]
    assert [one.kind for one in files] == ["adapter", "", "base", "adapter"]
    assert [isinstance(one.error, LoraInspectError) for one in files] == [False, True, False, False]
    assert [one.ranks for one in files] == [(4,), (), (), (8,)]
    first = files[0]
    assert (first.types, first.scales, first.modules, first.schemes) == (("LoRA",), (2.0,), 3, ("kohya",))
    status = Path(first.path).stat()
    assert (first.bytes, first.modified) == (status.st_size, status.st_mtime_ns / 1e9)


def test_folders_below_are_read_where_they_are_asked_for(many):
    assert names(scan([many], recursive=False)) == ["b.safetensors", "bad.safetensors", "base.safetensors"]
    assert names(scan([f"{many}/"], recursive=False)) == ["b.safetensors", "bad.safetensors", "base.safetensors"]


def test_paths_come_in_their_order_and_may_be_path_likes(many):
    inner, first = many / "inner" / "a.safetensors", many / "b.safetensors"
    assert names(scan([inner, first, str(inner)])) == ["a.safetensors", "b.safetensors", "a.safetensors"]
    # A file that is named twice is no copy of itself.
    assert [one.duplicate_of for one in scan([inner, first, inner])] == [None, None, None]


def test_a_missing_path_is_an_error_of_its_own(many):
    (one,) = scan([many / "nothing"])
    assert "there is no such file or folder" in str(one.error)


def test_progress_is_told_of_every_file(many):
    told = []
    files = scan([many], progress=told.append)
    next(files)
    assert told == [1]
    assert len(list(files)) == 3
    assert told == [1] * 4


def test_settings_are_those_of_each_file(write_safetensors):
    file = write_safetensors(loras(1, alpha=0.0))
    assert next(scan([file])).scales == (None,)
    assert next(scan([file], settings=Settings(alpha=8.0, rslora=False))).scales in ((0.5,), (None,))


def test_a_record_is_made_where_it_is_asked_for(many):
    assert next(scan([many])).record is None
    assert next(scan([many], record=as_json)).record["kind"] == "adapter"


@pytest.mark.parametrize("error", [KeyError("odd"), MemoryError(), OSError(5, "Input/output error"), RecursionError()])
def test_what_nobody_foresaw_is_an_error_of_that_file(error, many, monkeypatch):
    real = scan_file.inspect

    def inspect(path, settings):
        if path.endswith("b.safetensors"):
            raise error
        return real(path, settings)

    monkeypatch.setattr(scan_file, "inspect", inspect)
    files = list(scan([many]))
    assert files[0].error is error
    assert [one.kind for one in files[2:]] == ["base", "adapter"]


def test_several_processes_say_the_same(fixtures, tmp_path, monkeypatch):
    """Also where they are new ones, as on macOS and Windows."""
    monkeypatch.setattr(workers, "_can_be_copied", lambda: False)
    monkeypatch.setattr(workers, "_NEW", 0.0)
    for number, name in enumerate(["rslora_flag", "split", "dora_without_flag"] * 20):
        shutil.copy(fixtures / "synthetic" / f"{name}.safetensors", tmp_path / f"{number:02}.safetensors")
    (tmp_path / "07.safetensors").write_bytes(b"{}")

    def comparable(jobs):
        return [replace(one, error=str(one.error)) for one in scan([tmp_path], jobs=jobs)]

    alone = comparable(1)
    assert comparable(2) == alone
    assert [one.duplicate_of is None for one in alone[:6]] == [True] * 3 + [False] * 3


def test_a_folder_that_is_one_checkpoint_is_one_path(fixtures, many):
    sharded = str(fixtures / "synthetic" / "base_sharded")
    assert files_of(sharded) == [sharded]
    assert len(files_of(str(many))) == 4


def test_a_file_that_is_rewritten_meanwhile_is_told(many, monkeypatch):
    real = scan_file.inspect

    def inspect(path, settings):
        found = real(path, settings)
        os.utime(path, ns=(1, 1))
        return found

    monkeypatch.setattr(scan_file, "inspect", inspect)
    assert [one.duplicate_of for one in scan([many / "b.safetensors"] * 2)] == [None, None]
