"""Standard PEFT configs: every module finds its own numbers in them, by PEFT's own rule."""

import importlib

import pytest

from lora_inspect.converting.output.configs import lora_config, standard_config

# Ends of one another, and letters that mean something in an expression.
PATHS = [
    "q", "a.q", "b.a.q", "aq", "a+b", "x.a+b", "aab", "x.aab", "q-k", "x.q-k", "a(b", "x.a(b", "a|b", "0", "1.0", "[q]",
    "x.[q]", "a q", "h.1.1", "h.111",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("turned", [False, True])
def test_every_module_finds_its_own_numbers(turned):
    get_pattern_key = importlib.import_module("peft.utils.other").get_pattern_key
    paths = PATHS[::-1] if turned else PATHS
    ranks = {path: number for number, path in enumerate(paths, start=1)}
    alphas = {path: number + 0.5 for path, number in ranks.items()}
    config = standard_config({}, ranks, alphas, use_dora=False)
    for pattern, default, numbers in (("rank_pattern", "r", ranks), ("alpha_pattern", "lora_alpha", alphas)):
        found = {path: get_pattern_key(list(config[pattern]), path) for path in paths}
        assert {path: config[pattern].get(key, config[default]) for path, key in found.items()} == numbers


def test_a_config_of_another_method_becomes_one_of_lora_with_what_all_of_them_say():
    common = {"base_model_name_or_path": "base", "task_type": "CAUSAL_LM", "target_modules": ["q"], "revision": "main"}
    config = lora_config({**common, "peft_type": "LOHA", "alpha": 3, "rank_dropout": 0.5, "use_effective_conv2d": True})
    peft = importlib.import_module("peft")
    real = peft.LoraConfig(**{field: value for field, value in config.items() if field != "peft_type"})
    assert {field: getattr(real, field) for field in common} == {**common, "target_modules": {"q"}}
    assert config["peft_type"] == real.peft_type == "LORA"
    assert lora_config({"r": 4, "use_dora": True}) == {"r": 4, "use_dora": True}
