"""The methods of `combine` on dense matrices in float64, each from the formula of its paper.

An adapter is a pair (up, down) whose product is the change, or None where it lacks the layer.
"""

import numpy

from lora_inspect.algebra.methods.record import MethodSettings

ROWS, COLUMNS = 48, 40
SETTINGS = MethodSettings(density=0.4, t=0.3, seed=7)


def dense(pairs):
    return [numpy.zeros((ROWS, COLUMNS)) if pair is None else pair[0] @ pair[1] for pair in pairs]


def svd(matrix):
    left, values, right = numpy.linalg.svd(matrix, full_matrices=False)
    rank = int((values > 1e-7 * values[0]).sum()) if values[0] else 0
    return left[:, :rank], values[:rank], right[:rank]


def in_core(pairs, merge):
    """What `merge` makes of the dense changes in the basis of their balanced singular vectors, as the formula says."""
    changes = dense(pairs)
    parts = [svd(change) for change in changes]
    sides = [
        numpy.hstack([u * numpy.sqrt(s) for u, s, _ in parts]),
        numpy.hstack([v.T * numpy.sqrt(s) for _, s, v in parts]),
    ]
    bases = [svd(side)[0] for side in sides]
    return bases[0] @ merge([bases[0].T @ change @ bases[1] for change in changes]) @ bases[1].T


def trimmed(core):
    kept = numpy.sort(numpy.abs(core), axis=None)[-max(1, round(SETTINGS.density * core.size))]
    return numpy.where(numpy.abs(core) >= kept, core, 0.0)


def disjoint_mean(cores):
    elected = numpy.sign(sum(cores))
    agree = [(numpy.sign(core) == elected) & (core != 0) for core in cores]
    count = sum(one.astype(float) for one in agree)
    return sum(core * one for core, one in zip(cores, agree, strict=True)) / numpy.maximum(count, 1)


def polar(matrix):
    left, _, right = numpy.linalg.svd(matrix, full_matrices=False)
    return left @ right


def tsv(pairs):
    parts = [svd(change) for change in dense(pairs) if change.any()]
    values = numpy.concatenate([s for _, s, _ in parts])
    return (
        polar(numpy.hstack([u for u, _, _ in parts])) @ numpy.diag(values) @ polar(numpy.vstack([v for *_, v in parts]))
    )


def iso_c(pairs):
    left, values, right = svd(sum(dense(pairs)))
    return left @ numpy.diag(numpy.full(len(values), values.mean())) @ right


def divisors(changes):
    left, values, right = svd(sum(changes))
    squares = [numpy.square(left.T @ change).sum(axis=1) for change in changes]
    least_square = 1e-12 * numpy.max(squares)
    shares = []
    for at in range(len(values)):
        whole = values[at] * right[at]
        parts = [left[:, at] @ change for change in changes]
        shares.append(numpy.mean([max(1.0, whole @ part / max(part @ part, least_square)) for part in parts]))
    return left, values, right, numpy.array(shares)


def svc(pairs):
    left, values, right, shares = divisors(dense(pairs))
    return left @ numpy.diag(values / shares) @ right


def slerp(pairs):
    one, other = dense(pairs)
    angle = numpy.arccos((one * other).sum() / numpy.linalg.norm(one) / numpy.linalg.norm(other))
    t = SETTINGS.t
    return (numpy.sin((1 - t) * angle) * one + numpy.sin(t * angle) * other) / numpy.sin(angle)


FORMULAS = {
    "sum": lambda pairs: sum(dense(pairs)),
    "mean": lambda pairs: sum(dense(pairs)) / len(pairs),
    "ties": lambda pairs: in_core(pairs, lambda cores: disjoint_mean([trimmed(core) for core in cores])),
    "tsv": tsv,
    "iso-c": iso_c,
    "svc": svc,
}
