"""One thread of BLAS in every block, given back once the last one ends, and results in the order of the items."""

import threading
import time

import numpy
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from lora_inspect.algebra.linear.module_threads import Workspace, made_in_order, one_blas_thread


def blas_threads():
    return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]


@pytest.fixture
def two_threads():
    numpy.zeros((2, 2)) @ numpy.zeros((2, 2))
    with threadpool_limits(2, user_api="blas"):
        if 2 not in blas_threads():
            pytest.skip("this BLAS has one thread alone")
        yield blas_threads()


def test_blocks_have_one_thread_and_give_it_back_at_the_last_end(two_threads):
    with one_blas_thread():
        assert set(blas_threads()) == {1}
        with one_blas_thread():
            assert set(blas_threads()) == {1}
        assert set(blas_threads()) == {1}
    assert blas_threads() == two_threads
    with one_blas_thread():
        assert set(blas_threads()) == {1}
    assert blas_threads() == two_threads


def test_an_error_gives_it_back(two_threads):
    def fail(item):
        raise KeyError(item)

    with pytest.raises(KeyError):
        list(made_in_order(fail, [1, 2]))
    assert blas_threads() == two_threads


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_results_come_in_the_order_of_the_items(threads):
    def make(item):
        time.sleep(0.02 if item % 3 == 0 else 0.0)
        return item, set(blas_threads()), threading.get_ident()

    found = list(made_in_order(make, range(20), threads))
    assert [item for item, _, _ in found] == list(range(20))
    assert all(counts <= {1} for _, counts, _ in found)
    assert len({thread for _, _, thread in found}) <= threads


def test_no_more_wait_than_there_are_threads():
    begun = []

    def make(item):
        begun.append(item)
        return item

    making = made_in_order(make, range(100), 2)
    assert next(making) == 0
    time.sleep(0.05)
    assert len(begun) <= 3
    assert list(making) == list(range(1, 100))


def test_a_thread_has_memory_of_its_own_and_keeps_it():
    workspace = Workspace()

    def make(item):
        up, down = workspace.empty("up", (3, item), numpy.float32), workspace.empty("down", (item, 4), numpy.float64)
        assert (up.shape, down.shape) == ((3, item), (item, 4))
        up[...], down[...] = item, -item
        time.sleep(0.01)
        assert (up == item).all()
        assert (down == -item).all()
        return threading.get_ident(), up.__array_interface__["data"][0]

    made = list(made_in_order(make, [9, 9, 4, 7, 1, 8], 2))
    assert len({address for _, address in made}) == len({thread for thread, _ in made})


def test_a_larger_array_gets_more_memory():
    workspace = Workspace()
    workspace.empty("up", (2, 2), numpy.float32)[...] = 1.0
    larger = workspace.empty("up", (20, 3), numpy.float64)
    larger[...] = 5.0
    assert (larger == 5.0).all()
