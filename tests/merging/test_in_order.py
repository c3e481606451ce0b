"""Sums of parts that come in any order."""

import random

import pytest

from lora_inspect.merging.threads import InOrder


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_coming_changes_nothing(seed):
    numbers = list(range(50))
    random.Random(seed).shuffle(numbers)
    sums = InOrder(lambda one, other: f"({one}+{other})")
    for number in numbers:
        sums.put(number, str(number))
    expected = "0"
    for number in range(1, 50):
        expected = f"({expected}+{number})"
    assert sums.total == expected


def test_nothing_is_added_before_its_turn():
    sums = InOrder(lambda one, other: one + other)
    sums.put(2, "c")
    assert sums.total is None
    sums.put(0, "a")
    assert sums.total == "a"
    sums.put(1, "b")
    assert sums.total == "abc"
