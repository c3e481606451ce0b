"""Where an output may go, and folders that appear complete or not at all."""

import ast
import errno
import os
import shutil
import socket
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora_inspect.errors import LoraInspectError
from lora_inspect.files import outputs, system
from lora_inspect.files import temp_files as partial_module
from lora_inspect.files.input_file import identify
from lora_inspect.files.outputs import check_output, check_replaceable, new_file, new_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "base.safetensors").write_text("base")
    (tmp_path / "other").write_text("other")
    (tmp_path / "folder" / "sub").mkdir(parents=True)
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
    check_output(f"{place}/{output}", [str(place / "in" / "base.safetensors")], force, folder)


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
    ("dangling", False, False, "is a link; name the file that it leads to, or another output"),
    ("dangling", True, False, "is a link; name the file that it leads to, or another output"),
    ("to_other", False, False, "is a link; name the file that it leads to, or another output"),
    ("to_other", True, False, "is a link; name the file that it leads to, or another output"),
    ("pipe", False, False, "neither a file nor a folder; choose another output"),
    ("pipe", True, False, "neither a file nor a folder; choose another output"),
    ("pipe", True, True, "neither a file nor a folder; choose another output"),
    ("socket", True, False, "neither a file nor a folder; choose another output"),
    ("nowhere/new", True, False, "does not exist"),
    ("other/new", True, False, "other is not a folder; choose another place"),
    ("in/base.safetensors", False, False, "is an input"),
    ("in/base.safetensors", True, False, "is an input"),
    ("in/../in/base.safetensors", True, False, "is an input"),
    ("symbolic", True, False, "is an input"),
    ("hard", True, False, "is an input"),
    ("in", True, True, "is an input"),
    ("in/..", True, True, "is an input"),
    ("folder/.", True, True, "write its own name"),
    ("folder/./", True, True, "write its own name"),
    ("folder/sub/..", True, True, "write its own name"),
]


@pytest.mark.parametrize(("output", "force", "folder", "says"), CASES)
def test_where_an_output_may_go(output, force, folder, says, place):
    before = sorted(os.listdir(place))
    if says is None:
        check(place, output, force, folder)
    else:
        with pytest.raises(LoraInspectError, match=says) as refused:
            check(place, output, force, folder)
        assert str(refused.value).startswith(f"{place}/{output}")
    assert sorted(os.listdir(place)) == before


@pytest.mark.parametrize("folder", [False, True])
def test_where_a_volume_is_mounted_nothing_can_be_exchanged(folder, place, monkeypatch):
    output = "folder" if folder else "other"
    monkeypatch.setattr(os.path, "ismount", lambda path: path == str(place / output))
    with pytest.raises(LoraInspectError, match=f"{output}: a disk or a volume is mounted there"):
        check(place, output, force=True, folder=folder)


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


def test_an_old_folder_that_cannot_be_removed_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("old")
    monkeypatch.setattr(partial_module.shutil, "rmtree", refuse)
    with pytest.raises(LoraInspectError) as refused, new_folder(str(tmp_path / "out"), force=True) as partial:
        (tmp_path / partial / "a").write_text("new")
    assert str(refused.value) == (
        f"{tmp_path}/out: it is complete, but lora-inspect cannot remove the old output; remove {partial}.lock and "
        f"{partial}.gone."
    )
    assert os.listdir(tmp_path / "out") == ["a"]


def test_an_error_names_the_output_and_not_the_folder_that_is_filled(tmp_path):
    def fail(partial):
        raise LoraInspectError(f"{partial}/model.safetensors: lora-inspect cannot write it (No space left on device).")

    with pytest.raises(LoraInspectError) as refused, new_folder(str(tmp_path / "out")) as partial:
        fail(partial)
    assert (
        str(refused.value)
        == f"{tmp_path}/out/model.safetensors: lora-inspect cannot write it (No space left on device)."
    )


@pytest.mark.parametrize("output", ["new/", "folder/", ""])
@pytest.mark.parametrize("force", [False, True])
def test_a_file_needs_a_name_and_not_that_of_a_folder(output, force, place):
    with pytest.raises(LoraInspectError, match="name the file to write"):
        check_output(f"{place}/{output}" if output else "", [], force)


def appear_as_file(path):
    path.write_text("another's")


def appear_as_link(path):
    path.symlink_to(path.parent / "victim")


def appear_as_link_to_nowhere(path):
    path.symlink_to(path.parent / "nowhere")


def appear_as_pipe(path):
    os.mkfifo(path)


def appear_as_folder(path):
    path.mkdir()


def appear_as_input(path):
    os.link(path.parent / "input", path)


