"""The record of an algorithm, as the rest of the program uses it."""

from collections.abc import Callable, Collection, Iterable, Mapping
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
# What a formula finds among the tensors beside the factors.
SEEN = "seen"


class Surroundings(NamedTuple):
    """What stands beside the factors of a module and may decide how they are computed.

    `key` is the module's name, `roles` are the factors that are there. `config` is the `adapter_config.json` that
    speaks of the module, None where there is none; `metadata` are the file's. `alpha` is the module's stored number,
    NaN where it is none, and `shares_alpha` says that another change of the module may be the one it belongs to.

    `shapes` are those of the factors. `chooses(field)` says whether the module is one of those that a field of the
    config names, by the ends of their paths or by one expression for all; None where nothing tells. `numbers` are the
    values of the factors that are single numbers, None for what is no plain one. `beside` are the titles of what else
    of the module changes the same parameter.
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
    """A tensor that the modules of a file have in common: PEFT keeps it beside the model, under no module's name.

    `name` is what its key has there behind `base_model.`. Where there are several of the name, as `name.PART`,
    `part(path, parts)` is the one of the module at a dotted path, None where that is unknown. `missing` is the reason
    why a module has none, and `alone` why no module has one that is there: ends of sentences with a way out.
    """

    name: str
    missing: str
    alone: str = "fetch the file again, or write it again with the program that trained it"
    part: Callable[[str, Collection[str]], str | None] | None = None


class Formula(NamedTuple):
    """How an algorithm is computed.

    - `check(shapes)` says what is wrong with the shapes of the factors, or None. The others are asked afterwards.
    - `shape(shapes)` is (out, in, *kernel) of the weight that they change. Factors of a flattened kernel tell
      (out, in·kernel), and an algorithm that does not tell how many inputs there are gives None for them.
    - `misfit(shapes, weight)` says what they change instead, as the end of a sentence that begins with the module's
      name, where that is no weight of the shape `weight`, (out, in, *kernel); else None.
    - `rank(shapes)` is the rank by which alpha is divided; None where alpha is no scale.
    - `hidden_rank(shapes)`, where `rank` is None, is what some programs divide alpha by all the same, in files that say
      so; a rank in their config counts then too. None where no program does.
    - `change(tensors, scale, alpha, **settings)` makes the change of the weight as a matrix (out, in·kernel) from the
      factors; `alpha` is None where there is none, and `settings` are those of the algorithm.
    - `low_rank(tensors)` is the pair (up, down), of shapes (out, rank) and (rank, in·kernel), whose product is exactly
      the unscaled change; None where there is no thin one.
    - `inner(shapes)` is the rank of a `change` that is a LowRank of what `low_rank` is not given: settings, or entries
      that are chosen by index. None for all others.
    - `outside(tensors, weight, **settings)` says of the numbers in the factors and settings what is not inside a weight
      of the shape `weight`, as `misfit` does of their shapes; None where all is, or where numbers cannot be outside.
    - `seen(tensors, blocks)` is what the change of a bias needs of the layer's weight, of which `blocks` gives the rows
      as the base has them: (first, rows); `change` finds it among the tensors, as SEEN. None where it needs nothing.
    - `together(shapes)` is how many neighbouring rows the change has to have at once, groups of which begin with the
      first one; it is that of the change.
    - `sized` says that `change` also gets `weight`, the shape (out, in, *kernel) of the weight, because the factors do
      not tell it and the formula needs it.
    - `rslora` says whether RS-LoRA's rule can be its own.
    - `thin(shapes)` is the inner size of the pair that `low_rank` makes, None where that makes none. An algorithm that
      has it is computed by numpy too: `low_rank` and `change` use no methods but those of `NumpyTensor`.
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
    """One algorithm: how its tensors are spelled, and its formula.

    `dialects` are the spellings of its roles, by the name of the dialect; a file may mix them. `marks` are the roles
    without which it is not this algorithm: of several that know a suffix, the first one counts whose marks are there
    and whose shapes fit. `parameter` is what of a layer it changes, `decomposes` says whether DoRA may be around it,
    `multiplies` whether its change of a weight depends on the weight, `blends` whether a multiplier other than 0 and 1
    has a meaning in its program, `has_alpha` whether an alpha beside its tensors can be its own, and `peft_type` is
    what PEFT calls it in an `adapter_config.json`. `transposed` says whether its layers store their weight as
    (in, out); None where that depends on the base. `common` are roles whose suffixes are common words: alone they make
    an adapter of a file only where most of its tensors have them. `unmarked` are roles whose suffixes a base has as
    well, as `.weight` is one: they are taken only of a module that has another role. `numbers` are roles that hold one
    number, which decides what the others mean and which `change` does not get. `beside` is the algorithm on the same
    module without which it means nothing, and whose scale is its own. `replaces` says that a tensor takes the place of
    the parameter, so that no multiplier but 0 and 1 means anything.

    `positions` are roles whose tensors are whole numbers that say where the others belong.
    `ties` says that in its program a head that shares the weight of an embedding takes part in the change of that.
    `scaled` are roles whose factors the change is linear in, the first that is there takes a scale.
    `rows` are the roles whose factors have the rows of the change as their own: taken in another order they are the
    factors of the change so ordered, and zeros those of rows that do not change. Each stands with the role of what it
    is multiplied by, (rows, rank) by (rank, …), or with None where it is no product. It is empty where rows cannot be
    arranged so, as they cannot in a module with a factor that is not named, as a Tucker core.

    `shared` are the roles of tensors that all modules of a file have in common, in no dialect; `check` has to do
    without them as long as the others are looked at alone. `idle` are roles of tensors that the program writes and
    does not compute with, which `change` does not get.

    `settings(surroundings)` are what else decides the formula, by name, or the reason why that is unknown, as the end
    of a sentence with a way out. Where they decide more than the change, `variant(surroundings)` is the algorithm with
    everything decided, or such a reason; what only needs names and ranks of it takes the undecided one.

    `option_of` is another algorithm and the setting of a PEFT config under which its tensors may be those of this one:
    `variant` is asked of them then.

    `bias` is how the same factors, scale and settings change the layer's bias, of shape (out,), where it has one;
    `needs_bias` says that a layer without one lacks it.

    `equation` is what becomes of a weight W, with m for the multiplier and s for the scale, and `writers` are the
    programs whose files have it, both as the page docs/algorithms.md says it.

    `experts` is of how many experts' layers its factors are, which a base has in one parameter or one by one; it is 0
    for those of one layer. `packed` says that they lie side by side in two matrices, so that it is to be found out how
    they do, and which way round they are.

    An algorithm without a formula is recognised by its tensors, so that a file is refused by the right name, but not
    computed; `why` not, and the way out, is the end of a sentence where there is more to say than that it is not built.
    `fits(shapes)` says whether shapes can be its own where others have its suffixes.
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
        """What the algorithms are `beside` that have its scale: the one that it is an option of, or itself."""
        return self.option_of[0] if self.option_of else self.name

    @property
    def suffixes(self) -> dict[Suffix, Role]:
        """The role of every suffix, in any dialect."""
        return {suffix: role for dialect in self.dialects.values() for role, suffix in dialect.items()}
