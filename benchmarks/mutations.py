"""Whether the tests notice a changed formula: mutations of the mathematics, the places and the scale, one at a time.

    python benchmarks/mutations.py [--count 200] [--seed 0] [--workers 2] [--only TEXT]

Each mutation is one exchanged operator, comparison, constant, branch or argument in one file, drawn with a fixed seed.
It is loaded in the place of the file in a process of its own, which runs the tests until one fails; first they run on
the file as it is. Prints a line a mutation that survives, and the share that was killed; exits with 1 where that is
below 95%.
"""

import argparse
import ast
import copy
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lora_inspect"
FOLDERS = ("maths", "algorithms")
FILES = (
    "matching/place.py",
    "matching/match.py",
    "matching/target_weight.py",
    "reading/scales.py",
    "converting/carried_scale.py",
    "converting/change_norm.py",
)
# What does not compute a change: how torch is loaded, and names of files without a formula.
LEFT_OUT = ("torch_threads.py", "__init__.py", "record.py", "recognised.py", "features.py")
# The fastest and most telling first: a mutation is done with at the first failure.
TESTS = (
    "tests/algorithms",
    "tests/maths",
    "tests/merging",
    "tests/matching",
    "tests/ops/test_merge_dora.py",
    "tests/ops/test_merge.py",
    "tests/ops/test_convert.py",
    "tests/ops/test_convert_losses.py",
    "tests/ops/test_transposed_weights.py",
    "tests/converting",
    "tests/reading",
    "tests/networks/test_loha.py",
    "tests/networks/test_lokr.py",
    "tests/networks/test_layers.py",
    "tests/networks/test_network.py",
    "tests/networks/test_base_dtypes.py",
)
LIMIT_SECONDS = 900
SHARE = 0.95

_OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_COMPARISONS = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_NAMES = {"min": "max", "max": "min", "OUTPUT": "INPUT", "INPUT": "OUTPUT", "any": "all", "all": "any"}


class Mutation(NamedTuple):
    """One change of one file, as its new source."""

    file: Path
    line: int
    says: str
    source: str


def mutated(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""
    new = copy.deepcopy(node)
    match new:
        case ast.BinOp(op=operator) if type(operator) in _OPERATORS:
            new.op = _OPERATORS[type(operator)]()
            yield new
        case ast.Compare(ops=[operator]) if type(operator) in _COMPARISONS:
            new.ops = [_COMPARISONS[type(operator)]()]
            yield new
        case ast.BoolOp(op=operator):
            new.op = ast.Or() if isinstance(operator, ast.And) else ast.And()
            yield new
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield operand
        case ast.IfExp():
            new.body, new.orelse = new.orelse, new.body
            yield new
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(value * 2 if value else 1.0)
        case ast.Name(id=name) if name in _NAMES:
            yield ast.Name(_NAMES[name], new.ctx)
        case ast.Slice(lower=lower, upper=upper) if lower or upper:
            yield ast.Slice(None if lower else lower, upper if lower else None, None)
        case ast.Call(args=[first, second, *rest]) if not any(isinstance(arg, ast.Starred) for arg in new.args):
            new.args = [second, first, *rest]
            yield new
        case ast.If():
            new.test = ast.UnaryOp(ast.Not(), new.test)
            yield new


def computing(tree: ast.Module) -> Iterator[tuple[ast.AST, str, int | None]]:
    """The nodes whose change changes what is computed, each as (parent, field, index)."""
    left_out: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Raise, ast.JoinedStr)):
            left_out |= {id(child) for child in ast.walk(node)}
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            if annotation is not None:
                left_out |= {id(child) for child in ast.walk(annotation)}
        for decorator in getattr(node, "decorator_list", ()):
            left_out |= {id(child) for child in ast.walk(decorator)}
        is_typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if is_typing or (isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript)):
            left_out |= {id(child) for child in ast.walk(node)}
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            children = value if isinstance(value, list) else [value]
            for index, child in enumerate(children):
                if isinstance(child, ast.AST) and id(child) not in left_out:
                    yield parent, field, index if isinstance(value, list) else None


