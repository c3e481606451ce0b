"""The size of the change that an adapter makes in each of its modules: its norm and its singular values.

All sizes are those at multiplier 1, with the scale in them.

The singular values of a Kronecker product are the products of those of its factors (Van Loan 2000), so that LoKr takes
no matrix of the layer's size. Those of a change that is no thin product come from a randomised search, which is exact
for small matrices and never above the true value.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy

from lora_inspect.algebra.alignment import MultipliedAdapter, OutputModule, Term, aligned
from lora_inspect.algebra.changes import (
    matrix_shape,
    needs_base,
    needs_torch,
    shape_of,
    terms_of,
    thin_rank,
    whole_change,
)
from lora_inspect.algebra.experts import ExpertChanges
from lora_inspect.algebra.inputs import open_base
from lora_inspect.algebra.linear.core import ROUNDING, Core, singular
from lora_inspect.algebra.linear.factors import Array, Factors, joined
from lora_inspect.algebra.linear.module_threads import made_in_order
from lora_inspect.algebra.linear.range_finder import find_range
from lora_inspect.algebra.measures.comparison import block_of, by_parameter, in_order_of_blocks
from lora_inspect.algebra.numpy_tensors import read_tensors, refuse_not_finite
from lora_inspect.algorithms import lokr
from lora_inspect.algorithms.record import WEIGHT
from lora_inspect.architectures.patterns import pattern_of, separator_of
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.errors import LoraInspectError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.matching.orientation import UNANSWERED, Answers
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Contribution, Module
from lora_inspect.schemes.record import MODEL

if TYPE_CHECKING:
    from lora_inspect.algebra.full_changes import BaseChanges


# So many singular values of a change that is no thin product are looked for.
_DIRECTIONS = 64


class ChangeSize(NamedTuple):
    """The size of a module's change of one parameter of its layer.

    `kind` is the name of the layer with `#` for its numbers, so that every block has layers of one kind. `shape` is
    (out, in, *kernel), of experts (experts, rows, columns) as their factors have them. `rank`, `alpha` and `scale` are
    None if the module has none, or several. `norm` is the Frobenius norm. `sigma_1` and `sigma_2` are the largest
    singular values, None of a vector; of experts they are those of the expert with the largest one. `weight_norm` is
    the norm of the weight that the change is added to, None without a base.
    """

    key: str
    component: str
    block: str
    kind: str
    parameter: str
    shape: tuple[int, ...]
    rank: int | None
    alpha: float | None
    scale: float | None
    norm: float
    sigma_1: float | None
    sigma_2: float | None
    weight_norm: float | None = None

    @property
    def relative_norm(self) -> float | None:
        """The norm over that of the weight; None where that is unknown or zero."""
        return self.norm / self.weight_norm if self.weight_norm else None


class UnmeasuredModule(NamedTuple):
    """A module with no size of its change, and the reason as the end of a sentence."""

    key: str
    reason: str


class ChangeSpectrum(NamedTuple):
    """The singular values of a change, falling, without mere rounding; none for a vector.

    `rest` is the norm of the others: only the first 64 are computed for a change that is no thin product, unless it is
    small. For experts the j-th value is the root of the sum of squares of the j-th values of all experts.
    """

    values: Array
    rest: float


class MeasuredChanges(NamedTuple):
    """The sizes and spectra of an adapter's modules in their order, and the modules that have none."""

    sizes: list[ChangeSize]
    spectra: list[ChangeSpectrum]
    left_out: list[UnmeasuredModule]


def measured_changes(
    adapter: Adapter,
    base: "BaseChanges | None" = None,
    progress: Progress = silent,
    *,
    with_torch: bool = True,
    with_spectra: bool = False,
) -> MeasuredChanges:
    """Return the size of every change of an adapter; `progress` receives the bytes of the factors.

    Changes that depend on a weight need the `base`. Without `with_torch`, changes that need torch are left out. Without
    `with_spectra` the spectra of changes that are no thin products have two values.
    """
    directions = _DIRECTIONS if with_spectra else 2
    modules, left_out = _computable(adapter, base is not None, with_torch)
    if base:
        modules = [module for module in modules if _counts(module, base)]
    progress(0)
    sizes: list[ChangeSize] = []
    spectra: list[ChangeSpectrum] = []
    measuring = made_in_order(lambda one: _measured(one, base, directions), modules)
    for module, found in zip(modules, measuring, strict=True):
        if isinstance(found, UnmeasuredModule):
            left_out.append(found)
        else:
            sizes.append(found[0])
            spectra.append(found[1])
        progress(sum(info.nbytes for term in module.terms for info in term.contribution.factors.values()))
    return MeasuredChanges(sizes, spectra, left_out)


