"""What is escaped, how wide the rest is, and what is left of a text that is too long."""

import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_inspect.sentences import printable, shortened, width

LEFT_OUT = re.compile(r" … \(([\d,]+) more characters\) … ")
# Letters of all kinds and marks: much of it is escaped, some of it is wide.
MIXED = st.text(st.one_of(st.characters(), st.sampled_from("aZ9 .\x1b\n\u0301\u0336日본ж\ufe0f\u202e")), max_size=700)


@pytest.mark.slow
def test_every_character_of_unicode_is_shown_or_escaped_by_its_category():
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        category = unicodedata.category(character)
        shown = printable(f"a{character}")[1:]
        if category[0] in "CZ" and character != " ":
            assert shown == character.encode("unicode_escape").decode()
            assert shown.isascii()
        elif shown != character:  # what is drawn as nothing
            assert shown.startswith("\\u") or shown.startswith("\\U")
            name = unicodedata.name(character)
            assert category == "Mn" or "FILLER" in name or "BLANK" in name, name


@pytest.mark.parametrize("letter", ["é", "日本", "ключ", "עברית", "नमस्ते", "e\u0301", "❤\ufe0f", "🎨", r"C:\new", "a b"])
def test_what_people_write_stays_as_it_is(letter):
    assert printable(letter) == letter


def test_marks_are_shown_on_letters_four_at_most():
    assert printable("e" + "\u0336" * 10_000) == "e" + "\u0336" * 4 + r"\u0336" * 9_996
    assert printable("\u0336x") == r"\u0336x"
    assert printable("left out: \u0336") == r"left out: \u0336"
    assert printable("\x1b\u0336") == r"\x1b\u0336"


@given(MIXED)
def test_escapes_are_not_escaped_again(text):
    once = printable(text)
    assert printable(once) == once
    assert shortened(once, 10_000) == once


@given(MIXED, st.integers(100, 400))
def test_a_shortened_text_fits_and_says_how_much_is_missing(text, columns):
    short = shortened(text, columns)
    assert width(short) <= columns
    if width(printable(text)) <= columns:
        assert short == printable(text)
        return
    *_, left_out = LEFT_OUT.finditer(short)
    head, tail = short[: left_out.start()], short[left_out.end() :]
    assert printable(text).startswith(head)
    missing = int(left_out[1].replace(",", ""))
    assert 0 < missing < len(text)
    # The rest of the line is used: no more than an escape and a mark of another length stay free.
    assert width(short) > columns - 25
    for kept in range(len(text) + 1):
        if printable(text[:kept]) == head:
            assert printable(text[: kept + missing]) + tail == printable(text)
            break
    else:
        pytest.fail("the head is no beginning of the text")


def test_the_ends_of_a_long_name_are_kept():
    name = f"lora_unet_first_{'x' * 65_000}_last.lora_down.weight"
    short = shortened(name)
    assert short.startswith("lora_unet_first_xxx")
    assert short.endswith("_last.lora_down.weight")
    assert len(short) == 200
    kept = len(LEFT_OUT.sub("", short))
    assert LEFT_OUT.search(short)[1] == f"{len(name) - kept:,}"


def test_a_mark_whose_letter_is_left_out_goes_with_it():
    for count in range(160, 260):
        text = "x" * count + "e\u0301" * 300
        tail = LEFT_OUT.split(shortened(text))[-1]
        assert tail.startswith("e")


@pytest.mark.parametrize(
    ("text", "columns"),
    [("abc", 3), ("日本", 4), ("ﾆﾎﾝ", 3), ("e\u0301", 1), ("ключ", 4), ("🎨", 2), ("…", 1), ("", 0)],
)
def test_the_width_is_that_of_a_terminal(text, columns):
    assert width(text) == columns
