"""A file that is opened as what has its own name, whatever other programs do to the name meanwhile."""

import errno
import os
import sys

import pytest

from lora_inspect.files import system


@pytest.fixture
def path(tmp_path):
    (tmp_path / "a").write_bytes(b"old")
    return str(tmp_path / "a")


@pytest.fixture
def between_look_and_opening(monkeypatch):
    """Has a function called once, after the file was looked at and before it is opened."""

    def arrange(act):
        waiting, real = [act], system.open_without_waiting

        def opening(path, flags):
            descriptor = real(path, flags)
            if waiting:
                waiting.pop()()
            return descriptor

        monkeypatch.setattr(system, "open_without_waiting", opening)

    return arrange


@pytest.mark.skipif(sys.platform == "win32", reason="Windows replaces and removes no file that is open")
def test_one_that_is_replaced_at_that_moment_is_opened_in_its_place(path, tmp_path, between_look_and_opening):
    (tmp_path / "b").write_bytes(b"new")
    between_look_and_opening(lambda: os.replace(tmp_path / "b", path))
    descriptor = system.open_itself(path)
    assert os.read(descriptor, 9) == b"new"
    os.close(descriptor)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows replaces and removes no file that is open")
def test_one_that_goes_at_that_moment_is_not_there(path, between_look_and_opening):
    between_look_and_opening(lambda: os.unlink(path))
    with pytest.raises(FileNotFoundError):
        system.open_itself(path)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_is_not_followed_whenever_it_comes(path, tmp_path, between_look_and_opening):
    def put_link():
        os.rename(path, tmp_path / "b")
        os.symlink(tmp_path / "b", path)

    between_look_and_opening(put_link)
    for _ in range(2):
        with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
            system.open_itself(path)
