"""A sixteenth of the rows of a weight, the same ones however it is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_inspect.merging.retention import looked_rows


def numbers(rows: int, first: int, count: int) -> list[int]:
    return [row for start, stop in looked_rows(rows, first, count) for row in range(start, stop)]


@given(rows=st.integers(1, 3000), cut=st.integers(1, 700))
def test_blocks_have_together_what_the_whole_has(rows, cut):
    whole = numbers(rows, 0, rows)
    assert [row for first in range(0, rows, cut) for row in numbers(rows, first, min(cut, rows - first))] == whole
    assert whole == sorted(set(whole))
    assert 0 <= whole[0] <= whole[-1] < rows


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 31, 100, 384, 1000, 1536, 2047, 2048, 2049, 5120, 30522, 151936])
def test_they_are_a_sixteenth_at_least_and_not_many_more(rows):
    count = len(numbers(rows, 0, rows))
    assert rows / 16 <= count <= rows / 16 + max(1, rows / 128)


def test_they_are_spread_over_the_weight_and_over_the_heads_of_a_layer():
    found = numbers(2048, 0, 2048)
    assert {row // 256 for row in found} == set(range(8))
    assert {row % 128 // 16 for row in found} == {0, 7, 6, 5, 4, 3, 2, 1}
