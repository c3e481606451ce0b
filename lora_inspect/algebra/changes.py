"""The change of a contribution as factors: its scale folded in, whatever its algorithm calls its tensors.

Plain LoRA is read by numpy alone. Every other algorithm whose change is a product of thin factors (LoHa, LoKr with a
thin side, Tucker cores) has a formula that makes them, with torch.
"""

from collections.abc import Sequence
from math import prod

import numpy

from lora_inspect.algebra.alignment import OutputModule, Term
from lora_inspect.algebra.factors import Array, Factors, joined
from lora_inspect.algorithms import lokr, lora
from lora_inspect.algorithms.record import WEIGHT
from lora_inspect.errors import DamagedError, RefusedError
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.maths.stored_numbers import FLOATS, load
from lora_inspect.reading.model.contribution import Contribution


def is_thin(contribution: Contribution) -> bool:
    """Whether a change is that of a weight by a product of thin factors, which the base has no part in.

    Of LoKr the factors tell: two whole ones make no thin product.
    """
    if contribution.multiplies or contribution.algorithm.parameter != WEIGHT or contribution.of_bias:
        return False
    is_whole = contribution.algorithm.name == lokr.ALGORITHM.name and lokr.is_whole(contribution.factors)
    return contribution.formula.low_rank is not None and not is_whole


def factors_of(contribution: Contribution) -> Factors:
    """The change of a thin contribution, in float32 or float64 as its factors are stored."""
    infos = contribution.operands
    if contribution.algorithm.name == lora.ALGORITHM.name and "mid" not in infos:
        up, down = lora.matrices({role: _load(info) for role, info in infos.items()})
    else:
        up, down = _by_formula(contribution)
    return Factors.of(up, down, contribution.known_shape, contribution.known_scale)


def _load(info: TensorInfo) -> Array:
    if info.dtype not in FLOATS:
        raise DamagedError(
            info.file,
            f"{info.name} is stored as {info.dtype}, but a floating type was expected",
            "fetch the file again",
        )
    return load(info)


def _by_formula(contribution: Contribution) -> tuple[Array, Array]:
    from lora_inspect.maths.torch_threads import load_torch

    load_torch()
    import torch

    from lora_inspect.converting.steps.part import read_operands

    low_rank = contribution.formula.low_rank
    thin = low_rank(read_operands(contribution, torch.float64)) if low_rank else None
    if thin is None:
        raise ValueError(f"{contribution.module.key}: {contribution.algorithm.title} is no product of thin factors")
    up, down = (numpy.ascontiguousarray(factor.numpy()) for factor in thin)
    return up, down


def sum_of(module: OutputModule, kind: type = numpy.float64) -> Factors:
    """The sum of a module's terms, all of them thin, in float64 or float32.

    Raises LoraInspectError where their shapes disagree.
    """
    return joined(terms_of([term for term in module.terms if term.multiplier]), kind)


def terms_of(terms: Sequence[Term]) -> list[Factors]:
    """The change of each of a module's terms, all of them thin; LoraInspectError where their shapes disagree."""
    changes = [_moved(term) for term in terms]
    sizes = [(change.shape[0], prod(change.shape[1:])) for change in changes]
    for term, change, size in zip(terms, changes, sizes, strict=True):
        if size != sizes[0]:
            raise RefusedError(
                term.adapter.checkpoint.path,
                f"{term.contribution.module.key} changes a weight of {list(change.shape)}, but "
                f"{terms[0].contribution.module.key} in {terms[0].adapter.checkpoint.path} one of "
                f"{list(changes[0].shape)}",
                "name adapters of one model",
            )
    return changes


def _moved(term: Term) -> Factors:
    change = factors_of(term.contribution).scaled(term.multiplier)
    for runs, rows in term.moves:
        change = change.in_rows(runs, rows)
    return change


def refuse_not_finite(module: OutputModule) -> None:
    """Raises LoraInspectError for the first factor of a module that is not finite."""
    for info in (info for term in module.terms for info in term.contribution.operands.values()):
        values = load(info)
        if not numpy.isfinite(values).all():
            bad = values[~numpy.isfinite(values)].ravel()[0]
            raise DamagedError(
                info.file, f"{info.name} holds {bad}, so it makes a weight non-finite", "fetch the file again"
            )
