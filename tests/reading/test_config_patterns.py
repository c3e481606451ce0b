"""Pattern maps and targets against PEFT's own functions, and many keys in little time."""

import importlib
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import expressions

from lora_inspect.reading.peft.config_patterns import EndNames, PatternMap, RefusedKey, Targets
from lora_inspect.reading.peft.regex import Steps

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

paths = st.text("aab..1\n", max_size=8)
plain_keys = st.text("aab..1\n", max_size=5)
keys = st.one_of(
    plain_keys,
    plain_keys.map(re.escape),
    plain_keys.map(lambda key: f"^{re.escape(key)}"),
    plain_keys.map(lambda key: f"{key}$"),
    expressions,
)


@pytest.fixture(scope="module")
def get_pattern_key():
    return importlib.import_module("peft.utils.other").get_pattern_key


@pytest.fixture(scope="module")
def check_target_module_exists():
    peft = importlib.import_module("peft")
    check = importlib.import_module("peft.tuners.tuners_utils").check_target_module_exists
    return lambda targets, path: bool(check(peft.LoraConfig(target_modules=targets), path))


@settings(max_examples=300, deadline=None)
@given(keys=st.lists(keys, max_size=4, unique=True), paths=st.lists(paths, min_size=1, max_size=6))
def test_the_first_key_is_that_of_peft(get_pattern_key, keys, paths):
    pattern = {key: number for number, key in enumerate(keys)}
    try:
        found = PatternMap(pattern, Steps())
    except RefusedKey:
        return
    for path in paths:
        assert found.value(path, -1) == pattern.get(get_pattern_key(list(pattern), path), -1)


@settings(max_examples=200, deadline=None)
@given(
    targets=st.one_of(expressions.filter(bool), st.lists(plain_keys, min_size=1, max_size=4)),
    paths=st.lists(paths, min_size=1, max_size=6),
)
def test_targets_are_those_of_peft(check_target_module_exists, targets, paths):
    try:
        chosen = Targets(targets, Steps())
    except RefusedKey:
        return
    for path in paths:
        assert chosen.choose(path) == check_target_module_exists(targets, path)


@pytest.mark.parametrize("targets", [None, [], {}, "", [3], 3])
def test_targets_that_are_none_choose_nothing(targets):
    assert not Targets(targets, Steps()).choose("q")


def test_all_linear_chooses_all():
    assert Targets("all-linear", Steps()).choose("any.path")


@settings(max_examples=200, deadline=None)
@given(
    names=st.one_of(expressions, st.lists(plain_keys, max_size=4)),
    paths=st.lists(paths, min_size=1, max_size=6),
)
def test_end_names_are_those_of_peft(names, paths):
    peft = importlib.import_module("peft")
    check = importlib.import_module("peft.tuners.ia3.model").IA3Model._check_target_module_feedforward
    targets = names if isinstance(names, list) else "any"
    config = peft.IA3Config(target_modules=targets, feedforward_modules=names)
    try:
        chosen = EndNames(names, Steps())
    except RefusedKey:
        return
    for path in paths:
        assert chosen.choose(path) == check(config, path)


def chosen_of(names):
    chosen = EndNames(names, Steps())
    return [path for path in MODULES if chosen.choose(path)]


@pytest.mark.parametrize("names", [["q" * 3_000] * 1_000, ["q"] * 2_000_000, "(.*)*x" * 100])
def test_hostile_end_names_are_given_up_in_time(names):
    started = time.process_time()
    with pytest.raises(RefusedKey):
        chosen_of(names)
    assert time.process_time() - started < 20


MODULES = [f"model.layers.{layer}.mlp.experts.{expert}.up_proj" for layer in range(40) for expert in range(250)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern",
    [
        {path: number for number, path in enumerate(MODULES)},
        {"^" + re.escape(path): number for number, path in enumerate(MODULES)},
        {f"{path}.{number:05}": number for number, path in enumerate(MODULES * 5)},
        {re.escape(path[6:]): number for number, path in enumerate(MODULES)},
    ],
    ids=["paths", "anchored", "none that fits", "ends"],
)
def test_a_key_for_each_of_many_modules_is_found_in_time(pattern):
    started = time.process_time()
    found = values(pattern, MODULES)
    assert time.process_time() - started < 20
    by_path = {re.sub(r"^\^|\\", "", key): value for key, value in pattern.items()}
    assert found == [by_path.get(path, by_path.get(path[6:])) for path in MODULES]


def values(pattern, paths):
    found = PatternMap(pattern, Steps())
    return [found.value(path, None) for path in paths]


HOSTILE = {
    "expressions": {f"a{number}*": 4 for number in range(50_000)},
    "lengths": {"a" * length: 4 for length in range(5_000)},
    "places of dots": {f"{number:017b}".replace("0", "."): 4 for number in range(1 << 17)},
    "long keys": {f"{number:04}" + "a" * 65_000: 4 for number in range(300)},
    "an endless key": {"a" * 70_000: 4},
}


@pytest.mark.slow
@pytest.mark.parametrize("pattern", HOSTILE.values(), ids=HOSTILE)
def test_hostile_keys_are_given_up_in_time(pattern):
    started = time.process_time()
    with pytest.raises(RefusedKey):
        values(pattern, [*MODULES, *("." * 30_000 + str(number) for number in range(300))])
    # A processor that is shared is slow; what goes wrong takes minutes.
    assert time.process_time() - started < 20


def test_expressions_are_compared_with_ten_thousand_modules():
    found = PatternMap({"up_pro.*": 3}, Steps())
    assert {found.value(path, None) for path in MODULES} == {3}
    assert found.value(MODULES[0], None) == 3
    with pytest.raises(RefusedKey, match="more than 10,000 modules, the most"):
        found.value("one.more", None)
