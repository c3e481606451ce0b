"""Numbers of JSON that may be anything."""

import math

import pytest

from lora_inspect.files.strict_json import json_count, json_number, parse_json


@pytest.mark.parametrize("text", ["0", "-1", "4", "0.5", "1e308", "5e-324", "-0.0", str(2**63), "1" + "0" * 300])
def test_a_finite_number_is_what_it_spells(text):
    assert json_number(parse_json(text)) == float(text)


@pytest.mark.parametrize(
    "text",
    ["1" + "0" * 400, "-1" + "0" * 400, "1e999", "-1e999", "NaN", "Infinity", "true", "null", '"4"', "[4]", "{}"],
)
def test_what_is_no_finite_number_is_none(text):
    assert json_number(parse_json(text)) is None


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("4", 4), (str(2**63 - 1), 2**63 - 1)])
def test_a_size_is_a_whole_number_above_0(text, size):
    assert json_count(parse_json(text)) == size


@pytest.mark.parametrize("text", ["0", "-1", "4.0", "true", "false", "null", '"4"', str(2**63), "1" + "0" * 400])
def test_what_no_tensor_has_is_no_size(text):
    assert json_count(parse_json(text)) is None


def test_numbers_are_those_of_floats():
    assert isinstance(json_number(4), float)
    assert json_number(math.pi) == math.pi
