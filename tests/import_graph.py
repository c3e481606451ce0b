"""The imports of a tree of packages, read from its source: nothing of it is run."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

# When an import is made: when its file is, when a function of it is called, or never, for what checks types.
AT_IMPORT, IN_A_CALL, FOR_TYPES = "at import", "in a call", "for types"
# A part of a name that is not written down.
_ANY = "*"


class Import(NamedTuple):
    """That one module imports another: a module of the tree, or the first name of one outside."""

    source: str
    target: str
    when: str
    relative: bool = False

    def __str__(self) -> str:
        return f"{self.source} -> {self.target} ({self.when})"


class Tree(NamedTuple):
    """A tree of packages: the source and the path of each module by its dotted name, and every import."""

    sources: dict[str, str]
    paths: dict[str, str]
    imports: list[Import]

    def of(self, package: str) -> list[str]:
        """The package itself and all modules in it."""
        return [module for module in self.sources if module == package or module.startswith(f"{package}.")]

    def inner(self, *, but: Iterable[Import] = ()) -> dict[str, list[Import]]:
        """The imports of modules of the tree, by the module that makes them."""
        found: dict[str, list[Import]] = {module: [] for module in self.sources}
        for made in self.imports:
            if made.target in self.sources and made not in but:
                found[made.source].append(made)
        return found


def read_tree(files: Mapping[str, str]) -> Tree:
    """The tree of the Python sources by path, as in `{"package/part/file.py": "import os"}`."""
    paths = {_dotted(path): path for path in sorted(files)}
    sources = {module: files[path] for module, path in paths.items()}
    imports = [made for module, path in paths.items() for made in _imports(module, path, sources)]
    return Tree(sources, paths, list(dict.fromkeys(imports)))


def _dotted(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imports(module: str, path: str, sources: Mapping[str, str]) -> Iterator[Import]:
    package = module if path.endswith("/__init__.py") else module.rpartition(".")[0]
    for node, when in _with_moments(ast.parse(sources[module]), AT_IMPORT):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield Import(module, _known(name.name, sources), when)
        elif isinstance(node, ast.ImportFrom):
            start = _above(package, node.level) if node.level else ""
            origin = ".".join(filter(None, (start, node.module)))
            for name in node.names:
                yield Import(module, _known(f"{origin}.{name.name}", sources), when, node.level > 0)
        elif isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
            yield from _by_name(module, package, node, when, sources)


def _with_moments(tree: ast.AST, moment: str) -> Iterator[tuple[ast.AST, str]]:
    """Every node with the moment at which it runs."""
    for node in ast.iter_child_nodes(tree):
        inner = moment
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inner = IN_A_CALL
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            inner = FOR_TYPES
        yield node, moment
        yield from _with_moments(node, inner)


def _above(package: str, level: int) -> str:
    return ".".join(package.split(".")[: 1 - level or None])


def _known(name: str, sources: Mapping[str, str]) -> str:
    """The module of the tree that a dotted name leads to; the first part of one that leads out of it."""
    parts = name.split(".")
    return next(
        (found for end in range(len(parts), 0, -1) if (found := ".".join(parts[:end])) in sources),
        parts[0],
    )


def _by_name(module: str, package: str, call: ast.Call, when: str, sources: Mapping[str, str]) -> Iterator[Import]:
    """Imports by a name that is put together: a part that is not written down stands for files of the folder.

    They are those whose names below the folder the module has as texts, as in `part.file:function`, or all files of the
    folder where it has none.

    A package that imports its own files so does it once and for all, whichever function it is in. A name of which
    nothing is written down leads nowhere.
    """
    parts = call.args[0].values if isinstance(call.args[0], ast.JoinedStr) else [call.args[0]]
    name = "".join(_spelled(part, module) for part in parts)
    name = f"{package}{name}" if name.startswith(".") else name
    folder, _, last = name.rpartition(".")
    if last != _ANY:
        yield Import(module, _known(name, sources), when)
    elif folder:
        moment = AT_IMPORT if folder == module else when
        constants = (node.value for node in ast.walk(ast.parse(sources[module])) if isinstance(node, ast.Constant))
        named = {f"{folder}.{text.partition(':')[0]}" for text in constants if isinstance(text, str)}
        files = [found for found in sources if found.rpartition(".")[0] == folder]
        meant = [found for found in sources if found in named] or files
        yield from (Import(module, found, moment) for found in meant)


def _spelled(part: ast.AST, module: str) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    return module if isinstance(part, ast.FormattedValue) and ast.unparse(part.value) == "__name__" else _ANY
