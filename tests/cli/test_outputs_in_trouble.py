"""Outputs on full and read-only disks, under odd names, beside leftovers, and while one signal follows another."""

import os
import shutil
import signal
import subprocess
import threading

import pytest
import torch
from adapters import base, loras

from lora_inspect.errors import LoraInspectError
from lora_inspect.files import temp_files as partial_module
from lora_inspect.files.locations import short_stem
from lora_inspect.files.safetensors import writer
from networks.files import saving

RANDOM = "0123456789abcdef"


@pytest.fixture
def commands(write_safetensors, fixtures, tmp_path):
    """By its kind of output: a command that gives it, without -o."""
    write_safetensors(base(), name="in/base.safetensors")
    write_safetensors(loras(), name="in/adapter.safetensors")
    shutil.copytree(fixtures / "synthetic" / "base_sharded", tmp_path / "in" / "shards")
    (tmp_path / "in" / "shards" / "sub").mkdir()
    (tmp_path / "in" / "shards" / "sub" / "side").write_text("side")
    adapter = tmp_path / "in" / "adapter.safetensors"
    return {
        "merged file": ["merge", tmp_path / "in" / "base.safetensors", adapter],
        "merged folder": ["merge", tmp_path / "in" / "shards", fixtures / "synthetic" / "split.safetensors"],
        "converted file": ["convert", adapter],
        "converted folder": ["convert", fixtures / "minilm-peft-lora-r8"],
    }


# The kinds of output with the names that they may have.
ENDINGS = {"merged file": ".safetensors", "merged folder": "", "converted file": ".safetensors", "converted folder": ""}


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(kilobytes, options)`: the folder of a file system of its own, of that size."""
    mounted = []

    def mount(size, options="rw"):
        place = tmp_path / "disk"
        place.mkdir(exist_ok=True)
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}k,{options}", "none", place]
        if shutil.which("mount") is None or subprocess.run(words, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("kind", ENDINGS)
def test_a_full_disk_is_one_sentence_and_keeps_nothing(kind, commands, small_disk, run):
    disk, out = small_disk(16), f"out{ENDINGS[kind]}"
    (disk / "fills").write_bytes(bytes(12 << 10))
    refusal = run(*commands[kind], "-o", disk / out).failure
    assert refusal.startswith(f"{disk}/{out}")
    assert refusal.endswith(
        "lora-inspect cannot write it (No space left on device); free space or choose another place."
    )
    assert os.listdir(disk) == ["fills"]
    (disk / "fills").unlink()
    assert sum(map(os.path.getsize, disk.iterdir())) == 0


@pytest.mark.parametrize("kind", ENDINGS)
def test_a_disk_that_is_only_read_is_one_sentence(kind, commands, small_disk, run):
    disk, out = small_disk(16, "ro"), f"out{ENDINGS[kind]}"
    refusal = run(*commands[kind], "-o", disk / out).failure
    assert refusal == f"{disk}/{out}: lora-inspect cannot write it (Read-only file system); choose another place."


@pytest.mark.parametrize("kind", ENDINGS)
def test_the_place_of_an_output_may_be_another_disk(kind, commands, small_disk, run, tmp_path):
    disk, out = small_disk(4096), f"out{ENDINGS[kind]}"
    assert run(*commands[kind], "-o", disk / out).status == 0
    assert run(*commands[kind], "-o", disk / out, "--force").status == 0
    assert run(*commands[kind], "-o", tmp_path / out).status == 0
    assert os.listdir(disk) == [out]
    assert contents(disk / out) == contents(tmp_path / out)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_a_full_disk_keeps_the_last_save_of_a_training(name, small_disk):
    file = small_disk(64) / name
    small, large = ({"a.lora_down.weight": torch.zeros(count)} for count in (1 << 10, 1 << 16))
    saving.write_weights(str(file), small, None, None, False)
    before = file.read_bytes()
    with pytest.raises(LoraInspectError, match="No space left on device"):
        saving.write_weights(str(file), large, None, None, False)
    assert os.listdir(file.parent) == [name]
    assert file.read_bytes() == before


def contents(path):
    if path.is_file():
        return path.read_bytes()
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def leave(folder, name):
    """What a run that died while it wrote the output of this name has left."""
    partial = os.path.join(folder, f"{short_stem(name)}.{RANDOM}.partial")
    with open(f"{partial}.lock", "wb") as handle:
        handle.write(partial_module._LOCKED)
    os.mkdir(partial)


NAMES = ["with\nnewline", "\x1b[31mred", os.fsdecode(b"\xff\xfe"), "n" * 255, "日" * 85, " ", "-o", "%s{}", "a.partial",
         f"out.{RANDOM}.partial"]  # fmt: skip


@pytest.mark.parametrize("kind", ENDINGS)
@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_an_output_may_have_any_name_that_the_system_takes(name, kind, commands, run, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    while len(os.fsencode(name + ENDINGS[kind])) > 255:
        name = name[:-1]
    name += ENDINGS[kind]
    leave(place, name)
    output = os.path.join(place, name)
    assert run(*commands[kind], "-o", output).status == 0
    assert os.listdir(place) == [name]
    assert run(*commands[kind], "-o", output).status == 1
    assert run(*commands[kind], "-o", output, "--force").status == 0
    assert os.listdir(place) == [name]


@pytest.fixture
def hangups():
    """Has SIGHUP end this process, as in a terminal; nohup has it ignored, and what is ignored stays so."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGTERM, signal.SIGTERM], [signal.SIGTERM] * 5,
                                     [signal.SIGHUP, signal.SIGTERM, signal.SIGHUP]])  # fmt: skip
@pytest.mark.parametrize("kind", ["merged file", "merged folder"])
def test_signals_that_meet_the_removing_leave_nothing(numbers, kind, commands, run, tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.mkdir()
    left = list(numbers)
    real_write, writing, first = writer.Writer.write_at, [], threading.Lock()

    def write(self, name, position, chunk):
        if first.acquire(blocking=False):  # of all threads that write, one alone, and once
            writing.append(len(os.listdir(place)))
            os.kill(os.getpid(), left.pop(0))
        return real_write(self, name, position, chunk)

    def signalled(real):
        def call(*arguments, **options):
            if left:
                os.kill(os.getpid(), left.pop(0))
            return real(*arguments, **options)

        return call

    monkeypatch.setattr(writer.Writer, "write_at", write)
    for name in ("close_locked", "_settle", "_unlock", "_remove"):
        monkeypatch.setattr(partial_module, name, signalled(getattr(partial_module, name)))
    shown = run(*commands[kind], "-o", place / f"out{ENDINGS[kind]}")
    assert shown.status in {128 + number for number in numbers}
    assert left == []
    assert writing == [2]
    assert os.listdir(place) == []
