"""DoRA's magnitude of one layer, and the gain that follows from it.

Source: Liu et al. 2024 (DoRA). The norm is constant in the backward pass, as the paper's section 4.3 proposes.

A watch notices an exchange of the base in the middle of training: DoRA's magnitudes are made for the first base.
"""

import logging
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_inspect.maths import dora

from ..kernels.base_weight import squares_and_products
from ..kernels.coded_weight import device_of, dtype_of, is_coded, stored_weight
from ..kernels.half_precision import is_traced

logger = logging.getLogger(__name__)

# Sums of the same squares differ by less on every device and in every order; those of another model by far more.
_TOLERANCE = 1e-5

_EXCHANGED = (
    "DoRA: the weights of the base changed since training began, as when the two models of Wan 2.2 take "
    "turns. The magnitudes started as the row norms of the first base, and impose them on the rows of the "
    "second: its outputs change by more than the training. Train one network for each base, or without "
    "use_dora"
)


class Notice:
    """A record whether the layers of one network have given the warning."""

    def __init__(self) -> None:
        self.given = False


class BaseWatch:
    """The squared row norms of the base at the start of training.

    In a training step it warns once if they changed. The norms of a base in codes are also kept until a tensor of the
    base is replaced or written to, since they need a decoded weight.
    """

    def __init__(self) -> None:
        self.notice = Notice()
        self._squares: Tensor | None = None
        self._weight = 0
        self._decoded: tuple[Tensor, list[_Seen]] | None = None

    def decoded(self, base: nn.Module) -> Tensor | None:
        """Return the squared row norms (out,) from `keep`, while the base is the same."""
        if self._decoded is None:
            return None
        squares, seen = self._decoded
        now = _codes(base)
        is_same = len(now) == len(seen) and all(one.is_still(other) for one, other in zip(seen, now, strict=True))
        return squares if is_same else None

    def keep(self, base: nn.Module, squares: Tensor) -> None:
        """Store the squared row norms for the codes that the base holds now."""
        self._decoded = (squares, [_Seen(weakref.ref(tensor), _state(tensor)) for tensor in _codes(base)])

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the norms for the tensors of this base."""
        return {**vars(self), "_decoded": None}

    def begin(self, base: nn.Module, squares: Tensor) -> None:
        """Take the base as that of the start of training."""
        self._squares, self._weight = squares, id(stored_weight(base))

    def check(self, base: nn.Module, squares: Tensor) -> None:
        """Compare the base with the first one; a base that is itself trained may change."""
        weight = stored_weight(base)
        if self.notice.given or (weight is not None and weight.requires_grad):
            return
        if self._squares is None:
            self.begin(base, squares)
            return
        # Elsewhere than on the CPU a comparison waits for the device, so it needs an occasion: another parameter.
        if squares.device.type != "cpu" and id(weight) == self._weight:
            return
        self._weight = id(weight)
        if not torch.allclose(squares, self._squares.to(squares), rtol=_TOLERANCE, atol=0.0, equal_nan=True):
            self.notice.given = True
            logger.warning(_EXCHANGED)


class _Seen(NamedTuple):
    """A tensor of a base in codes, and its `_state` when the codes were decoded."""

    tensor: weakref.ref[Tensor]
    state: tuple[Any, ...]

    def is_still(self, tensor: Tensor) -> bool:
        return self.tensor() is tensor and self.state == _state(tensor)


def _codes(base: nn.Module) -> list[Tensor]:
    """Return all tensors of a base except its bias, which does not affect the row norms."""
    held = (*base.named_parameters(recurse=False), *base.named_buffers(recurse=False))
    return [tensor for name, tensor in held if name != "bias"]


def _state(tensor: Tensor) -> tuple[Any, ...]:
    """Return marks that change with a cast, a move, and most writes, but not with foreign kernels."""
    return tensor.dtype, tensor.device, 0 if tensor.is_inference() else tensor._version


def share_notice(watches: Iterable[BaseWatch]) -> None:
    """Make these watches give the warning only once together."""
    notice = Notice()
    for watch in watches:
        watch.notice = notice


# From rows (rank, in) to W @ rowsᵀ (out, rank), by the forward of the base; None where it cannot.
Product = Callable[[Tensor], Tensor | None]


class ThinChange(NamedTuple):
    """A change of W by up @ down, with `down` (rank, in) of fewer rows than W.

    `combined_squares` takes the squared row norms (out,) of W and W @ downᵀ (out, rank) to those of the sum.
    """

    down: Tensor
    combined_squares: Callable[[Tensor, Tensor], Tensor]


class Norms(NamedTuple):
    """The squared row norms (out,) of W, and the row norms (out,) of W with a change in it."""

    base_squares: Tensor
    combined: Tensor


def norm_dtype(base: nn.Module, factor: Tensor) -> torch.dtype:
    """Return the dtype of the norms: float32, or float64 if the factors or the base have it."""
    dtype = torch.promote_types(torch.float32, factor.dtype)
    return torch.float64 if dtype_of(base) == torch.float64 else dtype


class DoRALayer(nn.Module):
    """The magnitude: `dora_layer.weight` (out,) in the state dict, float32 whatever the base's dtype.

    `initialised` says whether it holds more than its initial ones.
    """

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(out_features, dtype=torch.float32, device="cpu"))
        self.initialised = False
        self._start: Tensor | None = None
        self.watch = BaseWatch()

    def initialise(self, base: nn.Module, up: Tensor, down: Tensor, scale: float) -> None:
        """Set the magnitude to the norms that `gain` divides by, so that every gain is 1.

        Raises ValueError while the base's weight is on the meta device.
        """
        self.start(base, partial(self._norms, base, up, down, scale))

    @torch.no_grad()
    def start(self, base: nn.Module, norms: Callable[[], Norms]) -> None:
        """Run `initialise` for any change.

        `norms` are computed only once the base has a weight.
        """
        if device_of(base).type == "meta":
            raise ValueError("DoRA needs the weights of the base, which are not loaded yet (device meta)")
        self.weight.copy_(norms().combined)
        self._start = self.weight.detach().clone()
        self.initialised = True

    def gain(self, base: nn.Module, up: Tensor, down: Tensor, scale: float, product: Product | None = None) -> Tensor:
        """Return magnitude / norm (out,), the factor for each output of W + scale · up @ down.

        With `product` a base in codes is not decoded each time.
        """
        return self.gain_of(base, self._norms(base, up, down, scale, product), up)

    def gain_of(self, base: nn.Module, norms: Norms, zero: Tensor) -> Tensor:
        """Return `gain` for any change; `zero` is the factor that is zero before the first step."""
        squares, norm = norms
        if not is_traced():
            self._follow_base(norm, zero)
            if torch.is_grad_enabled():
                self._watch_base(base, squares)
        gain: Tensor = dora.gain(self.weight, norm)
        return gain

    def norm(self, base: nn.Module, up: Tensor, down: Tensor, scale: float) -> Tensor:
        """Return the row norms (out,) of W + scale · up @ down, in float32 or better, without a gradient."""
        return self._norms(base, up, down, scale).combined

    @torch.no_grad()
    def _norms(self, base: nn.Module, up: Tensor, down: Tensor, scale: float, product: Product | None = None) -> Norms:
        """Return the norms for W + scale · up @ down."""
        device, dtype = device_of(base), norm_dtype(base, up)
        up, down = up.to(device, dtype).flatten(1), down.to(device, dtype).flatten(1)
        combined = partial(dora.expanded_squared_norm, up=up, down=down, scale=scale)
        return self.norms_of(base, ThinChange(down, combined), product)

    @torch.no_grad()
    def norms_of(self, base: nn.Module, change: ThinChange, product: Product | None = None) -> Norms:
        """Return the norms for W with a change.

        Both are computed each time: trainers swap, cast and overwrite a weight without a trace, and W is read anyway
        for W @ downᵀ. A base in codes computes that product itself, and its squares are decoded once.
        """
        is_kept = product is not None and is_coded(base)
        squares = self.watch.decoded(base) if is_kept else None
        products = product(change.down) if product is not None and squares is not None else None
        # Autocast would compute these products in half precision, float32 operands or not.
        with torch.autocast(change.down.device.type, enabled=False):
            if squares is None or products is None:
                squares, products = squares_and_products(base, change.down)
                if is_kept:
                    self.watch.keep(base, squares)
            combined = change.combined_squares(squares, products.to(change.down.dtype))
            return Norms(squares, dora.norm_from_square(combined))

    @torch.no_grad()
    def _follow_base(self, norm: Tensor, zero: Tensor) -> None:
        """Start again from a base that changed after `initialise` and before the first step.

        Trainers cast the base to fp8 after `apply_to`. Training has to begin at the model as it then is.
        """
        if self._start is None:
            return
        if zero.any() or not torch.equal(self._start.to(self.weight), self.weight):
            self._start = None
        elif not torch.equal(norm.to(self.weight), self.weight):
            self.weight.copy_(norm)
            self._start = self.weight.detach().clone()

    def _watch_base(self, base: nn.Module, squares: Tensor) -> None:
        if self._start is None:
            self.watch.check(base, squares)
        else:
            self.watch.begin(base, squares)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        if prefix + "weight" in state_dict:
            self.initialised, self._start = True, None
