"""Signals whose exceptions Python or a library drops: no output appears after them, and the command still ends."""

import ctypes
import gc
import os
import shutil
import signal
import sys
import time
import weakref
from contextlib import suppress

import pytest
from adapters import base, loras

from lora_inspect.errors import LoraInspectError
from lora_inspect.files import outputs
from lora_inspect.files.safetensors import edit_in_place, writer
from lora_inspect.interrupt import RECORD, WORDS, Interrupt

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself such signals there")


def in_destructor(send):
    class Dying:
        def __del__(self):
            send()

    Dying()


def in_generator_close(send):
    def generate():
        try:
            yield
        finally:
            send()

    next(generate())


def in_weakref_callback(send):
    class Referent:
        pass

    referent = Referent()
    reference = weakref.ref(referent, lambda _: send())
    del referent
    assert reference() is None


def in_collector_callback(send):
    def callback(phase, details):
        gc.callbacks.remove(callback)
        send()

    gc.callbacks.append(callback)
    gc.collect()


def in_c_callback(send):
    ctypes.CFUNCTYPE(None)(send)()


def swallowed(send):
    with suppress(BaseException):
        send()


DROPS = [
    in_destructor, in_generator_close, in_weakref_callback, in_collector_callback, in_c_callback, swallowed
]  # fmt: skip
STATUSES = {signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130}


@pytest.fixture
def place(write_safetensors, fixtures, tmp_path, monkeypatch):
    write_safetensors(base(), name="base.safetensors")
    write_safetensors(loras(), {"sshs_model_hash": "0" * 64}, name="a.safetensors")
    shutil.copy(fixtures / "synthetic" / "split.safetensors", tmp_path)
    shutil.copytree(fixtures / "synthetic" / "base_sharded", tmp_path / "shards")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def handlers():
    """The handlers of a command line of its own, and those of this process afterwards."""
    interrupt = Interrupt()
    interrupt.may_unwind = True
    before = {number: signal.getsignal(number) for number in STATUSES}
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def state(folder):
    return {path.relative_to(folder): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def once_before(monkeypatch, owner, name, act):
    """Have the first call of a function preceded by an act."""
    real, calls = getattr(owner, name), []

    def call(*arguments, **options):
        if not calls:
            calls.append(name)
            act()
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, call)
    return calls


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


# The last call before the output appears, by command.
LAST_CALLS = {
    "file": (["merge", "base.safetensors", "a.safetensors", "-o", "out.safetensors"], outputs, "check_unchanged"),
    "folder": (["merge", "shards", "split.safetensors", "-o", "out"], outputs, "_sync"),
    "fixed file": (["check", "a.safetensors", "--fix", "-o", "out.safetensors"], outputs, "check_unchanged"),
    "edited file": (["metadata", "set", "a.safetensors", "title=T"], outputs, "check_unchanged"),
    "edited header": (["metadata", "set", "a.safetensors", "--in-place", "a=b"], edit_in_place, "sync_folder"),
}


@pytest.mark.parametrize("drop", DROPS, ids=lambda drop: drop.__name__)
@pytest.mark.parametrize("kind", LAST_CALLS)
def test_output_never_appears_after_dropped_signal(kind, drop, place, run, monkeypatch):
    words, owner, name = LAST_CALLS[kind]
    run("metadata", "set", "a.safetensors", "room=made")
    before = state(place)
    calls = once_before(monkeypatch, owner, name, lambda: drop(send))
    shown = run(*words)
    assert (shown.status, shown.stdout, shown.stderr) == (143, "", "")
    assert calls
    assert state(place) == before


@pytest.mark.parametrize("number", STATUSES, ids=lambda number: number.name)
@pytest.mark.parametrize("drop", DROPS[:-1], ids=lambda drop: drop.__name__)
def test_dropped_signal_ends_a_wait(drop, number, place, run, monkeypatch):
    def wait():
        drop(lambda: send(number))
        time.sleep(20)

    before = state(place)
    calls = once_before(monkeypatch, writer, "copy_bytes", wait)
    started = time.monotonic()
    shown = run("convert", "a.safetensors", "-o", "out.safetensors")
    error = f"Error: {WORDS}" if number == signal.SIGINT else ""
    assert (shown.status, shown.stdout, shown.stderr.strip()) == (STATUSES[number], "", error)
    assert calls
    assert time.monotonic() - started < 10
    assert state(place) == before


