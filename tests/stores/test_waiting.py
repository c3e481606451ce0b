"""What a terminal shows of a store that lets wait."""

import io
from types import SimpleNamespace

import pytest

from lora_inspect.cli import progress_bar as line
from lora_inspect.stores import requests
from lora_inspect.stores.stat import look


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    told = SimpleNamespace(now=100.0)
    monkeypatch.setattr(line, "time", SimpleNamespace(monotonic=lambda: told.now))
    return told


def wait(seconds, clock, monkeypatch, server, folder, stderr):
    """Looks at a file for which the store lets wait, in steps of half a second."""
    (folder / "a").write_bytes(b"1")
    left = iter(range(round(2 * seconds)))

    def stepping(futures, _timeout, waited=requests.concurrent.futures.wait):
        if next(left, None) is None:
            return waited(futures)
        clock.now += 0.5
        return SimpleNamespace(done=())

    monkeypatch.setattr(requests.concurrent.futures, "wait", stepping)
    monkeypatch.setattr("sys.stderr", stderr)
    with line.waiting_line():
        assert look(server.url("a")).answer.bytes == 1


def test_over_two_seconds_a_line_says_how_long_and_goes(clock, monkeypatch, server, folder):
    wait(3.5, clock, monkeypatch, server, folder, terminal := Terminal())
    drawn = terminal.getvalue().split("\r")
    assert [one.strip() for one in drawn if one.strip()] == [
        f"Reading over the network, {second} s" for second in ("2", "2", "3", "4")
    ]
    assert drawn[-2:] == [" " * len(drawn[-3]), ""]


@pytest.mark.parametrize(("seconds", "stderr"), [(1.5, Terminal()), (3.5, io.StringIO())])
def test_below_two_seconds_and_where_nobody_looks_nothing_is_drawn(seconds, stderr, clock, monkeypatch, server, folder):
    wait(seconds, clock, monkeypatch, server, folder, stderr)
    assert stderr.getvalue() == ""
