"""Signals that come during a block are answered after it, by whoever answered them before."""

import signal
import threading

import pytest

from lora_inspect.files.deferred_signals import held_signals


@pytest.fixture
def came():
    before, seen = signal.getsignal(signal.SIGINT), []
    signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    yield seen
    signal.signal(signal.SIGINT, before)


def test_a_signal_waits_for_the_end_of_the_block(came):
    handler = signal.getsignal(signal.SIGINT)
    with held_signals():
        signal.raise_signal(signal.SIGINT)
        assert came == []
    assert came == [signal.SIGINT]
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_error_in_the_block_gives_the_handlers_back(came):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError), held_signals():
        raise KeyError
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with held_signals():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_is_left_alone():
    failures = []

    def hold():
        try:
            with held_signals():
                pass
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=hold)
    thread.start()
    thread.join()
    assert failures == []
