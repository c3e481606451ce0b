"""The disk is told of what is written while more is written, and left alone before the file is closed."""

import os
import sys
import threading
import time

import pytest

from lora_inspect.files import system
from lora_inspect.files.safetensors import writer
from lora_inspect.files.safetensors.writer import EarlySync


@pytest.fixture
def told(monkeypatch):
    """The descriptors that the system was told of."""
    calls = []
    monkeypatch.setattr(writer, "start_writing", lambda descriptor: calls.append(descriptor) or True)
    monkeypatch.setattr(writer, "_STEP", 10)
    return calls


def wait_for(told, count):
    for _ in range(500):
        if len(told) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(told)


def test_the_system_is_told_once_enough_is_written(told):
    before = threading.active_count()
    sync = EarlySync(7)
    sync.wrote(9)
    assert threading.active_count() == before
    sync.wrote(1)
    wait_for(told, 1)
    sync.wrote(9)
    sync.wrote(25)
    wait_for(told, 2)
    sync.close()
    assert told == [7, 7]
    assert threading.active_count() == before


def test_a_small_file_starts_no_thread(told):
    before = threading.active_count()
    sync = EarlySync(7)
    sync.wrote(9)
    sync.close()
    assert told == []
    assert threading.active_count() == before


def test_a_system_that_does_not_know_it_is_asked_once(told, monkeypatch):
    monkeypatch.setattr(writer, "start_writing", lambda descriptor: told.append(descriptor) is not None)
    sync = EarlySync(7)
    for count in range(1, 6):
        sync.wrote(10)
        wait_for(told, 1)
        time.sleep(0.01 * (count == 1))
    sync.close()
    assert told == [7]


def test_where_no_thread_can_be_started_all_is_left_for_the_end(told, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    sync = EarlySync(7)
    sync.wrote(10)
    sync.wrote(10)
    sync.close()
    assert told == []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such call")
def test_linux_takes_the_call(tmp_path):
    with open(tmp_path / "file", "wb", buffering=0) as handle:
        handle.write(bytes(1 << 16))
        assert system.start_writing(handle.fileno())
        descriptor = os.open(tmp_path, os.O_RDONLY)
        os.close(descriptor)
    assert not system.start_writing(descriptor)
