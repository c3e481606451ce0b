"""The placement of a contribution in a base, and the change that it makes there.

The factors of experts go into the parameter of all of them, or into the weights of each. Such factors show two sizes of
an expert's matrix, and the base shows which of them is that of its rows.

An expert is a gated feed-forward, so that its two parameters together show their orientation: (experts, 2·n, m) and
(experts, m, n) are stored as (experts, out, in), (experts, m, 2·n) and (experts, n, m) as (experts, in, out). No sizes
are both. If each of the layers has a module of its own, as in mlx-lm, its weight is (experts, out, in).
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from lora_inspect.algorithms.lora_experts import widths
from lora_inspect.algorithms.record import SEEN, WEIGHT
from lora_inspect.architectures.families.llm import EXPERT_PARAMETERS
from lora_inspect.architectures.rows import Interleaved, Runs
from lora_inspect.errors import AmbiguousError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.matching.module_map import Home
from lora_inspect.reading.base.base_names import SharedRows
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.packed_experts import FIRST, INPUT
from lora_inspect.reading.peft.residual_adapters import PISSA

if TYPE_CHECKING:
    from lora_inspect.maths.change import Change


class Place(NamedTuple):
    """Rows of a base tensor, and the rows of a contribution that land in them; in order without `runs`.

    Rows are counted in the weight as (out, in, *kernel). `transposed` says that the base stores it as (in, out). If the
    weight is a `block` of the stored tensor's rows, that is the first row and their number. `seen` is the weight of the
    layer that the change of its bias depends on.
    """

    target: TensorInfo
    runs: Runs | None = None
    transposed: bool = False
    block: tuple[int, int] | None = None
    seen: TensorInfo | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in, *kernel) of the part of the weight that is changed."""
        stored = (self.block[1], *self.target.shape[1:]) if self.block else self.target.shape
        whole = stored[::-1] if self.transposed else stored
        return whole if self.runs is None else (self.runs.rows, *whole[1:])


class Placement(NamedTuple):
    """A contribution and its place; `rows` is the number of rows of all its places together, None for one place."""

    contribution: Contribution
    place: Place
    rows: int | None = None

    @property
    def whole(self) -> tuple[int, ...]:
        """(out, in, *kernel) of the part of the base that the contribution changes in all of its places together."""
        return (self.rows, *self.place.shape[1:]) if self.rows and self.place.shape else self.place.shape

    @property
    def is_alone(self) -> bool:
        """True if all rows of the contribution land here."""
        return self.rows is None or (bool(self.place.shape) and self.place.shape[0] == self.rows)

    def change(self, tensors: Mapping[str, Any], rule: str | None = None) -> "Change":
        """Return the change of the stored target, from the contribution's tensors by role ("magnitude" for DoRA's).

        `rule` is the rule for multipliers of DoRA; None is the spelling's own. Raises LoraInspectError if numbers in
        the tensors mean positions outside the target.
        """
        from lora_inspect.maths.dora_fold import decomposed, magnitude_of

        contribution, place, _ = self
        roles = [*contribution.operands, *([SEEN] if place.seen else [])]
        factors = {role: tensors[role] for role in roles}
        self._check_inside(factors)
        formula = contribution.formula
        settings = {**contribution.settings, "weight": self.whole} if formula.sized else contribution.settings
        change = formula.change(factors, contribution.known_scale, contribution.alpha, **settings)
        if contribution.magnitude:
            spelling = contribution.magnitude.spelling
            values = magnitude_of(spelling, tensors["magnitude"].reshape(-1), rule)
            change = decomposed(change, values, contribution.magnitude.axis, prod(place.shape[2:]))
        return self._on_target(change)

    def read_change(
        self,
        factors: Callable[[Contribution], dict[str, Any]],
        blocks: Callable[[TensorInfo], Iterable[tuple[int, Any]]],
        dtype: Any,
        rule: str | None = None,
    ) -> "Change":
        """Return the change with the tensors read from the file, numbers in `dtype`.

        `factors` reads those of a contribution by role, and `blocks` the weight that a change of a bias depends on.
        """
        from lora_inspect.maths.tensors import load

        contribution, place, _ = self
        tensors = factors(contribution)
        if contribution.magnitude:
            tensors["magnitude"] = load(contribution.magnitude.info).to(dtype)
        if place.seen and contribution.formula.seen:
            tensors[SEEN] = contribution.formula.seen(tensors, blocks(place.seen))
        return self.change(tensors, rule)

    @property
    def has_residual(self) -> bool:
        """True if a part of the target was moved into the factors and is still in the target."""
        return bool(self.contribution.residual) and not self.contribution.on_residual

    def residual(self) -> "Change":
        """Return the change that removes from the target the part that was moved into the factors."""
        from lora_inspect.maths.residual import Residual, orthogonal_factors, principal_factors

        rank = self.contribution.known_rank
        if self.contribution.residual == PISSA:
            # Whatever the scale is, the factors were made for the product with it.
            return self._on_target(Residual(partial(principal_factors, rank=rank), 1.0))
        return self._on_target(Residual(partial(orthogonal_factors, rank=rank), self.contribution.known_scale))

    def _on_target(self, change: "Change") -> "Change":
        from lora_inspect.maths.change import OnBlock, OnRows

        place = self.place
        if place.runs:
            change = OnRows(change, tuple(place.runs.each()))
        change = change.transposed() if place.transposed else change
        return OnBlock(change, *place.block) if place.block else change

    def _check_inside(self, factors: Mapping[str, Any]) -> None:
        contribution = self.contribution
        outside = contribution.formula.outside
        if outside and (wrong := outside(factors, self.whole, **contribution.settings)):
            first = next(iter(contribution.factors.values()))
            raise RefusedError(
                first.file,
                f"{contribution.module.key} {wrong}, but {self.place.target.name} is {list(self.whole)}",
                "use a base of the adapter's model and size, or fetch the file again",
            )

    def check_groups(self) -> None:
        """Raise LoraInspectError if the place begins or ends within rows that belong together."""
        contribution, place, _ = self
        together, runs = contribution.formula.together(contribution.shapes), place.runs
        if runs is None or (runs.times == 1 and runs.rows == contribution.shape[0]):
            return
        if not any((stop - start) % together or source % together for start, stop, source in runs.each()):
            return
        first = next(iter(contribution.factors.values()))
        raise RefusedError(
            first.file,
            f"{contribution.module.key} ({contribution.algorithm.title}) changes groups of {together} rows, "
            f"but {place.target.name} has them in another order or only in part",
            "use a base in the adapter's layout",
        )


