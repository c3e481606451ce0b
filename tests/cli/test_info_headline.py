"""The words of the first lines: sizes, ranges, and what a scale is made of."""

import pytest

from lora_inspect.reading.headline import span
from lora_inspect.sentences import few, size_in_words


@pytest.mark.parametrize(
    ("count", "words"),
    {0: "0 bytes", 999: "999 bytes", 1_000: "1.0 kB", 9_949: "9.9 kB", 9_950: "10 kB", 22_889: "23 kB",
     999_499: "999 kB", 999_500: "1.0 MB", 228_000_000: "228 MB", 1_234_567_890: "1.2 GB",
     10**18: "1000000 TB"}.items(),
)  # fmt: skip
def test_a_size_has_two_digits_at_least_and_no_more_than_it_needs(count, words):
    assert size_in_words(count) == words


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"4": 20}, "4"),
        ({"16": 1, "4": 3, "8": 2}, "4 to 16"),
        ({"0.5": 1, "1e-05": 1}, "1e-05 to 0.5"),
        ({"unknown": 3}, "unknown"),
        ({"1": 1, "unknown": 3}, "1 or unknown"),
        ({}, "-"),
    ],
)
def test_values_are_a_range(counts, words):
    assert span(counts) == words


def test_a_few_are_named_and_one_more_is_never_counted():
    assert few(["a"]) == "a"
    assert few(["a", "b", "c", "d"]) == "a, b, c and d"
    assert few(["a", "b", "c", "d", "e"], "or") == "a, b, c or 2 more"


@pytest.mark.parametrize(
    ("name", "line"),
    {
        "minilm-peft-loha-r8": "LoHa for BERT - rank 8, scale 0.5 (alpha 4 / rank 8)",
        "minilm-peft-dora-r8": "DoRA for BERT - rank 8, scale 2.5 (alpha 20 / rank 8)",
        "minilm-peft-rslora-r16": "RS-LoRA for BERT - rank 16, scale 6 (alpha 24 / sqrt 16)",
        "minilm-peft-lora-lorabias": "LoRA for BERT - rank 4, scale 1.5 (alpha 6 / rank 4)",
        "minilm-peft-lora-rankpattern": "LoRA for BERT - ranks 2 to 8, scales 1 to 8",
    }.items(),
)
def test_the_first_line_says_what_it_is(name, line, run, fixtures):
    assert run("info", fixtures / name).stdout.splitlines()[0] == line
