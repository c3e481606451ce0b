"""How shards are dealt: each once, the same for all, and nobody much more than others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_inspect.merging.options import ProcessShare, dealt, taken

SIZES = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(0, 1 << 40), max_size=40)


@given(SIZES, st.integers(1, 12))
def test_every_file_goes_to_one(sizes, of):
    hands = dealt(sizes, of)
    assert len(hands) == of
    assert sorted(file for hand in hands for file in hand) == sorted(sizes)


@given(SIZES, st.integers(1, 12), st.randoms(use_true_random=False))
def test_the_order_in_which_they_are_found_does_not_matter(sizes, of, chance):
    files = list(sizes)
    chance.shuffle(files)
    again = dealt({file: sizes[file] for file in files}, of)
    assert [set(hand) for hand in again] == [set(hand) for hand in dealt(sizes, of)]


@given(SIZES, st.integers(1, 12))
def test_nobody_has_more_than_the_mean_and_one_file(sizes, of):
    loads = [sum(sizes[file] for file in hand) for hand in dealt(sizes, of)]
    assert max(loads) <= sum(loads) / of + max(sizes.values(), default=0)


@given(st.integers(1, 12), st.integers(0, 40))
def test_files_of_one_size_are_dealt_evenly(of, count):
    counts = [len(hand) for hand in dealt({str(number): 5 for number in range(count)}, of)]
    assert max(counts) - min(counts) <= 1


def test_the_share_of_one_is_its_hand():
    sizes = {"a": 5, "b": 3, "c": 3, "d": 1}
    assert dealt(sizes, 2) == [["a", "d"], ["b", "c"]]
    assert [taken(ProcessShare(number, 2), sizes) for number in (1, 2)] == dealt(sizes, 2)


@pytest.mark.parametrize(
    ("text", "share"), [("1/1", ProcessShare(1, 1)), ("3/8", ProcessShare(3, 8)), ("08/8", ProcessShare(8, 8))]
)
def test_what_a_share_is_called(text, share):
    assert ProcessShare.parse(text) == share


@pytest.mark.parametrize(
    "text", ["", "1", "/", "0/2", "3/2", "-1/2", "1/0", "1/2/3", "a/b", "1/2 ", "٣/٤", "1/9999999"]
)
def test_what_is_none(text):
    with pytest.raises(ValueError, match=r"is none of the shares 1/N to N/N, as 3/8$"):
        ProcessShare.parse(text)
