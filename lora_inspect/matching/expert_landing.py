"""Where the factors of experts land: in the parameter of all of them, or in the weights of each.

Factors of all experts tell two sizes of an expert's matrix, and the base says which of them is that of its rows.
"""

from lora_inspect.algorithms.lora_experts import widths
from lora_inspect.algorithms.record import WEIGHT
from lora_inspect.architectures.rows import Interleaved, Runs
from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.matching.expert_weights import as_matrix, storage_of
from lora_inspect.matching.module_map import Home
from lora_inspect.matching.placement import Place
from lora_inspect.reading.base.base_names import Piece
from lora_inspect.reading.experts.packed_experts import FIRST, INPUT
from lora_inspect.reading.model.contribution import Contribution


class ExpertRows(NamedTuple):
    """The places of a contribution, and the rows of all of them together; None where the base has other rows."""

    places: tuple[Place, ...]
    rows: int


def of_one(home: Home, expert: int, base: Checkpoint) -> ExpertRows | None:
    """The rows of one expert's layer in the parameter of all experts, seen as the matrix (experts·rows, columns)."""
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
    """The rows that all experts have, in their parameter or in the layers of each.

    Raises LoraInspectError where the base has another number of experts.
    """
    first = home.found[0]
    if first.single is None:
        parameter = base.tensors[first.tensor(WEIGHT)]
        if len(parameter.shape) != 3 or parameter.shape[0] != experts:
            raise LoraInspectError(_other_number(home, f"{parameter.name} is {list(parameter.shape)}", base))
        if first.piece:
            return _of_part(first.path, first.piece, base)
        matrix = as_matrix(parameter)
        return ExpertRows((Place(matrix),), matrix.shape[0])
    layers = [base.tensors[one.tensor(WEIGHT)] for one in home.found]
    parts = first.piece.parts if first.piece else 1
    if len(layers) != experts * parts:
        raise LoraInspectError(_other_number(home, f"it has {len(layers) // parts} experts", base))
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


def _of_part(path: str, piece: Piece, base: Checkpoint) -> ExpertRows | None:
    """The rows of one layer of every expert in a parameter that has those of several."""
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
    """Whether the home is one whole parameter of all experts that is stored as (experts, in, out)."""
    one = home.found[0]
    return one.single is None and one.piece is None and storage_of(one.tensor(WEIGHT), base).transposed


class Turns:
    """Whether factors of all experts are those of the transposed matrices, decided together for a file.

    Which dimension A is along shows in the shape of an expert's matrix. That of a square one shows in the others of the
    file, whose class is the same, or in the version of PEFT.
    """

    def __init__(self, base: Checkpoint) -> None:
        self._base = base
        self._seen: set[bool] = set()

    def see(self, contribution: Contribution, shape: tuple[int, int]) -> None:
        """Takes note of a matrix that shows it."""
        shown = _shown(contribution, shape)
        if shown is not None:
            self._seen.add(shown)

    def of(self, contribution: Contribution, shape: tuple[int, int], home: Home) -> bool:
        """Whether the factors are those of the transposed matrix; raises LoraInspectError where nothing tells it."""
        shown = _shown(contribution, shape)
        if shown is not None:
            return shown
        if len(self._seen) == 1:
            return next(iter(self._seen))
        along: str | None = contribution.settings["along"]
        if along is None:
            raise LoraInspectError(
                f"{next(iter(contribution.factors.values())).file}: {contribution.module.key} changes square matrices "
                f"{list(shape)}, whose two dimensions PEFT's versions take in different order, and no other module "
                "shows which it is; write the peft_version that it was trained with into its config."
            )
        one = home.found[0]
        transposed = one.single is None and storage_of(one.tensor(WEIGHT), self._base).transposed
        return along == FIRST or transposed == (along == INPUT)


def turned(contribution: Contribution, is_turned: bool) -> Contribution:
    """The contribution with what its formula needs, once it is known which way round the base has its matrices."""
    own = {name: value for name, value in contribution.settings.items() if name != "along"}
    return contribution._replace(settings={**own, "turned": is_turned})


def _shown(contribution: Contribution, shape: tuple[int, int]) -> bool | None:
    """Whether B and A are along the second and the first dimension; None where both sizes are one, or other ones."""
    b, a = widths(contribution.shapes)
    if a == b or shape not in ((b, a), (a, b)):
        return None if a == b else False
    return shape == (a, b)


def _other_number(home: Home, there: str, base: Checkpoint) -> str:
    contribution = home.module.contributions[0]
    first = next(iter(contribution.factors.values()))
    return (
        f"{first.file}: {home.module.name.key} has the factors of {contribution.algorithm.experts} experts, but in "
        f"{base.path} {there}; the adapter is for another model or size."
    )
