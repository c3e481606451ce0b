"""Two models side by side: the tensors of both by name, and their differences in blocks of rows.

A head may use the weight of the embedding, which such a model saves once. If only one of the models has a head of its
own, its pair is the embedding of the other one.

Plain floats and eight-bit floats are read with numpy only. Codes with a scale are decoded as a merge decodes them.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import lcm, prod, sqrt
from typing import Any

import numpy

from lora_inspect.algebra.linear.factors import Array
from lora_inspect.codecs import stored_types
from lora_inspect.errors import DamagedError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.hashes import are_same_bytes
from lora_inspect.files.input_file import Identity, InputFile
from lora_inspect.files.safetensors.dtypes import GRIDS, PLAIN_FLOATS, ROUNDING
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.matching.unmatched import CLASSES_WITH_HEAD, HEADS, shared_embedding
from lora_inspect.maths.stored_numbers import FLOATS, decoded, rounded
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.base.base_codecs import BaseCodecs, CodedWeight, open_weights
from lora_inspect.reading.base.base_names import BASE_PREFIXES, leaf_of
from lora_inspect.reading.base.model_config import config_beside
from lora_inspect.reading.base.quantisation import quantisation_settings
from lora_inspect.reading.file_info import ADAPTER, kind_of
from lora_inspect.reading.identify import base_candidates, described, may_be_one
from lora_inspect.schemes.record import MODEL

# So many numbers of each model are widened at a time, near the processor, and so many differences are multiplied.
_PIECE, _BLOCK = 1 << 17, 1 << 19
# So many numbers of a tensor show the distances between its numbers, in rows from all over it.
_SAMPLED, _ROWS = 1 << 17, 64
# Numbers of a finer type are often those of a coarser one: a model that was cast, or trained in half precision.
_COARSER = ("BF16", "F16")


class PairedTensor(NamedTuple):
    """A tensor that both models have in one shape, with the codec of each."""

    name: str
    tuned: CodedWeight
    base: CodedWeight

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight."""
        return self.base.info.shape

    @property
    def dtypes(self) -> tuple[str, str]:
        """The element types that the numbers of both are stored in."""
        return self.tuned.info.dtype, self.base.info.dtype

    @property
    def is_plain(self) -> bool:
        """True if numpy reads the numbers of both."""
        return all(not one.is_decoded and one.info.dtype in FLOATS for one in (self.tuned, self.base))

    @property
    def is_equal(self) -> bool:
        """True if both have the same bytes, which then mean the same numbers."""
        one, other = self.tuned, self.base
        pairs = [(one.info, other.info), *((one.beside.get(name), info) for name, info in other.beside.items())]
        return one.beside.keys() == other.beside.keys() and all(
            first is not None
            and (first.dtype, first.nbytes) == (second.dtype, second.nbytes)
            and are_same_bytes(first, second, [(0, 0, second.nbytes)])
            for first, second in reversed(pairs)
        )


@dataclass(frozen=True, slots=True)
class ModelPair:
    """The tensors of both models by the base's names, in its order.

    `unpaired` are tensors of only one of the models, and `unread` are tensors of both that hold no weights, such as
    positions, with the reason. `tied` is the embedding whose weight is the head of the base, and of the tuned model
    too; None if there is none. If only one of them has a head of its own, its weight is paired with the other's
    embedding, under the name of the head.
    """

    tuned: Checkpoint
    base: Checkpoint
    tensors: Mapping[str, PairedTensor]
    unpaired: tuple[str, ...]
    unread: Mapping[str, str]
    tied: str | None = None

    @property
    def files(self) -> dict[str, Identity]:
        """Every input file by path, with its identity when it was opened."""
        return self.tuned.inputs | self.base.inputs


def open_pair(tuned_path: str, base_path: str) -> ModelPair:
    """Read the headers of both models.

    Raises LoraInspectError where one of them is an adapter, where they are of different families or shapes, where they
    have no name in common, and for codes that are not known.
    """
    tuned, base = open_weights(tuned_path), open_weights(base_path)
    for checkpoint in (tuned, base):
        if kind_of(read_adapter(checkpoint))[0] == ADAPTER:
            raise RefusedError(
                checkpoint.path,
                "it is an adapter, but extract takes two models",
                "join adapters with `lora-inspect combine`, or write the tuned model with `lora-inspect merge` first",
            )
    families = [base_candidates(one) for one in (tuned, base)]
    if all(families) and not may_be_one(*families):
        raise RefusedError(
            tuned.path,
            f"it is of {described(families[0])}, but {base.path} is of {described(families[1])}",
            "give the base that it was tuned from",
        )
    return _paired(tuned, base)


