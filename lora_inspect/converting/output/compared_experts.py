"""How far factors of all experts of a layer, or of the layers of single ones, are from those that they were made of."""

import math
from collections.abc import Iterator, Sequence

import torch

from lora_inspect.algorithms import mlx
from lora_inspect.converting.output.compared import FactorCache
from lora_inspect.converting.target.target_layout import Destination, OneLayer
from lora_inspect.maths.low_rank import Distance, Product, distance
from lora_inspect.maths.packed_factors import per_expert
from lora_inspect.reading.model.contribution import Contribution


def expert_distance(destination: Destination, written: Contribution, read: FactorCache) -> Distance:
    """Over all experts, of the module of the output that holds `written` and of its sources."""
    sources = [source.module.contributions[0] for source in destination.sources]
    layers = destination.experts
    if layers is None:
        (source,) = sources
        if written.algorithm != source.algorithm:
            return Distance(math.inf, 1.0)
        return _over_all([[one] for one in _of_all(source, read)], written, read)
    if isinstance(layers, OneLayer):
        (source,) = sources
        whole = list(_of_all(source, read))[layers.expert]
        turned = Product(whole.down.t(), whole.up.t()) if layers.turned else whole
        rows = [turned.up[first : first + stop - start] for start, stop, first in layers.runs.each()]
        return distance([turned._replace(up=torch.cat(rows))], [_of_one(written, read)])
    of_experts: list[list[Product]] = [[] for _ in range(layers.experts)]
    for source, (expert, _, runs) in zip(sources, layers.places, strict=True):
        own = _of_one(source, read)
        up = own.up.new_zeros(layers.rows, own.up.shape[1])
        for start, stop, first in runs.each():
            up[start:stop] = own.up[first : first + stop - start]
        of_experts[expert].append(own._replace(up=up))
    return _over_all(of_experts, written, read)


def _of_one(contribution: Contribution, read: FactorCache) -> Product:
    factors = read.operands(contribution)
    return Product(factors["up"] * contribution.known_scale, factors["down"])


def _of_all(contribution: Contribution, read: FactorCache) -> Iterator[Product]:
    """The product of each expert."""
    one, algorithm = _of_one(contribution, read), contribution.algorithm
    if algorithm.packed:
        yield from map(Product, *per_expert(one.up, one.down, algorithm.experts, contribution.settings["packing"]))
    else:
        yield from map(Product, *mlx.per_expert(one.up, one.down))


def _over_all(meant: Sequence[list[Product]], written: Contribution, read: FactorCache) -> Distance:
    found = [distance(ones, [other]) for ones, other in zip(meant, _of_all(written, read), strict=True)]
    return Distance(math.hypot(*(one.apart for one in found)), math.hypot(*(one.norm for one in found)))
