"""The steps on experts: one expert's factors out of those of all, all together, and all packed for PEFT.

Both directions are exact: A of all is that of each below the other, and B has that of each in its own columns, with
zeros for the layers next to it in the parameter. Packing follows every reader of PEFT's names.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from lora_inspect.algorithms.record import Role
from lora_inspect.architectures.rows import Runs
from lora_inspect.converting.growth import Growth
from lora_inspect.converting.steps.part import (
    Context,
    Factor,
    ModuleParts,
    Part,
    as_factor,
    joined,
    scaled,
    zeros,
)
from lora_inspect.converting.target.target_layout import Destination, ManyLayers, OneLayer
from lora_inspect.files.safetensors.writer import TensorPlan
from lora_inspect.maths.scaling import RANK_MAJOR, per_expert

Values = dict[Role, Factor]


class ExpertArranger:
    """An arranger of destinations in turn; it keeps the factors of all experts of the last parameter."""

    def __init__(self) -> None:
        self._of: str = ""
        self._all: tuple[Factor, Factor] | None = None

    def arrange(self, destination: Destination, found: Sequence[Sequence[Part]], growth: Growth) -> list[Part]:
        """Return the part of a module of the output from those `found` in each of its sources."""
        (made,) = destination.module.contributions
        experts = destination.experts
        if isinstance(experts, OneLayer):
            ((part,),) = found
            up, down = self._read(part)
            own = replace(part, origin=made, algorithm=made.algorithm, factors=_one(experts, up, down))
            return [own]
        assert experts is not None
        parts = [part for (part,) in found]
        scale = max((part.scale for part in parts), key=abs) or 1.0
        return [
            Part(
                made._replace(alpha=None),
                made.algorithm,
                _together(experts, parts, scale, growth),
                scale,
                folded=parts[0].folded if len({part.scale for part in parts}) == 1 else 1.0,
            )
        ]

    def _read(self, part: Part) -> tuple[Factor, Factor]:
        """Return B as (experts, b, rank) and A as (experts, rank, a), of a part in PEFT's packing."""
        if self._all is None or self._of != part.origin.module.key:
            up, down = as_factor(part.factors["up"]), as_factor(part.factors["down"])
            ups, downs = per_expert(up.values, down.values, part.algorithm.experts, RANK_MAJOR)
            self._of, self._all = part.origin.module.key, (up._replace(values=ups), down._replace(values=downs))
        return self._all


def _one(layer: OneLayer, up: Factor, down: Factor) -> Values:
    """Return (out, rank) and (rank, in) of one layer of an expert."""
    rows, columns = up.values[layer.expert], down.values[layer.expert]
    dtypes = up.dtype, down.dtype
    if layer.turned:
        rows, columns, dtypes = columns.T, rows.T, dtypes[::-1]
    taken = torch.cat([rows[source : source + stop - start] for start, stop, source in layer.runs.each()])
    return {"down": Factor(columns.contiguous(), dtypes[1]), "up": Factor(taken.contiguous(), dtypes[0])}


def _together(layers: ManyLayers, parts: Sequence[Part], scale: float, growth: Growth) -> Values:
    """Return A (experts·rank, in) and B (rows, rank·experts), with the rank of an expert's layers together."""
    factors = [{role: as_factor(factor) for role, factor in part.factors.items()} for part in parts]
    ups = [scaled(own["up"], part.scale / scale) for own, part in zip(factors, parts, strict=True)]
    downs = [own["down"] for own in factors]
    ranks: dict[int, int] = {}
    for (_, part, _), down in zip(layers.places, downs, strict=True):
        ranks[part] = max(ranks.get(part, 0), down.shape[0])
    starts = {part: sum(ranks[other] for other in ranks if other < part) for part in ranks}
    rank, inputs = sum(ranks.values()), downs[0].shape[1]
    shapes = {"down": (layers.experts * rank, inputs), "up": (layers.rows, rank * layers.experts)}
    dtypes = {"down": joined(downs), "up": joined(ups)}
    growth.refuse_more(
        sum(TensorPlan("", dtypes[role], shape).nbytes for role, shape in shapes.items()),
        f"all experts of {parts[0].origin.module.key}",
    )
    down_of_all = zeros((layers.experts, rank, inputs), dtypes["down"])
    up_of_all = zeros((layers.experts, layers.rows, rank), dtypes["up"])
    for (expert, part, runs), up, down in zip(layers.places, ups, downs, strict=True):
        columns = slice(starts[part], starts[part] + down.shape[0])
        down_of_all[expert, columns] = down.values.to(down_of_all.dtype)
        _put(up_of_all[expert, :, columns], up, runs)
    packed = up_of_all.permute(1, 2, 0).reshape(shapes["up"])
    return {"down": Factor(down_of_all.reshape(shapes["down"]), dtypes["down"]), "up": Factor(packed, dtypes["up"])}


def _put(whole: torch.Tensor, up: Factor, runs: Runs) -> None:
    for start, stop, source in runs.each():
        whole[start:stop] = up.values[source : source + stop - start].to(whole.dtype)


def arrange_experts(module: ModuleParts, context: Context) -> ModuleParts:
    """Split the layer of one expert from those of all, or join those of all."""
    arranger = context.kept.setdefault("expert_split", ExpertArranger())
    return replace(module, parts=arranger.arrange(module.target, module.found, context.growth))


def repack(module: ModuleParts, context: Context) -> ModuleParts:
    """Reorder the columns of B as PEFT does: the same numbers, and the same change."""
    return module.each(lambda source, parts: [_repacked(part) if part.algorithm.packed else part for part in parts])


def _repacked(part: Part) -> Part:
    packing = part.origin.settings["packing"]
    if packing == RANK_MAJOR:
        return part
    up, down = as_factor(part.factors["up"]), as_factor(part.factors["down"])
    by_expert, _ = per_expert(up.values, down.values, part.algorithm.experts, packing)
    values = by_expert.permute(1, 2, 0).reshape(up.shape)
    return replace(part, factors={**part.factors, "up": up._replace(values=values)})
