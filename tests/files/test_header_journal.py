"""A header that is rewritten where it stands: what is left of kills at any moment, and who may write at a time."""

import errno
import json
import os
import random
from pathlib import Path

import pytest
from platforms import PLATFORMS

from lora_inspect.editing.edit import setting
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.safetensors import edit_in_place
from lora_inspect.files.safetensors.edit_in_place import editing, read_headed, repair, write_in_place
from lora_inspect.files.safetensors.header import read_header
from lora_inspect.files.safetensors.header_recovery import JOURNAL_ENDING, Journal, journal_of
from lora_inspect.ops.metadata import EditOutput, edit

PYTHONPATH = os.pathsep.join(map(str, (Path(__file__).parents[2], Path(__file__).parents[1])))
SCRIPT = Path(__file__).with_name("every_header_moment.py")
OLD, NEW = {"title": "an old one", "k": "0"}, {"title": "a new one", "k": "1"}


@pytest.fixture
def file(write_safetensors):
    return write_safetensors({"a": ("U8", (3,), b"yes")}, OLD)


@pytest.fixture
def torn(file):
    """`torn(header)` leaves what a run that was killed in the middle leaves: a journal, and a header of any bytes."""
    headed = read_headed(str(file))
    old = file.read_bytes()[: headed.data_start]
    new = bytearray(old)
    text = headed.written(NEW)
    new[8:] = text + b" " * (len(old) - 8 - len(text))

    def tear(header):
        content = header(old, bytes(new))
        Path(str(file) + JOURNAL_ENDING).write_bytes(Journal(old, bytes(new)).encoded())
        file.write_bytes(content + b"yes")
        return content in (old, bytes(new))

    return tear


def rewrite(file, about=NEW):
    with editing(str(file)) as own:
        write_in_place(read_headed(str(file)), about, own)


def names(file):
    return sorted(os.listdir(file.parent))


def sectors(number):
    """A header of which each piece of eight bytes is the old one or the new one."""
    toss = random.Random(number)

    def mix(old, new):
        return b"".join(toss.choice((old, new))[at : at + 8] for at in range(0, len(old), 8))

    return mix


TEARS = {f"cut at {at}": lambda old, new, at=at: new[:at] + old[at:] for at in range(0, 120, 7)}
TEARS |= {f"mixed {number}": sectors(number) for number in range(20)}


@pytest.mark.parametrize("tear", TEARS.values(), ids=TEARS)
def test_a_torn_header_is_refused_by_readers_and_put_right_by_the_next_edit(tear, torn, file):
    if torn(tear):
        assert read_header(str(file))[1] in (OLD, NEW)
    else:
        with pytest.raises(LoraInspectError, match="run `lora-inspect metadata show` on the file to repair"):
            read_header(str(file))
    repair(str(file))
    assert read_header(str(file))[1] in (OLD, NEW)
    assert file.read_bytes().endswith(b"yes")
    assert names(file) == [file.name]


@pytest.mark.parametrize("path", ["itself", "its folder"])
def test_a_half_that_is_json_is_put_back_all_the_same(path, torn, file):
    def half(old, new):
        at = new.index(b'"k"')
        return old[:at] + new[at:] if len(old) == len(new) and old.index(b'"k"') == at else new[:90] + old[90:]

    torn(half)
    repair(str(file if path == "itself" else file.parent))
    assert read_header(str(file))[1] == OLD
    assert names(file) == [file.name]


def test_what_a_run_had_not_begun_or_had_completed_stays(torn, file):
    for header, about in ((lambda old, new: old, OLD), (lambda old, new: new, NEW)):
        torn(header)
        assert read_header(str(file))[1] == about
        repair(str(file))
        assert read_header(str(file))[1] == about
        assert names(file) == [file.name]


@pytest.mark.parametrize("length", [0, 1, 50, 300, -1, -33])
def test_a_journal_that_never_was_whole_is_removed_and_the_file_left_alone(length, torn, file):
    torn(lambda old, new: old)
    journal = Path(str(file) + JOURNAL_ENDING)
    before = file.read_bytes()
    journal.write_bytes(journal.read_bytes()[:length])
    assert read_header(str(file))[1] == OLD
    repair(str(file))
    assert file.read_bytes() == before
    assert names(file) == [file.name]


def test_a_journal_of_another_file_changes_nothing(torn, file):
    torn(lambda old, new: old)
    other = b"\x30" + bytes(7) + b'{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'[:48] + b"yes"
    content = file.read_bytes()
    damaged = content[:8] + b'{"__metadata__":{"q":"' + content[30:]
    for foreign in (other, damaged):
        torn(lambda old, new: old)
        file.write_bytes(foreign)
        repair(str(file))
        assert file.read_bytes() == foreign
        assert names(file) == [file.name]


