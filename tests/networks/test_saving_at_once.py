"""Saves that meet: two processes that write one file at once, one that died while it wrote, one that is alive."""

import os
import threading

import pytest
import torch

from lora_inspect.files import outputs
from lora_inspect.files import temp_files as partial_module
from lora_inspect.files.system import close_locked, create, lock
from networks.files import saving

RANDOM = "0123456789abcdef"
NAMES = ["a.safetensors", "a.pt"]


def write(file, number):
    saving.write_weights(str(file), {"a.lora_down.weight": torch.full((2, 3), float(number))}, None, None, False)


def written_alone(tmp_path, name, number):
    (tmp_path / "alone").mkdir(exist_ok=True)
    write(tmp_path / "alone" / name, number)
    return (tmp_path / "alone" / name).read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_of_two_saves_of_one_file_at_once_one_stays_and_it_is_whole(name, tmp_path, monkeypatch):
    alone = {written_alone(tmp_path, name, number) for number in (1, 2)}
    place = tmp_path / "place"
    place.mkdir()
    both, real, seen = threading.Barrier(2, timeout=60), outputs.is_at, []

    def is_at(descriptor, path):
        both.wait()
        seen.append(len(os.listdir(place)))
        both.wait()
        return real(descriptor, path)

    monkeypatch.setattr(outputs, "is_at", is_at)
    threads = [threading.Thread(target=write, args=(place / name, number)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [4, 4]
    assert os.listdir(place) == [name]
    assert (place / name).read_bytes() in alone


@pytest.mark.parametrize("name", NAMES)
def test_a_save_removes_what_one_that_died_has_left_and_not_what_a_living_one_writes(name, tmp_path, caplog):
    partial = tmp_path / f"{name}.{RANDOM}.partial"
    partial.write_bytes(b"half")
    lock_file = create(f"{partial}.lock")
    os.write(lock_file, partial_module._LOCKED)
    assert lock(lock_file)
    write(tmp_path / name, 1)
    assert len(os.listdir(tmp_path)) == 3
    close_locked(lock_file)
    write(tmp_path / name, 2)
    assert os.listdir(tmp_path) == [name]
    assert caplog.messages == []


@pytest.mark.parametrize("name", NAMES)
def test_a_save_names_what_it_cannot_tell_from_a_living_one(name, tmp_path, caplog):
    (tmp_path / f"{name}.{RANDOM}.partial").write_bytes(b"half")
    write(tmp_path / name, 1)
    assert len(os.listdir(tmp_path)) == 2
    assert [str(tmp_path / f"{name}.{RANDOM}.partial") in message for message in caplog.messages] == [True]
