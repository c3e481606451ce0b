"""The base class of all adapter modules: base layer, scale, switches, and place in the forward.

It also has the pointwise convolution for any number of dimensions, and max-norm regularisation, which limits the norm
of each module's change.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora_inspect.maths.scaling import neutral_alpha, scale_of
from lora_inspect.maths.torch_threads import whole_products

from ..files.reading import read_alpha
from ..kernels.base_weight import UnknownValues, is_sharded
from ..kernels.coded_weight import base_product, is_coded
from ..kernels.half_precision import is_traced
from ..network_args import read_probability
from .base_forward import CONVOLUTIONS, copied
from .masks import draws_skip, is_training_step


class AdapterModule(nn.Module):
    """The adapter of one layer.

    Neither is a child of the other, so neither's state dict contains the other. `scale` follows from `alpha`, a float32
    scalar in the state dict whatever else is cast; an alpha of 0 or None gives scale 1. While `enabled` is false or
    `multiplier` 0, only the base's forward runs.
    """

    alpha: Tensor
    # What it has of the options of LoRA that do not follow from what is here.
    options: ClassVar[frozenset[str]] = frozenset()
    # Whether the rank is a side of the factors, which more of does nothing.
    rank_is_a_size: ClassVar[bool] = True
    # How many axes DoRA's magnitude has as a file's `dora_scale`, where every file is to have that for it; else 0.
    dora_scale_axes = 0

    def __init__(
        self,
        lora_name: str,
        org_module: nn.Module,
        multiplier: float = 1.0,
        lora_dim: int = 4,
        alpha: float | Tensor | None = 1,
        dropout: float | None = None,
        rank_dropout: float | None = None,
        module_dropout: float | None = None,
        *,
        use_rslora: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(lora_dim, bool) or not isinstance(lora_dim, int) or lora_dim < 1:
            raise ValueError(f"{lora_name}: the rank is {lora_dim!r}, but a whole number above 0 was expected")
        self.lora_name = lora_name
        self.lora_dim = lora_dim
        self.multiplier = multiplier
        self.enabled = True
        self.use_rslora = use_rslora
        self.dropout = _probability("dropout", dropout)
        self.rank_dropout = _probability("rank_dropout", rank_dropout)
        self.module_dropout = _probability("module_dropout", module_dropout)
        # In a list, so that it does not become a child.
        self.org_module_ref = [org_module]
        self.org_forward: Callable[..., Tensor] | None = None
        self._base_is_plain = False
        # To ask such a layer for its weight may decode all of it.
        self._base_is_coded = is_coded(org_module)
        self.register_buffer("alpha", torch.tensor(float(alpha or 0.0), dtype=torch.float32, device="cpu"))
        self._set_alpha(float(alpha or 0.0) or neutral_alpha(lora_dim, use_rslora))

    @property
    def org_module(self) -> Any:
        """The base layer."""
        return self.org_module_ref[0]

    @property
    def is_dropping(self) -> bool:
        """True if dropouts act: in training mode, in a forward of a training step."""
        return self.training and is_training_step()

    def apply_to(self) -> None:
        """Replace the base's forward by `forward`, once.

        An existing replacement is wrapped.
        """
        if self.org_forward is None:
            # Only torch's own forward may be computed here; a hook, another adapter or a patch has to be called.
            self._base_is_plain = type(self.org_module) is nn.Linear and "forward" not in vars(self.org_module)
            self.org_forward = self.org_module.forward
            self.org_module.forward = self.forward

    @contextmanager
    def naming_unknown_values(self, option: str) -> Iterator[None]:
        """Raise UnknownValues of the base's weight with the names of the layer and of the `option` that needs it."""
        try:
            yield
        except UnknownValues as error:
            raise UnknownValues(
                f"{self.lora_name}: {option} needs the values of the weight: {error}; leave the option out, or the "
                "layer with exclude_patterns"
            ) from None

    def check_removable(self) -> None:
        """Raise RuntimeError if the base's forward is not this adapter's."""
        if self.org_forward is not None and vars(self.org_module).get("forward") != self.forward:
            raise RuntimeError(
                f"{self.lora_name}: something else has been put around the layer's forward since apply_to; remove that "
                "first"
            )

    def remove(self) -> None:
        """Restore the forward from before `apply_to`, if that was called."""
        if self.org_forward is None:
            return
        if getattr(self.org_forward, "__func__", None) is type(self.org_module).forward:
            del self.org_module.forward
        else:
            self.org_module.forward = self.org_forward
        self.take_out()

    def take_out(self) -> None:
        """Forget the base's forward, for a copy that is in none."""
        self.org_forward, self._base_is_plain = None, False

    def __deepcopy__(self, memo: dict[int, Any]) -> "AdapterModule":
        adapter: AdapterModule = copied(self, [self], memo)
        return adapter

    def forward(self, input: Tensor) -> Tensor:
        """Return the base's output with the adapter's change, in the base's output dtype."""
        if self.org_forward is None:
            raise RuntimeError(f"{self.lora_name}: call apply_to before forward")
        # The switches come before any random number is drawn.
        active = self.enabled and self.multiplier != 0
        if not active or (self.module_dropout and self.is_dropping and draws_skip(self.module_dropout)):
            return self.org_forward(input)
        self._refuse_shards()
        return self.adapted(input)

    def _refuse_shards(self) -> None:
        """Raise RuntimeError if this process holds only a part of the factors or of the weight."""
        if not self._base_is_coded and is_sharded(self.org_module.weight):
            raise RuntimeError(
                f"{self.lora_name}: the base's weight is sharded while the layer runs, as tensor parallelism does; "
                "shard the base with fully_shard, which gathers it for each block's forward"
            )
        if any(is_sharded(parameter) for parameter in self.parameters()):
            raise RuntimeError(
                f"{self.lora_name}: the adapter is sharded, but nothing calls the network's own forward, which "
                "would gather it; shard only the base and average the gradients, or shard a module that holds "
                "both"
            )

    def adapted(self, input: Tensor) -> Tensor:
        """Return the output with the change in it."""
        raise NotImplementedError

    def base_product_in(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor | None] | None:
        """Return the function from rows (rank, in) to W @ rowsᵀ by the base's forward, for an input of `dtype`.

        It leaves out other adapters around the base. None while operations are traced, and for convolutions.
        """
        if is_traced() or isinstance(self.org_module, CONVOLUTIONS):
            return None
        forward = self.org_forward
        while isinstance(other := getattr(forward, "__self__", None), AdapterModule):
            forward = other.org_forward
        assert forward is not None
        return partial(base_product, forward, self.org_module, dtype=dtype)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the trainable parameters by optimiser group: "plus" of LoRA+, "dora", or "" for the rest."""
        raise NotImplementedError

    def change_norm(self) -> Tensor:
        """Return the Frobenius norm of the scaled delta, a 0-dim tensor without a gradient."""
        raise NotImplementedError

    def shrink(self, ratio: Tensor) -> None:
        """Multiply the delta by `ratio`, in place."""
        raise NotImplementedError

    def file_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the module in a file, by key.

        They are its state dict, unless a file needs another form.
        """
        return self.state_dict()

    def from_file(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the state dict for the result of `file_tensors`."""
        return dict(tensors)

    def read_alpha(self, stored: Tensor | None) -> float:
        """Return the value of a stored or missing alpha.

        Raises ValueError for an unusable number.
        """
        return read_alpha(self.lora_name, stored, self.lora_dim, self.use_rslora)

    def _set_alpha(self, alpha: float) -> None:
        self._alpha_value = alpha
        self.alpha = torch.tensor(alpha, dtype=torch.float32, device=self.alpha.device)
        self.scale = scale_of(alpha, self.lora_dim, self.use_rslora)

    def _apply(self, fn: Any, recurse: bool = True) -> "AdapterModule":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # A cast of the whole network would keep 8 bits of alpha.
        if self.alpha.dtype != torch.float32:
            self.alpha = torch.tensor(self._alpha_value, dtype=torch.float32, device=self.alpha.device)
        return self

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        own = [key for key in state_dict if key.startswith(prefix)]
        if own:
            alpha = self.read_alpha(state_dict.get(prefix + "alpha"))
            state_dict[prefix + "alpha"] = torch.tensor(alpha, dtype=torch.float32, device=self.alpha.device)
            self._set_alpha(alpha)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _probability(name: str, probability: float | None) -> float:
    """Return the probability, 0 for None.

    Raises ValueError outside [0, 1).
    """
    return 0.0 if probability is None else read_probability(name, probability)


_OPERATIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def convolve_pointwise(input: Tensor, matrix: Tensor) -> Tensor:
    """Apply `matrix` (out, in) at every position of `input` (samples, in, *positions)."""
    positions = input.dim() - 2
    return _OPERATIONS[positions](input, matrix.view(*matrix.shape, *[1] * positions))


@torch.no_grad()
def limit_norms(modules: Sequence[AdapterModule], limit: float) -> tuple[int, float, float]:
    """Shrink every change to the Frobenius norm `limit` if its norm, scale included, exceeds that.

    Returns the number of shrunk changes, and the mean and the largest norm afterwards. It waits for the device once,
    not once per module.
    """
    if not modules:
        return 0, 0.0, 0.0
    with whole_products(modules[0].alpha.device.type):
        norms = torch.stack([module.change_norm() for module in modules])
    ratios = (limit / norms.clamp(min=torch.finfo(norms.dtype).tiny)).clamp(max=1.0)
    for module, ratio in zip(modules, ratios, strict=True):
        module.shrink(ratio)
    limited = norms * ratios
    count, mean, largest = torch.stack([(ratios < 1).sum().to(norms.dtype), limited.mean(), limited.max()]).tolist()
    return int(count), mean, largest
