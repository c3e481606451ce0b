"""Lines that fit: no letter lost, none too wide, broken at blanks where there are some."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lora_inspect.cli.terminal import cut, wrapped
from lora_inspect.sentences import printable, width

TEXTS = st.text(max_size=60).map(printable)


@given(TEXTS, st.integers(2, 30))
def test_lines_fit_and_hold_every_letter_in_order(text, columns):
    lines = wrapped(text, columns)
    assert all(width(line) <= columns for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())


@given(st.lists(st.text("abc", min_size=1, max_size=8), min_size=1), st.integers(8, 30))
def test_words_that_fit_are_never_broken(words, columns):
    lines = wrapped(" ".join(words), columns)
    assert " ".join(lines).split() == words
    # Greedy: the first word of each line would not have fitted the one before.
    for line, following in pairwise(lines):
        assert len(line) + 1 + len(following.split()[0]) > columns


def test_wide_letters_count_twice_and_marks_not_at_all():
    assert wrapped("日本語 日本", 6) == ["日本語", "日本"]
    assert wrapped("日本語", 5) == ["日本", "語"]
    assert wrapped("e\u0301e\u0301e\u0301", 3) == ["e\u0301e\u0301e\u0301"]


def test_nothing_is_one_empty_line():
    assert wrapped("", 10) == [""]
    assert wrapped("   ", 10) == [""]


@given(TEXTS, st.integers(3, 30))
def test_what_is_cut_fits_and_keeps_both_ends(text, columns):
    short = cut(text, columns)
    assert width(short) <= columns
    if short != text:
        head, _, tail = short.partition("…")
        assert text.startswith(head)
        assert text.endswith(tail) or "…" in text
        # One more letter would not fit: nothing is wider than two columns.
        assert width(short) >= columns - 2 or "…" in text


def test_the_middle_is_what_goes():
    assert cut("lora_unet_blocks_0_attn_q", 11) == "lora_…ttn_q"
    assert cut("lora_unet_blocks_0_attn_q", 11, "...") == "lora...tn_q"
    assert cut("short", 5) == "short"
