"""The record of an algorithm, as the rest of the program uses it."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lora_inspect.fast_namedtuple import NamedTuple

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change

# What a tensor of a module is to its algorithm ("down", "up", …), and the end of the key that spells it.
Role = str
Suffix = str
Shapes = Mapping[Role, tuple[int, ...]]
Tensors = Mapping[Role, Any]
# (out features, in features·kernel) of a weight, None for what is not known.
Features = tuple[int | None, int | None]

WEIGHT, BIAS = "weight", "bias"
# The parameters of a layer that an algorithm may change.
PARAMETERS = (WEIGHT, BIAS, "modulation")
# What a formula finds among the tensors beside the factors.
SEEN = "seen"
# The dialect of PEFT, which keeps scales in a config with a `peft_type`.
PEFT = "peft"


class Surroundings(NamedTuple):
    """The context of a module's factors, which may decide the formula.

    `key` is the module's name, `roles` are its factors. `config` is the `adapter_config.json` that covers the module,
    None if there is none; `metadata` are the file's. `alpha` is the module's stored number, None if
    there is none and NaN if it is no number. `shares_alpha` is True if it may belong to another change of the module.

    `shapes` are the shapes of the factors. `chooses(field)` is True if a field of the config names the module, by the
    end of its path or by one expression for all modules; None if nothing says so. `numbers` are the values of the
    factors that hold one number, None for a value that is not a plain number. `beside` are the titles of the module's
    other changes of the same parameter.
    """

    key: str
    roles: Collection[Role]
    config: Mapping[str, Any] | None
    metadata: Mapping[str, str]
    alpha: float | None
    shares_alpha: bool
    shapes: Shapes = MappingProxyType({})
    chooses: Callable[[str], bool | None] = lambda field: None
    numbers: Mapping[Role, float | int | bool | None] = MappingProxyType({})
    beside: tuple[str, ...] = ()


class Shared(NamedTuple):
    """A tensor that the modules of a file share: PEFT keeps it next to the model, under no module's name.

    `name` is the part of its key after `base_model.`. If there are several, as `name.PART`, `part(path, parts)` is the
    part for the module at a dotted path, None if that is unknown. `missing` is the reason why a module has none, and
    `alone` the reason why a stored one belongs to no module: both are ends of sentences with a fix.
    """

    name: str
    missing: str
    alone: str = "fetch the file again, or write it again with the program that trained it"
    part: Callable[[str, Collection[str]], str | None] | None = None


class Formula(NamedTuple):
    """The formula of an algorithm.

    - `check(shapes)` is the problem with the shapes of the factors, or None. The others are called only after it.
    - `shape(shapes)` is (out, in, *kernel) of the weight that the factors change. Factors of a flattened kernel give
      (out, in·kernel), and an algorithm that does not know the number of inputs gives None for them.
    - `misfit(shapes, weight)` is None if `weight`, (out, in, *kernel), matches; else the end of a sentence that begins
      with the module's name and describes the weight that would match.
    - `rank(shapes)` is the rank that divides alpha; None if alpha is no scale.
    - `hidden_rank(shapes)`: if `rank` is None, the number that some programs still divide alpha by, in files that say
      so; a rank in their config counts then too. None if no program does.
    - `change(tensors, scale, alpha, **settings)` makes the change of the weight as a matrix (out, in·kernel) from the
      factors; `alpha` is None if there is none, and `settings` are those of the algorithm.
    - `low_rank(tensors)` is the pair (up, down), of shapes (out, rank) and (rank, in·kernel); its product is exactly
      the unscaled change. None if there is no thin pair.
    - `inner(shapes)` is the rank of a `change` that is a LowRank but that `low_rank` cannot make, because it depends on
      settings or on entries chosen by index. None for all others.
    - `outside(tensors, weight, **settings)` checks the numbers in the factors and settings, as `misfit` checks the
      shapes: it describes the ones outside a weight of the shape `weight`. None if all are inside, or if numbers cannot
      be outside.
    - `seen(tensors, blocks)` is the part of the layer's weight that the change of a bias needs. `blocks` gives the
      base's rows as (first, rows); `change` finds the result among the tensors, as SEEN. None if it needs nothing.
    - `together(shapes)` is the number of neighbouring rows that the change needs at once, in groups that begin with the
      first row; it is that of the change.
    - `sized` is True if `change` also gets `weight`, the shape (out, in, *kernel) of the weight, because the factors do
      not show it and the formula needs it.
    - `rslora` is True if it can have the RS-LoRA rule.
    - `thin(shapes)` is the inner size of the pair that `low_rank` makes, None if it makes none. numpy also computes
      an algorithm that has it: `low_rank` and `change` use no methods but those of `NumpyTensor`.
    """

    check: Callable[[Shapes], str | None]
    shape: Callable[[Shapes], tuple[int | None, ...]]
    misfit: Callable[[Shapes, tuple[int, ...]], str | None]
    rank: Callable[[Shapes], int | None]
    change: Callable[..., "Change"]
    low_rank: Callable[[Tensors], tuple[Any, Any] | None] | None = None
    rslora: bool = False
    hidden_rank: Callable[[Shapes], int] | None = None
    together: Callable[[Shapes], int] = lambda shapes: 1
    outside: Callable[..., str | None] | None = None
    sized: bool = False
    seen: Callable[[Tensors, Iterable[tuple[int, Any]]], Any] | None = None
    inner: Callable[[Shapes], int] | None = None
    thin: Callable[[Shapes], int | None] | None = None


class Algorithm(NamedTuple):
    """One algorithm: the names of its tensors, and its formula.

    `dialects` are the spellings of its roles, by the name of the dialect; a file may mix them. `marks` are the roles
    that it needs: if several algorithms know a suffix, the first one counts that has its marks and matching shapes.
    `parameter` is the parameter of a layer that it changes. `decomposes` is True if DoRA can apply to it, and
    `multiplies` if its change of a weight depends on the weight. `blends` is True if a multiplier other than 0 and 1
    has a meaning in its program, and `has_alpha` if an alpha next to its tensors can be its own. `peft_type` is its
    name in PEFT's `adapter_config.json`, where the scale of the `peft` dialect is. `transposed` is True if its layers
    store their weight as (in, out); None if that depends on the base. `common` are roles with common words as suffixes:
    if a file has no other tensors of it, they make an adapter only if most of its tensors have them. `unmarked` are
    roles with suffixes that a base has too, such as `.weight`: they count only in a module that has another role.
    `numbers` are roles that hold one number, which decides the meaning of the others and which `change` does not get.
    `beside` is the algorithm that must be on the same module; its scale is the scale of this one. `replaces` is True if
    a tensor takes the place of the parameter, so that no multiplier but 0 and 1 means anything.

    `positions` are roles with tensors of integers, the positions of the other tensors' numbers.
    `ties` is True if, in its program, a head that shares the weight of an embedding gets the embedding's change too.
    `scaled` are roles with factors that the change is linear in; the first one that is there takes a scale.
    `rows` are the roles with factors that have the same rows as the change: reordered, they are the factors of the
    reordered change, and zero rows leave the rows of the weight unchanged. Each maps to the role that it is multiplied
    by, (rows, rank) by (rank, …), or to None if it is no product. It is empty if rows cannot be arranged so; they
    cannot in a module with a factor that is not named, such as a Tucker core.

    `shared` are the roles of tensors that all modules of a file share, in no dialect; `check` must work without them
    while only the other tensors are known. `idle` are roles of tensors that the program writes but does not compute
    with, and that `change` does not get.

    `settings(surroundings)` are the other settings of the formula, by name, or the reason why they are unknown, as the
    end of a sentence with a fix. If they decide more than the change, `variant(surroundings)` is the algorithm with
    everything decided, or such a reason; code that only needs its names and ranks takes the undecided one.

    `option_of` is another algorithm and a setting of a PEFT config; with that setting its tensors may belong to this
    one, and `variant` decides.

    `bias` is the formula by which the same factors, scale and settings change the layer's bias (out,), if it has one;
    `needs_bias` is True if a layer without one lacks it.

    `equation` gives the new weight for a weight W, with m for the multiplier and s for the scale, and `writers` are the
    programs that write it, both as the page docs/algorithms.md shows them.

    `experts` is the number of experts that its factors are for, which a base has in one parameter or one by one; 0 for
    one layer. `packed` is True if the factors lie next to each other in two matrices, in an order and orientation that
    are still to be found out.

    An algorithm without a formula is recognised by its tensors, so that the error for a file has the right name, but
    lora-inspect does not compute it. `why` is the reason and the fix, as the end of a sentence, if there is more to say
    than that it is not built. `fits(shapes)` is True if shapes can be its own where others have its suffixes.
    """

    name: str
    title: str
    dialects: Mapping[str, Mapping[Role, Suffix]]
    marks: tuple[Role, ...] = ()
    formula: Formula | None = None
    parameter: str = WEIGHT
    decomposes: bool = False
    transposed: bool | None = None
    multiplies: bool = False
    blends: bool = True
    has_alpha: bool = True
    peft_type: str | None = None
    common: tuple[Role, ...] = ()
    unmarked: Mapping[Role, Suffix] = MappingProxyType({})
    numbers: tuple[Role, ...] = ()
    beside: str | None = None
    replaces: bool = False
    ties: bool = False
    positions: tuple[Role, ...] = ()
    scaled: tuple[Role, ...] = ()
    rows: Mapping[Role, Role | None] = MappingProxyType({})
    shared: Mapping[Role, Shared] = MappingProxyType({})
    idle: tuple[Role, ...] = ()
    settings: Callable[[Surroundings], Mapping[str, Any] | str] | None = None
    variant: Callable[[Surroundings], "Algorithm | str"] | None = None
    option_of: tuple[str, str] | None = None
    bias: Formula | None = None
    needs_bias: bool = False
    fits: Callable[[Shapes], bool] | None = None
    experts: int = 0
    packed: bool = False
    why: str = ""
    equation: str = ""
    writers: str = ""

    @property
    def bearer(self) -> str:
        """Return the name of the algorithm that others name in `beside`: the one it is an option of, or its own."""
        return self.option_of[0] if self.option_of else self.name

    @property
    def suffixes(self) -> dict[Suffix, Role]:
        """Return the role of every suffix, in any dialect."""
        return {suffix: role for dialect in self.dialects.values() for role, suffix in dialect.items()}


# Fields of `Algorithm` by the type of their values; functions with the number of their arguments.
_NAMES, _NAMES_OR_NONE, _TEXTS = ("name", "title"), ("peft_type", "beside"), ("why", "equation", "writers")
_FLAGS = ("decomposes", "multiplies", "blends", "has_alpha", "replaces", "ties", "needs_bias", "packed")
_OF_ROLES = ("marks", "common", "numbers", "positions", "scaled", "idle")
_MAPPINGS = ("dialects", "unmarked", "rows", "shared")
_HOOKS = {"settings": 1, "variant": 1, "fits": 1}
# Fields of `Formula`: the functions that every formula has, those that may be missing, and the flags.
_FUNCTIONS = {"check": 1, "shape": 1, "misfit": 2, "rank": 1, "change": 3, "together": 1}
_OPTIONAL_FUNCTIONS = {"low_rank": 1, "hidden_rank": 1, "outside": 2, "seen": 2, "inner": 1, "thin": 1}
_FLAGS_OF_FORMULA = ("rslora", "sized")
# Functions that get settings by name besides.
_WITH_SETTINGS = ("change", "outside")
# Roles without numbers that a formula multiplies.
_NO_FACTORS = ("numbers", "positions", "idle")
# The flags of a function with `*arguments` and with `**settings`, as `inspect` has them, which takes long to import.
_TAKES_ANY_NUMBER, _TAKES_ANY_KEYWORD = 4, 8
_Faults = Iterator[tuple[str, str]]


def check_record(algorithm: Algorithm, longest_suffix: int) -> None:
    """Check a record by itself, so that a mistake in it fails before a file is read.

    Raises ValueError, with the name of the field, for a record that some verb could not use.
    """
    if not isinstance(algorithm, Algorithm):
        raise ValueError(f"{algorithm!r} is no Algorithm")
    fault = next(_faults(algorithm, longest_suffix), None)
    if fault:
        field, problem = fault
        raise ValueError(f"algorithm {algorithm.name!r}: {field} {problem}")


def _faults(algorithm: Algorithm, longest_suffix: int) -> _Faults:
    """Yield the wrong fields, each with the end of a sentence that begins with its name; the types come first."""
    yield from _type_faults(algorithm)
    yield from _spelling_faults(algorithm, longest_suffix)
    yield from _role_faults(algorithm)
    if algorithm.parameter not in PARAMETERS:
        yield "parameter", f"is {algorithm.parameter!r}, which is none of {', '.join(PARAMETERS)}"
    if algorithm.packed and not algorithm.experts:
        yield "experts", "is 0, but `packed` factors are for a number of experts"
    if PEFT in algorithm.dialects and (algorithm.has_alpha or algorithm.scaled) and not algorithm.peft_type:
        yield "peft_type", f"is missing, but its scale in the dialect {PEFT!r} is in a config of its peft_type"
    if algorithm.variant and not algorithm.formula:
        yield "formula", "is missing, but code that needs no `variant` takes it"
    if algorithm.needs_bias and not algorithm.bias:
        yield "bias", "is missing, but a layer `needs_bias` for it"
    for field in ("formula", "bias"):
        yield from _formula_faults(field, getattr(algorithm, field))
        yield from _trial_faults(field, getattr(algorithm, field), algorithm)
    if algorithm.experts and algorithm.formula and not _takes_keyword(algorithm.formula.change, "turned"):
        yield "formula.change", "has no argument `turned`, which it gets for `experts`"


def _type_faults(algorithm: Algorithm) -> _Faults:
    for field in _NAMES:
        if not _is_name(getattr(algorithm, field)):
            yield field, f"is {getattr(algorithm, field)!r}, which is no name"
    for field in _NAMES_OR_NONE:
        name = getattr(algorithm, field)
        if not (name is None or _is_name(name)):
            yield field, f"is {name!r}, which is no name"
    for field in _TEXTS:
        if not isinstance(getattr(algorithm, field), str):
            yield field, f"is {getattr(algorithm, field)!r}, which is no text"
    for field in _FLAGS:
        if not isinstance(getattr(algorithm, field), bool):
            yield field, f"is {getattr(algorithm, field)!r}, which is neither True nor False"
    if not (algorithm.transposed is None or isinstance(algorithm.transposed, bool)):
        yield "transposed", f"is {algorithm.transposed!r}, which is none of True, False and None"
    for field in _MAPPINGS:
        if not isinstance(getattr(algorithm, field), Mapping):
            yield field, f"is {getattr(algorithm, field)!r}, which is no mapping"
    for field in _OF_ROLES:
        roles = getattr(algorithm, field)
        if not (isinstance(roles, tuple) and all(map(_is_name, roles))):
            yield field, f"is {roles!r}, which is no tuple of roles"
    for role, other in algorithm.rows.items():
        if not (_is_name(role) and (other is None or _is_name(other))):
            yield "rows", f"has {role!r} with {other!r}, which are no roles"
    for field, count in _HOOKS.items():
        function = getattr(algorithm, field)
        if function is not None:
            yield from _call_faults(field, function, count)
    pair = algorithm.option_of
    if pair is not None and not (isinstance(pair, tuple) and len(pair) == 2 and all(map(_is_name, pair))):
        yield "option_of", f"is {pair!r}, which is no pair of an algorithm and a setting"
    if type(algorithm.experts) is not int or algorithm.experts < 0:
        yield "experts", f"is {algorithm.experts!r}, which is no number of experts"


def _is_name(field: object) -> bool:
    return isinstance(field, str) and field != ""


def _spelling_faults(algorithm: Algorithm, longest_suffix: int) -> _Faults:
    roles: dict[Suffix, Role] = {}
    for dialect in algorithm.dialects:
        if not isinstance(dialect, str):
            yield "dialects", f"has {dialect!r}, which is no name of a dialect"
    for field, spellings in (("dialects", algorithm.dialects.values()), ("unmarked", (algorithm.unmarked,))):
        for spelling in spellings:
            if not isinstance(spelling, Mapping) or not all(map(_is_name, spelling)):
                yield field, f"has {spelling!r}, which is no mapping of roles to suffixes"
                continue
            for role, suffix in spelling.items():
                if not isinstance(suffix, str) or len(suffix) > longest_suffix or suffix[:1] != ".":
                    yield field, f"has {suffix!r}, which is no suffix: a dot and at most {longest_suffix - 1} letters"
                elif roles.setdefault(suffix, role) != role:
                    yield field, f"has the suffix {suffix} for the roles {roles[suffix]!r} and {role!r}"
    if not (roles or algorithm.shared or algorithm.replaces):
        yield "dialects", "has no suffix, so that no tensor belongs to it"


def _role_faults(algorithm: Algorithm) -> _Faults:
    stored = {role for dialect in (*algorithm.dialects.values(), algorithm.unmarked) for role in dialect}
    for role, shared in algorithm.shared.items():
        if role in stored:
            yield "shared", f"has the role {role!r}, which the modules have too"
        yield from _shared_faults(role, shared)
    if algorithm.beside and len(stored) != 1:
        yield "beside", f"is for an algorithm with one tensor in a module, but this has {len(stored)}"
    of_rows = {role for pair in algorithm.rows.items() for role in pair} - {None}
    for field in _NO_FACTORS:
        for role in getattr(algorithm, field):
            if role in algorithm.scaled or role in of_rows:
                yield field, f"has the role {role!r}, which is a factor in `scaled` or `rows`"
    for role in algorithm.idle:
        if role in algorithm.marks:
            yield "idle", f"has the role {role!r}, which is one of the `marks`"
    if algorithm.replaces:
        return  # reading gives a tensor that is saved whole its role
    known = {*stored, *algorithm.shared}
    for field, roles in (*((field, getattr(algorithm, field)) for field in _OF_ROLES), ("rows", of_rows)):
        for role in roles:
            if role not in known:
                yield field, f"has the role {role!r}, which no tensor has"


def _shared_faults(role: object, shared: object) -> _Faults:
    if not _is_name(role):
        yield "shared", f"has {role!r}, which is no role"
    if not isinstance(shared, Shared):
        yield "shared", f"has {shared!r}, which is no `Shared`"
        return
    for field in ("name", "missing", "alone"):
        if not _is_name(getattr(shared, field)):
            yield f"shared.{field}", f"is {getattr(shared, field)!r}, which is no text"
    if shared.part is not None:
        yield from _call_faults("shared.part", shared.part, 2)


def _formula_faults(field: str, formula: Formula | None) -> _Faults:
    if formula is None:
        return
    if not isinstance(formula, Formula):
        yield field, f"is {formula!r}, which is no `Formula`"
        return
    for name, count in (_FUNCTIONS | _OPTIONAL_FUNCTIONS).items():
        function = getattr(formula, name)
        if not (function is None and name in _OPTIONAL_FUNCTIONS):
            yield from _call_faults(f"{field}.{name}", function, count, name in _WITH_SETTINGS)
    for name in _FLAGS_OF_FORMULA:
        if not isinstance(getattr(formula, name), bool):
            yield f"{field}.{name}", f"is {getattr(formula, name)!r}, which is neither True nor False"
    if formula.sized and not _takes_keyword(formula.change, "weight"):
        yield f"{field}.change", "has no argument `weight`, which `sized` gives it"


def _trial_faults(field: str, formula: Formula | None, algorithm: Algorithm) -> _Faults:
    """Yield a role that `check` looks up and that no tensor has, by a trial with shapes of no file."""
    if formula is None or algorithm.replaces:
        return
    roles = {*algorithm.suffixes.values(), *algorithm.unmarked, *algorithm.shared}
    try:
        formula.check(dict.fromkeys(roles, (1, 1)))
    except KeyError as error:
        role = error.args[0] if error.args else None
        if isinstance(role, str) and role not in roles:
            yield f"{field}.check", f"looks up the role {role!r}, which no tensor has"
    except Exception:
        return  # the formula of a file with other shapes


def _call_faults(field: str, function: Any, count: int, has_settings: bool = False) -> _Faults:
    """Yield a fault of a field that cannot be called with `count` arguments, and settings by name if it gets those."""
    if not callable(function):
        yield field, f"is {function!r}, which cannot be called"
        return
    code = getattr(function, "__code__", None)
    if code is None:
        return  # not a function of Python, such as a partial one
    most = code.co_argcount - (getattr(function, "__self__", None) is not None)
    least = 0 if has_settings else most - len(function.__defaults__ or ())
    if count < least or (count > most and not code.co_flags & _TAKES_ANY_NUMBER):
        yield field, f"is called with {count} arguments and takes {least if count < least else most}"


def _takes_keyword(function: Callable[..., Any], name: str) -> bool:
    """Return False for a function of Python that has no argument of this name; True if that is not known."""
    code = getattr(function, "__code__", None)
    if code is None:
        return True
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return name in arguments or bool(code.co_flags & _TAKES_ANY_KEYWORD)
