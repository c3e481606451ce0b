"""The rules of the architecture: what may import what, and what a file may be.

Each answers with a sentence for every breach of it.
"""

import ast
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from creation_rules import tensors_without_a_place
from import_graph import AT_IMPORT, FOR_TYPES, IN_A_CALL, Import, Tree

from lora_inspect.cli.verb import VERBS as VERB_NAMES

# The parts of each package from the top down: each may import what stands below it, and nothing beside it. A part that
# is new has to find its place here.
TRAINED = "a trainer's network_module"
ORDER = {
    "lora_inspect": (
        ("__main__", "networks"),
        ("cli", "api"),
        ("ops",),
        ("reporting",),
        ("verifying", "scanning", "algebra"),
        ("merging", "converting", "checking", "editing"),
        ("programs", "matching"),
        ("reading",),
        ("algorithms", "codecs", "option"),
        ("maths", "schemes"),
        ("architectures", "shell"),
        ("files",),
        ("stores",),
        ("errors", "torchrun", "caching"),
        ("__init__", "sentences", "progress", "fast_namedtuple", "near_names", "start"),
        ("interrupt", "version"),
    ),
    "networks": (
        ("train_example", "adapting"),
        (TRAINED,),
        ("network",),
        ("modules",),
        ("files",),
        ("kernels",),
        ("__init__", "network_args"),
    ),
}
# What stands at the bottom, where nothing takes time, and leads to the top when it is called: the process begins in the
# one and calls the command line, Python programs import the other and are given the names of the API as they ask.
DOORS = ("lora_inspect.start", "lora_inspect")
# The same of the training networks, by both of their names.
DOORS_OF_NETWORKS = ("networks", "lora_inspect.networks")
# What the training networks have no use for: whoever calls them from Python is no command line.
VERBS = ("cli", "api", "ops")
# What takes long to load, and what of the command line must do without: until a verb runs, some for ever.
HEAVY = ("torch", "numpy", "safetensors")
LIGHT_VERBS = ("info", "check", "metadata", "metadata_changes", "metadata_edit")
LIGHT = (
    "lora_inspect.cli.info.command",
    "lora_inspect.reporting.file_record",
    "lora_inspect.reporting.measurement",
    *(f"lora_inspect.{part}.{verb}" for verb in LIGHT_VERBS for part in ("cli", "ops")),
)
# What `check` and `info` import once they are told to read all numbers.
OF_TENSORS = ("lora_inspect.checking.measured", "lora_inspect.algebra.measures.change_sizes")
# What `info` imports for a file that is wrong in programs: it plans from headers, and only with a base, which it has
# none of, plans lead on. tests/cli/test_light_screens.py runs that.
OF_PLANS = "lora_inspect.converting.fixes"
# Where each verb, or each name of the API, is imported once it is asked for, whichever it is.
ASKED_FOR = ("lora_inspect.cli.group", "lora_inspect")
# A file that is longer holds two concepts.
LONGEST = 500
# A folder with more files asks for a folder in it.
WIDEST = 20
# A file with fewer lines is a part of the file that imports it, if only one does.
LEAST = 100
# The registries, where each file is a fact. A folder of algorithms or families has as many as there are.
NAMED_FACTS = (
    "lora_inspect/algebra/methods/known",
    "lora_inspect/algorithms",
    "lora_inspect/algorithms/on_demand",
    "lora_inspect/programs/known",
    "lora_inspect/schemes",
)
FACTS = (*NAMED_FACTS, "lora_inspect/architectures/families", "lora_inspect/codecs")
# The folder whose files are network modules, which trainers import by name.
FOR_TRAINERS = "networks"
# The folders in which a verb has a file.
OF_VERBS = ("lora_inspect/cli", "lora_inspect/cli/algebra", "lora_inspect/ops")
# Names of files that mean the same in every folder.
SHARED_NAMES = ("__init__", "plan", "record", "options", "result", "names", "scale", "experts")
NAMELESS = ("utils", "util", "helpers", "helper", "common", "misc")

LEVELS = {
    package: {part: level for level, parts in enumerate(reversed(order)) for part in parts}
    for package, order in ORDER.items()
}


def part_of(module: str, tree: Tree) -> str:
    """What stands for a module in ORDER: its folder, or the file itself where it is in none."""
    package, part, *_ = [*module.split("."), "__init__"]
    is_file = tree.paths[module] == f"{package}/{part}.py"
    return TRAINED if package == "networks" and is_file and part not in LEVELS[package] else part


def leads_up(made: Import) -> bool:
    """Whether an import is one by which a door leads to the top: none that it makes when it is imported itself."""
    return made.source in (*DOORS, *DOORS_OF_NETWORKS) and made.when != AT_IMPORT


def circles(tree: Tree) -> Iterator[str]:
    """Modules that import each other, whenever they do."""
    inner = tree.inner(but=[made for made in tree.imports if leads_up(made)])
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
    """Imports of a part of the same package that stands higher, or beside."""
    for made in tree.imports:
        package = made.source.split(".")[0]
        if made.target not in tree.sources or made.target.split(".")[0] != package:
            continue
        source, target = part_of(made.source, tree), part_of(made.target, tree)
        if leads_up(made) or source == target:
            continue
        levels = LEVELS[package]
        if target not in levels or source not in levels:
            yield f"{target if target not in levels else source} has no place in the order: {made}"
        elif levels[target] >= levels[source]:
            yield f"{source} does not stand above {target}: {made}"


