"""Differences of the norms and parameters of a base, as LyCORIS spells them, and what a merge of them is."""

import layouts
import torch

from lora_inspect.architectures.patterns import pattern_of, patterns_of

SUFFIXES = {".weight": ".w_norm", ".bias": ".b_norm", "": ".diff"}


def of(base, layout):
    """By tensor of the base, one of a norm or a parameter of the layout, what is added to it."""
    norms = patterns_of(layout.norms, ".")
    paths = {layouts.split(name)[0] for name in base} - set(layouts.matrices(base))
    names = [name for name in base if (path := layouts.split(name)[0]) in paths and pattern_of(path, ".") in norms]
    assert names
    generator = torch.Generator().manual_seed(11)
    return {name: torch.randn(base[name].shape, generator=generator) for name in names}


def spelled(differences, name_of):
    """The tensors of an adapter; `name_of` makes the name of a module of its path."""
    named = {name: layouts.split(name) for name in differences}
    return {name_of(path) + SUFFIXES[end]: differences[name] for name, (path, end) in named.items()}


def added(values, bounds, differences, multiplier):
    """The float64 tensors and bounds with the differences in them, of any float32 sum."""
    sums = {name: values[name] + multiplier * value.double() for name, value in differences.items()}
    errors = {name: (value.abs() + values[name].abs()) * 2.0**-22 for name, value in sums.items()}
    return values | sums, bounds | errors
