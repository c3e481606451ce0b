"""The contract of the architecture: its rules hold for the source, and find what is planted in a toy tree for each.

A rule that finds nothing anywhere would be none.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import pytest
from architecture_rules import (
    EXCEPTIONS,
    LEAST,
    LEVELS,
    LONGEST,
    MOST_EXCEPTIONS,
    RULES,
    WIDEST,
    arrows_that_run_up,
    breaches,
    circles,
    core_without_networks,
    files_that_say_what_they_are,
    light_start,
    names_twice,
    networks_above_the_core,
    ops_apart,
    part_of,
    parts_of_another,
    short_files,
    tensors_without_a_place,
    through_the_doors,
    wide_folders,
)
from import_graph import AT_IMPORT, FOR_TYPES, IN_A_CALL, Tree, read_tree

ROOT = Path(__file__).parents[1]
PACKAGES = ("lora_inspect", "networks")
# The rules for programs in integrations/, which other programs load. Their folders are no packages of a release.
OF_INTEGRATIONS = (circles, through_the_doors, short_files, wide_folders, parts_of_another)

# A tree in which every rule holds, and what each rule finds in files that are added to it or stand in their place.
TOY = {
    "lora_inspect/__init__.py": "'''Toy.'''\ndef __getattr__(name):\n    import_module(f'{__name__}.api.{name}')",
    "lora_inspect/start.py": "'''Toy.'''\ndef main():\n    from lora_inspect.cli import main",
    "lora_inspect/errors.py": "'''Toy.'''",
    "lora_inspect/api/__init__.py": "'''Toy.'''",
    "lora_inspect/api/verbs.py": "'''Toy.'''\nfrom lora_inspect.ops.merge import merge",
    "lora_inspect/cli/__init__.py": "'''Toy.'''\nimport lora_inspect.start",
    "lora_inspect/cli/info/__init__.py": "'''Toy.'''",
    "lora_inspect/cli/info/command.py": "'''Toy.'''\nfrom lora_inspect.ops import info",
    "lora_inspect/cli/merge.py": "'''Toy.'''\nfrom lora_inspect.ops.merge import merge",
    "lora_inspect/ops/__init__.py": "'''Toy.'''",
    "lora_inspect/ops/info.py": "'''Toy.'''\nfrom lora_inspect import errors, reading",
    "lora_inspect/ops/merge.py": "'''Toy.'''\ndef merge():\n    import torch",
    "lora_inspect/ops/check.py": "'''Toy.'''\ndef check():\n    import lora_inspect.checking.measured",
    "lora_inspect/checking/__init__.py": "'''Toy.'''",
    "lora_inspect/checking/measured.py": "'''Toy.'''\nimport numpy",
    "lora_inspect/reading/__init__.py": "'''Toy.'''",
    "lora_inspect/reading/evidence.py": "'''Toy.'''\nfrom lora_inspect.algorithms import lora",
    "lora_inspect/algorithms/__init__.py": "'''Toy.'''\nfrom importlib import import_module",
    "lora_inspect/algorithms/lora.py": "'''Toy.'''\nif TYPE_CHECKING:\n    import lora_inspect.maths.change",
    "lora_inspect/maths/__init__.py": "'''Toy.'''",
    "lora_inspect/maths/change.py": "'''Toy.'''\nimport lora_inspect.errors",
    "lora_inspect/maths/torch_maths.py": "'''Toy.'''\nfrom torch import nn",
    "networks/__init__.py": "'''Toy.'''\nfrom lora_inspect.maths import torch_maths",
    "networks/lora.py": "'''Toy.'''\nfrom .modules import layers",
    "networks/loha.py": "'''Toy.'''\nfrom lora_inspect.maths import torch_maths\nfrom .modules import layers",
    "networks/modules/__init__.py": "'''Toy.'''",
    "networks/modules/layers.py": "'''Toy.'''",
}
SAYS = "'''Toy.'''\n"
LAZY = SAYS + "def call():\n    "
TYPES = SAYS + "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "
PLANTED: list[tuple[Callable[[Tree], Iterator[str]], dict[str, str], str]] = [
    (circles, {"networks/modules/layers.py": SAYS + "from ..lora import LoRA"}, "networks.lora (at import)"),
    (circles, {"networks/modules/layers.py": LAZY + "from ..lora import LoRA"}, "networks.lora (in a call)"),
    (circles, {"networks/modules/layers.py": TYPES + "from ..lora import LoRA"}, "networks.lora (for types)"),
    (circles, {"networks/modules/layers.py": SAYS + "class Layer:\n    from . import layers"}, "layers (at import)"),
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
        {"lora_inspect/__init__.py": SAYS + "import lora_inspect.api.verbs"},
        "__init__ does not stand above api",
    ),
    (
        arrows_that_run_up,
        {"lora_inspect/api/verbs.py": LAZY + "import lora_inspect.cli.merge"},
        "api does not stand above cli",
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
    (
        arrows_that_run_up,
        {"networks/files/__init__.py": SAYS, "networks/files/saving.py": LAZY + "from ..lora import LoRA"},
        "files does not stand above a trainer's network_module",
    ),
    (
        arrows_that_run_up,
        {"networks/odds/__init__.py": SAYS + "from ..modules import layers"},
        "odds has no place in the order",
    ),
    (networks_above_the_core, {"networks/lora.py": LAZY + "from lora_inspect.ops.merge import merge"}, "core alone"),
    (networks_above_the_core, {"networks/lora.py": SAYS + "import lora_inspect.cli"}, "core alone"),
    (networks_above_the_core, {"networks/lora.py": LAZY + "import lora_inspect.api.verbs"}, "core alone"),
    (networks_above_the_core, {"networks/lora.py": SAYS + "from networks.modules import layers"}, "may use neither"),
    (networks_above_the_core, {"networks/lora.py": LAZY + "import networks.modules.layers"}, "may use neither"),
    (core_without_networks, {"lora_inspect/maths/change.py": LAZY + "import networks.modules.layers"}, "in a call"),
    (
        core_without_networks,
        {"lora_inspect/maths/change.py": TYPES + "from networks.modules import layers"},
        "for types",
    ),
    (ops_apart, {"lora_inspect/ops/info.py": LAZY + "from lora_inspect.ops import merge"}, "in a call"),
    (ops_apart, {"lora_inspect/ops/info.py": SAYS + "from .merge import merge"}, "at import"),
    (
        through_the_doors,
        {"channel/app.py": SAYS + "from lora_inspect import start\nfrom lora_inspect.ops.merge import merge"},
        "channel.app -> lora_inspect.ops.merge (at import)",
    ),
    (through_the_doors, {"channel/app.py": LAZY + "import networks.lora"}, "channel.app -> networks.lora (in a call)"),
    (light_start, {"lora_inspect/ops/merge.py": SAYS + "import torch"}, "lora_inspect.cli.merge takes long"),
    (light_start, {"lora_inspect/api/verbs.py": SAYS + "import torch"}, "lora_inspect.api.verbs takes long"),
    (light_start, {"lora_inspect/__init__.py": SAYS + "import numpy"}, "lora_inspect takes long"),
    (light_start, {"lora_inspect/ops/__init__.py": SAYS + "import numpy"}, "lora_inspect.cli.merge takes long"),
    (
        light_start,
        {"lora_inspect/errors.py": SAYS + "from torch import nn"},
        "lora_inspect.cli.info.command takes long",
    ),
    (
        light_start,
        {"lora_inspect/ops/info.py": LAZY + "import lora_inspect.maths.torch_maths"},
        "lora_inspect.ops.info takes long",
    ),
    (
        light_start,
        {"lora_inspect/ops/check.py": LAZY + "import lora_inspect.maths.torch_maths"},
        "lora_inspect.ops.check takes long",
    ),
    (
        light_start,
        {"lora_inspect/ops/check.py": SAYS + "import lora_inspect.checking.measured"},
        "lora_inspect.ops.check takes long",
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
    (
        short_files,
        {"networks/modules/layers.py": SAYS + "\n" * LONGEST},
        f"networks/modules/layers.py has {LONGEST + 1} lines",
    ),
    (
        wide_folders,
        {f"lora_inspect/maths/file_{number}.py": SAYS for number in range(WIDEST)},
        f"lora_inspect/maths has {WIDEST + 3} files",
    ),
    (
        parts_of_another,
        {"lora_inspect/maths/change.py": SAYS + "from . import part", "lora_inspect/maths/part.py": SAYS},
        "lora_inspect/maths/part.py has 1 lines and one importer: it is a part of lora_inspect/maths/change.py",
    ),
    (
        parts_of_another,
        {
            "lora_inspect/maths/change.py": LAZY + "from . import part\nfrom . import part",
            "lora_inspect/maths/part.py": SAYS + "\n" * (LEAST - 2),
            "lora_inspect/maths/more.py": TYPES + "from . import part",
        },
        f"lora_inspect/maths/part.py has {LEAST - 1} lines and one importer",
    ),
    (
        names_twice,
        {"lora_inspect/maths/layers.py": SAYS},
        "networks/modules/layers.py has the name of lora_inspect/maths/layers.py",
    ),
    (names_twice, {"lora_inspect/api/merge.py": SAYS}, "lora_inspect/api/merge.py has the name of lora_inspect/cli/"),
    (
        names_twice,
        {"lora_inspect/cli/merge_jobs.py": SAYS, "lora_inspect/ops/merge_jobs.py": SAYS},
        "lora_inspect/ops/merge_jobs.py has the name of lora_inspect/cli/merge_jobs.py",
    ),
    (
        files_that_say_what_they_are,
        {"networks/modules/layers.py": "import os"},
        "networks/modules/layers.py does not say",
    ),
    (files_that_say_what_they_are, {"networks/files/utils.py": SAYS, "networks/files/__init__.py": SAYS}, "utils.py"),
    (files_that_say_what_they_are, {"networks/common/__init__.py": SAYS}, "networks/common/__init__.py is named for"),
    (files_that_say_what_they_are, {"networks/build/targets.py": SAYS}, "without an __init__.py"),
]
# A tensor that does not say where it is or of which type, in each way in which one is made.
TORCH, NN = "import torch\n", "from torch import nn\n"
PLANTED += [
    (tensors_without_a_place, {"networks/modules/layers.py": SAYS + source}, f"networks/modules/layers.py:{says}")
    for source, says in (
        (TORCH + "torch.zeros(2)", "3: zeros without device and dtype"),
        (TORCH + "torch.zeros(2, dtype=torch.float32)", "3: zeros without device"),
        (TORCH + "torch.arange(2, device='cpu')", "3: arange without dtype"),
        (TORCH + "def call():\n    return torch.tensor([1.0])", "4: tensor without"),
        (TORCH + "torch.fft.fftfreq(2)", "3: fft.fftfreq without"),
        ("import torch as t\nt.eye(2)", "3: eye without"),
        ("from torch import full as filled\nfilled(2, 1.0)", "3: full without"),
        (TORCH + "from functools import partial\npartial(torch.ones, 2)", "4: ones without"),
        (TORCH + "values = list(map(torch.tensor, (1, 2)))", "3: tensor without"),
        (TORCH + "KEYWORDS = {'dtype': torch.float32}\ntorch.rand(2, **KEYWORDS)", "4: rand without device"),
        (TORCH + "def call(more):\n    torch.rand(2, **more)", "4: rand without"),
        (TORCH + "torch.Tensor(2)", "3: Tensor has neither"),
        ("from torch import FloatTensor\nFloatTensor([1])", "3: FloatTensor has neither"),
        (TORCH + "torch.where(torch.ones_like(1) > 0, -1.0, 1.0)", "3: where makes"),
        (NN + "nn.Linear(2, 2, bias=False)", "3: nn.Linear without"),
        (TORCH + "torch.nn.Embedding(2, 2, device='cpu')", "3: nn.Embedding without dtype"),
        ("from torch.nn import Conv2d\nConv2d(2, 2, 1)", "3: nn.Conv2d without"),
    )
]
PLACED = """
from functools import partial
import torch
from torch import Tensor, nn
PLACE = {"dtype": torch.float32, "device": "cpu"}
def call(like: Tensor, layer: nn.Linear) -> Tensor:
    isinstance(layer, (nn.Linear, nn.Conv2d))
    nn.Linear(2, 2, **PLACE), partial(torch.rand, 2, **PLACE), like.new_tensor(1), torch.empty_like(like)
    torch.where(like > 0, like, 0.0), zeros(2), like.zeros(2), nn.Dropout(0.5), torch.Generator(), nn.functional.linear
    return torch.arange(2, dtype=torch.long, device=like.device)
