"""T-LoRA's rank masks, and the dropouts of an adapter other than torch's own.

With T-LoRA fewer ranks act on noisier inputs, so the later ranks learn only from inputs with little noise. At timestep
t of T the first min_rank + ⌊((T - t) / T)^alpha · (rank - min_rank)⌋ ranks act. The trainer sets t before each forward.
Source: Soboleva et al. 2025.
"""

import sys
from collections.abc import Sequence
from types import FrameType

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

# Trainers that count 1000 timesteps from 1 go to 1001.
_TOLERANCE = 1.01


class RankMask:
    """The mask of the active ranks for each sample of a batch.

    The modules of a network share it and add their `ranks`.
    """

    def __init__(self, min_rank: int, alpha: float) -> None:
        self.min_rank = min_rank
        self.alpha = alpha
        self.ranks: set[int] = set()
        self._masks: dict[int, Tensor] = {}

    @property
    def is_set(self) -> bool:
        """True if timesteps are set."""
        return bool(self._masks)

    def set(self, timesteps: Tensor | Sequence[float] | float, max_timestep: float) -> None:
        """Set the timesteps of a batch, (samples,) or one for all.

        They go from 0 for no noise to `max_timestep`. Raises ValueError for another shape or other numbers.
        """
        given = (
            timesteps if isinstance(timesteps, Tensor) else torch.tensor(timesteps, dtype=torch.float32, device="cpu")
        )
        values: list[float] = given.reshape(-1).tolist()
        if given.dim() > 1 or not values:
            raise ValueError(f"timesteps of shape {list(given.shape)}, but one for each sample was expected")
        if not all(0 <= value <= max_timestep * _TOLERANCE for value in values):
            raise ValueError(
                f"timesteps from {min(values):g} to {max(values):g}, but numbers from 0 to max_timestep="
                f"{max_timestep:g} were expected"
            )
        shares = [(max(max_timestep - value, 0) / max_timestep) ** self.alpha for value in values]
        # All at once and in eager mode: what is compiled only looks them up.
        self._masks = {rank: self._mask(shares, rank).to(given.device) for rank in self.ranks}

    def clear(self) -> None:
        """Forget the timesteps."""
        self._masks = {}

    def masked(self, hidden: Tensor, rank: int, rank_axis: int) -> Tensor:
        """Return `hidden` with 0 for the ranks that do not act.

        `rank_axis` is negative, and holds the `rank` ranks once or several times; the first axis holds the samples.
        Raises RuntimeError if there are no timesteps, or those of other samples.
        """
        if not self._masks:
            raise RuntimeError(
                "use_tlora=True needs the timesteps of each step, but got none; call "
                "set_timestep_mask(timesteps, max_timestep) of the network before the forward"
            )
        mask = self._masks[rank].to(hidden.device, hidden.dtype)
        samples = mask.shape[0]
        shape = [1] * hidden.dim()
        shape[rank_axis] = hidden.shape[rank_axis]
        if samples > 1:
            if hidden.dim() == -rank_axis or hidden.shape[0] != samples:
                raise RuntimeError(
                    f"a layer with the input {list(hidden.shape[:rank_axis])} got {samples} different "
                    "timesteps: T-LoRA needs the samples on its first axis, or a batch of one"
                )
            shape[0] = samples
        return hidden * mask.repeat(1, hidden.shape[rank_axis] // rank).view(shape)

    def _mask(self, shares: Sequence[float], rank: int) -> Tensor:
        """Return 1 for active ranks and 0 for the others, (samples, rank).

        The shape is (1, rank) if all samples have the same mask.
        """
        least = min(self.min_rank, rank)
        active = [int(share * (rank - least)) + least for share in shares]
        active = active[:1] if len(set(active)) == 1 else active
        ranks, acting = (torch.tensor(numbers, dtype=torch.long, device="cpu") for numbers in (range(rank), active))
        return (ranks < acting[:, None]).float()


def is_training_step() -> bool:
    """Return True if a gradient of this computation is needed, now or in a second forward.

    Trainers sample without gradients while the adapter is in training mode. Reentrant checkpointing also runs the first
    of its two forwards without gradients, and has to draw there the same numbers as in the second.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.is_grad_enabled()
    # Beside an autograd.Function, only inference_mode switches forward-mode gradients off too.
    if torch._C._is_fwd_grad_enabled() or torch.is_inference_mode_enabled():
        return False
    return _is_inside_differentiated_function(sys._getframe(1))


def _is_inside_differentiated_function(frame: FrameType | None) -> bool:
    """Return True if the forward of a differentiated autograd.Function called `frame`.

    Such a Function has an input that needs a gradient.
    """
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("ctx",):
            context = frame.f_locals.get("ctx")
            if isinstance(context, FunctionCtx) and any(context.needs_input_grad):  # type: ignore[attr-defined]
                return True
        frame = frame.f_back
    return False


def draws_skip(probability: float) -> bool:
    """Return True if this call skips the whole adapter.

    It uses torch's generator, so that checkpointing draws the same again.
    """
    return bool(torch.rand((), dtype=torch.float32, device="cpu") < probability)


def drop_ranks(hidden: Tensor, probability: float, rank_axis: int) -> Tensor:
    """Return `hidden` with each rank of each sample zeroed with `probability`.

    The rest is scaled by 1/(1 - probability). `rank_axis` is negative: -1 after a Linear, in front of the positions
    after a convolution. All positions share the mask. The first axis holds the samples, unless it is the rank axis
    itself.
    """
    shape = [1] * hidden.dim()
    shape[0] = hidden.shape[0]
    shape[rank_axis] = hidden.shape[rank_axis]
    kept = torch.rand(shape, dtype=torch.float32, device=hidden.device) >= probability
    return hidden * (kept.to(hidden.dtype) / (1.0 - probability))
