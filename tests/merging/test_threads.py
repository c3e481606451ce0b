"""Threads at jobs and at parts of jobs: what comes of them is what one thread alone would make."""

import signal
import threading
import time

import pytest

from lora_inspect.errors import LoraInspectError
from lora_inspect.merging.threads import Crew, Job
from lora_inspect.progress import silent

COUNTS = [1, 2, 5]


def crew(count, memory=100):
    """A crew whose tools are a list each, of what its thread did."""
    return Crew([[] for _ in range(count)], memory)


@pytest.mark.parametrize("count", COUNTS)
def test_every_job_is_done_once_and_progress_tells_of_all(count):
    done, told, where = [], [], set()

    def job(number):
        def do(member):
            where.add(threading.current_thread())
            done.append(number)
            member.done(number)

        return Job(do)

    crew(count).run(
        [job(number) for number in range(20)], lambda amount: told.append((amount, threading.current_thread()))
    )
    assert sorted(done) == list(range(20))
    assert sum(amount for amount, _ in told) == sum(range(20))
    assert {thread for _, thread in told} == {threading.main_thread()}
    assert threading.main_thread() not in where
    assert not any(thread.is_alive() for thread in where)


def test_no_jobs_are_done_at_once():
    crew(3).run([], silent)


@pytest.mark.parametrize("count", COUNTS)
def test_a_job_is_made_when_its_turn_comes_and_not_kept_when_it_is_done(count):
    alive, most = set(), []

    def jobs():
        for number in range(200):
            alive.add(number)
            most.append(len(alive))
            yield Job(lambda member, number=number: alive.remove(number))

    crew(count).run(jobs(), silent)
    assert not alive
    assert max(most) <= count + 1


@pytest.mark.parametrize("count", COUNTS)
def test_what_making_a_job_raises_comes_behind_the_jobs_before_it(count):
    done = []

    def jobs():
        yield from (Job(lambda member, number=number: done.append(number)) for number in range(20))
        raise LoraInspectError("the job that cannot be made")

    with pytest.raises(LoraInspectError, match="cannot be made"):
        crew(count).run(jobs(), silent)
    assert sorted(done) == list(range(20))


@pytest.mark.parametrize("count", COUNTS)
def test_of_errors_the_first_job_decides_though_a_later_one_fails_before_it(count):
    begun, later_failed = [], threading.Event()

    def first(member):
        begun.append(1)
        if count > 1:
            assert later_failed.wait(10)
        raise LoraInspectError("the first")

    def second(member):
        later_failed.set()
        raise LoraInspectError("the second")

    def third(member):
        begun.append(3)

    with pytest.raises(LoraInspectError, match="the first"):
        crew(count).run([Job(first), Job(second), *[Job(third)] * 50], silent)
    assert begun.count(3) < 50


def test_what_follows_an_error_is_given_up_and_what_precedes_it_is_not():
    failed = threading.Event()
    parts = {"before": 0, "behind": 0}

    def slow(name, count):
        def do(member):
            def part(tools, number):
                failed.wait(10)
                time.sleep(0.001)
                parts[name] += 1

            member.spread(count, part)

        return Job(do)

    def fail(member):
        failed.set()
        raise LoraInspectError("the middle")

    with pytest.raises(LoraInspectError, match="the middle"):
        Crew([None] * 3, 0).run([slow("before", 60), Job(fail), slow("behind", 10_000)], silent)
    assert parts["before"] == 60
    assert parts["behind"] < 10_000


@pytest.mark.parametrize("count", COUNTS)
def test_parts_are_added_up_in_their_order_by_whoever_is_free(count):
    totals, by = [], set()

    def do(member):
        def part(tools, number):
            by.add(threading.current_thread())
            time.sleep(0.002 * (number % 3))
            return [number]

        totals.append(member.total(30, part, lambda one, other: one + other))

    crew(count).run([Job(do)] + [Job(lambda member: None)] * (count - 1), silent)
    assert totals == [list(range(30))]
    assert len(by) == count


@pytest.mark.parametrize("count", COUNTS)
def test_of_parts_the_first_that_fails_decides(count):
    def do(member):
        def part(tools, number):
            if number >= 7:
                time.sleep(0.02 if number == 7 else 0)
                raise LoraInspectError(f"part {number}")

        member.spread(40, part)

    with pytest.raises(LoraInspectError, match=r"^part 7$"):
        crew(count).run([Job(do)] + [Job(lambda member: None)] * (count - 1), silent)


def test_no_parts_have_no_sum():
    found = []
    crew(2).run([Job(lambda member: found.append(member.total(0, None, None)))], silent)
    assert found == [None]


@pytest.mark.parametrize(("each", "most"), [(60, 1), (50, 2), (30, 3), (500, 1), (0, 4)])
def test_jobs_at_the_same_time_take_no_more_memory_than_there_is(each, most):
    lock, now, peak = threading.Lock(), [0], [0]

    def do(member):
        with lock:
            now[0] += 1
            peak[0] = max(peak[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1

    crew(4, 100).run([Job(do, each)] * 12, silent)
    assert peak[0] == most


def test_one_job_at_a_time_is_alone():
    inside, peak = [0], [0]

    def do(member):
        with member.alone():
            inside[0] += 1
            peak[0] = max(peak[0], inside[0])
            time.sleep(0.005)
            inside[0] -= 1

    crew(4).run([Job(do)] * 8, silent)
    assert peak[0] == 1


@pytest.mark.parametrize("times", [1, 3])
def test_an_interrupt_waits_for_the_threads_and_for_no_more_jobs(times):
    running, sent, ended = threading.Event(), threading.Event(), []

    def do(member):
        running.set()
        assert sent.wait(10)
        time.sleep(0.02)
        ended.append(threading.current_thread())

    def interrupt():
        running.wait(10)
        for _ in range(times):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.02)
        sent.set()

    sender = threading.Thread(target=interrupt)
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        crew(2).run([Job(do)] * 100, silent)
    sender.join()
    assert 1 <= len(ended) < 100
    assert not any(thread.is_alive() for thread in ended)


def test_an_error_of_the_progress_ends_the_jobs():
    def fail(amount):
        raise LoraInspectError("nobody looks")

    done = []
    with pytest.raises(LoraInspectError, match="nobody looks"):
        crew(2).run([Job(lambda member: (time.sleep(0.01), done.append(1)))] * 200, fail)
    assert len(done) < 200


def test_where_no_thread_can_be_started_a_sentence_says_so(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(LoraInspectError, match="the system refuses to start a thread"):
        crew(2).run([Job(lambda member: None)], silent)


def test_fewer_threads_than_asked_for_do_all_the_same(monkeypatch):
    real, started, done = threading.Thread.start, [], []

    def start(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    crew(4).run([Job(lambda member: done.append(1))] * 5, silent)
    assert len(done) == 5


@pytest.mark.parametrize("most", [1, 2, 3])
def test_no_more_members_than_may_be_are_at_the_parts_of_a_job(most):
    """Another job goes on beside it."""
    at_work, seen, lock = set(), [], threading.Lock()

    def do(member):
        def part(tools, number):
            with lock:
                at_work.add(threading.current_thread())
                seen.append(len(at_work))
            time.sleep(0.002)
            with lock:
                at_work.remove(threading.current_thread())
            return number

        assert member.total(40, part, lambda one, other: one + other, most) == sum(range(40))

    beside = []
    crew(4).run([Job(do), Job(lambda member: beside.append(1))], silent)
    assert max(seen) == most
    assert beside == [1]
