"""Families that share module names: a list of one is never taken for the other."""

from collections.abc import Iterable

import pytest

from lora_inspect.architectures import Architecture, Layout, every
from lora_inspect.architectures.detection import candidates
from lora_inspect.architectures.patterns import pattern_of, patterns_of

Module = tuple[str, int | None, int | None]

# Blocks in each list of the sizes that have fewer than the largest.
SHALLOW = {
    ("wan", "1.3B"): 30,
    ("wan", "5B"): 30,
    ("sd3", "2B"): 24,
    ("cosmos", "2B"): 28,
    ("cosmos1", "7B"): 28,
    ("flux2", "klein 4B"): 20,
    ("flux2", "klein 9B"): 24,
}


def overlapping(architecture: Architecture, layout: Layout, separator: str) -> list[tuple[str, frozenset[str]]]:
    """The layouts of other families with some of the names, each with those that both have."""
    own = patterns_of(layout.paths, separator)
    return [
        (f"{other.name} {theirs.name}", shared)
        for other in every()
        if other is not architecture
        for theirs in other.layouts
        if not theirs.borrowed and (shared := own & patterns_of(theirs.paths, separator))
    ]


CONFUSABLE = [
    pytest.param(architecture, layout, separator, id=f"{architecture.name}-{layout.name}{separator}")
    for separator in "._"
    for architecture in every()
    for layout in architecture.layouts
    if not layout.borrowed and overlapping(architecture, layout, separator)
]


def filled(path: str, layout: Layout, most: int | None) -> list[str]:
    """The path at every block, at most `most`; at an index that counts no blocks, 0."""
    found = [""]
    at = ""
    for segment in path.split("."):
        counts = {pattern_of(list_, "."): count for list_, count in layout.blocks}
        count = counts.get(pattern_of(at, "."), 1)
        indices = range(min(count, most or count)) if segment == "{i}" else [segment]
        found = [f"{above}.{index}" if above else str(index) for above in found for index in indices]
        at = f"{at}.{segment}" if at else segment
    return found


def whole(architecture: Architecture, layout: Layout, size: str | None) -> list[Module]:
    """Every module of a full file: each path at each of its blocks, as wide as in that size."""
    widths = {one.path: (one.out_features, one.in_features) for one in architecture.sizes if one.name == size}
    most = SHALLOW.get((architecture.name, size or ""))
    return [(at, *widths.get(path, (None, None))) for path in layout.paths for at in filled(path, layout, most)]


def spelled(modules: Iterable[Module], separator: str) -> list[Module]:
    return [(path.replace(".", separator), out_features, in_features) for path, out_features, in_features in modules]


def parts_of(modules: list[Module], shared: frozenset[str], separator: str) -> dict[str, list[Module]]:
    """What a file may hold of the modules: those that both families have, and parts of these."""
    both = [module for module in modules if pattern_of(module[0], separator) in shared]
    leaf = both[0][0].rsplit(separator, 1)[-1]
    return {
        "all": modules,
        "what both have": both,
        "without widths": [(path, None, None) for path, _, _ in both],
        "first half": both[: len(both) // 2 + 1],
        "last half": both[len(both) // 2 :],
        "one kind of layer": [module for module in both if module[0].endswith(leaf)],
        "one module": both[:1],
        "last module": both[-1:],
    }


@pytest.mark.parametrize(("architecture", "layout", "separator"), CONFUSABLE)
@pytest.mark.slow
def test_a_family_is_among_the_candidates_of_its_own_files(architecture: Architecture, layout: Layout, separator: str):
    for size in {one.name for one in architecture.sizes} or {None}:
        modules = spelled(whole(architecture, layout, size), separator)
        for other, shared in overlapping(architecture, layout, separator):
            for what, part in parts_of(modules, shared, separator).items():
                found = [one.architecture.name for one in candidates(part, {})]
                assert architecture.name in found, (size, other, what, found)


def test_there_are_hundreds_of_pairs():
    """Otherwise the test above would be about nothing."""
    pairs = [other for parameters in CONFUSABLE for other in overlapping(*parameters.values)]
    assert len(pairs) > 600


def test_a_range_of_blocks_that_ends_where_another_family_ends_is_still_open():
    z_image: list[Module] = [(f"layers.{index}.feed_forward.w1", None, None) for index in range(10, 26)]
    assert {one.architecture.name for one in candidates(z_image, {})} == {"z_image", "lumina2", "ideogram4"}
