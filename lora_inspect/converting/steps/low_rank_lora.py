"""The step that makes plain LoRA of other algorithms: the same change, or the nearest one of a rank.

A change that is a product of thin factors (LoHa's Khatri-Rao product, LoKr's Kronecker product with a thin side, a
Tucker core) becomes LoRA of its own rank exactly, but for the rounding of the factors. Any other one is the best one
of a rank, or of an error, as the true change under DoRA is.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch

from lora_inspect.algorithms import lora
from lora_inspect.algorithms.record import Role
from lora_inspect.architectures.rows import Runs
from lora_inspect.converting.growth import Growth
from lora_inspect.converting.steps.part import (
    Context,
    Factor,
    ModuleParts,
    Part,
    as_factor,
    few_rows,
    fitting,
    in_rows,
    joined,
    scaled,
    thin_rank,
)
from lora_inspect.converting.target.target_algorithm import becomes_lora, is_kernel_open
from lora_inspect.errors import RefusedError
from lora_inspect.files.safetensors.writer import TensorPlan
from lora_inspect.maths.low_rank import Product, approximate, distance, relative
from lora_inspect.maths.tensors import load_whole

# A change that is built whole takes 8 bytes an element: 8 GB at most.
_ELEMENTS = 1 << 30


class LoraMaker:
    """A maker of LoRA, one module after another, exact if possible, unless a `rank` or `max_error` limits it.

    `inner` are (in, *kernel) of the weights by module, if a base gives them.
    """

    def __init__(
        self,
        rank: int | None,
        max_error: float | None,
        inner: dict[str, tuple[int, ...]],
        growth: Growth,
    ) -> None:
        self._rank, self._max_error, self._inner, self._growth = rank, max_error, inner, growth

    def converted(self, parts: Sequence[Part], runs: Runs | None = None) -> list[Part]:
        """Return the parts with other algorithms converted to LoRA, and all LoRA of the module in one part.

        If `runs` take some of the rows, a converted part is approximated only in those, and is zero in all others.
        Raises LoraInspectError if a change has no thin factors and no rank is given, if its factors do not tell a
        Linear layer from a convolution, or if one is too large.
        """
        found = [self._converted(part, runs) if becomes_lora(part.algorithm, part.shapes) else part for part in parts]
        own = [part for part in found if part.algorithm.name == lora.ALGORITHM.name]
        if len(own) < 2 or found == list(parts):
            return found
        others = [part for part in found if part.algorithm.name != lora.ALGORITHM.name]
        return [self._together(own), *others]

    def _converted(self, part: Part, runs: Runs | None) -> Part:
        shape = self._shape(part)
        exact, taken = self._thin(part, shape), few_rows(runs, shape[0])
        if exact and taken is not None:
            exact = exact._replace(up=exact.up[taken])
        if exact and not self._is_shortened(exact):
            dtype = joined([as_factor(part.factors[role]) for role in _numbers(part)])
            up, down = fitting(exact.up, dtype), fitting(exact.down, dtype)
            error = _lost([exact], Product(up.values, down.values))
            return self._part(part, _in_rows(up, taken, shape[0]), down, shape, error)
        if self._rank is None and self._max_error is None:
            raise RefusedError(
                part.file,
                f"{part.origin.module.key} is {part.algorithm.title}, and its change has the full rank of its layer",
                "set the accuracy of its approximation with --rank N or --max-error X",
            )
        if exact:
            up, down = _shortened(exact, self._rank, self._max_error)
            error = _lost([exact], Product(up.values, down.values))
        else:
            whole = self._whole(part, shape)
            few = whole if taken is None else whole[taken]
            found = approximate(few, self._rank, self._max_error, torch.float32)
            up, down, error = Factor(found.up, "F32"), Factor(found.down, "F32"), found.relative_error
        return self._part(part, _in_rows(up, taken, shape[0]), down, shape, error)

    def _is_shortened(self, exact: Product) -> bool:
        return self._max_error is not None or (self._rank is not None and self._rank < exact.down.shape[0])

    def _shape(self, part: Part) -> tuple[int, ...]:
        """Return (out, in, *kernel), with the kernel from the base if the factors have it flattened."""
        shape = part.formula.shape(part.shapes)
        inner = self._inner.get(part.origin.module.key, ())
        known = tuple(size for size in shape if size is not None)
        if len(known) == 2 and prod(inner) == known[1]:
            return (known[0], *inner)
        if len(known) < 2 or is_kernel_open(part.algorithm, part.shapes):
            raise RefusedError(
                part.file,
                f"the factors of {part.origin.module.key} ({part.algorithm.title}) do not show whether its "
                "layer is a Linear or a convolution",
                "give --base BASE, the base that it was trained on",
            )
        return known

    def _thin(self, part: Part, shape: tuple[int, ...]) -> Product | None:
        """Return the unscaled change as a product of a rank below that of the layer, or None if it is none."""
        rank = thin_rank(part.formula, {role: part.shapes[role] for role in _numbers(part)})
        if part.formula.low_rank is None or rank is None or rank >= min(shape[0], prod(shape[1:])):
            return None
        found = part.formula.low_rank(_tensors(part))
        return Product(*found) if found else None

    def _whole(self, part: Part, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the unscaled change as a matrix."""
        rows, columns = shape[0], prod(shape[1:])
        if rows * columns > _ELEMENTS:
            raise RefusedError(
                part.file,
                f"{part.origin.module.key} changes a weight of {list(shape)}, which is too large to approximate",
                "merge it instead, as merge reads a few rows at a time",
            )
        matrix = torch.zeros(rows, columns, dtype=torch.float64, device="cpu")
        part.formula.change(_tensors(part), 1.0, part.origin.alpha, **part.origin.settings).fold(matrix, 0, 1.0)
        return matrix

    def _part(self, part: Part, up: Factor, down: Factor, shape: tuple[int, ...], error: float) -> Part:
        rank, kernel = down.shape[0], (1,) * len(shape[2:])
        key = part.origin.module.key
        for factor in (up, down):
            self._growth.refuse_more(TensorPlan("", factor.dtype, factor.shape).nbytes, f"LoRA of {key}")
        return replace(
            part,
            origin=part.origin._replace(alpha=None),
            algorithm=lora.ALGORITHM,
            factors={
                "down": down._replace(values=down.values.reshape(rank, *shape[1:])),
                "up": up._replace(values=up.values.reshape(shape[0], rank, *kernel)),
            },
            replaced=True,
            error=None if part.error is None else part.error + error,
        )

    def _together(self, parts: Sequence[Part]) -> Part:
        """Return one LoRA of all the parts; its rank is the sum of theirs."""
        scale = max((part.scale for part in parts), key=abs) or 1.0
        factors = [{role: as_factor(factor) for role, factor in part.factors.items()} for part in parts]
        ups = [scaled(own["up"], part.scale / scale) for own, part in zip(factors, parts, strict=True)]
        meant = [
            Product(own["up"].values.flatten(1) * (part.scale / scale), own["down"].values.flatten(1))
            for own, part in zip(factors, parts, strict=True)
        ]
        up = Factor(torch.cat([one.values.flatten(1) for one in ups], 1), joined(ups))
        downs = [own["down"] for own in factors]
        down = Factor(torch.cat([one.values.flatten(1) for one in downs]), joined(downs))
        first = next((part for part in parts if part.magnitude), parts[0])
        shape = max((lora.weight_shape(part.shapes) for part in parts), key=len)
        error: float | None = None
        if None not in (errors := [part.error for part in parts]):
            # What each lost is a share of itself, and all of them may partly cancel each other.
            lost = sum((own or 0.0) * distance([one], []).apart for own, one in zip(errors, meant, strict=True))
            whole = distance(meant, [Product(up.values, down.values)])
            norm = distance(meant, []).apart
            error = relative(lost + whole.apart, norm)
        made = self._part(replace(first, scale=scale, error=0.0), up, down, shape, 0.0)
        dropped = tuple(key for part in parts for key in part.dropped)
        return replace(made, error=error, dropped=dropped)