def changes_of_base(adapter: Adapter, path: str, transposed: Answers = UNANSWERED) -> "BaseChanges":
    """Return the weights of the base at a path that an adapter changes, with the changes that depend on them.

    Raises LoraInspectError where torch is missing, and where the adapter does not fit the base.
    """
    from lora_inspect.maths.torch_threads import load_torch

    base = open_base(path)
    load_torch()
    from lora_inspect.algebra.full_changes import BaseChanges

    whole = MultipliedAdapter(adapter, dict.fromkeys(adapter.modules, 1.0))
    return BaseChanges([whole], aligned([whole], ConvertOptions()), base, None, transposed)


def by_block(sizes: Sequence[ChangeSize]) -> dict[str, dict[str, list[ChangeSize]]]:
    """Return the sizes by component, in the order of the adapter, and by block, in the order of the model."""
    found: dict[str, dict[str, list[ChangeSize]]] = defaultdict(lambda: defaultdict(list))
    for one in sizes:
        found[one.component][one.block].append(one)
    return {
        component: {name: blocks[name] for name in in_order_of_blocks(blocks)} for component, blocks in found.items()
    }


def _computable(
    adapter: Adapter, has_base: bool, with_torch: bool
) -> tuple[list[OutputModule], list[UnmeasuredModule]]:
    """Return the modules that have a size, one parameter of a layer each, and the others."""
    kept, left_out = {}, []
    for key, module in adapter.modules.items():
        reasons = [_why_not(one, has_base, with_torch) for one in module.contributions]
        if reason := next(filter(None, reasons), ""):
            left_out.append(UnmeasuredModule(key, reason))
        else:
            kept[key] = 1.0
    return by_parameter(aligned([MultipliedAdapter(adapter, kept)], ConvertOptions())), left_out


def _counts(module: OutputModule, base: "BaseChanges") -> bool:
    """Return True if the base has the parameter, or should have it: a layer may do without a bias."""
    return any(base.has(term) or not term.contribution.is_optional for term in module.terms)


def _why_not(one: Contribution, has_base: bool, with_torch: bool) -> str:
    """Return the reason why a change has no size; empty if it has one."""
    title = "DoRA" if one.magnitude else one.algorithm.title
    if one.algorithm.formula is None:
        return f"lora-inspect does not compute {title}"
    if one.unsettled:
        return one.unsettled
    if one.scale is None:
        return f"its scale is unknown: {one.why}"
    if one.residual:
        return f"the {one.residual} initialisation is in the base as well, so its factors are not its change"
    if needs_base(one) and not has_base:
        return f"the change of {title} depends on the weight; info --norms --base BASE measures it"
    if needs_torch(one) and not with_torch:
        return f"only torch computes {title}"
    return ""


def _measured(
    module: OutputModule, base: "BaseChanges | None", directions: int
) -> tuple[ChangeSize, ChangeSpectrum] | UnmeasuredModule:
    terms, key = module.terms, module.terms[0].contribution.module.key
    try:
        spectrum = _finite_spectrum(terms, base, directions)
        weight = base.weight_norm(terms) if base and base.has(terms[0]) else None
    except LoraInspectError as error:  # a number that is not finite, or a weight that the base lacks
        return UnmeasuredModule(key, str(error).removesuffix("."))
    if spectrum is None:
        return UnmeasuredModule(key, "its norm is beyond the range of numbers")
    if weight is not None and not math.isfinite(weight):
        return UnmeasuredModule(key, "its weight in the base is not finite")
    return _with_names(module.module, terms, spectrum, weight), ChangeSpectrum(spectrum.values, spectrum.rest)


def _finite_spectrum(terms: Sequence[Term], base: "BaseChanges | None", directions: int) -> "_Spectrum | None":
    """Return the spectrum; None if the squares of finite numbers are beyond float64."""
    try:
        spectrum = _spectrum(terms, base, directions)
    except FloatingPointError:
        refuse_not_finite(terms)
        return None
    return spectrum if math.isfinite(spectrum.norm) else None