@pytest.mark.parametrize("drop", DROPS, ids=lambda drop: drop.__name__)
@pytest.mark.parametrize("kind", LAST_CALLS)
def test_dropped_interrupt_of_python_handler_ends_command(kind, drop, place, run, monkeypatch):
    words, module, name = LAST_CALLS[kind]
    run("metadata", "set", "a.safetensors", "room=made")
    before = state(place)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    calls = once_before(monkeypatch, module, name, lambda: drop(lambda: send(signal.SIGINT)))
    shown = run(*words)
    assert (shown.status, shown.stdout, shown.stderr.strip()) == (130, "", f"Error: {WORDS}")
    assert calls
    assert state(place) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signal_during_report_of_dropped_signal_prints_nothing(place, run, monkeypatch):
    once_before(monkeypatch, outputs, "check_unchanged", lambda: in_destructor(send))
    calls = once_before(monkeypatch, RECORD, "_raise_later", send)
    shown = run("convert", "a.safetensors", "-o", "out.safetensors")
    assert (shown.status, shown.stdout, shown.stderr) == (143, "", "")
    assert calls


def test_error_of_library_after_dropped_signal_is_not_reported(place, run, monkeypatch):
    def fail():
        swallowed(send)
        raise LoraInspectError("a library cannot be loaded.")

    once_before(monkeypatch, writer, "copy_bytes", fail)
    shown = run("convert", "a.safetensors", "-o", "out.safetensors")
    assert (shown.status, shown.stdout, shown.stderr) == (143, "", "")


def test_signal_dropped_after_output_appeared_ends_command(place, run, monkeypatch):
    once_before(monkeypatch, outputs, "_sync_name", lambda: swallowed(send))
    shown = run("convert", "a.safetensors", "-o", "out.safetensors")
    assert (shown.status, shown.stderr) == (143, "")
    assert run("info", "out.safetensors").status == 0


def test_next_command_of_process_is_not_ended(place, run, monkeypatch):
    once_before(monkeypatch, outputs, "check_unchanged", lambda: in_destructor(send))
    assert run("convert", "a.safetensors", "-o", "out.safetensors").status == 143
    time.sleep(0.05)
    assert run("convert", "a.safetensors", "-o", "out.safetensors").status == 0


def test_defect_of_destructor_is_reported_without_signal(place, run, monkeypatch):
    def fail():
        raise ValueError("a defect")

    reported = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    once_before(monkeypatch, outputs, "check_unchanged", lambda: in_destructor(fail))
    assert run("convert", "a.safetensors", "-o", "out.safetensors").status == 0
    assert [str(one.exc_value) for one in reported] == ["a defect"]
    assert sys.unraisablehook == reported.append


def test_signal_is_recorded_where_no_thread_can_start(place, run, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("can't start new thread")

    before = state(place)
    monkeypatch.setattr("lora_inspect.interrupt._thread.start_new_thread", refuse)
    once_before(monkeypatch, outputs, "check_unchanged", lambda: in_destructor(send))
    shown = run("check", "a.safetensors", "--fix", "-o", "out.safetensors")
    assert (shown.status, shown.stdout, shown.stderr) == (143, "", "")
    assert state(place) == before


# An object dies in each write of the merge, and the first destructor sends the signal.
DESTRUCTORS = """
import os
from lora_inspect.files.safetensors import writer
from lora_inspect.ENTRY import main
write = writer.Writer.write_at
class Dying:
    sent = False
    def __del__(self):
        if not Dying.sent:
            Dying.sent = True
            os.kill(os.getpid(), int(os.environ["SENT_SIGNAL"]))
def write_at(self, *arguments):
    Dying()
    return write(self, *arguments)
writer.Writer.write_at = write_at
main()
"""


@pytest.mark.parametrize("number", STATUSES, ids=lambda number: number.name)
@pytest.mark.parametrize("entry", ["start", "cli"])
@pytest.mark.slow
def test_process_ends_by_signal_in_destructor(entry, number, place, run_process):
    before = state(place)
    words = ["merge", "base.safetensors", "a.safetensors", "-o", "out.safetensors"]
    shown = run_process("-c", DESTRUCTORS.replace("ENTRY", entry), *words, SENT_SIGNAL=str(int(number)))
    error = f"Error: {WORDS}" if number == signal.SIGINT else ""
    assert (shown.status, shown.stdout, shown.stderr.strip()) == (STATUSES[number], "", error)
    assert state(place) == before