# The head of a model that gives a class to every token.
_CLASSIFIER = "score.weight"


class ExpertStorage(NamedTuple):
    """The storage of the parameters of a layer's experts: as (experts, in, out), and with gate and up interleaved."""

    transposed: bool
    interleaved: bool = False


def as_matrix(info: TensorInfo) -> TensorInfo:
    """Return the parameter as a matrix (experts·d1, d2), where expert e has d1 rows from e·d1 on."""
    experts, rows, columns = info.shape
    return info._replace(shape=(experts * rows, columns))


def storage_of(path: str, base: Checkpoint) -> ExpertStorage:
    """Return the storage of the parameter at `path`; LoraInspectError if it and its sibling do not show it.

    Gate and up are interleaved in gpt-oss, which stores (experts, in, out) and has biases. The only other class with
    these, of OpenAI's privacy filter, has the head of a classifier, and gate before up.
    """
    parent, _, leaf = path.rpartition(".")
    if leaf == WEIGHT:
        return ExpertStorage(transposed=False)
    shapes = {
        name: base.tensors[f"{parent}.{name}"].shape for name in EXPERT_PARAMETERS if f"{parent}.{name}" in base.tensors
    }
    if len(shapes) == len(EXPERT_PARAMETERS):
        first, last = shapes.values()
        if len(first) == 3 and len(last) == 3:
            if first == (last[0], 2 * last[2], last[1]):
                return ExpertStorage(transposed=False)
            if first == (last[0], last[2], 2 * last[1]):
                has_biases = f"{parent}.{EXPERT_PARAMETERS[0]}_bias" in base.tensors
                return ExpertStorage(transposed=True, interleaved=has_biases and _CLASSIFIER not in base.tensors)
    shapes[leaf] = base.tensors[path].shape  # whatever it is called
    found = " and ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
    raise AmbiguousError(
        base.path,
        f"{parent} has {found}, but {' and '.join(EXPERT_PARAMETERS)} of (experts, 2·n, m) and (experts, m, "
        "n), or of (experts, m, 2·n) and (experts, n, m), were expected, so the rows of each expert are "
        "unknown",
        "use a base that has the experts one by one",
    )


class ExpertRows(NamedTuple):
    """The places of a contribution, and the rows of all of them together; None where the base has other rows."""

    places: tuple[Place, ...]
    rows: int


def of_one(home: Home, expert: int, base: Checkpoint) -> ExpertRows | None:
    """Return the rows of one expert in the parameter of all experts, as the matrix (experts·rows, columns)."""
    (one,) = home.found
    storage = storage_of(one.path, base)
    parameter = base.tensors[one.path]
    _, stored_rows, columns = parameter.shape
    rows, inputs = (columns, stored_rows) if storage.transposed else (stored_rows, columns)
    arranged: tuple[Runs, ...] | None = (Runs(0, rows),)
    if one.piece:
        arrangement = Interleaved(one.piece.parts) if storage.interleaved else one.piece.arrangement
        arranged = arrangement.runs(rows, inputs)
    if arranged is None:
        return None
    runs = arranged[one.piece.part if one.piece else 0]
    if storage.transposed:
        place = Place(as_matrix(parameter), runs, transposed=True, block=(expert * stored_rows, stored_rows))
    else:
        place = Place(as_matrix(parameter), runs.shifted(expert * rows))
    return ExpertRows((place,), runs.rows)