# What takes the name of the output meanwhile, and whether --force replaces it.
APPEARING = {appear_as_file: True, appear_as_link: False, appear_as_link_to_nowhere: False, appear_as_pipe: False,
             appear_as_folder: False, appear_as_input: False}  # fmt: skip


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("appear", APPEARING)
def test_of_what_appeared_meanwhile_only_a_file_is_replaced_and_only_by_force(appear, force, tmp_path):
    for name in ("input", "victim"):
        (tmp_path / name).write_text(name)
    output, inputs = tmp_path / "out", {str(tmp_path / "input"): identify(str(tmp_path / "input"))}

    def write():
        with new_file(str(output), inputs, force) as descriptor:
            os.write(descriptor, b"new")
            appear(output)
            seen.append(output.lstat())

    seen = []
    if force and APPEARING[appear]:
        write()
        assert output.read_text() == "new"
    else:
        with pytest.raises(LoraInspectError) as refused:
            write()
        assert str(refused.value).startswith(f"{output}: it ")
        assert os.path.samestat(output.lstat(), seen[0])
    assert [(tmp_path / name).read_text() for name in ("input", "victim")] == ["input", "victim"]
    assert sorted(os.listdir(tmp_path)) == ["input", "out", "victim"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("appear", [appear_as_file, appear_as_link, appear_as_link_to_nowhere, appear_as_pipe])
def test_what_appeared_meanwhile_is_not_replaced_by_a_folder(appear, force, tmp_path):
    output = tmp_path / "out"
    (tmp_path / "victim").mkdir()
    with pytest.raises(LoraInspectError, match=f"^{output}: it "), new_folder(str(output), force=force):
        appear(output)
    assert not output.is_dir() or output.is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["out", "victim"]


def test_a_file_under_the_name_that_grows_is_not_written_to(tmp_path, monkeypatch):
    (tmp_path / "victim").write_text("victim")

    @contextmanager
    def claimed(output):
        os.link(tmp_path / "victim", f"{output}.partial")
        yield f"{output}.partial"

    monkeypatch.setattr(outputs, "claimed", claimed)
    with pytest.raises(LoraInspectError), new_file(str(tmp_path / "out")) as descriptor:
        os.write(descriptor, b"new")
    assert (tmp_path / "victim").read_text() == "victim"
    assert not os.path.lexists(tmp_path / "out")


def test_what_takes_the_place_of_a_file_that_grows_does_not_get_its_name(tmp_path):
    def write():
        with new_file(str(tmp_path / "out")) as descriptor:
            partial = os.readlink(f"/proc/self/fd/{descriptor}")
            os.unlink(partial)
            Path(partial).write_text("another's")

    with pytest.raises(LoraInspectError, match=r"another program removed .* during the run"):
        write()
    assert os.listdir(tmp_path) == []


def test_a_file_that_has_its_name_is_an_output_though_it_cannot_lose_the_other_one_at_once(tmp_path, monkeypatch):
    real, refused = os.unlink, []

    def unlink(path):
        if path.endswith(".partial") and not refused:
            refused.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path)

    monkeypatch.setattr(os, "unlink", unlink)
    with new_file(str(tmp_path / "out")) as descriptor:
        os.write(descriptor, b"new")
    assert refused
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("force", [False, True])
def test_what_the_disk_says_of_keeping_a_file_is_said(force, number, tmp_path, monkeypatch):
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(LoraInspectError) as refused, new_file(str(tmp_path / "out"), force=force):
        pass
    says = ["lora-inspect cannot write it", "it is complete, but the disk may not keep its name"][number - 1]
    assert str(refused.value).startswith(f"{tmp_path}/out: {says} (Input/output error)")
    assert os.listdir(tmp_path) == ["out"][: number - 1]


def test_a_save_in_the_course_of_a_training_replaces_a_link_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "victim").write_text("victim")
    (tmp_path / "out").symlink_to(tmp_path / "victim")
    with new_file(str(tmp_path / "out"), force=True) as descriptor:
        os.write(descriptor, b"new")
    assert not (tmp_path / "out").is_symlink()
    assert [(tmp_path / name).read_text() for name in ("out", "victim")] == ["new", "victim"]


PARTIAL = "model.safetensors.0123456789abcdef.partial"


@pytest.mark.parametrize("below", ["", "sub/"])
@pytest.mark.parametrize("is_folder", [False, True])
def test_what_a_dead_run_left_in_a_folder_does_not_keep_it_from_being_replaced(below, is_folder, tmp_path):
    output, lock = tmp_path / "out", tmp_path / "out" / f"{below}{PARTIAL}.lock"
    (output / "sub").mkdir(parents=True)
    lock.write_bytes(partial_module._LOCKED)
    if is_folder:
        (output / below / PARTIAL / "deeper").mkdir(parents=True)
        (output / below / PARTIAL / "deeper" / "a").write_text("half")
    else:
        (output / below / PARTIAL).write_text("half")
    check_replaceable(str(output), (), ["sub"])
    assert lock.exists()
    with new_folder(str(output), force=True) as partial:
        os.mkdir(os.path.join(partial, "sub"))
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "sub"]


def lock_of_a_living_run(lock):
    lock.write_bytes(partial_module._LOCKED)
    descriptor = os.open(lock, os.O_RDWR)
    assert system.lock(descriptor)


def lock_of_a_run_without_locks(lock):
    lock.write_bytes(partial_module._UNLOCKED)