"""


@pytest.fixture(scope="module")
def source() -> Tree:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return read_tree({path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths})


@pytest.mark.parametrize("rule", RULES)
def test_the_source_keeps_the_rule(rule, source):
    assert breaches(RULES[rule], source) == []


@pytest.mark.parametrize("rule", OF_INTEGRATIONS)
def test_integrations_keep_the_rule(rule, source):
    folder = ROOT / "integrations"
    files = {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in folder.rglob("*.py")}
    known = {path: source.sources[module] for module, path in source.paths.items()}
    assert breaches(rule, read_tree(known | files)) == []


def test_exceptions_are_few_and_needed(source):
    found = {(rule, found.split()[0]) for rule, _ in EXCEPTIONS for found in rule(source)}
    assert EXCEPTIONS.keys() - found == set()
    assert len(EXCEPTIONS) <= MOST_EXCEPTIONS
    assert all(EXCEPTIONS.values())


KEPT = [
    (wide_folders, {f"lora_inspect/schemes/file_{number}.py": SAYS for number in range(WIDEST + 1)}),
    (wide_folders, {f"networks/lora_{number}.py": SAYS for number in range(WIDEST + 1)}),
    (
        parts_of_another,
        {
            "lora_inspect/maths/change.py": LAZY + "from . import part",
            "lora_inspect/maths/long.py": SAYS + "\n" * (LEAST - 1),
            "lora_inspect/maths/part.py": SAYS + "import lora_inspect.errors\nfrom . import long",
            "lora_inspect/reading/evidence.py": SAYS + "import lora_inspect.algorithms.lora",
            "lora_inspect/api/check.py": SAYS + "import lora_inspect.ops.check",
        },
    ),
    (
        through_the_doors,
        {
            "channel/app.py": SAYS
            + "import lora_inspect\nfrom lora_inspect import RefusedError\nfrom channel import other"
        },
    ),
    (
        names_twice,
        {
            "lora_inspect/algorithms/plan.py": SAYS,
            "lora_inspect/cli/check.py": SAYS,
            "lora_inspect/maths/plan.py": SAYS,
            "lora_inspect/reading/lora.py": SAYS,
        },
    ),
]


@pytest.mark.parametrize(("rule", "files"), KEPT)
def test_facts_verbs_and_files_that_wait_are_no_breach(rule, files):
    assert list(rule(read_tree(TOY | files))) == []


@pytest.mark.parametrize("rule", RULES)
def test_the_toy_tree_keeps_the_rule(rule):
    assert list(RULES[rule](read_tree(TOY))) == []


def test_what_says_where_a_tensor_is_or_takes_it_from_another_is_left_alone():
    assert list(tensors_without_a_place(read_tree(TOY | {"networks/modules/layers.py": SAYS + PLACED}))) == []


@pytest.mark.parametrize(("rule", "files", "says"), PLANTED)
def test_the_rule_finds_what_is_planted(rule: Callable[[Tree], Iterator[str]], files: Mapping[str, str], says: str):
    assert any(says in found for found in rule(read_tree(TOY | files)))


def test_something_is_planted_for_every_rule():
    assert {rule.__name__ for rule, _, _ in PLANTED} == set(RULES)


def test_the_order_names_what_there_is(source):
    for package, levels in LEVELS.items():
        assert {part_of(module, source) for module in source.of(package)} == set(levels)


def test_the_page_shows_the_folders_in_their_order(source):
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = {module.split(".")[1] for module in source.of("lora_inspect") if module.count(".") > 1}
    parts = [re.findall(r"`(\w+)`", cell) for cell in re.findall(r"^\| (`[^|]*) \|.*\|$", page, re.MULTILINE)]
    assert {*chain(*parts)} == folders
    levels = [{LEVELS["lora_inspect"][part] for part in row} for row in parts]
    assert all(len(level) == 1 for level in levels)
    assert levels == sorted(levels, key=max, reverse=True)


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
