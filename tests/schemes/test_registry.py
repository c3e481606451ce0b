"""The registry finds its files by itself, and the longest prefix decides whose a name is."""

from pathlib import Path

import pytest

import lora_inspect.schemes as folder
from lora_inspect.reading.keys.suffixes import parse_key
from lora_inspect.schemes import SCHEMES, add, added, readings, recognise
from lora_inspect.schemes.record import ITS_OWN, LOST, MODEL, Scheme, Writing
from lora_inspect.schemes.record import OWN as OWN_LAYOUT

FILES = {path.stem for path in Path(folder.__file__).parent.glob("*.py")} - {"__init__", "record", "writing"}
OWN = {"down": ".A", "up": ".B"}
SUFFIXES = {"down": ".lora_down.weight", "up": ".lora_up.weight", "magnitude": ".dora_scale"}


def scheme(name="own", prefixes=("own_unet_",), flat=True, suffixes=SUFFIXES, **fields):
    return Scheme(name, dict.fromkeys(prefixes, MODEL), flat, suffixes, carries_alpha=False, **fields)


def test_every_file_is_a_scheme_of_its_name():
    other = sorted(SCHEMES.keys() ^ FILES)
    assert not other, f"a file own.py has the record OWN, whose name is own; it is not so for {', '.join(other)}"


def test_the_longest_prefix_decides_whatever_the_order():
    for prefixes in (("lora_", "lora_unet_own_"), ("lora_unet_own_", "lora_")):
        with added(scheme(prefixes=prefixes)):
            assert recognise("lora_unet_own_x").scheme == "own"
            assert recognise("lora_unet_x").scheme == "kohya"
            assert recognise("lora_x").body == "x"
    assert recognise("lora_unet_own_x").scheme == "kohya"
    assert recognise("lora_x").scheme == "dotted"


def test_a_name_has_a_reading_in_every_scheme_that_spells_it_so():
    assert [name.body for name in readings("lora_unet__a")] == ["a", "_a", "lora_unet__a"]
    assert [name.body for name in readings("lora_unet__a.b")] == ["lora_unet__a.b"]
    assert [name.body for name in readings("lora_unet_")] == ["lora_unet_"]


def test_suffixes_of_a_scheme_tell_its_modules_before_any_prefix():
    with added(scheme(prefixes=("",), marks=(".own", ".mine"), flat=False)):
        assert recognise("diffusion_model.x", (".mine", ".alpha")).scheme == "own"
        assert recognise("diffusion_model.x", (".alpha",)).scheme == "comfyui"
        assert recognise("diffusion_model.x").scheme == "comfyui"


def test_a_name_and_a_prefix_are_taken_once():
    with added(scheme()):
        with pytest.raises(ValueError, match="there is a scheme called own already"):
            add(scheme(prefixes=("other_",)))
        with pytest.raises(ValueError, match="'own_unet_' is a prefix of own already"):
            add(scheme("other"))
    with added(scheme(prefixes=("",), marks=(".own",))):
        with pytest.raises(ValueError, match="'' is a prefix of own already"):
            add(scheme("other", prefixes=("",), marks=(".own", ".other")))
        with added(scheme("other", prefixes=("",), marks=(".other",))):
            assert recognise("x", (".other",)).scheme == "other"
    assert "own" not in SCHEMES
    with added(scheme("other")):
        assert recognise("own_unet_x").scheme == "other"


def test_a_suffix_can_hide_the_end_of_a_path():
    key = "own.blocks.0.held.by_q.down"
    with added(scheme(prefixes=("own.",), flat=False, hiding={".held.by_q.down": ("down", ".to_q")})):
        assert parse_key(key) == ("own.blocks.0.to_q", ".held.by_q.down", (("lora", "down"),), None)
    assert parse_key(key) is None
    with pytest.raises(ValueError, match="is no suffix: a dot and at most 63 letters"):
        add(scheme(hiding={"." + 64 * "x": ("down", "")}))


def test_a_scheme_can_have_suffixes_of_its_own_below_its_prefixes():
    with added(scheme(prefixes=("own.",), flat=False, suffixes=OWN, dialect=ITS_OWN)):
        assert parse_key("own.blocks.0.q.A") == ("own.blocks.0.q", ".A", (("lora", "down"),), None)
        assert parse_key("own.blocks.0.q.B").role == "up"
        assert parse_key("blocks.0.q.A") is None
        # What an algorithm has keeps its meaning, and another scheme may end names alike.
        assert parse_key("own.blocks.0.q.lora_A.weight").role == "down"
        with added(scheme("other", ("other.",), False, {"down": ".B", "up": ".A"}, dialect=ITS_OWN)):
            assert parse_key("other.blocks.0.q.A").role == "up"
            assert parse_key("own.blocks.0.q.A").role == "down"
        assert parse_key("other.blocks.0.q.A") is None
    assert parse_key("own.blocks.0.q.A") is None
    with added(scheme(prefixes=("own.",), flat=False, suffixes=OWN)):
        assert parse_key("own.blocks.0.q.A") is None


def test_a_suffix_begins_with_a_dot():
    with pytest.raises(ValueError, match=r"'::A' of own is no suffix: a dot and at most 63 letters"):
        add(scheme(suffixes=OWN | {"down": "::A"}, dialect=ITS_OWN))
    assert "own" not in SCHEMES


def test_magnitudes_that_are_written_have_a_suffix():
    writing = Writing("Own", lambda family: OWN_LAYOUT, "own_unet_")
    with pytest.raises(ValueError, match="own has no suffix for a magnitude: give it one, or its writing `magnitudes"):
        add(scheme(suffixes=OWN, dialect=ITS_OWN, writing=writing))
    with added(scheme(suffixes=OWN, dialect=ITS_OWN, writing=writing._replace(magnitudes=LOST))):
        assert SCHEMES["own"].writing
