"""What several processes do together, in threads of one that share a store."""

import hashlib
import threading

import pytest
from torch.distributed import HashStore

from lora_inspect.errors import RefusedError
from lora_inspect.merging.jobs import processes as ranks_of
from lora_inspect.merging.jobs.processes import Elsewhere, Processes, threads_of
from lora_inspect.torchrun import Rank, launched


@pytest.fixture
def by_all(monkeypatch):
    """by_all(count, act): what each of `count` threads gets of `act(ranks)`, an exception in the place of a result."""
    monkeypatch.setattr(ranks_of, "_WORKING", 0.0)
    monkeypatch.setattr(ranks_of, "_TO_TELL", 0.2)

    def run(count, act):
        store, found = HashStore(), [None] * count

        def one(number):
            try:
                found[number] = act(Processes(Rank(number, count, count), store, lambda error: f"{error}"))
            except Exception as error:
                found[number] = error

        threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        return found

    return run


def refuse(text):
    raise RefusedError(text)


def test_each_gets_what_it_made(by_all):
    assert by_all(3, lambda ranks: ranks.together(lambda: ranks.rank.number * 10)) == [0, 10, 20]


def test_what_one_has_to_say_is_said_by_the_first(by_all):
    def act(ranks):
        ranks.together(lambda: None)
        return ranks.together(lambda: refuse("a file is away.") if ranks.rank.number == 2 else 1)

    first, *others = by_all(4, act)
    assert str(first) == "process 2: a file is away."
    assert [type(error) for error in (first, *others)] == [RefusedError, Elsewhere, Elsewhere, Elsewhere]


@pytest.mark.parametrize("failing", [{0, 1, 2}, {0, 2}])
def test_what_all_say_and_what_the_first_says_is_said_as_it_is(failing, by_all):
    found = by_all(3, lambda ranks: ranks.together(lambda: ranks.rank.number in failing and refuse("a defect.")))
    assert str(found[0]) == "a defect."


def test_one_that_is_ahead_and_fails_there_is_waited_for_there(by_all):
    """A failure counts in its own phase: otherwise the others would end a phase early, and it would wait for them."""
    for _ in range(20):
        found = by_all(2, lambda ranks: [ranks.together(lambda: 1), ranks.together(lambda: refuse("a defect."))])
        assert [type(error) for error in found] == [RefusedError, Elsewhere]
        assert str(found[0]) == "a defect."


def test_the_others_stop_while_they_are_at_work(by_all):
    steps = []

    def act(ranks):
        tell = ranks.progress(lambda amount: None)

        def work():
            if ranks.rank.number == 1:
                refuse("a defect.")
            for step in range(2000):
                threading.Event().wait(0.005)
                steps.append(step)
                tell(1)

        return ranks.together(work)

    found = by_all(2, act)
    assert str(found[0]) == "process 1: a defect."
    assert len(steps) < 1500


def test_one_sees_what_all_have_done(by_all):
    shown = {number: [] for number in range(3)}

    def act(ranks):
        show = shown[ranks.rank.number].append
        tell = ranks.progress(show)
        return ranks.together(lambda: [tell(7) for _ in range(10)] and None, show)

    by_all(3, act)
    assert sum(shown[0]) == 3 * 70
    assert (shown[1], shown[2]) == ([], [])
    assert all(amount >= 0 for amount in shown[0])


@pytest.mark.parametrize("odd", [None, 0, 2])
def test_who_has_another_text_says_in_what(odd, by_all, monkeypatch):
    texts = {number: "theirs" if number == odd else "ours" for number in range(3)}
    gathered = [hashlib.sha256(texts[number].encode()).digest() for number in range(3)]
    monkeypatch.setattr(Processes, "_gathered", lambda ranks, own: gathered)
    found = by_all(3, lambda ranks: ranks.equal(texts[ranks.rank.number], lambda first: f"{first} is not mine."))
    said = {None: "None", 0: "process 1: theirs is not mine.", 2: "process 2: ours is not mine."}
    assert str(found[0]) == said[odd]


def test_the_others_end_behind_the_one_that_speaks(by_all):
    order = []

    def act(ranks):
        if ranks.rank.number == 0:
            threading.Event().wait(0.1)
            order.append(0)
            ranks.reported()
        else:
            ranks.reported()
            order.append(1)

    by_all(2, act)
    assert order == [0, 1]


@pytest.mark.parametrize(
    ("cores", "here", "chosen", "threads"),
    [(8, 2, None, 4), (8, 3, "1", 2), (2, 4, "1", 1), (8, 2, "3", None), (1, 1, None, 1)],
)
def test_each_has_its_share_of_the_machine(cores, here, chosen, threads, monkeypatch):
    monkeypatch.setattr(ranks_of, "usable_cores", lambda: cores)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    else:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_of(Rank(0, 8, here)) == threads


ENVIRONMENT = {"TORCHELASTIC_RUN_ID": "none", "RANK": "2", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}


@pytest.mark.parametrize(
    ("lacks", "program", "rank"),
    [
        (None, "/x/lora_inspect/__main__.py", Rank(2, 8, 4)),
        (None, "/usr/bin/lora-inspect", None),  # which a trainer's own process may start
        ("TORCHELASTIC_RUN_ID", "/x/lora_inspect/__main__.py", None),
        ("RANK", "/x/lora_inspect/__main__.py", None),
    ],
)
def test_which_process_this_is(lacks, program, rank, monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    if lacks:
        monkeypatch.delenv(lacks)
    monkeypatch.setattr("sys.argv", [program])
    assert launched() == rank