def test_a_file_that_only_has_the_name_of_a_journal_is_kept_and_named(file):
    own = Path(str(file) + JOURNAL_ENDING)
    own.write_text("my notes")
    with pytest.raises(LoraInspectError, match="-journal: it is in the way and is not a journal of lora-inspect; give"):
        rewrite(file)
    assert own.read_text() == "my notes"
    assert read_header(str(file))[1] == OLD


def test_one_run_writes_at_a_time(file):
    with editing(str(file)), pytest.raises(LoraInspectError, match="another run is changing it; run the command again"):
        rewrite(file)
    rewrite(file)
    assert read_header(str(file))[1] == NEW
    assert names(file) == [file.name]


# Which call of the system refuses, and how many calls of it succeed before.
FAILING = {"journal's write": ("write", 0), "journal's fsync": ("fsync", 0), "folder's fsync": ("fsync", 1),
           "header's write": ("write", 1), "header's fsync": ("fsync", 2)}  # fmt: skip


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=str)
@pytest.mark.parametrize(("name", "succeed"), FAILING.values(), ids=FAILING)
def test_a_disk_that_refuses_once_and_an_interrupt_leave_the_old_header(name, succeed, error, file, monkeypatch):
    before, real, calls = file.read_bytes(), getattr(os, name), []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == succeed + 1:
            raise error
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(os, name, fail)
        with pytest.raises((LoraInspectError, KeyboardInterrupt)) as refused:
            rewrite(file)
    assert len(calls) > succeed
    if isinstance(error, OSError):
        is_of_file = succeed == FAILING[f"header's {name}"][1]
        told = ", so it has its old header; free space, or write" if is_of_file else "; free space or choose"
        assert str(refused.value).startswith(f"{file}: lora-inspect cannot write it (No space left on device){told}")
    assert file.read_bytes() == before
    assert names(file) == [file.name]


@pytest.mark.parametrize("reaches", ["both", "the new one"])
def test_a_disk_that_keeps_no_header_is_told_with_the_header_that_is_there(reaches, file, monkeypatch):
    real = {name: getattr(os, name) for name in ("write", "fsync")}
    written = []

    def is_of_file(descriptor):
        return os.fstat(descriptor).st_ino == file.stat().st_ino

    def write(descriptor, view):
        if is_of_file(descriptor):
            written.append(view)
            if reaches == "the new one" and len(written) > 1:
                raise OSError(errno.EIO, "Input/output error")
        return real["write"](descriptor, view)

    def fsync(descriptor):
        if is_of_file(descriptor):
            raise OSError(errno.EIO, "Input/output error")
        return real["fsync"](descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write)
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(LoraInspectError) as refused:
            rewrite(file)
    found = read_header(str(file))[1]
    assert found == (OLD if reaches == "both" else NEW)
    which = "has its old one" if found == OLD else "has the new one"
    assert str(refused.value) == (
        f"{file}: the disk refuses its new header and then the old one (Input/output error), and the file {which}; run "
        "the command again, which puts parts right."
    )
    rewrite(file)
    assert read_header(str(file))[1] == NEW
    assert names(file) == [file.name]


def test_a_disk_that_refuses_to_the_end_leaves_the_journal_for_the_next_run(file, monkeypatch):
    real = os.write

    def half(descriptor, view):
        if os.fstat(descriptor).st_ino != file.stat().st_ino:
            return real(descriptor, view)
        real(descriptor, view[:40])
        raise OSError(errno.EIO, "Input/output error")

    # Each writing of the header reaches its first bytes, that of the old one as well.
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", half)
        with pytest.raises(LoraInspectError, match=r"\(Input/output error\), and the file has its old one; run the"):
            rewrite(file)
    assert names(file) == [file.name, file.name + JOURNAL_ENDING]
    repair(str(file))
    assert read_header(str(file))[1] == OLD
    assert names(file) == [file.name]


# In bytes: names around the first one that is shortened, and those that the ending of a journal would make too long.
LONG_NAMES = [200, 201, 240, 241, 242, 255]


def long_name(size):
    return "n" * (size - len(".safetensors")) + ".safetensors"


@pytest.mark.parametrize("size", LONG_NAMES)
@pytest.mark.parametrize("in_place", [True, False])
def test_edit_takes_every_name_of_file_system(size, in_place, file):
    long = file.rename(file.with_name(long_name(size)))
    edit(str(long), setting(lambda present: {"title": "a new one"}), EditOutput(in_place=in_place))
    assert read_header(str(long))[1] == {**OLD, "title": "a new one"}
    assert names(file) == [long.name]


