"""From a seed and a number to a case."""

import random

from fuzz import folders, headers, metadata_words, mutations, odd_numbers, seeds
from fuzz.case import NETWORKS, Case
from fuzz.commands import command, targets
from fuzz.contents import Files, Json, Weights

# How often nothing but numbers is odd: a file that is good in all else gets behind the first checks.
_NUMBERS_ALONE = 0.15
# What takes a model and adapters that have to fit it.
_OF_MODELS = ("merge", "verify")
# What takes two models that differ.
_OF_TUNED = "extract"


def generate(seed: int, number: int) -> Case:
    """The same case for the same seed and number, whatever was generated before."""
    source = random.Random(f"{seed}:{number}")
    target = source.choice(targets())
    files = seeds.seed(_seed_name(source, target))
    if target.startswith("metadata"):
        files.contents.update(metadata_words.SIDE_FILES)
        if source.random() < 0.4:
            headers.give_room(files)
        if source.random() < 0.6:
            headers.give_words(files)
    if source.random() < _NUMBERS_ALONE:
        odd_numbers.change(source, files)
        return Case(files.contents, command(source, target, files), f"seed {seed}, case {number}")
    for _ in range(source.choice((0, 0, 0, 0, 1, 1, 2) if target in _OF_MODELS else (0, 0, 1, 1, 1, 2, 3))):
        if source.random() < 0.15:
            folders.change(source, files)
        else:
            _change_a_file(source, files)
    words = command(source, target, files)
    if source.random() < (0.15 if target.startswith("metadata") else 0.01):
        headers.tear(source, files)
    return Case(files.contents, words, f"seed {seed}, case {number}")


def _seed_name(source: random.Random, target: str) -> str:
    """Mostly one that the target does something with."""
    chance = source.random()
    if target == NETWORKS and chance < 0.8:
        return source.choice(seeds.names_for_networks())
    if (target in _OF_MODELS and chance < 0.25) or (target == _OF_TUNED and chance < 0.6):
        return source.choice(seeds.names_of_merged())
    if target in _OF_MODELS and chance < 0.7:
        return source.choice(seeds.names_that_merge())
    if target != NETWORKS and chance < 0.7:
        return source.choice(seeds.names_of_accepted())
    return source.choice(seeds.names())


def _change_a_file(source: random.Random, files: Files) -> None:
    """Mostly an adapter or what lies beside it; a base in one of four."""
    own = [
        name
        for name in files.contents
        if name.startswith(("a.", "b.", "merged.", "peft/", "zip.", "old.pt", "nested.pt"))
    ]
    others = [name for name in files.contents if name.startswith(("base", "shards/"))]
    names = [name for name in (own if source.random() < 0.75 else others) if name in files.contents]
    if not names:
        return
    name = source.choice(names)
    content = files.contents[name]
    if isinstance(content, bytes | Weights | Json):
        files.contents[name] = mutations.content(source, content)
