"""Where an output may go, and folders that appear complete or not at all."""

import errno
import os
import socket

import pytest

from lora_inspect.errors import LoraInspectError
from lora_inspect.files import partial as partial_module
from lora_inspect.files import system
from lora_inspect.outputs import check_output, new_folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "base.safetensors").write_text("base")
    (tmp_path / "other").write_text("other")
    (tmp_path / "folder").mkdir()
    (tmp_path / "symbolic").symlink_to(tmp_path / "in" / "base.safetensors")
    os.link(tmp_path / "in" / "base.safetensors", tmp_path / "hard")
    (tmp_path / "to_folder").symlink_to(tmp_path / "folder")
    (tmp_path / "to_other").symlink_to(tmp_path / "other")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
    return tmp_path


def check(place, output, force=False, folder=False):
    check_output(str(place / output), [str(place / "in" / "base.safetensors")], force, folder)


# output, force, whether a folder is written, what the refusal says (None where it is allowed)
CASES = [
    ("new", False, False, None),
    ("new", False, True, None),
    ("other", False, False, "--force"),
    ("other", True, False, None),
    ("other", True, True, "is a file"),
    ("folder", False, False, "--force"),
    ("folder", True, False, "is a folder"),
    ("folder", False, True, "--force"),
    ("folder", True, True, None),
    ("to_folder", True, True, "link to a folder"),
    ("dangling", False, False, "is a link; name the file that it leads to, or remove it"),
    ("dangling", True, False, "is a link; name the file that it leads to, or remove it"),
    ("to_other", False, False, "is a link; name the file that it leads to, or remove it"),
    ("to_other", True, False, "is a link; name the file that it leads to, or remove it"),
    ("pipe", False, False, "neither a file nor a folder; choose another output"),
    ("pipe", True, False, "neither a file nor a folder; choose another output"),
    ("pipe", True, True, "neither a file nor a folder; choose another output"),
    ("socket", True, False, "neither a file nor a folder; choose another output"),
    ("nowhere/new", True, False, "does not exist"),
    ("other/new", True, False, "does not exist"),
    ("in/base.safetensors", False, False, "is an input"),
    ("in/base.safetensors", True, False, "is an input"),
    ("in/../in/base.safetensors", True, False, "is an input"),
    ("symbolic", True, False, "is an input"),
    ("hard", True, False, "is an input"),
    ("in", True, True, "is an input"),
    ("in/..", True, True, "is an input"),
]


@pytest.mark.parametrize(("output", "force", "folder", "says"), CASES)
def test_where_an_output_may_go(output, force, folder, says, place):
    before = sorted(os.listdir(place))
    if says is None:
        check(place, output, force, folder)
    else:
        with pytest.raises(LoraInspectError, match=says) as refused:
            check(place, output, force, folder)
        assert str(refused.value).startswith(str(place / output))
    assert sorted(os.listdir(place)) == before


def test_a_new_folder_appears_when_it_is_complete(tmp_path):
    output = str(tmp_path / "out")
    with new_folder(output) as partial:
        (tmp_path / partial / "a").write_text("new")
        assert not os.path.exists(output)
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(output) == ["a"]


def test_a_slash_at_the_end_means_the_same_folder(tmp_path):
    with new_folder(f"{tmp_path / 'out'}/") as partial:
        assert os.path.dirname(partial) == str(tmp_path)
    assert os.listdir(tmp_path) == ["out"]


def test_an_old_folder_stays_until_the_new_one_takes_its_place(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with new_folder(str(tmp_path / "out"), force=True) as partial:
        (tmp_path / partial / "old").write_text("new")
        assert (tmp_path / "out" / "old").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out" / "old").read_text() == "new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, LoraInspectError])
def test_whatever_ends_the_block_leaves_everything_as_it_was(error, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")

    def half() -> None:
        with new_folder(str(tmp_path / "out"), force=True) as partial:
            (tmp_path / partial / "old").write_text("half")
            raise error

    with pytest.raises(error):
        half()
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["old"]


def refuse_renaming(monkeypatch, number, when):
    """Has the system refuse to give the new folder its name: `when` it exchanges two, or where it can only rename."""
    real = os.rename

    def rename(source, target):
        if source.endswith(".partial") and target.endswith("out"):
            raise OSError(number, os.strerror(number))
        real(source, target)

    def exchange(first, second):
        if when == "exchanging":
            raise OSError(number, os.strerror(number))
        return False

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(partial_module, "exchange", exchange)
    monkeypatch.setattr(system, "_RENAMES", {})


@pytest.mark.parametrize("when", ["exchanging", "renaming"])
def test_an_old_folder_comes_back_when_the_new_one_cannot_take_its_place(when, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")
    refuse_renaming(monkeypatch, errno.ENOSPC, when)
    with (
        pytest.raises(LoraInspectError, match="No space left"),
        new_folder(str(tmp_path / "out"), force=True) as partial,
    ):
        (tmp_path / partial / "a").write_text("new")
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_what_ends_the_command_after_the_new_folder_is_in_place_leaves_no_old_one(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")
    real = partial_module.exchange

    def exchange(first, second):
        assert real(first, second)
        raise SystemExit(143)

    monkeypatch.setattr(partial_module, "exchange", exchange)
    with pytest.raises(SystemExit), new_folder(str(tmp_path / "out"), force=True) as partial:
        (tmp_path / partial / "a").write_text("new")
    assert os.listdir(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "new"


def test_an_error_names_the_output_and_not_the_folder_that_is_filled(tmp_path):
    def fail(partial):
        raise LoraInspectError(f"{partial}/model.safetensors: it cannot be written (No space left on device).")

    with pytest.raises(LoraInspectError) as refused, new_folder(str(tmp_path / "out")) as partial:
        fail(partial)
    assert str(refused.value) == f"{tmp_path}/out/model.safetensors: it cannot be written (No space left on device)."


@pytest.mark.parametrize("output", ["new/", "folder/", ""])
@pytest.mark.parametrize("force", [False, True])
def test_a_file_needs_a_name_and_not_that_of_a_folder(output, force, place):
    with pytest.raises(LoraInspectError, match="name the file to write"):
        check_output(f"{place}/{output}" if output else "", [], force)