def _with_names(module: Module, terms: Sequence[Term], spectrum: "_Spectrum", weight: float | None) -> ChangeSize:
    parts = [term.contribution for term in terms]
    parameter = parts[0].algorithm.parameter
    scaled = {(one.rank, one.alpha, one.scale) for one in parts if one.has_scale and one.rank}
    rank, alpha, scale = scaled.pop() if len(scaled) == 1 else (None, None, None)
    name = module.path or module.name.body
    kind = pattern_of(name, separator_of(name))
    component = module.name.component
    if component != MODEL:
        kind = f"{component}.{kind}"
    if parameter != WEIGHT:
        kind = f"{kind}.{parameter}"
    sigma_1, sigma_2 = spectrum.largest
    return ChangeSize(
        module.name.key, component, block_of(module), kind, parameter, spectrum.shape, rank, alpha, scale,
        spectrum.norm, sigma_1, sigma_2, weight,
    )  # fmt: skip


class _Spectrum(NamedTuple):
    """The shape of a change, its norm, its two largest singular values (None of a vector), and all that are known."""

    shape: tuple[int, ...]
    norm: float
    largest: tuple[float | None, float | None]
    values: Array
    rest: float

    @classmethod
    def of(cls, shape: tuple[int, ...], values: Array, rest: float = 0.0, largest: Array | None = None) -> "_Spectrum":
        """Return the spectrum of singular values in any order; for experts also with the `largest` expert's values."""
        falling = numpy.sort(values)[::-1]
        first, second, *_ = [*map(float, (falling if largest is None else largest)[:2]), 0.0, 0.0]
        norm = math.hypot(float(numpy.linalg.norm(values)), rest)
        kept = falling[falling > ROUNDING * falling[:1]]
        return cls(shape, norm, (first, second), kept, rest)

    @classmethod
    def of_vector(cls, shape: tuple[int, ...], norm: float) -> "_Spectrum":
        """Return the spectrum of numbers that are no matrix."""
        return cls(shape, norm, (None, None), numpy.zeros(0), norm)


def _spectrum(terms: Sequence[Term], base: "BaseChanges | None", directions: int) -> _Spectrum:
    """Return the spectrum; LoraInspectError or FloatingPointError for numbers that are not finite or too large."""
    first = terms[0].contribution
    if first.algorithm.experts:
        experts = ExpertChanges(terms)
        shape = (len(experts.changes), *experts.changes[0].shape)
        return _Spectrum.of(shape, experts.values, largest=experts.largest)
    if base and any(needs_base(term.contribution) for term in terms):
        return _of_matrix(base.shape(terms[0]), base.difference(terms), directions)
    shape = max(map(shape_of, terms), key=len)
    if first.algorithm.parameter != WEIGHT or len(shape) < 2:
        return _Spectrum.of_vector(shape, float(numpy.linalg.norm(whole_change(terms, None))))
    if len(terms) == 1 and first.formula.low_rank is lokr.low_rank:
        return _Spectrum.of(shape, _of_kronecker(first))
    if all(map(_is_thin, terms)):
        changes = terms_of(terms)
        return _Spectrum.of(shape, Core(changes[0] if len(changes) == 1 else joined(changes)).values)
    return _of_matrix(shape, whole_change(terms, None), directions)


def _is_thin(term: Term) -> bool:
    rows, columns = matrix_shape(term.contribution.known_shape)
    rank = thin_rank(term.contribution)
    return rank is not None and rank * (rows + columns) < rows * columns


def _of_kronecker(contribution: Contribution) -> Array:
    """Return the singular values of a LoKr, in no order."""
    tensors = read_tensors(contribution)
    factors = [lokr.small_parts(tensors), lokr.large(tensors)]
    first, second = (_values_of_product([numpy.asarray(part) for part in parts]) for parts in factors)
    values: Array = abs(contribution.known_scale) * numpy.outer(first, second).ravel()
    return values


def _values_of_product(parts: Sequence[Array]) -> Array:
    """Return the singular values of a matrix, or of the product of two thin ones."""
    if len(parts) == 1:
        return singular(parts[0])[1]
    up, down = parts
    return Core(Factors.of(up, down, (len(up), down.shape[1]))).values


def _of_matrix(shape: tuple[int, ...], matrix: Array, directions: int) -> _Spectrum:
    norm = float(numpy.linalg.norm(matrix))
    if len(shape) < 2:
        return _Spectrum.of_vector(shape, norm)
    if min(matrix.shape) < 2 or not norm or not math.isfinite(norm):
        return _Spectrum.of(shape, numpy.array([norm]))
    unit = matrix / norm  # the squares of its numbers stay in the range of float64
    found = find_range(lambda: iter([(0, unit)]), unit.shape, rank=min(directions, *unit.shape))
    # Those behind the ones that were asked for are less exact.
    kept = found.values if len(found.values) == min(unit.shape) else found.values[:directions]
    return _Spectrum.of(shape, norm * kept, norm * math.sqrt(max(0.0, 1.0 - float(numpy.square(kept).sum()))))
