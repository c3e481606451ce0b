"""Options that a record declares: the command line and the API make the same of them, for every kind and every verb."""

import inspect
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_type_hints

import click
import pytest
import torch
from click.testing import CliRunner

import lora_inspect
from lora_inspect import option
from lora_inspect.algebra.options import AverageRequest, CombineRequest, CompareRequest, ResizeRequest
from lora_inspect.api.arguments import in_keywords, request_of, takes
from lora_inspect.cli.group import cli
from lora_inspect.cli.verb import declared_options
from lora_inspect.converting.options import ConvertRequest
from lora_inspect.merging.options import MergeRequest, UnmergeRequest, VerifyRequest, merge_options
from lora_inspect.option import ReadingRequest, declared

ROOT = Path(__file__).parents[1]
RECORDS = {
    "convert": ConvertRequest,
    "merge": MergeRequest,
    "verify": VerifyRequest,
    "unmerge": UnmergeRequest,
    "compare": CompareRequest,
    "compat": ReadingRequest,
    "combine": CombineRequest,
    "resize": ResizeRequest,
    "average": AverageRequest,
}
# Functions of the API that are no verbs, and what of the record they have no keyword for.
FUNCTIONS = {
    **{name: (record, set()) for name, record in RECORDS.items()},
    "open_adapter": (ReadingRequest, set()),
    "state_dict": (ConvertRequest, {"to", "layout", "model_config"}),
}


@dataclass(frozen=True, slots=True)
class Shared:
    kept: bool = option.flag("Shared by several records.")


@dataclass(frozen=True, slots=True)
class Toy(Shared):
    loud: bool = option.flag("Says more.")
    proven: bool = option.flag("Do not prove it.", default=True)
    word: str | None = option.text("WORD", "Any word.")
    base_file: str | None = option.path("BASE", "A file.")
    colour: str | None = option.choice(lambda: ("red", "blue"), lambda: "One of two.")
    way: str = option.choice(("near", "far"), "One of two, near by default.", default="near")
    kind: str | None = option.dtype("An element type.")
    rank: int | None = option.whole("From 1 on.", least=1)
    seed: int | None = option.whole("Any.")
    alpha: float | None = option.number("N", "Finite.")
    error: float | None = option.share("Below 1.")
    scaled: bool | None = option.yes_or_no("Or neither.")
    only: tuple[str, ...] = option.names("NAME", "Some.")
    turned: dict[str, bool] = option.transposed("it stores")
    unasked: int = 3


def parsed(*words):
    """What the command line makes of words, or its refusal."""
    found = []

    @click.command()
    @declared_options(Toy)
    def toy(**given):
        found.append(Toy(**given))

    result = CliRunner().invoke(toy, words)
    return found[0] if found else result.output


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, []),
        ({"loud": True}, ["--loud"]),
        ({"proven": False}, ["--no-proven"]),
        ({"word": "a b"}, ["--word", "a b"]),
        ({"base_file": "x:0.5"}, ["--base-file", "x:0.5"]),
        ({"colour": "blue"}, ["--colour", "blue"]),
        ({"way": "far"}, ["--way", "far"]),
        ({"kind": "bf16"}, ["--kind", "bf16"]),
        ({"rank": 4}, ["--rank", "4"]),
        ({"seed": -1}, ["--seed", "-1"]),
        ({"alpha": -1.5}, ["--alpha", "-1.5"]),
        ({"error": 0.25}, ["--error", "0.25"]),
        ({"scaled": False}, ["--scaled", "no"]),
        ({"only": ["b", "a"]}, ["--only", "b", "--only", "a"]),
        ({"turned": {"q": True, "*": False}}, ["--turned", "q=yes", "--turned", "no"]),
        ({"kept": True}, ["--kept"]),
    ],
)
def test_the_command_line_and_the_api_make_the_same_record(given, words):
    asked = request_of(Toy, given)
    assert parsed(*words) == asked
    assert asked != Toy() or not given
    assert asked.kind in (None, "BF16")


@pytest.mark.parametrize(
    ("given", "says", "words"),
    [
        ({"colour": "green"}, "colour is", ["--colour", "green"]),
        ({"word": 5}, "word must be", ["--word"]),
        ({"word": "\udcff"}, "word is", ["--word", "\udcff"]),
        ({"way": None}, "way is", ["--way", "none"]),
        ({"kind": "int8"}, "kind is", ["--kind", "int8"]),
        ({"rank": 0}, "rank is", ["--rank", "0"]),
        ({"seed": True}, "seed must be", ["--seed", "yes"]),
        ({"alpha": float("nan")}, "alpha is", ["--alpha", "nan"]),
        ({"error": 1.0}, "error is", ["--error", "1"]),
        ({"scaled": 1}, "scaled must be", ["--scaled", "1"]),
        ({"base_file": b"x"}, "a path must be", ["--base-file"]),
        ({"turned": {"q": 1}}, "transposed", ["--turned", "q=1"]),
    ],
)
def test_both_refuse_what_is_no_value(given, says, words):
    with pytest.raises((ValueError, TypeError), match=says):
        request_of(Toy, given)
    refusal = parsed(*words)
    assert isinstance(refusal, str)
    assert f"'{words[0]}'" in refusal


