"""docs/coming_from.md: the options of ours that it names are some, and those of others are answered."""

import re
from importlib import import_module
from pathlib import Path

import pytest
from architecture_models import make

from lora_inspect.architectures import by_name
from lora_inspect.reading.scale.requested_rank import NETWORKS
from networks import lokr, lora_flux, oft
from networks.network.layer_options import options_of
from networks.network_args import NetworkOption, parse, read_bool

PAGE = (Path(__file__).parents[3] / "docs" / "coming_from.md").read_text(encoding="utf-8")
EXTRA = {
    **lokr.TRAINED.options,
    **oft.TRAINED.options,
    "exclude_mod": NetworkOption(read_bool, True),
    "include_refiner": NetworkOption(read_bool, False),
    **options_of(by_name("sd15")),
    **options_of(by_name("flux")),
}
# Options that are read before the others: which family the model is of.
APART = {"architecture"}
OPTION = re.compile(r"`(\w+)=([^`]*)`")


def rows(heading: str) -> list[list[str]]:
    """The cells of the tables under a heading."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ")[0]
    lines = re.findall(r"^\|(.*)\|$", section, re.MULTILINE)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines if not set(line) <= set("|-")]


TABLES = ("Options of musubi-tuner", "Options of blissful-tuner", "Options of sd-scripts", "LyCORIS")
PAIRS = [(row[0], row[1]) for heading in TABLES for row in rows(heading) if "`" in row[0]]


def test_the_tables_are_read():
    assert len(PAIRS) > 40


@pytest.mark.parametrize("ours", dict.fromkeys(ours for _, ours in PAIRS))
def test_every_option_of_ours_is_one(ours):
    options = {name: value for name, value in OPTION.findall(ours) if name not in APART}
    assert parse(options, extra=EXTRA).given == options.keys()


def names_of(cell: str) -> set[str]:
    return {name for name, _ in OPTION.findall(cell)} - APART


@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_an_option_of_theirs_is_taken_or_refused_as_the_page_says(theirs, ours):
    for name, value in OPTION.findall(theirs):
        if name in names_of(ours):
            parse({name: value}, extra=EXTRA)
        elif name not in APART:
            with pytest.raises(ValueError, match="unknown network_args option"):
                parse({name: value}, extra=EXTRA)


@pytest.mark.parametrize("module", dict.fromkeys(re.findall(r"`lora_inspect\.networks\.(\w+)`", PAGE)))
def test_every_module_of_the_page_is_one(module):
    assert callable(import_module(f"networks.{module}").create_network)


FLUX = {theirs: ours for theirs, ours, *_ in rows("Options of sd-scripts") if re.fullmatch(r"`\w+_dim=8`", theirs)}


def test_the_page_has_every_rank_of_parts_of_flux():
    assert FLUX.keys() == {f"`{option}=8`" for option, _ in NETWORKS["networks.lora_flux"].typed}


@pytest.mark.parametrize(("option", "words"), NETWORKS["networks.lora_flux"].typed)
def test_a_pattern_gives_a_rank_to_the_layers_that_sd_scripts_gives_it(option, words):
    model = make("flux", "original")
    options = dict(OPTION.findall(FLUX[f"`{option}=8`"]))
    network = lora_flux.create_network(1.0, 4, 4.0, None, None, model, **options)
    ranks = {lora.lora_name: lora.lora_dim for lora in network.unet_loras}
    fit = {name for name in ranks if all(word in name for word in words)}
    assert fit
    assert ranks == {name: 8 if name in fit else 4 for name in ranks}
