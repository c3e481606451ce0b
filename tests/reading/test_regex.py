"""Expressions against Python's own matcher, what is refused, and what the worst of the others cost."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import expressions

from lora_inspect.reading.peft.regex import Expression, Refused, Steps

REACHES = {
    "whole": lambda source, text: re.fullmatch(source, text),
    "end": lambda source, text: re.match(rf"(.*\.)?({source})$", text),
    "anywhere": lambda source, text: re.search(source, text),
}
texts = st.text("aab..1_\né", max_size=8)


def matches(source, reach, text):
    return Expression(source, reach, Steps()).matches(text)


@pytest.mark.parametrize("reach", REACHES)
@settings(max_examples=300, deadline=None)
@given(source=expressions, subjects=st.lists(texts, min_size=1, max_size=6))
def test_an_expression_matches_what_it_matches_in_python(reach, source, subjects):
    try:
        expression = Expression(source, reach, Steps())
    except Refused:
        return
    for text in subjects:
        assert expression.matches(text) == bool(REACHES[reach](source, text)), (source, text)


# What people write for PEFT, and what Unsloth writes for them.
USUAL = [
    r".*\.(q_proj|v_proj)",
    r".*(self_attn|mlp)\.(q|k)_proj",
    r"^model\.layers\.(0|1|2)\..*$",
    r"layers\.[0-9]+\.attn",
    r".*decoder.*(SelfAttention|EncDecAttention).*(q|v)$",
    "q_proj|v_proj",
    r"\bmlp\b.*",
    r"(.*?)\.self_attn\.(?P<which>[qkv])_proj",
    r"model.layers.([0-9]|1[0-9]|2[0-3])\.\w+\.(?:q|k|v)_proj",
    r".*\.layers\.\d{1,3}\..*_proj",
    r"(text_model\.)?encoder\.layers\.\d+\.(self_attn\.)?[^.]+",
    r"(?:.*?(?:vision|language|text).*?(?:self_attn|attention|mlp).*?(?:q_proj|k_proj|v_proj).*?)"
    r"|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:q_proj|v_proj)))",
]
PATHS = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.12.mlp.k_proj",
    "text_model.encoder.layers.1.self_attn.v_proj",
    "encoder.layers.3.fc1",
    "decoder.block.0.layer.1.EncDecAttention.q",
    "decoder.block.0.SelfAttention.k",
    "layers.7.attn",
    "q_proj",
    "aq_proj",
    "language_model.model.layers.2.mlp.v_proj",
]


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("source", USUAL)
def test_what_people_write_is_matched(source, reach):
    found = [path for path in PATHS if matches(source, reach, path)]
    assert found == [path for path in PATHS if REACHES[reach](source, path)]
    assert reach == "whole" or found


REFUSED = {
    "(a+)+": "unbounded repeat inside",
    "(a*)*b": "unbounded repeat inside",
    "((a{2,})b)*": "unbounded repeat inside",
    r"(?:x+y?)+z": "unbounded repeat inside",
    "(a|aa)+": "alternation under a repeat",
    "(a|b){3}": "alternation under a repeat",
    "((a|b)c)*": "alternation under a repeat",
    r"(a)\1": "a backreference",
    "(?P<x>a)(?P=x)": "a kind of group",
    "(?=a)b": "a kind of group",
    "(?!a)b": "a kind of group",
    "(?<=a)b": "a kind of group",
    "(a)?(?(1)b|c)": "a kind of group",
    "(?i)a": "a kind of group",
    "(?>a)": "a kind of group",
    "a" * 1_001: "1,001 characters",
    "(a{1000}){1000}": "when its repeats are written out",
    "a{0,65535}": "when its repeats are written out",
    "a{500}b{501}": "when its repeats are written out",
    "(){1001}": "when its repeats are written out",
    "(" * 21 + "a" + ")" * 21: "nests more than",
    "(" * 900: "nests more than",
    "(a": "not closed",
    "a)": "not open",
    "[a": "not closed",
    "[]": "not a regular expression",
    "[z-a]": "not a regular expression",
    "[[a]": "a class that lora-inspect does not read",
    "a**": "not a regular expression",
    "a*+": "repeats a repeat",
    "*a": "not a regular expression",
    "^*": "not a regular expression",
    "a{3,2}": "not a regular expression",
    r"\q": "an escape that lora-inspect does not read",
    "\\": "an escape that lora-inspect does not read",
}


@pytest.mark.parametrize(("source", "why"), REFUSED.items(), ids=lambda text: text[:20])
def test_what_is_refused_is_refused_with_the_reason(source, why):
    with pytest.raises(Refused, match=re.escape(why)):
        Expression(source, "end", Steps())


# Expressions whose matching goes wrong elsewhere, and those that have the most states here.
WORST = [
    ".*a[ab]{400}",
    ".*a[ab]{18}",
    "a?" * 400 + "x",
    "a*" * 480 + "x",
    "a*b*" * 240 + "x",
    ".*" * 480 + "x",
    "(a|a)" * 180 + "x",
    "(a|ab|b)?" * 100 + "x",
    r"\b" * 480 + "x",
    "[ab]" * 240,
    ".*a.*b.*a.*b" * 40,
    "(.*a){30}",
]
SUBJECTS = [
    *("ab" * length + "ba" * (60 - length) for length in range(60)),
    *(("a" * number + "b") * (20_000 // (number + 1)) for number in range(1, 40)),
    *("a" * length for length in range(0, 1_000, 20)),
]


@pytest.mark.slow
@pytest.mark.parametrize("source", WORST, ids=lambda text: text[:12])
def test_the_worst_expression_is_matched_or_given_up_in_time(source):
    # A processor that is shared is slow; what goes wrong takes years.
    assert cost(source, SUBJECTS) < 20


@settings(max_examples=30, deadline=None)
@given(source=expressions, copies=st.integers(1, 60))
def test_no_expression_takes_longer_than_its_steps(source, copies):
    assert cost((source * copies)[:1_000], SUBJECTS) < 20


def test_ten_thousand_long_names_are_given_up_in_time():
    expression = Expression(".*.*.*", "end", Steps())
    with pytest.raises(Refused, match="takes too long"):
        [expression.matches("a" * 5_000) for _ in range(10_000)]


def cost(source, subjects):
    started = time.process_time()
    try:
        expression = Expression(source, "end", Steps())
        for text in subjects:
            expression.matches(text)
    except Refused:
        pass
    return time.process_time() - started


def test_the_steps_of_one_file_are_counted_together():
    steps = Steps(1_000_000)
    first, second = Expression("a*b", "end", steps), Expression("b*a", "end", steps)
    first.matches("a" * 900_000)
    with pytest.raises(Refused, match="takes too long"):
        second.matches("b" * 900_000)
    assert Expression("b*a", "end", Steps(1_000_000)).matches("b" * 900_000 + "a")


@pytest.mark.parametrize("source", ["a{\u0662}", "a{,\u0662}", "a{1,\u0662}"])
@pytest.mark.parametrize("text", ["a", "aa", "a{\u0662}", "a{,\u0662}", "a{1,\u0662}"])
def test_digits_of_other_scripts_count_no_repeats(source, text):
    assert matches(source, "whole", text) == bool(re.fullmatch(source, text))