def networks_above_the_core(tree: Tree) -> Iterator[str]:
    """Imports of the training networks that lead to the verbs, or to themselves by a name that trainers own."""
    for made in tree.imports:
        if made.source.split(".")[0] == "networks":
            if made.target.startswith("lora_inspect") and part_of(made.target, tree) in (*VERBS, "networks"):
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


def through_the_doors(tree: Tree) -> Iterator[str]:
    """Imports of a part of the package by programs outside it, which have its API and its start."""
    for made in tree.imports:
        is_outside = made.source.split(".")[0] not in ORDER
        if is_outside and made.target.split(".")[0] in ORDER and made.target not in DOORS:
            yield f"a program outside the package imports lora_inspect only: {made}"


def light_start(tree: Tree) -> Iterator[str]:
    """Ways from the command line and the API to what takes long to load."""
    moments = {
        **dict.fromkeys(
            [
                *(*DOORS, "lora_inspect.__main__"),
                *(found for package in ("cli", "api", "ops") for found in tree.of(f"lora_inspect.{package}")),
            ],
            (AT_IMPORT,),
        ),
        **dict.fromkeys(LIGHT, (AT_IMPORT, IN_A_CALL)),
        OF_PLANS: (AT_IMPORT,),
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
            asked_for = made.when == IN_A_CALL and (made.source in ASKED_FOR or made.target in (*OF_TENSORS, OF_PLANS))
            if made.when in when and not asked_for and made.target not in reached:
                reached[made.target] = [*reached[module], made]
                waiting.append(made.target)
                yield reached[made.target]


def short_files(tree: Tree) -> Iterator[str]:
    """Files that are too long for one concept."""
    for module, source in tree.sources.items():
        if (lines := len(source.splitlines())) > LONGEST:
            yield f"{tree.paths[module]} has {lines} lines, {LONGEST} at most: it holds two concepts"


def wide_folders(tree: Tree) -> Iterator[str]:
    """Folders with too many files to find one in, other than those of facts and of network modules."""
    files: dict[str, int] = defaultdict(int)
    for path in tree.paths.values():
        files[_folder(path)] += 1
    for folder, count in files.items():
        if count > WIDEST and folder not in (*FACTS, FOR_TRAINERS):
            yield f"{folder} has {count} files, {WIDEST} at most: some of them share a noun"


def parts_of_another(tree: Tree) -> Iterator[str]:
    """Short files that only one file imports, at once: facts, entry points and verbs aside."""
    importers: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for made in tree.imports:
        if made.when != FOR_TYPES and made.target != made.source:
            importers[made.target][made.source].add(made.when)
    for module, path in tree.paths.items():
        stem, folder = _stem(path), _folder(path)
        is_entry = module in DOORS or stem in ("__init__", "__main__") or folder == FOR_TRAINERS
        is_verb = folder in OF_VERBS and stem in VERB_NAMES
        if is_entry or is_verb or folder in FACTS or len(importers[module]) != 1:
            continue
        [(source, moments)] = importers[module].items()
        lines = len(tree.sources[module].splitlines())
        if lines < LEAST and AT_IMPORT in moments:
            yield f"{path} has {lines} lines and one importer: it is a part of {tree.paths[source]}"


def names_twice(tree: Tree) -> Iterator[str]:
    """Names of files in two folders, unless they are the name of a verb, of a fact, or mean the same everywhere."""
    shared = {*SHARED_NAMES, *(_stem(path) for path in tree.paths.values() if _folder(path) in NAMED_FACTS)}
    named: dict[str, list[str]] = defaultdict(list)
    for path in sorted(tree.paths.values()):
        named[_stem(path)].append(path)
    for stem, paths in named.items():
        if len(paths) > 1 and stem not in shared:
            is_verb = stem in VERB_NAMES
            for path in paths[1:] if not is_verb else [path for path in paths if _folder(path) not in OF_VERBS]:
                others = ", ".join(other for other in paths if other != path)
                yield f"{path} has the name of {others}"


def _folder(path: str) -> str:
    return PurePosixPath(path).parent.as_posix()


def _stem(path: str) -> str:
    return PurePosixPath(path).stem


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
        through_the_doors,
        light_start,
        short_files,
        wide_folders,
        parts_of_another,
        names_twice,
        files_that_say_what_they_are,
        tensors_without_a_place,
    )
}

# Breaches that stay: the rule, the file that its sentence begins with, and the reason. No rule has another.
MOST_EXCEPTIONS = 25
EXCEPTIONS = {
    (names_twice, "lora_inspect/api/convert.py"): "the verb once more, as Python calls it",
    (short_files, "lora_inspect/programs/program_index.py"): "a written table, of a line for each name",
    (names_twice, "lora_inspect/ops/merge_jobs.py"): "a mode of the verb merge, so it has a file in cli and in ops",
}


def breaches(rule: Callable[[Tree], Iterator[str]], tree: Tree) -> list[str]:
    """All that a rule finds but the exceptions to it."""
    return [found for found in rule(tree) if (rule, found.split()[0]) not in EXCEPTIONS]
