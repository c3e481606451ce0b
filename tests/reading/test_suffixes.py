"""From a key to module and role: every suffix of every algorithm, and names that contain such words themselves."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import paths

from lora_inspect.algorithms import by_name, every
from lora_inspect.maths.dora import SPELLINGS
from lora_inspect.reading.keys.suffixes import parse_key

EVERY_SUFFIX = [(algorithm, suffix) for algorithm in every().values() for suffix in algorithm.suffixes]
MODULES = ("lora_unet_blocks_0_attn_q", "base_model.model.blocks.0.attn.q")


@pytest.mark.parametrize("module", MODULES)
def test_every_suffix_of_every_algorithm_is_parsed(module):
    found = {(algorithm.name, suffix): parse_key(module + suffix) for algorithm, suffix in EVERY_SUFFIX}
    due = {(algorithm.name, suffix): algorithm.suffixes[suffix] for algorithm, suffix in EVERY_SUFFIX}
    assert {one: parsed[:2] for one, parsed in found.items()} == {one: (module, one[1]) for one in due}
    assert {one for one, parsed in found.items() if parsed.part is not None} == set()
    assert {one for one, role in due.items() if (one[0], role) not in found[one].meanings} == set()


def test_every_algorithm_is_found_by_its_name_and_spells_what_it_requires():
    for name, algorithm in every().items():
        assert by_name(name) is algorithm
        assert set(algorithm.marks) <= {*algorithm.suffixes.values(), *algorithm.unmarked}, name
        assert algorithm.title, name


@pytest.mark.parametrize(("suffix", "role"), [(".alpha", "alpha"), (".use_rslora_flag", "rslora_flag")])
def test_shared_roles_belong_to_no_algorithm(suffix, role):
    assert parse_key(f"lora_unet_a{suffix}") == ("lora_unet_a", suffix, ((None, role),), None)


@pytest.mark.parametrize("module", MODULES)
def test_every_spelling_of_the_magnitude_is_parsed(module):
    for suffix in SPELLINGS:
        assert parse_key(module + suffix) == (module, suffix, ((None, "magnitude"),), None)


# key -> module, algorithm, role, part
SPECIAL = {
    "lora_unet_a.lora_down.0.weight": ("lora_unet_a", "lora", "down", 0),
    "lora_unet_a.lora_up.12.weight": ("lora_unet_a", "lora", "up", 12),
    # BD-LoRA's before LoRA's, which is the same role.
    "a.b.lora_A.default.weight": ("a.b", "bdlora", "down", None),
    "a.b.lora_B.my-style_2.weight": ("a.b", "bdlora", "up", None),
    "a.b.lora_B.default.bias": ("a.b", "lora_bias", "bias", None),
    "a.b.lora_E.default": ("a.b", "adalora", "values", None),
    "a.b.ranknum.default": ("a.b", "adalora", "ranknum", None),
    # AdaLoRA's before LoRA's, which is the same role.
    "a.b.lora_A.default": ("a.b", "adalora", "down", None),
    "a.b.lora_magnitude_vector.default.weight": ("a.b", None, "magnitude", None),
    "a.b.lora_magnitude_vector.default": ("a.b", None, "magnitude", None),
    "a.lora_embedding_A.default": ("a", "lora_embedding", "down", None),
    "unet.a.attn1.processor.to_q_lora.down.weight": ("unet.a.attn1.to_q", "lora", "down", None),
    "unet.a.attn1.processor.to_out_lora.up.weight": ("unet.a.attn1.to_out.0", "lora", "up", None),
    "text_encoder.q_proj.lora_linear_layer.up.weight": ("text_encoder.q_proj", "lora", "up", None),
    "double_blocks.0.processor.qkv_lora1.down.weight": (
        "double_blocks.0.processor.qkv_lora1", "lora", "down", None),
    "net.alpha.lora_down.weight": ("net.alpha", "lora", "down", None),
    "net.diff.lora.lora_up.weight": ("net.diff.lora", "lora", "up", None),
}  # fmt: skip


@pytest.mark.parametrize(("key", "expected"), SPECIAL.items(), ids=SPECIAL)
def test_infixes_parts_and_traps(key, expected):
    parsed = parse_key(key)
    assert (parsed.module, parsed.algorithm, parsed.role, parsed.part) == expected


@pytest.mark.parametrize(
    "key",
    ["use_rslora_flag", "blocks.0.attn.q.weight", "blocks.0.attn.q.bias", "lora_down.weight", "alpha", "",
     ".lora_down.weight", ".alpha", ".lora_up.0.weight", "bundle_emb.x.string_to_param.*", "a.lora_down",
     "a.lora_C.weight", "a.lora_down.x.weight"],
)  # fmt: skip
def test_other_keys_have_no_role(key):
    assert parse_key(key) is None


@given(path=paths, choice=st.sampled_from(EVERY_SUFFIX))
@example(path="weight", choice=(by_name("lora"), ".lora_a"))
def test_the_module_before_a_suffix_may_be_called_anything(path, choice):
    algorithm, suffix = choice
    key = f"net.{path}{suffix}"
    parsed = parse_key(key)
    # Of two suffixes that a key ends in, the longer one is meant: MLX writes `net.weight.lora_a`.
    longest = max((other for _, other in EVERY_SUFFIX if key.endswith(other)), key=len)
    assert (parsed.module, parsed.suffix) == (key.removesuffix(longest), longest)
    assert longest != suffix or (algorithm.name, algorithm.suffixes[suffix]) in parsed.meanings


def test_a_key_of_dots_takes_no_longer_than_any_other():
    started = time.process_time()
    assert parse_key("." * 300_000 + "q.alpha")[:2] == ("." * 300_000 + "q", ".alpha")
    assert parse_key("." * 300_000) is None
    # A processor that is shared is slow; what goes wrong takes hours.
    assert time.process_time() - started < 20