def mutations_of(file: Path) -> Iterator[Mutation]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for parent, field, index in computing(tree):
        old = getattr(parent, field) if index is None else getattr(parent, field)[index]
        for new in mutated(old):
            put(parent, field, index, ast.copy_location(new, old))
            source = ast.unparse(ast.fix_missing_locations(tree))
            put(parent, field, index, old)
            says = f"{shown(old)}  ->  {shown(new)}"
            yield Mutation(file, getattr(old, "lineno", 0), says, source)


def put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def shown(node: ast.AST) -> str:
    text = ast.unparse(node.test) if isinstance(node, ast.If) else ast.unparse(ast.fix_missing_locations(node))
    return text if len(text) < 90 else f"{text[:87]}..."


class Replaced(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from another source."""

    def __init__(self, mutation: Mutation) -> None:
        self._name = ".".join(mutation.file.relative_to(ROOT).with_suffix("").parts)
        self._mutation = mutation

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if name == self._name else None

    def exec_module(self, module):
        module.__file__ = str(self._mutation.file)
        exec(compile(self._mutation.source, module.__file__, "exec"), module.__dict__)


def start(mutation: Mutation) -> int:
    """Runs the tests on a mutation in a process of its own, and returns its number."""
    child = os.fork()
    if child:
        return child
    signal.alarm(LIMIT_SECONDS)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    sys.meta_path.insert(0, Replaced(mutation))
    import pytest

    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", f"--rootdir={ROOT}"]
    os._exit(int(pytest.main([*arguments, *(str(ROOT / test) for test in TESTS)])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="mutations of files with this in their path")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(ROOT))
    found = [file for folder in FOLDERS for file in sorted((PACKAGE / folder).rglob("*.py"))]
    files = [file for file in (*found, *(PACKAGE / name for name in FILES)) if file.name not in LEFT_OUT]
    every = [m for file in files if options.only in str(file) for m in mutations_of(file)]
    drawn = random.Random(options.seed).sample(every, min(options.count, len(every)))
    print(f"{len(drawn)} of {len(every)} mutations in {len(files)} files", flush=True)
    # What takes longest to load is loaded once; the package itself is loaded by each process.
    import diffusers  # noqa: F401
    import hypothesis  # noqa: F401
    import lycoris  # noqa: F401
    import peft  # noqa: F401
    import transformers  # noqa: F401

    loaded = [name for name in sys.modules if name.partition(".")[0] in ("lora_inspect", "networks")]
    assert not loaded, loaded
    began, survivors, done = time.time(), [], 0
    unchanged = Mutation(drawn[0].file, 0, "", drawn[0].file.read_text(encoding="utf-8"))
    start(unchanged)
    if os.waitstatus_to_exitcode(os.wait()[1]):
        sys.exit("the tests fail without any mutation")
    print(f"the tests pass without any, in {time.time() - began:.0f} s", flush=True)
    running: dict[int, Mutation] = {}
    waiting = iter(drawn)
    while True:
        while len(running) < options.workers and (mutation := next(waiting, None)):
            running[start(mutation)] = mutation
        if not running:
            break
        child, status = os.wait()
        mutation, done = running.pop(child), done + 1
        if os.waitstatus_to_exitcode(status) == 0:
            survivors.append(mutation)
            where = mutation.file.relative_to(ROOT)
            print(f"survived: {where}:{mutation.line}: {mutation.says}", flush=True)
        if done % 10 == 0:
            print(f"{done} done, {len(survivors)} survived, {time.time() - began:.0f} s", flush=True)
    share = 1 - len(survivors) / len(drawn)
    print(f"{len(drawn) - len(survivors)} of {len(drawn)} killed: {share:.1%}")
    sys.exit(share < SHARE)


if __name__ == "__main__":
    main()
