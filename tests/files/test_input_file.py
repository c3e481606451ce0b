"""Input files: whatever makes one another file than it was is noticed, and nothing that is no file is waited for."""

import os
import random
import socket

import pytest

from lora_inspect.errors import LoraInspectError
from lora_inspect.files import input_file
from lora_inspect.files.input_file import Identity, InputFile, check_unchanged, identify, read_whole

CHANGED = "it changed while it was read; run the command again"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"0123456789")
    return path


def test_reads_by_position(file):
    with InputFile(str(file)) as source:
        assert source.read(8, 2) == b"89"
        assert source.read(0, 3) == b"012"
        assert source.read(10, 0) == b""
    assert read_whole(str(file), 10)[0] == b"0123456789"
    with pytest.raises(LoraInspectError, match="it has 10 bytes, but lora-inspect reads at most 9 of such a file"):
        read_whole(str(file), 9)


@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 4), (4, 4), (8, 4)],
        [(8, 4), (0, 4), (4, 4)],
        [(0, 4), (1030, 4), (3000, 4)],
        [(0, 4), (2, 4), (2, 4), (0, 0)],
        [(4 * at, 4) for at in range(40_000)],
        [(100, 70_000), (70_100, 70_000)],
        [],
    ],
)
def test_small_ranges_are_read_as_each_alone(ranges, tmp_path):
    content = random.Random(0).randbytes(160_000)
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with InputFile(str(path)) as source:
        assert source.read_each(ranges) == [content[start : start + size] for start, size in ranges]


def test_neighbours_are_read_at_once(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(4_000))
    read = []
    real = input_file.read_at
    monkeypatch.setattr(input_file, "read_at", lambda *asked: read.append(asked[1:]) or real(*asked))
    with InputFile(str(path)) as source:
        source.read_each([(8, 4), (12, 4), (40, 2), (3_000, 4)])
    assert read == [(34, 8), (4, 3_000)]


def test_goes_on_where_the_system_gives_less_than_was_asked_for(file, monkeypatch):
    with InputFile(str(file)) as source:
        real = source._handle

        class Slow:
            seek, close = real.seek, real.close

            def readinto(self, view):
                return real.readinto(view[:3])

        source._handle = Slow()
        assert source.read(1, 9) == b"123456789"


def test_the_end_of_the_file_comes_only_where_it_was_cut(file):
    with InputFile(str(file)) as source, pytest.raises(LoraInspectError, match=CHANGED):
        source.read(8, 3)


def test_an_error_of_the_disk_is_one_sentence(file, monkeypatch):
    with InputFile(str(file)) as source:
        source._handle.close()
        os_error = OSError(5, "Input/output error")

        class Broken:
            def seek(self, position):
                raise os_error

            def close(self):
                pass

        source._handle = Broken()
        with pytest.raises(LoraInspectError, match=r"a\.safetensors: it cannot be read \(Input/output error\); check"):
            source.read(0, 1)


def replace(path):
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


def rewrite(path):
    with path.open("r+b") as handle:
        handle.write(b"9876543210")


# Each alone, with all else kept where the system allows it.
CHANGES = {
    "replaced by rename": replace,
    "rewritten in place": rewrite,
    "truncated": lambda path: os.truncate(path, 5),
    "grown": lambda path: os.truncate(path, 15),
    "touched": lambda path: os.utime(path, ns=(0, path.stat().st_mtime_ns + 1)),
    "removed": os.unlink,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_another_file_under_the_path_is_an_error(change, file):
    identity = identify(str(file))
    check_unchanged({str(file): identity})
    change(file)
    with pytest.raises(LoraInspectError, match=CHANGED) as refused:
        check_unchanged({str(file): identity})
    assert str(refused.value).startswith(f"{file}: ")
    with pytest.raises(LoraInspectError, match=CHANGED):
        InputFile(str(file), identity)


@pytest.mark.parametrize("part", Identity._fields)
def test_every_part_of_the_identity_counts(part, file):
    identity = identify(str(file))
    InputFile(str(file), identity).close()
    with pytest.raises(LoraInspectError, match=CHANGED):
        InputFile(str(file), identity._replace(**{part: getattr(identity, part) + type(getattr(identity, part))(1)}))


@pytest.mark.parametrize("harmless", ["read", "chmod", "linked"])
def test_what_leaves_the_bytes_alone_is_no_change(harmless, file, tmp_path):
    identity = identify(str(file))
    if harmless == "read":
        os.utime(file, ns=(1, identity.modified))
    elif harmless == "chmod":
        file.chmod(0o600)
    else:
        os.link(file, tmp_path / "hard")
    check_unchanged({str(file): identity})
    InputFile(str(file), identity).close()


def test_a_link_that_is_turned_to_another_file_is_a_change(file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file)
    identity = identify(str(link))
    replacement = tmp_path / "b.safetensors"
    replacement.write_bytes(b"0123456789")
    os.utime(replacement, ns=(0, identity.modified))
    link.unlink()
    link.symlink_to(replacement)
    with pytest.raises(LoraInspectError, match=CHANGED):
        check_unchanged({str(link): identity})
    with pytest.raises(LoraInspectError, match=CHANGED):
        InputFile(str(link), identity)


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
def test_what_is_no_file_is_refused_at_once(kind, tmp_path):
    path = str(tmp_path / "a.safetensors")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            here = os.getcwd()
            os.chdir(tmp_path)  # the names of sockets are short
            try:
                listener.bind("a.safetensors")
            finally:
                os.chdir(here)
    elif kind == "folder":
        os.mkdir(path)
    else:
        path = os.devnull
    with pytest.raises(LoraInspectError, match=r"neither a file nor a folder|cannot be read"):
        InputFile(path)


@pytest.mark.parametrize("trouble", ["another file", "no file"])
def test_a_refused_opening_keeps_no_descriptor(trouble, file, tmp_path, monkeypatch):
    opened = []
    real = input_file.open_without_waiting

    def opener(path, flags):
        opened.append(real(path, flags))
        return opened[-1]

    monkeypatch.setattr(input_file, "open_without_waiting", opener)
    if trouble == "another file":
        path, identity = file, identify(str(file))._replace(bytes=0)
    else:
        path, identity = tmp_path / "pipe", None
        os.mkfifo(path)
    with pytest.raises(LoraInspectError):
        InputFile(str(path), identity)
    assert opened
    for descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