def _paired(tuned: Checkpoint, base: Checkpoint) -> ModelPair:
    ours, theirs = (_weights_of(one) for one in (tuned, base))
    if not any(name in ours for name in theirs):
        ours = _below(theirs, ours)
    common = [name for name in theirs if name in ours]
    if not common:
        raise RefusedError(
            tuned.path,
            f"it has none of the {len(theirs)} tensors of {base.path}, such as {next(iter(theirs), 'a weight')}",
            "give two models whose tensors have the same names",
        )
    codecs = BaseCodecs(tuned), BaseCodecs(base)
    tensors, unread = dict[str, PairedTensor](), dict[str, str]()
    for name in common:
        if ours[name].shape != theirs[name].shape:
            raise RefusedError(
                tuned.path,
                f"{name} has shape {list(ours[name].shape)}, but {list(theirs[name].shape)} in {base.path}",
                "give the base that it was tuned from",
            )
        infos = ours[name], theirs[name]
        if any(info.dtype not in PLAIN_FLOATS | stored_types() or not info.numel for info in infos):
            if infos[0].dtype != infos[1].dtype or not are_same_bytes(*infos, [(0, 0, infos[1].nbytes)]):
                unread[name] = f"{infos[0].dtype} and {infos[1].dtype} are no weights"
            continue
        tensors[name] = PairedTensor(name, *(codec.of(info) for codec, info in zip(codecs, infos, strict=True)))
    head = _tied_head(tuned, base, ours, theirs)
    if head.name and head.tuned and head.base and head.tuned.shape == head.base.shape:
        coded = codecs[0].of(head.tuned), codecs[1].of(head.base)
        tensors[head.name] = PairedTensor(head.name, *coded)
    unpaired = [name for name in theirs if name not in ours] + [name for name in ours if name not in theirs]
    unpaired = [name for name in unpaired if name not in tensors]
    return ModelPair(tuned, base, tensors, tuple(unpaired), unread, head.embedding)


class TiedHead(NamedTuple):
    """The weights of both models' heads by the name of the head, None where both have one of their own, or none.

    `embedding` is the weight of the base that a change of the embedding changes as its head, None if there is none.
    """

    embedding: str | None = None
    name: str | None = None
    tuned: TensorInfo | None = None
    base: TensorInfo | None = None


def _tied_embedding(model: Checkpoint) -> str | None:
    """Return the weight of the embedding that is the model's head too; None if it has no such head.

    Without a config, a model whose embedding stands below a root has a head, and a bare backbone has none. Raises
    LoraInspectError for a config that is no JSON object.
    """
    shared = shared_embedding(model)
    config = config_beside(model) if shared else None
    if shared is None or (config and config.ties is False):
        return None
    if config and config.classes:
        return shared if any(name.endswith(CLASSES_WITH_HEAD) for name in config.classes) else None
    is_bare = shared.count(".") == 1
    return None if is_bare and not (config and config.ties) else shared


def _tied_head(
    tuned: Checkpoint,
    base: Checkpoint,
    tuned_weights: Mapping[str, TensorInfo],
    base_weights: Mapping[str, TensorInfo],
) -> TiedHead:
    """Return the heads of two models with their weights by the base's names.

    Raises LoraInspectError for a config that is no JSON object.
    """
    tuned_name, base_name = _head_of(tuned_weights), _head_of(base_weights)
    shared = _tied_embedding(base)
    if shared and shared not in tuned_weights:
        return TiedHead()
    if shared and tuned_name:
        head = tuned_weights[tuned_name]
        if _are_equal(head, tuned_weights[shared]):
            return TiedHead(embedding=shared)
        return TiedHead(name=tuned_name, tuned=head, base=base_weights[shared])
    if base_name and not tuned_name and (own := _tied_embedding(tuned)):
        return TiedHead(name=base_name, tuned=tuned.tensors[own], base=base_weights[base_name])
    return TiedHead(embedding=shared)


