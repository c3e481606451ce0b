"""Every scheme writes one direction, and the inverted table and the recognition give the way back."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import paths

from lora_inspect.architectures import every
from lora_inspect.errors import LoraInspectError
from lora_inspect.maths import dora
from lora_inspect.reading.keys.suffixes import parse_key
from lora_inspect.schemes import SCHEMES, by_name, recognise
from lora_inspect.schemes.kohya import text_encoder_prefix

EVERY = tuple(SCHEMES.values())
WRITTEN = tuple(scheme for scheme in EVERY if scheme.suffixes)
EVERY_PREFIX = [(scheme, prefix) for scheme in WRITTEN for prefix in scheme.prefixes]
# The way out where reading does not know a suffix of a scheme, by the role.
OWN = "where it is of this scheme alone, say dialect=ITS_OWN; else it is one more of a dialect in algorithms/"
KNOWN = {
    "alpha": "the suffix of alpha is .alpha in every scheme",
    "magnitude": f"those of a magnitude are {', '.join(dora.SPELLINGS)}; another one belongs into maths/dora.py",
}
IDS = [f"{scheme.name} {prefix}" for scheme, prefix in EVERY_PREFIX]


@pytest.mark.parametrize(("scheme", "prefix"), EVERY_PREFIX, ids=IDS)
@settings(max_examples=25)
@given(data=st.data())
def test_what_is_spelled_is_parsed_back_to_the_same_path_and_role(scheme, prefix, data):
    modules = data.draw(st.lists(paths, min_size=1, max_size=6, unique_by=lambda path: scheme.module(path, "")))
    role = data.draw(st.sampled_from(sorted(scheme.suffixes)))
    # With that before them, the suffixes of mlx-lm are those of GGUF.
    assume(scheme.name != "mlx" or not any(path.endswith("weight") for path in modules))
    table = scheme.table(modules, prefix)
    for path in modules:
        parsed = parse_key(scheme.spell(path, role, prefix))
        assert parsed, f"reading knows no suffix {scheme.suffixes[role]}: {KNOWN.get(role, OWN)}"
        assert parsed.role == role
        assert table[parsed.module] == path


@pytest.mark.parametrize(("scheme", "prefix"), EVERY_PREFIX, ids=IDS)
@settings(max_examples=25)
@given(path=paths)
def test_what_is_spelled_is_recognised_by_scheme_and_prefix(scheme, prefix, path):
    if scheme.name == "dotted":  # it takes what no other scheme claims
        assume(not path.startswith(("transformer.", "unet.", "lora_unet", "lora_te")))
    name = recognise(scheme.module(path, prefix), scheme.marks)
    assert (name.scheme, name.prefix, name.component) == (scheme.name, prefix, scheme.prefixes[prefix])
    assert name.body == scheme.module(path, "")
    assert name.key == scheme.module(path, prefix)
    assert name.flat == scheme.flat


@pytest.mark.parametrize("scheme", [scheme for scheme in EVERY if scheme.flat], ids=lambda scheme: scheme.name)
def test_two_paths_of_one_spelling_make_no_table(scheme):
    with pytest.raises(LoraInspectError, match=r"a\.b_c and a_b\.c both have the name"):
        scheme.table(["a.b_c", "x", "a_b.c"], "")


@pytest.mark.parametrize("scheme", [scheme for scheme in EVERY if not scheme.flat], ids=lambda scheme: scheme.name)
def test_dotted_schemes_tell_them_apart(scheme):
    assert len(scheme.table(["a.b_c", "a_b.c"], "")) == 2


@pytest.mark.parametrize("scheme", EVERY, ids=lambda scheme: scheme.name)
def test_the_same_path_twice_is_no_collision(scheme):
    assert scheme.table(["a.b", "a.b"], "p") == {scheme.module("a.b", "p"): "a.b"}


@pytest.mark.parametrize("scheme", EVERY, ids=lambda scheme: scheme.name)
def test_every_scheme_is_found_by_its_name_and_says_what_it_carries(scheme):
    assert by_name(scheme.name) is scheme
    assert not scheme.suffixes or {"down", "up"} <= scheme.suffixes.keys(), "both factors have a suffix, or none has"
    assert ("alpha" in scheme.suffixes) == scheme.carries_alpha, "alpha has a suffix where carries_alpha is True"
    assert scheme.absent_alpha in ("one", "config", "scale")
    assert scheme.prefixes or scheme.writing, "it is neither read nor written"


# Keys of real files, written down from the programs that write them: scheme, component, body.
REAL = {
    "lora_unet_down_blocks_0_attentions_0_proj_in": ("kohya", "model", "down_blocks_0_attentions_0_proj_in"),
    "lora_te_text_model_encoder_layers_0_mlp_fc1": ("kohya", "text_encoder", "text_model_encoder_layers_0_mlp_fc1"),
    "lora_te1_text_model_encoder_layers_0_mlp_fc1": ("kohya", "text_encoder", "text_model_encoder_layers_0_mlp_fc1"),
    "lora_te2_text_model_encoder_layers_0_mlp_fc1": ("kohya", "text_encoder_2", "text_model_encoder_layers_0_mlp_fc1"),
    "lora_te3_encoder_block_0_layer_0": ("kohya", "text_encoder_3", "encoder_block_0_layer_0"),
    "lora_unet__blocks_0_self_attn_q": ("kohya", "model", "blocks_0_self_attn_q"),
    "lora_transformer_transformer_blocks_0_attn": ("kohya", "model", "transformer_blocks_0_attn"),
    "lora_prior_unet_blocks_0": ("kohya", "model", "blocks_0"),
    "lycoris_transformer_blocks_0": ("lycoris", "model", "transformer_blocks_0"),
    "base_model.model.model.layers.0.self_attn.q_proj": ("peft", "model", "model.layers.0.self_attn.q_proj"),
    "diffusion_model.blocks.0.q": ("comfyui", "model", "blocks.0.q"),
    "text_encoders.clip_l.transformer.text_model.x": ("comfyui", "text_encoder", "text_model.x"),
    "transformer.transformer_blocks.0.attn.to_q": ("diffusers", "model", "transformer_blocks.0.attn.to_q"),
    "text_encoders.qwen3_4b.transformer.model.x": ("comfyui", "text_encoder", "model.x"),
    "text_encoders.llama.transformer.model.x": ("comfyui", "text_encoder_4", "model.x"),
    "lora_te4_model_layers_0": ("kohya", "text_encoder_4", "model_layers_0"),
    "text_encoder_2.text_model.x": ("diffusers", "text_encoder_2", "text_model.x"),
    "transformer_2.blocks.0": ("diffusers", "model_2", "blocks.0"),
    "double_blocks.0.processor.x": ("dotted", "model", "double_blocks.0.processor.x"),
    "blocks.0.self_attn.q": ("dotted", "model", "blocks.0.self_attn.q"),
    "lora_unet_blocks.0": ("dotted", "model", "lora_unet_blocks.0"),
    "unet:down_blocks.0.attentions.0.proj_in": ("cloneofsimo", "model", "down_blocks.0.attentions.0.proj_in"),
}


@pytest.mark.parametrize(("key", "expected"), REAL.items(), ids=REAL)
def test_modules_of_real_files_are_recognised(key, expected):
    name = recognise(key)
    assert (name.scheme, name.component, name.body) == expected
    assert name.key == key


@pytest.mark.parametrize("scheme", EVERY, ids=lambda scheme: scheme.name)
def test_every_scheme_has_the_name_of_a_module_in_a_real_file(scheme):
    if scheme.prefixes and not scheme.marks:  # those of the others are read as another scheme's, or need a suffix
        assert scheme.name in {found for found, _, _ in REAL.values()}, "put one into REAL"


# What reads the names of schemes that are only written.
READ_BY = {"musubi": "kohya", "onetrainer": "kohya"}


@pytest.mark.parametrize("scheme", [one for one in WRITTEN if one.writing], ids=lambda scheme: scheme.name)
def test_what_is_written_of_a_pipeline_is_read_as_its_own_components(scheme):
    for family in every():
        prefixes = [prefix for prefix in scheme.writing.encoders(family) if prefix]
        found = [recognise(scheme.module("model.layers.0.q", prefix)) for prefix in prefixes]
        assert all(name.scheme == READ_BY.get(scheme.name, scheme.name) for name in found), family.name
        assert [name.prefix for name in found] == prefixes, family.name
        components = {name.component for name in found}
        assert len(components) == len(prefixes), family.name
        assert all(component.startswith("text_encoder") for component in components), family.name
        model = scheme.module("blocks.0.q", scheme.writing.prefix.format(pipeline=family.pipeline_name))
        assert recognise(model).component == "model", family.name


def test_only_their_suffixes_tell_modules_of_mlx():
    name = "model.layers.0.self_attn.q_proj"
    assert recognise(name).scheme == "dotted"
    assert recognise(name, {".lora_a", ".lora_b", ".m"}) == ("mlx", "model", "", name, False)


def test_a_module_without_a_name_is_refused():
    with pytest.raises(ValueError, match="not a module name"):
        recognise("")


@pytest.mark.parametrize(
    ("component", "components", "prefix"),
    [
        ("text_encoder", {"model", "text_encoder"}, "lora_te_"),
        ("text_encoder", {"text_encoder", "text_encoder_2"}, "lora_te1_"),
        ("text_encoder_2", {"text_encoder", "text_encoder_2"}, "lora_te2_"),
        ("text_encoder_2", {"model", "text_encoder_2"}, "lora_te2_"),
        ("text_encoder_3", {"text_encoder_3"}, "lora_te3_"),
    ],
)
def test_text_encoders_are_numbered_as_soon_as_there_are_several(component, components, prefix):
    assert text_encoder_prefix(component, components) == prefix
