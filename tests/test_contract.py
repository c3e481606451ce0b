"""The contract of the architecture: what may import what, and what a file may be.

Each rule answers with a sentence for every breach of it. It holds for the source as it is, and finds what is planted in
a toy tree for it: a rule that finds nothing anywhere would be none.
"""

import ast
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from import_graph import AT_IMPORT, FOR_TYPES, IN_A_CALL, Import, Tree, read_tree

ROOT = Path(__file__).parents[1]
PACKAGES = ("lora_inspect", "networks")

# The parts of lora_inspect from the top down: each may import what stands below it, and nothing beside it. A part that
# is new has to find its place here.
ORDER = (
    ("__main__", "networks"),
    ("cli",),
    ("ops",),
    ("merging", "converting"),
    ("matching",),
    ("reading",),
    ("algorithms",),
    ("maths", "schemes"),
    ("architectures",),
    ("files",),
    ("errors", "listing"),
    ("__init__", "printable", "progress", "start"),
)
# The process begins at the bottom, where nothing takes time, and calls the command line from there.
DOOR = "lora_inspect.start"
# What the training networks have no use for: whoever calls them from Python is no command line.
VERBS = ("cli", "ops")
# What takes long to load, and what of the command line must do without: all of it until a verb runs, `info` for ever.
HEAVY = ("torch", "numpy", "safetensors")
INFO = ("lora_inspect.cli.info", "lora_inspect.ops.info")
# Where each verb is imported once it is asked for, whichever it is.
ASKED_FOR = "lora_inspect.cli.verbs"
# Three screens: a file that is longer holds two concepts.
LONGEST = 300
NAMELESS = ("utils", "util", "helpers", "helper", "common", "misc")

LEVELS = {part: level for level, parts in enumerate(reversed(ORDER)) for part in parts}


def part_of(module: str) -> str:
    """What stands for a module in ORDER: its folder, or the file itself where it is in none."""
    return [*module.split("."), "__init__"][1]


def circles(tree: Tree) -> Iterator[str]:
    """Modules that import each other, whenever they do."""
    inner = tree.inner(but=[made for made in tree.imports if made.source == DOOR and made.when == IN_A_CALL])
    done: set[str] = set()

    def walk(module: str, way: list[Import]) -> Iterator[str]:
        if module in (made.source for made in way):
            first = next(number for number, made in enumerate(way) if made.source == module)
            yield f"in a circle: {', '.join(map(str, way[first:]))}"
        elif module not in done:
            for made in inner[module]:
                yield from walk(made.target, [*way, made])
            done.add(module)

    for module in inner:
        yield from walk(module, [])


def arrows_that_run_up(tree: Tree) -> Iterator[str]:
    """Imports of a part that stands higher, or beside."""
    for made in tree.imports:
        if not made.target.startswith("lora_inspect") or not made.source.startswith("lora_inspect"):
            continue
        source, target = part_of(made.source), part_of(made.target)
        if (made.source == DOOR and made.when == IN_A_CALL) or source == target:
            continue
        if target not in LEVELS or source not in LEVELS:
            yield f"{target if target not in LEVELS else source} has no place in the order: {made}"
        elif LEVELS[target] >= LEVELS[source]:
            yield f"{source} does not stand above {target}: {made}"


def networks_above_the_core(tree: Tree) -> Iterator[str]:
    """Imports of the training networks that lead to the verbs, or to themselves by a name that trainers own."""
    for made in tree.imports:
        if made.source.split(".")[0] == "networks":
            if made.target.startswith("lora_inspect") and part_of(made.target) in (*VERBS, "networks"):
                yield f"networks uses the core alone: {made}"
            if made.target.split(".")[0] == "networks" and not made.relative:
                yield f"networks has two names and may use neither: {made}"


