"""The record of a merge is read whatever stands in it."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_inspect.reading.metadata.merge_record import (
    MERGED_KEY,
    as_record,
    combined_record,
    earlier_records,
    merge_records,
    record_before,
)

COMBINED_KEY = "lora_inspect.combined"
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from([
            *("adapters", "base", "earlier", "file", "sha256", "multiplier", "version", "options", "bytes"),
            *("inputs", "rule", "rank", "size", "verb", "dtype", "error", "rounding", "settings"),
        ]),
        inner,
        max_size=4,
    ),
    max_leaves=20,
)  # fmt: skip


@given(values)
def test_any_json_is_read_as_far_as_it_is_a_record(value):
    metadata = {MERGED_KEY: json.dumps(value)}
    for record in merge_records(metadata):
        json.dumps(as_record(record))
    earlier_records(metadata)
    record_before(metadata)
    json.dumps(combined_record({COMBINED_KEY: json.dumps(value)}), allow_nan=False)


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "1", "{" * 10_000, '{"a": ' * 300 + "1" + "}" * 300])
def test_what_is_no_record_is_none(text):
    assert merge_records({MERGED_KEY: text}) == []
    assert earlier_records({MERGED_KEY: text}) == [text]
    assert record_before({MERGED_KEY: text}) is None
    assert combined_record({COMBINED_KEY: text}) is None


def test_the_record_before_a_merge_is_what_the_base_had():
    first = {"version": "1", "adapters": [{"file": "a", "multiplier": 1}]}
    assert record_before({MERGED_KEY: json.dumps(first)}) is None
    texts = [json.dumps(first, separators=(",", ":"))]
    for number in range(3):
        metadata = {MERGED_KEY: texts[-1]}
        whole = {"version": "1", "adapters": [{"file": str(number)}], "earlier": earlier_records(metadata)}
        texts.append(json.dumps(whole, separators=(",", ":")))
    for before, after in pairwise(texts):
        assert record_before({MERGED_KEY: after}) == before
    assert record_before({MERGED_KEY: json.dumps({"earlier": ["odd text"]})}) == "odd text"
    assert [len(record.adapters) for record in merge_records({MERGED_KEY: texts[-1]})] == [1, 1, 1, 1]


def test_records_of_versions_that_knew_less_are_read():
    (record,) = merge_records(
        {MERGED_KEY: '{"version": "0.1.0", "adapters": [{"file": "a", "multiplier": {"*": 1.5}}]}'}
    )
    assert as_record(record) == {
        "version": "0.1.0",
        "base": None,
        "adapters": [{"file": "a", "multiplier": {"*": 1.5}, "sha256": None}],
    }


def test_a_multiplier_that_is_no_finite_number_is_none():
    for text in ("9" * 400, "-" + "9" * 400, "Infinity", "NaN", "true", '"1"'):
        (record,) = merge_records({MERGED_KEY: f'{{"adapters": [{{"file": "a", "multiplier": {text}}}]}}'})
        assert record.adapters[0].multiplier is None
        (record,) = merge_records(
            {MERGED_KEY: f'{{"adapters": [{{"file": "a", "multiplier": {{"*": 2, "b": {text}}}}}]}}'}
        )
        assert record.adapters[0].multiplier == {"*": 2}


def test_the_record_of_an_adapter_that_was_made_of_others_is_read_as_far_as_it_is_one():
    record = {
        "version": "1",
        "verb": "combine",
        "inputs": [
            {"file": "a", "sha256": "ab", "settings": "0.5"},
            {"file": "b", "sha256": {"b.safetensors": "cd"}, "settings": ""},
        ],
        "rule": {"energy": 0.9, "max_rank": 8},
        "method": {"name": "ties", "density": 0.5},
        "dtype": "F32",
        "error": 0.25,
        "rounding": 1e-8,
    }
    meant = {**record, "method": "ties"}
    assert combined_record({COMBINED_KEY: json.dumps(record)}) == meant
    odd = {**record, "inputs": [{"settings": "1"}, 5, {"file": "c"}], "rule": {"rank": "8", "odd": 1}, "error": "x"}
    assert combined_record({COMBINED_KEY: json.dumps({**odd, "method": ["ties"]})}) == {
        **meant, "inputs": [{"file": "c", "settings": "", "sha256": None}], "rule": {}, "method": None, "error": None,
    }  # fmt: skip
    assert combined_record({COMBINED_KEY: json.dumps({**record, "method": {"name": 5}})}) == {**meant, "method": None}
    assert combined_record({}) is None
