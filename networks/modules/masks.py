"""T-LoRA: the noisier the input, the fewer ranks act, so that the later ones learn from inputs of little noise alone.

Source: Soboleva et al. 2025. At timestep t of T the first min_rank + ⌊((T - t) / T)^alpha · (rank - min_rank)⌋ ranks
act. The trainer says what t is, before each forward.

The dropouts of an adapter, beside torch's own on single activations.
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
    """Which ranks act, for each sample of a batch: shared by the modules of a network, which add their `ranks`."""

    def __init__(self, min_rank: int, alpha: float) -> None:
        self.min_rank = min_rank
        self.alpha = alpha
        self.ranks: set[int] = set()
        self._masks: dict[int, Tensor] = {}

    @property
    def is_set(self) -> bool:
        """Whether timesteps have come."""
        return bool(self._masks)

    def set(self, timesteps: Tensor | Sequence[float] | float, max_timestep: float) -> None:
        """Takes the timesteps of a batch, (samples,) or one for all, from 0 for no noise to `max_timestep`.

        Raises ValueError for timesteps of another shape or beyond that.
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
        """Forgets the timesteps."""
        self._masks = {}

    def masked(self, hidden: Tensor, rank: int, rank_axis: int) -> Tensor:
        """`hidden` with 0 for the ranks that do not act.

        `rank_axis` is negative, and holds the `rank` ranks once or several times; the first axis holds the samples.
        Raises RuntimeError where no timestep has come, and where they are those of other samples.
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
        """1 where a rank acts and 0 elsewhere, (samples, rank), or (1, rank) where that is one for all samples."""
        least = min(self.min_rank, rank)
        active = [int(share * (rank - least)) + least for share in shares]
        active = active[:1] if len(set(active)) == 1 else active
        ranks, acting = (torch.tensor(numbers, dtype=torch.long, device="cpu") for numbers in (range(rank), active))
        return (ranks < acting[:, None]).float()


def is_training_step() -> bool:
    """Whether the gradient of what is computed here is wanted, now or in a second forward.

    Trainers sample without gradients while the adapter is in training mode. Reentrant checkpointing runs the first of
    its two forwards without gradients as well, and has to draw there what it will draw in the second.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.is_grad_enabled()
    # Beside an autograd.Function, only inference_mode switches forward-mode gradients off too.
    if torch._C._is_fwd_grad_enabled() or torch.is_inference_mode_enabled():
        return False
    return _is_inside_differentiated_function(sys._getframe(1))


def _is_inside_differentiated_function(frame: FrameType | None) -> bool:
    """Whether `frame` was called by the forward of an autograd.Function with an input that needs a gradient."""
    while frame is not None:
        if frame.f_code.co_varnames[:1] == ("ctx",):
            context = frame.f_locals.get("ctx")
            if isinstance(context, FunctionCtx) and any(context.needs_input_grad):  # type: ignore[attr-defined]
                return True
        frame = frame.f_back
    return False


def draws_skip(probability: float) -> bool:
    """Whether this call leaves the whole adapter out. torch's generator, so that checkpointing draws it again."""
    return bool(torch.rand((), dtype=torch.float32, device="cpu") < probability)


def drop_ranks(hidden: Tensor, probability: float, rank_axis: int) -> Tensor:
    """`hidden` with each rank of each sample zeroed with `probability`, the rest scaled by 1/(1 - probability).

    `rank_axis` is negative: -1 after a Linear, in front of the positions after a convolution. The mask is shared
    over all positions. The first axis holds the samples, unless it is the rank axis itself.
    """
    shape = [1] * hidden.dim()
    shape[0] = hidden.shape[0]
    shape[rank_axis] = hidden.shape[rank_axis]
    kept = torch.rand(shape, dtype=torch.float32, device=hidden.device) >= probability
    return hidden * (kept.to(hidden.dtype) / (1.0 - probability))
