"""The mutations of a source file: one exchanged operator, comparison, constant, branch, argument or call each."""

import ast
import copy
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.MatMult: ast.Mult,
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
_METHODS = {"sqrt": "square", "square": "sqrt", "mul_": "div_", "isfinite": "isnan", "isnan": "isfinite", "abs": "neg"}
# Their arguments may stand in either order, or never do.
_EITHER_ORDER = {"max", "min", "lcm", "hypot", "isclose", "equal", "transpose"}
_ONE_ORDER = {"isinstance", "getattr", "cast", "replace", "partial", "next", "map", "range", "filter", "pack", "unpack"}
_Function = (ast.FunctionDef, ast.Lambda)


class Mutation(NamedTuple):
    """One change of one file: `number` counts its mutations, `scope` is the number of the function that it is in."""

    file: Path
    number: int
    scope: int | None
    line: int
    says: str


class _Spot(NamedTuple):
    """A place in a tree where a node stands, and the number of the innermost function around it."""

    parent: ast.AST
    field: str
    index: int | None
    scope: int | None

    def put(self, node: ast.AST) -> None:
        if self.index is None:
            setattr(self.parent, self.field, node)
        else:
            getattr(self.parent, self.field)[self.index] = node


def mutations_of(file: Path, root: Path) -> Iterator[Mutation]:
    tree, names = _parsed(file), Counter[str]()
    functions = [getattr(function, "name", "lambda") for function in _functions(tree)]
    for number, (_, old, new, spot) in enumerate(_every(tree)):
        where = str(file.relative_to(root)) + ("" if spot.scope is None else f" {functions[spot.scope]}")
        says = f"{where}: {_shown(old)}  ->  {_shown(new)}"
        names[says] += 1
        again = f" ({names[says]})" if names[says] > 1 else ""
        yield Mutation(file, number, spot.scope, getattr(old, "lineno", 0), says + again)


def source_of(mutation: Mutation) -> str:
    """The file with the mutation in it."""
    for number, (tree, old, new, spot) in enumerate(_every(_parsed(mutation.file))):
        if number == mutation.number:
            spot.put(ast.copy_location(new, old))
            return ast.unparse(ast.fix_missing_locations(tree))
    raise LookupError(mutation)


def drawn(every: list[Mutation], count: int, seed: int) -> list[Mutation]:
    """As many of the mutations, in an order that a change elsewhere in the sources leaves as it is."""
    return sorted(every, key=lambda mutation: random.Random(f"{seed} {mutation.says}").random())[:count]


def recording(file: Path, name: str) -> str:
    """The file with a call of `__seen__(name, number)` at the beginning of every function."""
    tree = _parsed(file)
    for number, function in enumerate(_functions(tree)):
        call = ast.Call(ast.Name("__seen__", ast.Load()), [ast.Constant(name), ast.Constant(number)], [])
        if isinstance(function, ast.FunctionDef):
            function.body.insert(int(ast.get_docstring(function) is not None), ast.Expr(call))
        else:
            both = ast.Tuple([call, function.body], ast.Load())
            function.body = ast.Subscript(both, ast.Constant(1), ast.Load())
    return ast.unparse(ast.fix_missing_locations(tree))


def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _functions(tree: ast.Module) -> list[ast.FunctionDef | ast.Lambda]:
    return [node for node in ast.walk(tree) if isinstance(node, _Function)]


def _every(tree: ast.Module) -> Iterator[tuple[ast.Module, ast.AST, ast.AST, _Spot]]:
    """(tree, old node, new node, spot) of every mutation."""
    numbers = {id(function): number for number, function in enumerate(_functions(tree))}
    for spot, old in list(_spots(tree, None, numbers)):
        for new in _mutated(old):
            yield tree, old, new, spot


def _spots(node: ast.AST, scope: int | None, numbers: dict[int, int]) -> Iterator[tuple[_Spot, ast.AST]]:
    """The nodes that compute something: no annotations, decorators, type aliases, messages or checks of a length."""
    scope = numbers.get(id(node), scope)
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST) and not _says_nothing(child, isinstance(node, ast.Module)):
                yield _Spot(node, field, index if isinstance(value, list) else None, scope), child
                yield from _spots(child, scope, numbers)


def _says_nothing(node: ast.AST, at_top: bool) -> bool:
    match node:
        case ast.Raise() | ast.JoinedStr() | ast.Import() | ast.ImportFrom() | ast.keyword(arg="strict"):
            return True
        case ast.If(test=ast.Name("TYPE_CHECKING")):
            return True
        case ast.Assign(value=ast.Subscript() | ast.BinOp(op=ast.BitOr())):
            return at_top
    return False


def _mutated(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of a node."""
    new = copy.deepcopy(node)
    match new:
        case ast.BinOp(op=operator) | ast.AugAssign(op=operator) if type(operator) in _OPERATORS:
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
        case ast.Attribute(value=owner, attr=name) if name in _METHODS and ast.unparse(owner) != "math":
            new.attr = _METHODS[name]
            yield new
        case ast.Slice(lower=lower, upper=upper) if lower or upper:
            yield ast.Slice(None if lower else lower, upper if lower else None, None)
        case ast.Call(args=[first, second, *rest]) if _has_an_order(new):
            new.args = [second, first, *rest]
            yield new
        case ast.If(test=test) if not isinstance(test, (ast.Compare, ast.UnaryOp)):
            new.test = ast.UnaryOp(ast.Not(), new.test)
            yield new
        case ast.Expr(value=ast.Call()):
            yield ast.Pass()


def _has_an_order(call: ast.Call) -> bool:
    name = ast.unparse(call.func).rpartition(".")[2]
    same = ast.dump(call.args[0]) == ast.dump(call.args[1])
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)
    return not same and not starred and name not in _EITHER_ORDER | _ONE_ORDER


def _shown(node: ast.AST) -> str:
    text = f"if {ast.unparse(node.test)}" if isinstance(node, ast.If) else ast.unparse(ast.fix_missing_locations(node))
    return text if len(text) < 90 else f"{text[:87]}..."