def _head_of(weights: Mapping[str, TensorInfo]) -> str | None:
    heads = (name for name in weights if name.endswith(".weight") and leaf_of(name.removesuffix(".weight")) in HEADS)
    return next(heads, None)


def _are_equal(info: TensorInfo, other: TensorInfo) -> bool:
    if (info.dtype, info.shape) != (other.dtype, other.shape):
        return False
    return are_same_bytes(info, other, [(0, 0, info.nbytes)])


def _below(names: Collection[str], tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Return the tensors by the `names` of the other model, which is saved with another prefix or with none."""
    prefixes = BASE_PREFIXES[MODEL]
    own = {name.removeprefix(prefix): info for prefix in prefixes for name, info in tensors.items()}
    alike = {name: [short for prefix in prefixes if (short := name.removeprefix(prefix)) in own] for name in names}
    named = {name: own[shorts[0]] for name, shorts in alike.items() if shorts}
    others = {id(info) for info in named.values()}
    return named | {name: info for name, info in tensors.items() if id(info) not in others}


def _weights_of(checkpoint: Checkpoint) -> dict[str, TensorInfo]:
    """Return the tensors by name, without those for the decoding of codes."""
    settings = quantisation_settings({**checkpoint.tensors, **checkpoint.codes})
    return {name: info for name, info in checkpoint.tensors.items() if name not in settings}


def difference_blocks(pair: PairedTensor, is_known_finite: bool = False) -> Iterator[tuple[int, Array]]:
    """Yield (first row, tuned - base) for all rows, as matrices (rows, columns) in float32 or float64.

    Numbers of at most 32 bits are subtracted in float32. A vector is a column. Raises LoraInspectError for NaN and
    infinity, with the tensor that holds it, unless an earlier pass has looked for them.
    """
    rows, columns = _sizes(pair.shape)
    count = max(1, _BLOCK // columns)
    block, begin, end = numpy.empty((0, columns)), 0, 0
    for first, ours, theirs in _both(pair):
        with numpy.errstate(invalid="ignore", over="ignore"):
            difference = ours - theirs
            total = 0.0 if is_known_finite else difference.sum()
        if not numpy.isfinite(total) and not numpy.isfinite(difference).all():
            _refuse_not_finite(pair, first, ours, theirs)
        if end + len(difference) > len(block):
            if end:
                yield begin, block[:end]
            begin, end = first, 0
            block = numpy.empty((min(max(count, len(difference)), rows - first), columns), difference.dtype)
        block[end : end + len(difference)] = difference
        end += len(difference)
    yield begin, block[:end]


class NotFiniteError(DamagedError):
    """A tensor of a model holds NaN or infinity."""


def _refuse_not_finite(pair: PairedTensor, first: int, ours: Array, theirs: Array) -> None:
    for weight, values in ((pair.tuned, ours), (pair.base, theirs)):
        if not numpy.isfinite(values).all():
            row = int(numpy.flatnonzero(~numpy.isfinite(values).all(axis=1))[0])
            bad = values[row][~numpy.isfinite(values[row])][0]
            raise NotFiniteError(
                weight.info.file, f"{weight.info.name} holds {bad} in row {first + row}", "fetch the file again"
            )
    raise RefusedError(
        pair.tuned.info.file, f"the difference of {pair.name} is beyond float32", "check that both are models"
    )


def _sizes(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the number of rows of a tensor, and their length."""
    return (shape[0], prod(shape[1:])) if shape else (1, 1)


def _both(pair: PairedTensor) -> Iterator[tuple[int, Array, Array]]:
    rows, columns = _sizes(pair.shape)
    if not pair.is_plain:
        yield from _decoded_both(pair, rows, columns)
        return
    count = max(1, _PIECE // columns)
    ours, theirs = pair.tuned.info, pair.base.info
    with InputFile(ours.file, ours.identity) as one, InputFile(theirs.file, theirs.identity) as other:
        for first in range(0, rows, count):
            last = min(first + count, rows)
            yield first, _rows(one, ours, first, last, columns), _rows(other, theirs, first, last, columns)


def _rows(source: InputFile, info: TensorInfo, first: int, last: int, columns: int) -> Array:
    size = info.nbytes // info.numel
    data = source.read(info.start + first * columns * size, (last - first) * columns * size)
    values: Array = decoded(info.dtype, data).reshape(last - first, columns)
    return values


def _decoded_both(pair: PairedTensor, rows: int, columns: int) -> Iterator[tuple[int, Array, Array]]:
    from lora_inspect.maths.torch_threads import load_torch

    load_torch()
    from lora_inspect.maths.tensors import RowBlocks

    decodes = [one.decode for one in (pair.tuned, pair.base)]
    together = lcm(*(decode.together(columns) if decode else 1 for decode in decodes))
    # Both are cut alike; where the rows are no whole number of blocks, there is one of all of them.
    together = 0 if rows % together else together
    read = [
        RowBlocks(_PIECE).read(weight.info, together, decode)
        for weight, decode in zip((pair.tuned, pair.base), decodes, strict=True)
    ]
    for (first, ours), (start, theirs) in zip(*read, strict=True):
        if first != start or ours.shape != theirs.shape:
            raise AssertionError(f"{pair.name} is read in blocks that differ: {first} and {start}")
        yield first, ours.numpy(), theirs.numpy()


class Noise(NamedTuple):
    """The standard deviations that rounding gave the numbers of a tensor in either model, as an estimate."""

    tuned: float
    base: float

    @property
    def both(self) -> float:
        """That of the difference, if both models were rounded."""
        return sqrt(self.tuned**2 + self.base**2)


def noise_of(pair: PairedTensor) -> Noise:
    """Return the noise of rounding by the distances between the numbers of each, in rows from all over the tensor."""
    rows, columns = _sizes(pair.shape)
    if not pair.is_plain:
        _, ours, theirs = next(_decoded_both(pair, rows, columns))
        return Noise(_rounding(ours, pair.tuned), _rounding(theirs, pair.base))
    count = max(1, min(_ROWS, rows, _SAMPLED // columns))
    places = sorted({rows * number // count for number in range(count)})
    found = []
    for weight in (pair.tuned, pair.base):
        with InputFile(weight.info.file, weight.info.identity) as source:
            each = [_rows(source, weight.info, first, first + 1, columns) for first in places]
        found.append(_rounding(numpy.concatenate(each), weight))
    return Noise(*found)


def _rounding(values: Array, weight: CodedWeight) -> float:
    """Return the standard deviation of rounding to numbers such as these; 0 if they are not finite."""
    dtype = weight.info.dtype
    if not numpy.isfinite(values).all():
        return 0.0
    if dtype not in GRIDS or dtype == "I8":
        return _rounding_of_codes(values)
    grid = GRIDS[next((one for one in _COARSER if _holds(values, one, dtype)), dtype)]
    exponents = numpy.frexp(values)[1] - 1
    if not weight.is_decoded:
        exponents = exponents.clip(min=grid.least)
    spacing = numpy.ldexp(1.0, exponents[values != 0] - grid.bits)
    return sqrt(ROUNDING * float(numpy.square(spacing).sum()) / values.size) if spacing.size else 0.0


def _holds(values: Array, coarser: str, dtype: str) -> bool:
    return GRIDS[coarser].bits < GRIDS[dtype].bits and bool((rounded(values, coarser) == values).all())


# Neighbours in a row that share a scale in all codecs of few bits.
_SHARING = 16


def _rounding_of_codes(values: Array) -> float:
    """Return the same for codes with a scale: by the distances between different codes of neighbours that share one."""
    usable = values[:, : values.shape[1] // _SHARING * _SHARING] if values.shape[1] >= _SHARING else values
    groups = numpy.sort(usable.reshape(-1, min(_SHARING, values.shape[1])), axis=1)
    gaps: Any = numpy.diff(groups, axis=1)
    gaps[gaps == 0] = numpy.inf
    least = gaps.min(axis=1, initial=numpy.inf)
    least = least[numpy.isfinite(least)]
    return sqrt(ROUNDING * float(numpy.square(least).mean())) if least.size else 0.0
