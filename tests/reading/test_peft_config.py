"""LoraConfig: patterns against PEFT's own rule, embedded configs, and settings that change the meaning."""

import importlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import paths

from lora_inspect.algorithms.lora import residual_init
from lora_inspect.reading.peft.peft_config import (
    EMBEDDED_KEY,
    FOREIGN_SETTINGS,
    ModuleSettings,
    embedded_configs,
    foreign_settings,
    is_peft_config,
)
from lora_inspect.reading.peft.regex import Steps

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

KEYS = ["q", "attn.q", "blocks.0", r"blocks\.\d+\.q", "^blocks.0.q", ".*", "q|k", "(", "to_q", "0.q"]


def config_rank(config, path):
    return ModuleSettings(config, Steps()).rank(path)


def config_alpha(config, path):
    return ModuleSettings(config, Steps()).alpha(path)


@pytest.fixture(scope="module")
def get_pattern_key():
    return importlib.import_module("peft.utils.other").get_pattern_key


@given(
    keys=st.lists(st.sampled_from([key for key in KEYS if key != "("]), max_size=3, unique=True),
    path=st.one_of(paths, st.sampled_from(["blocks.0.q", "blocks.0.attn.q", "blocks.10.to_q", "q", "a.k"])),
)
def test_patterns_choose_what_peft_chooses(get_pattern_key, keys, path):
    pattern = {key: number for number, key in enumerate(keys, start=2)}
    expected = pattern.get(get_pattern_key(list(pattern), path), 99)
    assert config_rank({"r": 99, "rank_pattern": pattern}, path) == expected
    assert config_alpha({"lora_alpha": 99, "alpha_pattern": pattern}, path) == expected


@pytest.mark.parametrize("path", ["a+b", "x.a+b", "aab", "x.aab", "b"])
@pytest.mark.parametrize("keys", [["a+b"], ["x.a+b"], ["b", "x.a+b"], [r"a\+b", "x.a+b"]])
def test_a_path_is_a_key_even_where_it_does_not_match_itself(get_pattern_key, keys, path):
    pattern = {key: number for number, key in enumerate(keys, start=2)}
    expected = pattern.get(get_pattern_key(list(pattern), path), 99)
    assert config_alpha({"lora_alpha": 99, "alpha_pattern": pattern}, path) == expected


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("key", ["(", "(a+)+$"])
def test_a_pattern_that_is_not_compared_leaves_all_unknown_and_is_told(field, key):
    modules = ModuleSettings({"r": 4, "lora_alpha": 2, field: {"k": 3, key: 8}}, Steps())
    assert (modules.refused, modules.rank("q"), modules.alpha("q")) != (None, 4, 2)
    assert modules.refused.startswith(f"the key of {field} '{key}' ")
    assert (modules.rank("k"), modules.alpha("k")) == (None, None)


@pytest.mark.parametrize("pattern", [None, [], {}, "q"])
def test_a_pattern_that_is_no_map_is_none(pattern):
    assert config_alpha({"lora_alpha": 3, "alpha_pattern": pattern}, "q") == 3.0


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf"), 10**400])
def test_an_alpha_that_is_not_finite_is_unknown(value):
    assert config_alpha({"lora_alpha": value}, "q") is None


@pytest.mark.parametrize("value", ["8", None, True, [8]])
def test_what_is_no_number_is_unknown(value):
    assert config_alpha({"lora_alpha": value}, "q") is None
    assert config_rank({"r": value if value is not True else "8"}, "q") is None


def test_embedded_configs_are_told_apart_by_component():
    flat = {"transformer.r": 4, "transformer.lora_alpha": 8, "text_encoder.r": 2, "unet.other": 1, "r": 16}
    assert embedded_configs({EMBEDDED_KEY: json.dumps(flat)}) == {
        "transformer.": {"r": 4, "lora_alpha": 8},
        "text_encoder.": {"r": 2},
        "": {"r": 16},
    }


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "[" * 100_000])
def test_embedded_text_that_is_no_map_says_nothing(text):
    assert embedded_configs({EMBEDDED_KEY: text}) == {}


@pytest.mark.parametrize("init", ["pissa", "PiSSA", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_initialisations_that_take_a_part_of_the_base_are_known(init):
    assert residual_init({"init_lora_weights": init}) == init


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_other_initialisations_are_not(init):
    assert residual_init({"init_lora_weights": init}) is None


@pytest.mark.parametrize("key", FOREIGN_SETTINGS)
@pytest.mark.parametrize("absent", [None, False, [], {}, ""])
def test_a_setting_counts_where_it_is_set(key, absent):
    assert foreign_settings({key: absent}) == []
    assert foreign_settings({key: ["x"]}) == [FOREIGN_SETTINGS[key]]


def test_the_configs_of_plain_adapters_have_no_foreign_setting(fixtures):
    configs = [json.loads(path.read_text()) for path in fixtures.glob("*/adapter_config.json")]
    assert configs
    for config in configs:
        assert is_peft_config(config)
        assert foreign_settings(config) == []
        assert residual_init(config) is None