def core_without_networks(tree: Tree) -> Iterator[str]:
    """Imports of `networks`, which in a trainer's process is the trainer's own folder."""
    for made in tree.imports:
        if made.source.startswith("lora_inspect") and made.target.split(".")[0] == "networks":
            yield f"another program may own a folder called networks: {made}"


def ops_apart(tree: Tree) -> Iterator[str]:
    """Imports of one op by another."""
    ops = tree.of("lora_inspect.ops")
    for made in tree.imports:
        if made.source in ops and made.target in ops:
            yield f"an op never imports an op: {made}"


def light_start(tree: Tree) -> Iterator[str]:
    """Ways from the command line to what takes long to load."""
    moments = {
        **dict.fromkeys([DOOR, "lora_inspect.__main__", *tree.of("lora_inspect.cli")], (AT_IMPORT,)),
        **dict.fromkeys(INFO, (AT_IMPORT, IN_A_CALL)),
    }
    for start, when in moments.items():
        if start in tree.sources:
            for way in ways(tree, start, when):
                if way[-1].target in HEAVY:
                    yield f"{start} takes long to load: {', '.join(map(str, way))}"


def ways(tree: Tree, start: str, when: tuple[str, ...]) -> Iterator[list[Import]]:
    """The first way from a module to each that it loads, itself or through others, at these moments."""
    made_by: dict[str, list[Import]] = {}
    for made in tree.imports:
        made_by.setdefault(made.source, []).append(made)
    reached: dict[str, list[Import]] = {start: []}
    for module in (waiting := [start]):
        # With a module its packages are loaded.
        parents = [Import(module, parent, AT_IMPORT) for parent in tree.paths if module.startswith(f"{parent}.")]
        for made in [*parents, *made_by.get(module, [])]:
            asked_for = made.source == ASKED_FOR and made.when == IN_A_CALL
            if made.when in when and not asked_for and made.target not in reached:
                reached[made.target] = [*reached[module], made]
                waiting.append(made.target)
                yield reached[made.target]


def short_files(tree: Tree) -> Iterator[str]:
    """Files that are longer than three screens."""
    for module, source in tree.sources.items():
        if (lines := len(source.splitlines())) > LONGEST:
            yield f"{tree.paths[module]} has {lines} lines, {LONGEST} at most: it holds two concepts"


def files_that_say_what_they_are(tree: Tree) -> Iterator[str]:
    """Files without a docstring, or with a name that says nothing; folders without a file that says it for them."""
    for module, source in tree.sources.items():
        path = tree.paths[module]
        if not ast.get_docstring(ast.parse(source)):
            yield f"{path} does not say what it is"
        if set(module.split(".")) & set(NAMELESS):
            yield f"{path} is named for nothing that it knows"
        if "." in module and module.rpartition(".")[0] not in tree.sources:
            yield f"{path} is in a folder without an __init__.py"


RULES: dict[str, Callable[[Tree], Iterator[str]]] = {
    rule.__name__: rule
    for rule in (
        circles,
        arrows_that_run_up,
        networks_above_the_core,
        core_without_networks,
        ops_apart,
        light_start,
        short_files,
        files_that_say_what_they_are,
    )
}