def test_the_order_is_that_of_the_record_and_shared_options_are_last():
    assert [*declared(Toy)] == [*(one.name for one in fields(Toy) if one.name not in ("kept", "unasked")), "kept"]


def test_some_options_may_stand_elsewhere():
    def named(**choosing):
        function = declared_options(Toy, **choosing)(lambda: None)
        return [one.name for one in reversed(function.__click_params__)]

    assert named(names=("seed", "loud")) == ["loud", "seed"]
    assert named(but=("seed", "loud")) == [name for name in declared(Toy) if name not in ("seed", "loud")]


@pytest.mark.parametrize(
    "given",
    [
        *(Toy(), Toy(loud=True), Toy(proven=False), Toy(word="a b"), Toy(base_file="x"), Toy(colour="red")),
        *(Toy(way="far"), Toy(rank=3), Toy(seed=0), Toy(alpha=0.0), Toy(error=0.01), Toy(scaled=False)),
        *(Toy(only=("b", "a")), Toy(turned={"q": False, "*": True}), Toy(loud=True, rank=3, kept=True)),
    ],
)
def test_the_words_of_a_record_say_it_again(given):
    words = [word for name, one in declared(Toy).items() for word in one.words(getattr(given, name))]
    assert parsed(*words) == given


@pytest.mark.parametrize("verb", RECORDS)
def test_a_verb_has_the_options_of_its_record(verb):
    command = cli.get_command(click.Context(cli), verb)
    options = {one.name: one for one in command.params if isinstance(one, click.Option)}
    for name, one in declared(RECORDS[verb]).items():
        assert options[name].opts == [one.flag]
        assert options[name].help == one.option.says
    order = [name for name in options if name in declared(RECORDS[verb])]
    assert sorted(order) == sorted(declared(RECORDS[verb]))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_the_keywords_of_its_record(name):
    record, without = FUNCTIONS[name]
    keywords = inspect.signature(getattr(lora_inspect, name)).parameters
    known = {one: said for one, said in declared(record).items() if one not in without}
    missing = sorted(known.keys() - keywords.keys())
    assert not missing, (
        f"{name}() has no keyword {missing}: add its type, as `hashes: bool`, to the TypedDict of that function's "
        "keywords in lora_inspect/api/; those of state_dict are StateDictKeywords, which convert has too"
    )
    assert without.isdisjoint(keywords)
    for one, said in known.items():
        assert keywords[one].kind == inspect.Parameter.KEYWORD_ONLY
        assert keywords[one].default == (said.default or None if one == "transposed" else said.default)
        assert keywords[one].annotation is not inspect.Parameter.empty
    assert not any(one.kind == inspect.Parameter.VAR_KEYWORD for one in keywords.values())
    assert get_type_hints(getattr(lora_inspect, name), {"torch": torch}).keys() == {*keywords, "return"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_refuses_any_other_keyword(name):
    function = getattr(lora_inspect, name)
    paths = [
        f"no-{number}"
        for number, one in enumerate(inspect.signature(function).parameters.values())
        if one.default is inspect.Parameter.empty
    ]
    with pytest.raises(TypeError, match=rf"{name}\(\) got an unexpected keyword argument 'keep_dra'"):
        function(*paths, keep_dra=True)


def test_the_places_of_two_options_that_the_page_names_are_theirs():
    """Of each cell of the table, the files have each text that stands before them."""
    page = (ROOT / "docs" / "extending_commands.md").read_text(encoding="utf-8")
    table = re.search(r"^## Adding an option$.*?^\| record .*?(?=\n\n)", page, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (record|keyword|step|page|test) \| (.*) \| (.*) \|$", table[0], re.MULTILINE)
    assert [row[0] for row in rows] == ["record", "keyword", "step", "page", "test"]
    for cell in (cell for row in rows for cell in row[1:]):
        *texts, file = re.findall(r"`([^`]+)`", cell)
        content = (ROOT / file).read_text(encoding="utf-8")
        assert texts and all(text in content for text in texts), cell  # noqa: PT018


# A value of each kind that is the default of no option.
VALUES = {
    **{option.FLAG: True, option.TEXT: "wan", option.DTYPE: "BF16", option.WHOLE: 3, option.NUMBER: 2.0},
    **{option.YES_NO: True, option.NAMES: ("model",), option.ANSWERS: {"*": True}},
}


@pytest.mark.parametrize("record", [MergeRequest, VerifyRequest])
def test_every_option_of_a_merge_is_in_the_options_of_its_plan(record, tmp_path):
    toml = tmp_path / "weights.toml"
    toml.write_text('["a.safetensors"]\nmultiplier = 0.5\n')
    for name, one in declared(record).items():
        choices = [word for word in one.option.chosen_from if word != one.default]
        value = {**VALUES, option.PATH: str(toml), option.CHOICE: choices[-1] if choices else None}[one.option.kind]
        with_it = {"rounding": "stochastic"} if name == "seed" else {}
        assert merge_options(record(**with_it, **{name: value})) != merge_options(record(**with_it)), (
            f"{name} of {record.__name__} does not reach a plan: add a field {name} with the same default to "
            "MergeOptions in lora_inspect/merging/options.py, or settle in merge_options there what it becomes"
        )


@pytest.mark.parametrize(
    ("given", "words", "says"),
    [
        ({"seed": 3}, ["--seed", "3"], "a seed only affects rounding stochastic; give both or neither."),
        (
            {"dtype": "bf16", "changed_dtype": "fp16"},
            ["--dtype", "bf16", "--changed-dtype", "fp16"],
            "--dtype is for all weights and --changed-dtype for the changed ones; give one of them.",
        ),
    ],
)
def test_a_merge_refuses_options_that_exclude_each_other_before_it_looks_at_a_file(given, words, says):
    result = CliRunner().invoke(cli, ["merge", "no-base", "no-adapter", "-o", "out", *words])
    assert result.exit_code == 2
    assert f"Error: {says}" in result.output
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text is compared whole
        lora_inspect.merge("no-base", "no-adapter", "out", **given)
    assert str(raised.value) == says.replace("--dtype", "dtype").replace("--changed-dtype", "changed_dtype")


@pytest.mark.parametrize(
    ("verb", "given", "says"),
    [
        *(
            (verb, {"rank": 4, "energy": 0.9}, "--rank and --energy both decide the ranks; give one of them.")
            for verb in ("combine", "resize", "average")
        ),
        ("combine", {"max_error": 0.1, "size": "1MB"},
         "--max-error and --size both decide the ranks; give one of them."),
        ("combine", {"rank": 4, "max_rank": 4}, "--rank already is the rank of every module; leave --max-rank out."),
        ("resize", {}, "resize needs a rule: one of --rank, --energy, --max-error, --size and --max-rank."),
        ("average", {"beta": 0.5, "sigma_rel": 0.1},
         "--beta and --sigma-rel both decide the weights; give one of them."),
        ("average", {"uniform": True, "beta": 0.5}, "--uniform and --beta both decide the weights; give one of them."),
        ("average", {"exact": True, "rank": 4},
         "--exact keeps all directions, but a rule leaves some out; give one of them."),
        ("average", {"of": "factors", "rank": 4}, "--of factors keeps the ranks of the inputs; leave the rule out."),
    ],
)  # fmt: skip
def test_options_of_sums_that_exclude_each_other_are_refused_before_a_file_is_looked_at(verb, given, says):
    record = RECORDS[verb]
    words = [word for name, value in given.items() for word in declared(record)[name].words(value)]
    result = CliRunner().invoke(cli, [verb, "no-adapter", "-o", "out", *words])
    assert result.exit_code == 2
    assert f"Error: {says}" in result.output
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the text is compared whole
        getattr(lora_inspect, verb)("no-adapter" if verb == "resize" else ["no-adapter"], "out", **given)
    assert "--" not in str(raised.value)
    assert str(raised.value) == in_keywords(says)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"energy": 0.0}, "no share of the energy"),
        ({"energy": 90.0}, "for 90 % give 0.9"),
        ({"size": "large"}, "is no size"),
        ({"size": "0"}, "is no size"),
        ({"size": "9" * 400}, "is no size"),
        ({"size": "10000000TB"}, "is no size"),
        ({"max_error": 1.0}, "below 1"),
        ({"rank": 0}, "at least 1"),
        ({"beta": 1.0}, "no decay"),
        ({"sigma_rel": 0.3}, "too wide"),
        ({"sigma_rel": 0.0}, "no relative width"),
        ({"of": "files"}, "of is 'files'"),
    ],
)
def test_values_of_sums_that_are_none_are_refused(given, says):
    with pytest.raises(ValueError, match=says):
        request_of(AverageRequest, given)


def test_a_keyword_that_no_record_declares_is_found_when_the_function_is_made():
    with pytest.raises(ValueError, match="odd"):
        takes(Toy, type("Keywords", (), {"__annotations__": {"loud": bool, "odd": bool}}))