@pytest.mark.parametrize("by", ["file", "folder"])
@pytest.mark.parametrize("size", LONG_NAMES)
def test_torn_header_of_long_name_is_refused_and_repaired(size, by, torn, file):
    torn(lambda old, new: new[:60] + old[60:])
    long = file.rename(file.with_name(long_name(size)))
    Path(str(file) + JOURNAL_ENDING).rename(journal_of(str(long)))
    with pytest.raises(LoraInspectError, match="a run that rewrites its header is at work or was killed"):
        read_header(str(long))
    repair(str(long if by == "file" else long.parent))
    assert read_header(str(long))[1] == OLD
    assert names(file) == [long.name]


def test_journals_of_names_with_same_beginning_differ(file):
    first, second = (journal_of(f"{'n' * 230}{number}.safetensors") for number in (1, 2))
    assert first != second
    assert first.endswith(JOURNAL_ENDING)


def test_repair_ignores_journal_without_file(torn, file):
    torn(lambda old, new: new)
    kept = file.rename(file.with_name("kept.safetensors"))
    repair(str(file.parent))
    assert read_header(str(kept))[1] == NEW
    assert names(file) == [file.name + JOURNAL_ENDING, kept.name]


def test_without_locks_a_journal_counts_as_left_when_it_is_old(torn, file, monkeypatch):
    monkeypatch.setattr(edit_in_place, "lock", lambda descriptor: None)
    torn(lambda old, new: new[:60] + old[60:])
    with pytest.raises(LoraInspectError, match="another run is changing it"):
        repair(str(file))
    journal = str(file) + JOURNAL_ENDING
    os.utime(journal, (os.stat(journal).st_mtime - 61,) * 2)
    repair(str(file))
    assert read_header(str(file))[1] == OLD
    assert names(file) == [file.name]


@pytest.mark.parametrize("how", ["killed", "interrupted"])
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.slow
def test_whenever_a_process_ends_the_next_run_finds_one_of_both(platform, how, run_process, tmp_path):
    found = run_process(SCRIPT, tmp_path, how, platform, PYTHONPATH=PYTHONPATH)
    assert found.status == 0, found.stderr
    locks = PLATFORMS[platform].locks
    for kind, result in json.loads(found.stdout).items():
        states, ends = {left.split()[0] for left in result["left"]}, {left.split()[0] for left in result["next"]}
        assert result["moments"] > 10
        assert {"old", "new"} <= states <= {"old", "new", "torn"}
        assert ("torn" in states) == (kind == "in place" and how == "killed")
        assert ends == {"old", "new"}
        assert result["data"] == 1
        if locks:
            assert result["next"].keys() == {"old", "new"}
            assert result["notes"] == 0
        if how == "interrupted":
            assert result["left"].keys() == {"old", "new"}


def test_both_headers_are_on_the_disk_before_one_is_touched_and_the_new_one_before_they_go(file, monkeypatch):
    done, real = [], {name: getattr(os, name) for name in ("write", "fsync", "unlink")}

    def named(descriptor):
        return os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), file.parent).removeprefix(file.name)

    for name in ("write", "fsync"):
        monkeypatch.setattr(
            os, name, lambda fd, *more, name=name: (done.append((name, named(fd))), real[name](fd, *more))[1]
        )
    monkeypatch.setattr(os, "unlink", lambda path: (done.append(("unlink", "")), real["unlink"](path))[1])
    rewrite(file)
    assert done == [
        ("write", JOURNAL_ENDING),
        ("fsync", JOURNAL_ENDING),
        ("fsync", "."),
        ("write", ""),
        ("fsync", ""),
        ("unlink", ""),
    ]


def test_a_file_that_changed_after_it_was_read_is_not_rewritten(file):
    with editing(str(file)) as own:
        headed = read_headed(str(file))
        content = file.read_bytes()[:-3] + b"new"
        file.write_bytes(content)
        with pytest.raises(LoraInspectError, match="it changed while it was read"):
            write_in_place(headed, NEW, own)
    assert file.read_bytes() == content
    assert names(file) == [file.name]


def test_a_journal_that_cannot_be_read_is_said_and_one_that_has_gone_is_not_missed(torn, file, monkeypatch):
    torn(lambda old, new: old)
    journal = Path(str(file) + JOURNAL_ENDING)
    journal.unlink()
    os.mkfifo(journal)
    with pytest.raises(LoraInspectError, match="header-journal: it is neither a file nor a folder"):
        read_header(str(file))
    real = os.path.lexists

    def gone(path):
        found = real(path)
        if found and path == str(journal):
            journal.unlink()
        return found

    monkeypatch.setattr(os.path, "lexists", gone)
    assert read_header(str(file))[1] == OLD


def test_other_kinds_of_files_are_never_rewritten(file, tmp_path):
    link = tmp_path / "link.safetensors"
    link.symlink_to(file)
    before = file.read_bytes()
    with pytest.raises(LoraInspectError, match=r"link\.safetensors: lora-inspect cannot write it"):
        rewrite(link)
    assert file.read_bytes() == before
    assert names(file) == [file.name, link.name]