def lock_beside_the_only_whole_folder(lock):
    lock.write_bytes(partial_module._LOCKED)
    (lock.parent / f"{PARTIAL}.old").mkdir()


def lock_that_is_missing(lock):
    (lock.parent / PARTIAL).mkdir()


@pytest.mark.parametrize(
    "leave",
    [lock_of_a_living_run, lock_of_a_run_without_locks, lock_beside_the_only_whole_folder, lock_that_is_missing],
)
def test_what_may_still_be_wanted_keeps_a_folder_from_being_replaced(leave, tmp_path):
    (tmp_path / "out").mkdir()
    leave(tmp_path / "out" / f"{PARTIAL}.lock")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(LoraInspectError, match=f"holds {PARTIAL}"):
        check_replaceable(str(tmp_path / "out"), ())
    with pytest.raises(LoraInspectError, match=f"holds {PARTIAL}"), new_folder(str(tmp_path / "out"), force=True):
        pass
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_however_often_the_removing_is_interrupted_nothing_is_left(kind, times, tmp_path, monkeypatch):
    real, calls = os.rename, []

    def rename(source, target):
        calls.append(source)
        if len(calls) <= times:
            raise kind
        real(source, target)

    def half():
        with new_folder(str(tmp_path / "out")) as partial:
            (tmp_path / partial / "a").write_text("half")
            raise RuntimeError

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(kind):
        half()
    assert len(calls) == times + 1
    assert os.listdir(tmp_path) == []


def test_all_of_a_folder_is_on_the_disk_before_it_is_in_its_place_and_then_its_name(
    run, fixtures, tmp_path, monkeypatch
):
    base, output = tmp_path / "base", tmp_path / "out"
    shutil.copytree(fixtures / "synthetic" / "base_sharded", base)
    (base / "sub" / "deeper").mkdir(parents=True)
    (base / "sub" / "deeper" / "side").write_text("side")
    command = ["merge", base, fixtures / "synthetic" / "split.safetensors", "-o", output]
    assert run(*command).status == 0
    names = sorted(f"{path.relative_to(output)}" for path in output.rglob("*"))
    assert len(names) == 7
    done, fsync, exchange = [], os.fsync, partial_module.exchange

    def record_sync(descriptor):
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def record_exchange(first, second):
        done.append("exchange")
        return exchange(first, second)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(partial_module, "exchange", record_exchange)
    assert run(*command, "--force").status == 0
    before, after = done[: done.index("exchange")], done[done.index("exchange") + 1 :]
    (partial,) = {path for path in before if os.path.dirname(path) == str(tmp_path)}
    assert {os.path.relpath(path, partial) for path in before} >= {*names, "."}
    assert after == [str(tmp_path)]


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_on_the_disk_before_it_has_its_name_and_then_the_name(force, tmp_path, monkeypatch):
    done, fsync = [], os.fsync

    def record(descriptor):
        done.append((os.readlink(f"/proc/self/fd/{descriptor}"), os.listdir(tmp_path).count("out")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with new_file(str(tmp_path / "out"), force=force) as descriptor:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
    assert done == [(path, 0), (str(tmp_path), 1)]


# The files that make others: what gives an output its name, and what fills a folder that gets one in that way; and the
# start of a process, which opens the null device in the place of streams that are closed. A journal is none, and what
# was sent to a store is removed here.
MAKING = {
    "lora_inspect/start.py",
    "lora_inspect/files/outputs.py",
    "lora_inspect/files/temp_files.py",
    "lora_inspect/files/safetensors/edit_in_place.py",
    "lora_inspect/files/upload.py",
    "lora_inspect/files/safetensors/writer.py",
    "lora_inspect/files/shard_staging.py",
    "lora_inspect/files/system.py",
    "lora_inspect/files/base_folder.py",
    "lora_inspect/converting/output/standard_output.py",
    "lora_inspect/algebra/output/adapter_output.py",
    "lora_inspect/algebra/rescaling.py",
}
CALLS = {"write_text", "write_bytes", "save_file", "serialize_file", "touch", "mkstemp", "NamedTemporaryFile"}
CALLS_OF_OS = {"open", "rename", "renames", "replace", "link", "symlink", "mkdir", "makedirs", "unlink", "remove"}


def makes_files(node):
    match node:
        case ast.Call(func=ast.Name(id="open"), args=[_, ast.Constant(value=str(mode)), *_]):
            return bool(set(mode) & set("wxa+"))
        case ast.Call(func=ast.Attribute(value=ast.Name(id="os"), attr=name)):
            return name in CALLS_OF_OS
        case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)):
            return name in CALLS
    return False


def test_every_file_takes_its_name_in_one_way():
    sources = [path for package in ("lora_inspect", "networks") for path in (ROOT / package).rglob("*.py")]
    found = {path for path in sources if any(map(makes_files, ast.walk(ast.parse(path.read_text(encoding="utf-8")))))}
    assert {str(path.relative_to(ROOT)) for path in found} == MAKING