# A tree in which every rule holds, and what each rule finds in files that are added to it or stand in their place.
TOY = {
    "lora_inspect/__init__.py": "'''Toy.'''",
    "lora_inspect/start.py": "'''Toy.'''\ndef main():\n    from lora_inspect.cli import main",
    "lora_inspect/errors.py": "'''Toy.'''",
    "lora_inspect/cli/__init__.py": "'''Toy.'''\nimport lora_inspect.start",
    "lora_inspect/cli/info.py": "'''Toy.'''\nfrom lora_inspect.ops import info",
    "lora_inspect/cli/merge.py": "'''Toy.'''\nfrom lora_inspect.ops.merge import merge",
    "lora_inspect/ops/__init__.py": "'''Toy.'''",
    "lora_inspect/ops/info.py": "'''Toy.'''\nfrom lora_inspect import errors, reading",
    "lora_inspect/ops/merge.py": "'''Toy.'''\ndef merge():\n    import torch",
    "lora_inspect/reading/__init__.py": "'''Toy.'''",
    "lora_inspect/reading/evidence.py": "'''Toy.'''\nfrom lora_inspect.algorithms import lora",
    "lora_inspect/algorithms/__init__.py": "'''Toy.'''\nfrom importlib import import_module",
    "lora_inspect/algorithms/lora.py": "'''Toy.'''\nif TYPE_CHECKING:\n    import lora_inspect.maths.change",
    "lora_inspect/maths/__init__.py": "'''Toy.'''",
    "lora_inspect/maths/change.py": "'''Toy.'''\nimport lora_inspect.errors",
    "lora_inspect/maths/torch_maths.py": "'''Toy.'''\nfrom torch import nn",
    "networks/__init__.py": "'''Toy.'''\nfrom lora_inspect.maths import torch_maths",
    "networks/lora.py": "'''Toy.'''\nfrom . import layers",
    "networks/layers.py": "'''Toy.'''",
}
SAYS = "'''Toy.'''\n"
LAZY = SAYS + "def call():\n    "
TYPES = SAYS + "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "
PLANTED: list[tuple[Callable[[Tree], Iterator[str]], dict[str, str], str]] = [
    (circles, {"networks/layers.py": SAYS + "from .lora import LoRA"}, "networks.lora (at import)"),
    (circles, {"networks/layers.py": LAZY + "from .lora import LoRA"}, "networks.lora (in a call)"),
    (circles, {"networks/layers.py": TYPES + "from .lora import LoRA"}, "networks.lora (for types)"),
    (circles, {"networks/layers.py": SAYS + "class Layer:\n    from . import layers"}, "networks.layers (at import)"),
    (
        circles,
        {
            "lora_inspect/algorithms/__init__.py": LAZY + "importlib.import_module(f'{__name__}.{file}')",
            "lora_inspect/algorithms/lora.py": SAYS + "from lora_inspect.algorithms import add",
        },
        "lora_inspect.algorithms -> lora_inspect.algorithms.lora (at import)",
    ),
    (
        circles,
        {
            "lora_inspect/algorithms/__init__.py": SAYS
            + "FILES = [import_module(f'.{file}', __name__) for file in ()]",
            "lora_inspect/algorithms/lora.py": SAYS + "import lora_inspect.algorithms",
        },
        "lora_inspect.algorithms -> lora_inspect.algorithms.lora (at import)",
    ),
    (arrows_that_run_up, {"lora_inspect/maths/up.py": SAYS + "import lora_inspect.reading.evidence"}, "at import"),
    (arrows_that_run_up, {"lora_inspect/maths/up.py": LAZY + "from lora_inspect import algorithms"}, "in a call"),
    (arrows_that_run_up, {"lora_inspect/maths/up.py": TYPES + "from ..algorithms import lora"}, "for types"),
    (arrows_that_run_up, {"lora_inspect/maths/up.py": LAZY + "import_module('lora_inspect.cli')"}, "in a call"),
    (
        arrows_that_run_up,
        {"lora_inspect/schemes/__init__.py": SAYS + "import lora_inspect.maths"},
        "schemes does not stand above maths",
    ),
    (
        arrows_that_run_up,
        {"lora_inspect/start.py": SAYS + "import lora_inspect.cli"},
        "start does not stand above cli",
    ),
    (
        arrows_that_run_up,
        {"lora_inspect/errors.py": LAZY + "import lora_inspect.cli"},
        "errors does not stand above cli",
    ),
    (
        arrows_that_run_up,
        {"lora_inspect/odds/__init__.py": SAYS + "import lora_inspect.errors"},
        "odds has no place in the order",
    ),
    (networks_above_the_core, {"networks/lora.py": LAZY + "from lora_inspect.ops.merge import merge"}, "core alone"),
    (networks_above_the_core, {"networks/lora.py": SAYS + "import lora_inspect.cli"}, "core alone"),
    (networks_above_the_core, {"networks/lora.py": SAYS + "from networks import layers"}, "may use neither"),
    (networks_above_the_core, {"networks/lora.py": LAZY + "import networks.layers"}, "may use neither"),
    (core_without_networks, {"lora_inspect/maths/change.py": LAZY + "import networks.layers"}, "in a call"),
    (core_without_networks, {"lora_inspect/maths/change.py": TYPES + "from networks import layers"}, "for types"),
    (ops_apart, {"lora_inspect/ops/info.py": LAZY + "from lora_inspect.ops import merge"}, "in a call"),
    (ops_apart, {"lora_inspect/ops/info.py": SAYS + "from .merge import merge"}, "at import"),
    (light_start, {"lora_inspect/ops/merge.py": SAYS + "import torch"}, "lora_inspect.cli.merge takes long"),
    (light_start, {"lora_inspect/ops/__init__.py": SAYS + "import numpy"}, "lora_inspect.cli.merge takes long"),
    (light_start, {"lora_inspect/errors.py": SAYS + "from torch import nn"}, "lora_inspect.cli.info takes long"),
    (
        light_start,
        {"lora_inspect/ops/info.py": LAZY + "import lora_inspect.maths.torch_maths"},
        "lora_inspect.ops.info takes long",
    ),
    (
        light_start,
        {
            "lora_inspect/reading/__init__.py": SAYS + "import lora_inspect.algorithms",
            "lora_inspect/algorithms/__init__.py": LAZY + "import_module(f'{__name__}.{file}')",
            "lora_inspect/algorithms/lora.py": SAYS + "import torch",
        },
        "lora_inspect.algorithms.lora -> torch",
    ),
    (short_files, {"networks/layers.py": SAYS + "\n" * LONGEST}, "networks/layers.py has 301 lines"),
    (files_that_say_what_they_are, {"networks/layers.py": "import os"}, "networks/layers.py does not say"),
    (files_that_say_what_they_are, {"networks/files/utils.py": SAYS, "networks/files/__init__.py": SAYS}, "utils.py"),
    (files_that_say_what_they_are, {"networks/common/__init__.py": SAYS}, "networks/common/__init__.py is named for"),
    (files_that_say_what_they_are, {"networks/build/targets.py": SAYS}, "without an __init__.py"),
]


