"""Metadata on the screen: JSON unfolded, long values cut, hostile ones in plain lines."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import metadata

from lora_inspect.cli.metadata_output import metadata_lines, unfolded
from lora_inspect.sentences import printable, width


def shown(found, columns=60):
    return list(metadata_lines(found, columns))


def test_keys_are_in_order_and_their_values_in_a_column():
    assert shown({"ss_b": "2", "ss_alpha": "x y", "empty": ""}) == ['empty     ""', "ss_alpha  x y", "ss_b      2"]


def test_json_is_unfolded_member_by_member():
    value = json.dumps({"rank": 4, "on": True, "none": None, "of": ["q", "v"], "deep": {"a": {"b": "text"}}})
    assert shown({"config": value}) == [
        "config",
        "  rank   4",
        "  on     true",
        "  none   null",
        '  of     ["q", "v"]',
        "  deep",
        "    a",
        "      b  text",
    ]


def test_short_items_of_a_list_stay_in_a_line_and_long_ones_are_unfolded():
    value = json.dumps([{"size": [64, 128], "count": 2}, {"folder": "x" * 50, "caption": "y" * 20}])
    assert shown({"sets": value}, 80) == [
        "sets",
        '  0          {"size": [64, 128], "count": 2}',
        "  1",
        "    folder   " + "x" * 50,
        "    caption  " + "y" * 20,
    ]


def test_of_many_counts_the_largest_come_first_and_the_rest_is_counted():
    tags = {f"tag {number}": number for number in range(500)}
    lines = shown({"ss_tag_frequency": json.dumps({"folder": tags})})
    assert lines[:4] == ["ss_tag_frequency", "  folder", "    tag 499  499", "    tag 498  498"]
    assert lines[-1] == "    … 488 more"
    assert len(lines) == 15


def test_of_many_members_that_are_no_counts_the_first_stay_first():
    lines = shown({"a": json.dumps({f"k{number}": str(number) for number in range(20)})})
    assert lines[1:3] == ["  k0   0", "  k1   1"]


@pytest.mark.parametrize("value", ["{'img': 1}", "[1, 2", "{", "[]x", "NaN", "12", "[" * 5000 + "]" * 5000])
def test_what_is_no_json_of_an_object_or_a_list_is_text(value):
    assert unfolded(value) is None
    assert all(width(line) <= 60 for line in shown({"k": value}))


def test_json_that_is_deep_ends_in_a_line_of_json():
    value = {"end": 1}
    for _ in range(100):
        value = {"in": value}
    assert len(shown({"k": json.dumps(value)})) <= 6 + 3


def test_a_picture_is_named_and_not_spelled():
    assert shown({"modelspec.thumbnail": "data:image/webp;base64,AAAA"}) == ["modelspec.thumbnail  image/webp, 3 bytes"]
    assert shown({"k": "data:image/png;base64,AAA="}) == ["k  image/png, 2 bytes"]


def test_a_long_value_takes_a_few_lines_and_says_how_much_is_left_out():
    lines = shown({"k": "word " * 10_000}, 60)
    assert len(lines) <= 5
    assert "more characters" in " ".join(" ".join(lines).split())


def test_a_label_that_leaves_no_room_has_its_value_below():
    assert shown({"k" * 50: "value"}, 60) == ["k" * 50, "    value"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
    max_leaves=40,
)


@given(found=metadata, nested=JSON, columns=st.integers(20, 200))
def test_whatever_a_file_says_is_plain_lines(found, nested, columns):
    lines = shown({**found, "nested": json.dumps(nested)}, columns)
    assert len(lines) >= len(found) + 1
    assert all(line == printable(line) for line in lines if max(line, default="") < "\u0300")
    assert not any(set(line) & set("\n\r\x1b") for line in lines)
