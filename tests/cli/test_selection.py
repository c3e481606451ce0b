"""Conditions on files and their orders, held to lists that were made by hand."""

import pytest

from lora_inspect.cli.info.selection import KEYS, ORDERS, condition, sorting_key
from lora_inspect.errors import LoraInspectError
from lora_inspect.scanning.scan_file import ScannedFile

STYLE = ScannedFile(
    "loras/Style[1].safetensors", "adapter", ("wan",), "Wan 2.1 / 2.2 14B", ("RS-LoRA", "LoKr"), (4, 16), (0.5, None),
    1000, 5.0, 300, "musubi-tuner", ("kohya", "peft"), ("scale-unknown",), "need an answer", ("scale unknown",),
)  # fmt: skip
OTHER = ScannedFile(
    "loras/other.safetensors", "adapter", ("flux", "chroma"), "FLUX.1 or Chroma", ("LoRA",), (8,), (1.0,)
)
BARE = ScannedFile("bare.safetensors", "other")
ALL = (STYLE, OTHER, BARE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name=style", [STYLE]), ("name=STYLE[[]1]*", [STYLE]), ("name=loras/", [STYLE, OTHER]),
        ("name=*.safetensors", [*ALL]),
        ("model=wan", [STYLE]), ("model=Wan 2.1 / 2.2 14B", [STYLE]), ("model=chroma", [OTHER]),
        ("model=flux", [OTHER]), ("model=", [*ALL]),
        ("model=*14b", [STYLE]), ("model=14b", []), ("type=lokr", [STYLE]), ("type=lora", [OTHER]),
        ("rank=16", [STYLE]), ("rank=1", []), ("rank=1?", [STYLE]), ("scale=unknown", [STYLE]), ("scale=0.5", [STYLE]),
        ("scale=0", []), ("scale=1", [OTHER]), ("trainer=unknown", [OTHER, BARE]), ("trainer=musubi", [STYLE]),
        ("scheme=peft", [STYLE]), ("kind=other", [BARE]), ("state=need*answer", [STYLE]), ("problem=scale", [STYLE]),
        ("note=scale", [STYLE]), ("model=(", []), ("name=*[*", [STYLE]),
    ],
)  # fmt: skip
def test_a_condition_keeps_what_it_says(text, expected):
    assert [one for one in ALL if condition(text).holds(one)] == expected


@pytest.mark.parametrize("text", ["", "wan", "=wan", "size=3", "model:wan", "mo del=wan"])
def test_what_is_no_condition_is_refused_with_the_keys(text):
    with pytest.raises(LoraInspectError, match=r"use one of the keys name, model, type, .* and duplicate"):
        condition(text)


@pytest.mark.parametrize(
    ("order", "names"),
    [
        ("name", "bos"), ("model", "osb"), ("type", "osb"), ("rank", "sob"), ("scale", "sob"), ("size", "obs"),
        ("modified", "obs"),
    ],
)  # fmt: skip
def test_an_order_puts_what_is_not_known_last(order, names):
    initial = {id(STYLE): "s", id(OTHER): "o", id(BARE): "b"}
    assert "".join(initial[id(one)] for one in sorted(ALL, key=sorting_key(order))) == names


def test_every_key_and_order_bears_a_file_of_which_nothing_is_known():
    bare = ScannedFile("x")
    assert not any(condition(f"{key}=y").holds(bare) for key in KEYS)
    for order in ORDERS:
        assert sorted([bare, STYLE, bare], key=sorting_key(order))