def of_all(home: Home, experts: int, base: Checkpoint) -> ExpertRows | None:
    """Return the rows that all experts have, in their parameter or in the layers of each.

    Raises LoraInspectError where the base has another number of experts.
    """
    first = home.found[0]
    if first.single is None:
        parameter = base.tensors[first.tensor(WEIGHT)]
        if len(parameter.shape) != 3 or parameter.shape[0] != experts:
            raise RefusedError(_other_number(home, f"{parameter.name} is {list(parameter.shape)}", base))
        if first.piece:
            return _of_part(first.path, first.piece, base)
        matrix = as_matrix(parameter)
        return ExpertRows((Place(matrix),), matrix.shape[0])
    layers = [base.tensors[one.tensor(WEIGHT)] for one in home.found]
    parts = first.piece.parts if first.piece else 1
    if len(layers) != experts * parts:
        raise RefusedError(_other_number(home, f"it has {len(layers) // parts} experts", base))
    if len({layer.shape for layer in layers}) > 1 or len(layers[0].shape) != 2:
        return None
    rows, inputs = layers[0].shape
    arranged = first.piece.arrangement.runs(rows * parts, inputs) if first.piece else (Runs(0, rows),)
    if arranged is None:
        return None
    places = []
    for number, layer in enumerate(layers):
        expert, part = divmod(number, parts)
        places.append(Place(layer, arranged[part].shifted(expert * rows * parts).inverted))
    return ExpertRows(tuple(places), experts * rows * parts)


def _of_part(path: str, piece: SharedRows, base: Checkpoint) -> ExpertRows | None:
    """Return the rows of one layer of every expert in a parameter that has those of several."""
    storage, parameter = storage_of(path, base), base.tensors[path]
    experts, stored_rows, columns = parameter.shape
    rows, inputs = (columns, stored_rows) if storage.transposed else (stored_rows, columns)
    arrangement = Interleaved(piece.parts) if storage.interleaved else piece.arrangement
    arranged = arrangement.runs(rows, inputs)
    if arranged is None:
        return None
    runs = arranged[piece.part]
    matrix, count = as_matrix(parameter), experts * runs.rows
    if not storage.transposed:
        return ExpertRows((Place(matrix, runs._replace(times=experts, stride=rows, source_stride=runs.rows)),), count)
    # Where inputs are rows, those of one expert are a block.
    places = (
        Place(
            matrix,
            runs._replace(source=expert * runs.rows),
            transposed=True,
            block=(expert * stored_rows, stored_rows),
        )
        for expert in range(experts)
    )
    return ExpertRows(tuple(places), count)


def stands_turned(home: Home, base: Checkpoint) -> bool:
    """Return True if the home is one whole parameter of all experts that is stored as (experts, in, out)."""
    one = home.found[0]
    return one.single is None and one.piece is None and storage_of(one.tensor(WEIGHT), base).transposed


class Turns:
    """The orientation of the factors of all experts, decided together for a file: transposed or not.

    The shape of an expert's matrix shows the dimension of A. For a square one, the other matrices of the file, which
    have the same class, or the version of PEFT show it.
    """

    def __init__(self, base: Checkpoint) -> None:
        self._base = base
        self._seen: set[bool] = set()

    def see(self, contribution: Contribution, shape: tuple[int, int]) -> None:
        """Note a matrix that shows the order."""
        shown = _shown(contribution, shape)
        if shown is not None:
            self._seen.add(shown)

    def of(self, contribution: Contribution, shape: tuple[int, int], home: Home) -> bool:
        """Return True if the factors are those of the transposed matrix; LoraInspectError if nothing shows it."""
        shown = _shown(contribution, shape)
        if shown is not None:
            return shown
        if len(self._seen) == 1:
            return next(iter(self._seen))
        along: str | None = contribution.settings["along"]
        if along is None:
            raise AmbiguousError(
                next(iter(contribution.factors.values())).file,
                f"{contribution.module.key} changes square matrices {list(shape)}, but PEFT's versions order "
                "their two dimensions differently, and no other module shows the order",
                "write the peft_version that it was trained with into its config",
            )
        one = home.found[0]
        transposed = one.single is None and storage_of(one.tensor(WEIGHT), self._base).transposed
        return along == FIRST or transposed == (along == INPUT)


def turned(contribution: Contribution, is_turned: bool) -> Contribution:
    """Return the contribution with the settings of its formula, once the orientation in the base is known."""
    own = {name: value for name, value in contribution.settings.items() if name != "along"}
    return contribution._replace(settings={**own, "turned": is_turned})


def _shown(contribution: Contribution, shape: tuple[int, int]) -> bool | None:
    """Return True if B has the second dimension and A the first; None if both have the same size."""
    b, a = widths(contribution.shapes)
    if a == b or shape not in ((b, a), (a, b)):
        return None if a == b else False
    return shape == (a, b)


def _other_number(home: Home, there: str, base: Checkpoint) -> str:
    contribution = home.module.contributions[0]
    first = next(iter(contribution.factors.values()))
    return (
        f"{first.file}: {home.module.name.key} has the factors of {contribution.algorithm.experts} experts, "
        f"but in {base.path} {there}; use a base of the adapter's model and size."
    )
