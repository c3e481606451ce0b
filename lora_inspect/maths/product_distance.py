"""How far two sums of products of thin factors are from each other, without building any of them.

A product is a sum of columns times rows. Where the same row stands in several products its columns are subtracted, so
that what is equal costs nothing and leaves nothing. ‖A @ B‖ of the rest is, with QR decompositions of both factors, the
norm of a product of triangles; one from Gram matrices would lose half of the digits where the products nearly agree.
All of it in float64.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from lora_inspect.fast_namedtuple import NamedTuple


class Product(NamedTuple):
    """up (out, rank) @ down (rank, columns), in float64."""

    up: Tensor
    down: Tensor


class Distance(NamedTuple):
    """‖one - other‖ in the Frobenius norm, and ‖one‖."""

    apart: float
    norm: float

    @property
    def share(self) -> float:
        """The distance as a share of the norm; infinite where only the norm is zero."""
        if self.apart == 0.0:
            return 0.0
        return self.apart / self.norm if self.norm else math.inf


def distance(ones: list[Product], others: list[Product]) -> Distance:
    """How far the sum of the products `ones` is from that of the `others`, all of one shape (out, columns).

    Off by some 1e-16 of the norms of the factors. Factors that are not finite give NaN.
    """
    apart = _norm([*ones, *(product._replace(up=-product.up) for product in others)])
    return Distance(apart, _norm(ones) if apart else 0.0)


def _norm(products: Iterable[Product]) -> float:
    """‖the sum of the products‖."""
    up, down = _without_doubles(list(products))
    used = up.ne(0).any(0)
    up, down = up[:, used], down[used]
    if not up.numel() or not down.numel():
        return 0.0
    # Largest entries of 1 keep every square in the range of float64.
    largest = [float(factor.abs().max()) for factor in (up, down)]
    if 0.0 in largest or not all(map(math.isfinite, largest)):
        return 0.0 if 0.0 in largest else math.nan
    left = torch.linalg.qr(up / largest[0], mode="r").R
    right = torch.linalg.qr(down.t() / largest[1], mode="r").R
    return float((left @ right.t()).norm()) * largest[0] * largest[1]


def _without_doubles(products: list[Product]) -> Product:
    """The sum as one product whose down has every row once."""
    found: dict[bytes, int] = {}
    rows: list[Tensor] = []
    whole = torch.cat([product.up for product in products], 1)
    places = []
    for row in (row for product in products for row in product.down):
        place = found.setdefault(row.contiguous().numpy().tobytes(), len(rows))
        if place == len(rows):
            rows.append(row)
        places.append(place)
    up = whole.new_zeros(whole.shape[0], len(rows)).index_add_(
        1, torch.tensor(places, dtype=torch.long, device="cpu"), whole
    )
    return Product(up, torch.stack(rows))
