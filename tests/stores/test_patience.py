"""Servers that are silent or slow: a note after a moment, and one sentence in time."""

import threading
import time
from types import SimpleNamespace

import click
import pytest
from hubs import answer_as_hub

import lora_inspect
from lora_inspect.cli import progress_bar
from lora_inspect.cli.group import cli
from lora_inspect.cli.verb import METADATA_VERBS, VERBS
from lora_inspect.errors import LoraInspectError
from lora_inspect.stores import patience, s3
from lora_inspect.stores.patience import noting, timeout, timing_out
from lora_inspect.stores.remote_file import RemoteFile
from lora_inspect.stores.stat import below, look

CONTENT = bytes(range(256)) * 1000
NAME = "a.safetensors"
COMMANDS = [
    *([verb] for verb in VERBS if verb != "metadata"),
    *(["metadata", verb] for verb in METADATA_VERBS),
]


@pytest.fixture
def file(folder, server):
    (folder / NAME).write_bytes(CONTENT)
    return server.url(NAME)


@pytest.fixture
def held():
    """What a silent server waits for, until the test is over."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def silent(server, held):
    server.misdo = lambda handler, asked: held.wait(20) or True
    return server


@pytest.fixture
def soon(monkeypatch):
    """Notes come after a fifth of a second."""
    monkeypatch.setattr(patience, "NOTE_AFTER", 0.2)


def read(address, start, count):
    memory = bytearray(count)
    RemoteFile(address).read_into(start, memory)
    return bytes(memory)


def refused(address):
    """The sentence for what cannot be read."""
    with pytest.raises(LoraInspectError) as error:
        look(address)
    return str(error.value)


def refused_range(opened):
    """The sentence for bytes of an open file that cannot be read."""
    with pytest.raises(LoraInspectError) as error:
        opened.read_each([(100_000, 50_000)])
    return str(error.value)


def test_a_silent_server_is_one_sentence_after_two_timeouts(file, silent, run):
    began = time.monotonic()
    ended = run("info", "--timeout", "1", file)
    assert ended.stderr == (
        f"Error: {file}: the server does not answer (nothing came for 1 s, 2 times); "
        "try again later, or set a longer timeout (--timeout).\n"
    )
    assert ended.status == 3
    assert len(silent.asked) == 2
    assert 2 <= time.monotonic() - began < 4


def test_by_default_a_silent_server_takes_two_minutes(file, silent, pauses, monkeypatch):
    clock = SimpleNamespace(now=1000.0)

    def monotonic():
        clock.now += 10
        return clock.now

    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=monotonic))
    assert "nothing came for 60 s, 2 times" in refused(file)
    assert 120 <= clock.now - 1000 + sum(pauses) <= 150


def test_a_long_wait_is_one_note_and_the_tries_of_one_request_have_it_together(file, silent, run, soon):
    note, error = run("info", "--timeout", "0.8", file).stderr.splitlines()
    assert note == f"Note: {file}: no answer for 0.2 s; waiting up to 0.8 s (--timeout)."
    assert error.startswith(f"Error: {file}: the server does not answer")


def test_without_a_timeout_a_note_comes_after_five_seconds_and_names_the_minute(file, server, run, monkeypatch):
    clock = iter(range(1000, 10**6, 3))
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    server.misdo = lambda handler, asked: time.sleep(0.4)
    assert run("info", file).stderr.splitlines()[0] == (
        f"Note: {file}: no answer for 5 s; waiting up to 60 s (--timeout)."
    )


def test_a_server_that_answers_is_no_note(fixtures, folder, server, run):
    (folder / NAME).write_bytes((fixtures / "synthetic" / "rslora_flag.safetensors").read_bytes())
    ended = run("info", "--timeout", "1", server.url(NAME))
    assert (ended.status, ended.stderr) == (0, "")


def test_from_python_nothing_is_printed(file, silent, soon, capfd):
    with lora_inspect.timeout(0.4), pytest.raises(LoraInspectError, match=r"nothing came for 0\.4 s, 2 times"):
        lora_inspect.open_adapter(file)
    assert capfd.readouterr() == ("", "")


def test_requests_for_one_address_at_the_same_time_are_one_note(file, server, soon):
    opened = RemoteFile(file)
    server.misdo = lambda handler, asked: time.sleep(0.5)
    notes = []
    with noting(notes.append):
        assert len(opened.read_each([(number * 60_000, 4) for number in range(4)])) == 4
        assert len(notes) == 1
        opened.read_each([(100_000, 4)])
    assert len(notes) == 2


def test_a_pause_that_the_server_asks_for_is_noted(file, server):
    answers = iter([True])
    server.misdo = lambda handler, asked: next(answers, False) and (handler.answer(429, {"Retry-After": "42"}) or True)
    notes = []
    with noting(notes.append):
        look(file)
    assert notes == [f"{file}: the server asks to wait for 42 s; waiting."]


def test_a_note_stands_where_the_line_and_the_bar_were(monkeypatch, capsys):
    stderr = progress_bar.sys.stderr
    monkeypatch.setattr(stderr, "isatty", lambda: True, raising=False)
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress_bar, "time", SimpleNamespace(monotonic=lambda: clock.now))
    line = progress_bar._Line()
    clock.now += 5
    line(True)
    drawn = "\rReading over the network, 5 s"
    line.note("first")
    with progress_bar.bar_below("Merging", 2) as bar:
        bar.begin()
        line.note("second")
    bar_drawn = f"\rMerging [{'-' * 24}] 0/2"
    erased, bar_erased = (f"\r{' ' * (len(one) - 1)}\r" for one in (drawn, bar_drawn))
    assert capsys.readouterr().err == (
        f"{drawn}{erased}Note: first\n{bar_drawn}{bar_erased}Note: second\n{bar_drawn}{bar_erased}"
    )


def sending(server, pieces, every):
    """Has the server send pieces of a file with a pause before each."""

    def misdo(handler, asked):
        handler.begin(asked)
        position = asked.start
        for count in pieces:
            time.sleep(every)
            handler.send(CONTENT[position : position + count])
            position += count
        return True

    server.misdo = misdo


def test_a_server_that_sends_byte_after_byte_is_given_up(file, server, monkeypatch):
    monkeypatch.setattr(patience, "RATE_SECONDS", 0.6)
    opened = RemoteFile(file)
    sending(server, [1] * 60, 0.05)
    assert refused_range(opened) == (
        f"{file}: the server sends it too slowly (less than 1,000 bytes per second for 0.6 s); "
        "try again later, or download the file and name the copy."
    )
    assert len(server.asked) == 2


def test_a_byte_now_and_then_is_no_progress(file, server, monkeypatch):
    monkeypatch.setattr(patience, "RATE_SECONDS", 0.3)
    opened = RemoteFile(file)
    sending(server, [1] * 10, 0.45)
    assert "the server sends it too slowly" in refused_range(opened)


def test_a_transfer_that_is_fast_enough_may_take_longer_than_the_timeout(file, server, monkeypatch):
    monkeypatch.setattr(patience, "RATE_SECONDS", 0.3)
    opened = RemoteFile(file)
    sending(server, [1000] * 10, 0.12)
    with timing_out(0.6):
        assert opened.read_each([(100_000, 10_000)]) == [CONTENT[100_000:110_000]]
    assert len(server.asked) == 2


def test_an_answer_that_stops_is_given_up(file, server, held):
    def misdo(handler, asked):
        handler.begin(asked)
        handler.send(CONTENT[asked.start : asked.start + 10])
        held.wait(20)
        return True

    opened = RemoteFile(file)
    server.misdo = misdo
    with timing_out(0.4):
        assert "the server does not answer (nothing came for 0.4 s, 2 times)" in refused_range(opened)
    assert [one.start for one in server.asked[1:]] == [100_000, 100_010]


def test_an_answer_that_stops_once_goes_on_where_it_stopped(file, server, held):
    opened = RemoteFile(file)
    stops = iter([True])

    def misdo(handler, asked):
        if next(stops, False):
            handler.begin(asked)
            handler.send(CONTENT[asked.start : asked.start + 10])
            held.wait(20)
            return True
        return False

    server.misdo = misdo
    with timing_out(0.4):
        assert opened.read_each([(100_000, 50)]) == [CONTENT[100_000:100_050]]
    assert [one.start for one in server.asked[1:]] == [100_000, 100_010]


def test_a_redirect_is_an_answer(file, server):
    def misdo(handler, asked):
        time.sleep(0.4)
        if asked.path == "/old":
            handler.answer(302, {"Location": f"/{NAME}"})
            return True
        return False

    server.misdo = misdo
    with timing_out(0.6):
        assert look(server.url("old")).answer.bytes == len(CONTENT)
    assert len(server.asked) == 2


def test_a_silent_store_is_given_up_in_time(silent, s3_settings):
    s3_settings(silent.address)
    with timing_out(0.4):
        assert refused("s3://bucket/a").startswith(
            "s3://bucket/a: the server does not answer (nothing came for 0.4 s, 2 times)"
        )


@pytest.mark.parametrize("part", ["/api/models", f"/{NAME}"])
def test_a_silent_hub_is_given_up_in_time(part, file, hub, held):
    hub.misdo = lambda handler, asked: (
        (held.wait(20) or True) if part in asked.path else answer_as_hub(hub, handler, asked)
    )
    with timing_out(0.4), pytest.raises(LoraInspectError, match=r"nothing came for 0\.4 s, 2 times"):
        read(f"hf://owner/name/{NAME}", 100_000, 8)


def test_each_page_of_a_listing_is_an_answer(monkeypatch):
    import asyncio

    pages = iter(range(4))

    class Store:
        async def _call_s3(self, method, **arguments):
            await asyncio.sleep(0.25)
            number = next(pages)
            entry = {"Key": f"d/{number}", "Size": 1}
            return {"Contents": [entry], "IsTruncated": number < 3, "NextContinuationToken": "t"}

        def split_path(self, path):
            return (*path.split("/", 1), None)

    monkeypatch.setattr(s3, "file_system", lambda address: Store())
    with timing_out(0.5):
        assert [one.address for one in below("s3://b/d")] == [f"s3://b/d/{number}" for number in range(4)]


def command_of(words):
    command = cli
    for word in words:
        command = command.get_command(click.Context(command), word)
    return command


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_that_takes_paths_has_the_option(words):
    (option,) = [one for one in command_of(words).params if "--timeout" in one.opts]
    assert f"[default: {patience.TIMEOUT:g}]" in option.help


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", ""])
@pytest.mark.parametrize("words", [["info"], ["metadata", "show"]], ids=" ".join)
def test_a_timeout_that_is_no_positive_number_is_wrong_usage(words, value, run):
    ended = run(*words, f"--timeout={value}", "a.safetensors")
    assert ended.status == 2
    assert "Invalid value for '--timeout'" in ended.stderr


def test_the_option_counts_for_its_command_alone(file, silent, run):
    run("info", "--timeout", "0.3", file)
    assert timeout() == 60


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_timeout_of_python_is_a_positive_number(seconds):
    with pytest.raises(ValueError, match="timeout is"), lora_inspect.timeout(seconds):
        pass


@pytest.mark.parametrize("seconds", [None, "1", True])
def test_a_timeout_of_python_is_no_other_thing(seconds):
    with pytest.raises(TypeError, match="timeout must be a number"), lora_inspect.timeout(seconds):
        pass


def test_the_last_block_counts_in_every_thread_until_it_ends():
    found = []
    with lora_inspect.timeout(10):
        with lora_inspect.timeout(0.5):
            thread = threading.Thread(target=lambda: found.append(timeout()))
            thread.start()
            thread.join()
        found.append(timeout())
    assert [*found, timeout()] == [0.5, 10, 60]
