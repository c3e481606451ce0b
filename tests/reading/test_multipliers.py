"""Which setting decides the strength of a module, and what is said of one that decides none."""

import pytest

from lora_inspect.errors import LoraInspectError
from lora_inspect.reading.ambiguous_options import Multipliers, check_multipliers, multiplier_of
from lora_inspect.reading.model.settings import Settings, parse_settings
from lora_inspect.reading.module_patterns import ModuleNames, check_pattern, fits, fits_path


def named(path, component="model", prefix="lora_unet_"):
    flat = path.replace(".", "_")
    return ModuleNames(component, (path,), (prefix + flat, flat))


MODULES = [
    named("blocks.0.attn.q"),
    named("blocks.0.mlp.up"),
    named("layers.0.attn.q", "text_encoder", "lora_te1_"),
]

# settings, the multiplier of each of MODULES
STRENGTHS = {
    "": [1, 1, 1],
    "0.5": [0.5, 0.5, 0.5],
    "text_encoder=0": [1, 1, 0],
    "BASE=0": [1, 1, 0],
    "0.5,text_encoder=0": [0.5, 0.5, 0],
    "*attn*=2": [2, 1, 2],
    "blocks_0_attn_q=2": [2, 1, 1],
    "lora_unet_blocks_0_attn_q=2": [2, 1, 1],
    "LORA_UNET*=2,*=3": [3, 3, 3],
    # a glob is closer than a component, and a component than the plain number
    "0.5,model=3,text_encoder=0,*attn*=2": [2, 3, 2],
    # of several globs the first that fits
    "blocks_*=4,*attn*=2": [4, 4, 2],
    "*attn*=2,blocks_*=4": [2, 4, 2],
    # a path is that of all below it, and a glob of what it fits
    "blocks.0=2": [2, 2, 1],
    "blocks.0.attn=2": [2, 1, 1],
    "blocks.0-3=2,layers.0-3=3": [2, 2, 3],
    "*.0-3.attn.*=2": [2, 1, 2],
    "*.0-0.?ttn.[q]=2": [2, 1, 2],
    "blocks.0.*=2": [2, 2, 1],
    "blocks.*.q=2": [2, 1, 1],
}


@pytest.mark.parametrize(("text", "expected"), STRENGTHS.items())
def test_the_strength_of_a_module(text, expected):
    settings = parse_settings(text) if text else Settings()
    assert [multiplier_of(settings, module) for module in MODULES] == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "text_encoder_2=0",
            r"text_encoder_2 is not a component and matches no module; try text_encoder, or choose from model, t",
        ),
        ("*attn.k=0.5", r"\*attn\.k is not a component and matches no module.*lora_unet_blocks_0_attn_q"),
        ("block.0=0.5", r"block\.0 is not a component and matches no module; try blocks\.0"),
        ("blocks.1-9=0.5", r"blocks\.1-9 is not a component and matches no module; try blocks\.0"),
        ("*=1,*attn*=0", r"\*attn\* has no effect"),
        ("text_encoder=0,lora_te*=1", r"text_encoder has no effect"),
    ],
)
def test_a_strength_that_no_module_takes_is_an_error(text, says):
    with pytest.raises(LoraInspectError, match=says):
        check_multipliers(parse_settings(text), "a.safetensors", MODULES)


def test_settings_that_each_decide_something_are_taken():
    other = named("layers.0.attn.k", "text_encoder", "lora_te1_")
    check_multipliers(parse_settings("0.5,text_encoder=0,*attn.q=1,*mlp*=2"), "a.safetensors", [*MODULES, other])


def test_a_plain_number_needs_no_names():
    assert Multipliers(parse_settings("0.5"), "a", {}).of("any") == 0.5
    assert Multipliers(Settings(), "a", {}).of("any") == 1.0


def test_numbers_of_a_range_are_those_between_its_ends():
    fitting = [number for number in range(200) if fits("blocks.7-112", named(f"blocks.{number}.q"))]
    assert fitting == list(range(7, 113))
    assert not fits("blocks.7-112", named("blocks.x.q"))
    assert not fits("blocks.0-9", named("blocks.07.q"))
    # Only a whole segment is a range.
    assert fits("blocks.a0-9", named("blocks.a0-9.q"))
    assert not fits("blocks.a0-9", named("blocks.a5.q"))


@pytest.mark.parametrize("pattern", ["a.3-2", "3-2", "a.0-1000.b", "a.*.9-8"])
def test_a_range_has_numbers_and_not_too_many(pattern):
    with pytest.raises(ValueError, match=r"the range"):
        check_pattern(pattern)
    check_pattern("a.0-999.b")


def test_a_glob_takes_no_longer_the_more_signs_it_has():
    long = named(".".join(["a" * 50] * 40))
    assert not fits_path("*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*.0-9.*b", long)