@pytest.fixture(scope="module")
def source() -> Tree:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return read_tree({path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths})


@pytest.mark.parametrize("rule", RULES)
def test_the_source_keeps_the_rule(rule, source):
    assert list(RULES[rule](source)) == []


@pytest.mark.parametrize("rule", RULES)
def test_the_toy_tree_keeps_the_rule(rule):
    assert list(RULES[rule](read_tree(TOY))) == []


@pytest.mark.parametrize(("rule", "files", "says"), PLANTED)
def test_the_rule_finds_what_is_planted(rule: Callable[[Tree], Iterator[str]], files: Mapping[str, str], says: str):
    assert any(says in found for found in rule(read_tree(TOY | files)))


def test_something_is_planted_for_every_rule():
    assert {rule.__name__ for rule, _, _ in PLANTED} == set(RULES)


def test_the_order_names_what_there_is(source):
    assert {part_of(module) for module in source.of("lora_inspect")} == set(LEVELS)


def test_every_moment_of_an_import_is_in_the_source(source):
    assert {made.when for made in source.imports} == {AT_IMPORT, IN_A_CALL, FOR_TYPES}


def test_git_ignores_no_file_of_the_packages(source):
    if not shutil.which("git") or not (ROOT / ".git").exists():
        pytest.skip("only where the source is in git")
    paths = "\n".join(source.paths.values())
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"], cwd=ROOT, input=paths, capture_output=True, text=True
    )
    assert ignored.stdout.split() == []  # wheels are made without what is ignored
