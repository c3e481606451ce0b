"""The rule that every tensor which is made says where it is and of which type.

A program that calls us may choose a device or an element type for what it makes itself (`torch.set_default_device`,
`torch.set_default_dtype`, `with torch.device(…)`), and torch takes these wherever a call names none. What is made like
another tensor (`new_zeros`, `zeros_like`, …) takes both from that one.
"""

import ast
import inspect
from collections.abc import Iterator

from import_graph import Tree
from torch import nn
from torch.utils._device import _device_constructors

BOTH = frozenset({"dtype", "device"})
# What takes both, by its last name: torch's own list of what the device of a `with` is given to, and layers.
FUNCTIONS = frozenset(function.__name__.removeprefix("fft_") for function in _device_constructors())
LAYERS = frozenset(
    name
    for name, kind in vars(nn).items()
    if inspect.isclass(kind) and inspect.signature(kind).parameters.keys() >= BOTH
)
# Constructors of before, which have none.
OLD = frozenset(
    f"{kind}Tensor"
    for kind in ("", "Float", "Double", "Half", "BFloat16", "Byte", "Char", "Short", "Int", "Long", "Bool")
)
# Programs of their own, which nobody calls: what they choose is theirs.
PROGRAMS = ("networks.train_example",)


def tensors_without_a_place(tree: Tree) -> Iterator[str]:
    """Calls that make a tensor without naming both, and numbers that become a tensor of their own."""
    for module, source in tree.sources.items():
        if module not in PROGRAMS:
            for line, what in _made_in(ast.parse(source)):
                yield f"{tree.paths[module]}:{line}: {what}"


def _made_in(tree: ast.Module) -> Iterator[tuple[int, str]]:
    names, places = dict(_imported(tree)), _places(tree)
    called: dict[ast.AST, ast.Call] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            # partial(torch.zeros, …) names them for what it makes.
            of = node.args[0] if _dotted(node.func, names).endswith("partial") and node.args else node.func
            called[of] = node
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute | ast.Name) or not _dotted(node, names).startswith("torch."):
            continue
        name, call = _dotted(node, names).removeprefix("torch."), called.get(node)
        *_, last = name.split(".")
        is_layer = name.startswith("nn.") and last in LAYERS
        if is_layer and call is None:
            continue  # a type that others are compared with
        if is_layer or (last in FUNCTIONS and not name.startswith("nn.")):
            if missing := BOTH - (_named(call, places) if call else frozenset()):
                yield node.lineno, f"{name} without {' and '.join(sorted(missing))}"
        elif last in OLD and call:
            yield node.lineno, f"{name} has neither a dtype nor a device; call torch.tensor"
        elif last == "where" and call and len(call.args) == 3 and all(map(_is_number, call.args[1:])):
            yield node.lineno, "where makes a tensor of numbers alone, which have no dtype"


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """The names that stand for torch, its parts and what is in them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "torch":
                    yield (alias.asname, alias.name) if alias.asname else ("torch", "torch")
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _dotted(node: ast.AST, names: dict[str, str]) -> str:
    """The whole name of an expression of names and dots; nothing of any other."""
    if isinstance(node, ast.Attribute):
        before = _dotted(node.value, names)
        return f"{before}.{node.attr}" if before else ""
    return names.get(node.id, "") if isinstance(node, ast.Name) else ""


def _places(tree: ast.Module) -> dict[str, frozenset[str]]:
    """What dictionaries that the file itself writes down name, by the names of these."""
    found = {}
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if targets and isinstance(node.value, ast.Dict):
            keys = frozenset(key.value for key in node.value.keys if isinstance(key, ast.Constant))
            found |= {target.id: keys for target in targets if isinstance(target, ast.Name)}
    return found


def _named(call: ast.Call, places: dict[str, frozenset[str]]) -> frozenset[str]:
    found = frozenset(keyword.arg for keyword in call.keywords if keyword.arg)
    for keyword in call.keywords:
        if keyword.arg is None and isinstance(keyword.value, ast.Name):
            found |= places.get(keyword.value.id, frozenset())
    return found


def _is_number(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) or (isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant))
