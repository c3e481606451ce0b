"""Results in the order of the things, whatever becomes of the processes that make them."""

import os
import sys

import pytest

from lora_inspect.scanning import workers as module
from lora_inspect.scanning.workers import side_by_side

# What is run in a process of its own, where no other thread keeps it from being copied.
COMMON = """
import multiprocessing, os, sys, time
from lora_inspect.scanning import workers as module
from lora_inspect.scanning.workers import side_by_side
PARENT = os.getpid()
def where(thing):
    time.sleep(0.02)
    return thing, os.getpid()
def fatal(thing):
    time.sleep(0.02)
    if os.getpid() != PARENT:
        os._exit(3)
    return thing
def unsendable(thing):
    time.sleep(0.02)
    return thing if os.getpid() == PARENT else (lambda: thing)
def raising(thing):
    time.sleep(0.02)
    if os.getpid() != PARENT:
        raise ValueError(thing)
    return thing
def lost(thing):
    return f"lost {thing}"
"""
CASES = {
    "all results in order, by several processes": """
found = list(side_by_side(where, range(60), 3, lost))
assert [thing for thing, _ in found] == list(range(60))
assert len({process for _, process in found}) == 3, found
""",
    "one job is this process": """
found = list(side_by_side(where, range(20), 1, lost))
assert {process for _, process in found} == {PARENT}
""",
    "few quick things are no work for several": """
module._COPY = 5.0  # on a machine that is busy with other things none is quick
found = list(side_by_side(lambda thing: (thing, os.getpid()), range(200), 3, lost))
assert {process for _, process in found} == {PARENT}
""",
    "a process that dies of a thing loses that one alone": """
for function in (fatal, unsendable, raising):
    found = list(side_by_side(function, range(60), 3, lost))
    assert len(found) == 60
    assert 1 <= sum(one == f"lost {thing}" for thing, one in enumerate(found)) <= 2, found
    assert all(one in (thing, f"lost {thing}") for thing, one in enumerate(found)), found
""",
    "closing it ends the processes": """
results = side_by_side(where, range(100), 3, lost)
found = [next(results) for _ in range(10)]
assert len(multiprocessing.active_children()) == 2
results.close()
assert multiprocessing.active_children() == []
""",
    "an error of the function here ends the processes": """
def odd(thing):
    if thing > 40 and os.getpid() == PARENT:
        raise KeyError(thing)
    return where(thing)
try:
    list(side_by_side(odd, range(100), 2, lost))
except KeyError:
    assert multiprocessing.active_children() == []
else:
    raise AssertionError("it was not raised")
""",
    "no process that can be started is none": """
def refuse(*given):
    raise OSError(11, "Resource temporarily unavailable")
multiprocessing.process.BaseProcess.start = refuse
found = list(side_by_side(where, range(30), 3, lost))
assert [thing for thing, _ in found] == list(range(30))
assert {process for _, process in found} == {PARENT}
""",
    "the settings of signals stay": """
import signal
before = signal.getsignal(signal.SIGINT)
list(side_by_side(where, range(30), 3, lost))
assert signal.getsignal(signal.SIGINT) is before
""",
}


@pytest.mark.skipif(sys.platform != "linux", reason="processes are copied there alone")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.slow
def test_in_copies_of_the_process(case, run_process):
    ended = run_process("-W", "error", "-c", COMMON + case)
    assert (ended.status, ended.stderr) == (0, "")


def square(number):
    return number * number, os.getpid()


def test_in_new_processes(monkeypatch):
    monkeypatch.setattr(module, "_can_be_copied", lambda: False)
    monkeypatch.setattr(module, "_NEW", 0.0)
    found = list(side_by_side(square, range(400), 2, square))
    assert [result for result, _ in found] == [number * number for number in range(400)]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_things(count):
    assert [result for result, _ in side_by_side(square, range(count), 2, square)] == [n * n for n in range(count)]