def _shortened(exact: Product, rank: int | None, max_error: float | None) -> tuple[Factor, Factor]:
    """Return the nearest product of a rank or an error, from the small matrix between two orthonormal bases."""
    left, right = torch.linalg.qr(exact.up), torch.linalg.qr(exact.down.t())
    found = approximate(left.R @ right.R.t(), rank, max_error, torch.float64)
    up, down = left.Q @ found.up, found.down @ right.Q.t()
    return Factor(up.float().double(), "F32"), Factor(down.float().double(), "F32")


def _in_rows(up: Factor, taken: torch.Tensor | None, rows: int) -> Factor:
    return up if taken is None else up._replace(values=in_rows(up.values, taken, rows))


def _numbers(part: Part) -> list[Role]:
    """Return the roles of the factors that the change is computed from, without those of positions."""
    return [role for role in part.origin.operands if role in part.factors and role not in part.algorithm.positions]


def _tensors(part: Part) -> dict[Role, torch.Tensor]:
    """Return the factors that the change is computed from: numbers in float64, integers in int64."""
    positions = {role: info for role, info in part.origin.operands.items() if role in part.algorithm.positions}
    numbers = {role: as_factor(part.factors[role]).values for role in _numbers(part)}
    return numbers | {role: load_whole(info) for role, info in positions.items()}


def _lost(meant: list[Product], written: Product) -> float:
    return distance(meant, [written]).share


def make_lora(module: ModuleParts, context: Context) -> ModuleParts:
    """Make LoRA of the parts of each source."""
    options = context.options
    maker = LoraMaker(options.rank, options.max_error, context.inner, context.growth)
    return module.each(lambda source, parts: maker.converted(parts, source.runs))
