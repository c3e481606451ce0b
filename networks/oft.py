"""OFT, as a network module for every architecture.

The option `architecture` or the model names the architecture. `constraint` limits the norm of all generators of a
layer, for each of its outputs. `rescaled` adds a factor for each output. Sources: Qiu et al. 2023, and the
`DiagOFTModule` of lycoris-lora, which has both options.
"""

import logging
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from lora_inspect.algorithms import oft
from lora_inspect.algorithms.record import Shapes
from lora_inspect.maths import rotation
from lora_inspect.maths.change import Change

from .files.reading import DialectTensors, ModuleWeights, read_limit
from .kernels.base_weight import is_plain
from .kernels.half_precision import is_traced, without_autocast
from .kernels.rotated_output import cayley_turn, fused_turn, rotated_linear, turned
from .modules.adapter_module import AdapterModule
from .modules.base_forward import CONVOLUTIONS, weight_shape
from .modules.module_merging import FoldableModule, merge_into
from .network.architecture_module import TrainedAlgorithm, functions_of
from .network_args import NetworkOption, read_bool, read_nonnegative

logger = logging.getLogger(__name__)


def _settle(module: ModuleWeights, shapes: Shapes) -> ModuleWeights:
    """Return the module with the shapes of its factors, and with its limit as alpha."""
    alpha = read_limit(module.name, module.tensors.get("alpha"))
    return module._replace(
        tensors={**module.tensors, "alpha": torch.tensor(alpha, dtype=torch.float32, device="cpu")},
        keywords={"factor_shapes": shapes, "constraint": alpha},
    )


class OFTModule(AdapterModule):
    """y = rescale · R(W x) + b, where R turns each block of outputs; W itself never changes.

    State dict: `oft_blocks` (count, size, size), `alpha` (), which is `constraint`, and with `rescaled` `rescale` (out,
    1, …). The blocks follow from the rank, or from a file's `factor_shapes` by role. The `alpha` of other algorithms
    has no meaning here. A rotation has neither a scale nor dropouts of its parts.
    """

    prefix = "oft_"
    rank_is_a_size = False
    reader = DialectTensors(oft.ALGORITHM, "lycoris", ("blocks", "rescale"), _settle, scaled=False)

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
        constraint: float = 0.0,
        rescaled: bool = False,
        factor_shapes: Shapes | None = None,
        use_rslora: bool = False,
        use_dora: bool = False,
    ) -> None:
        if use_rslora or use_dora:
            raise ValueError(f"{lora_name}: use_rslora and use_dora are for LoRA, not for {type(self).__name__}")
        if dropout or rank_dropout:
            raise ValueError(
                f"{lora_name}: dropout and rank_dropout would leave no rotation; leave them out, or use module_dropout"
            )
        super().__init__(lora_name, org_module, multiplier, lora_dim, None, module_dropout=module_dropout)
        # Behind the channels of a convolution's output stand its positions.
        self._axis = -1
        if isinstance(org_module, CONVOLUTIONS):
            self._axis -= len(org_module.kernel_size)
        elif not hasattr(org_module, "in_features"):
            raise ValueError(f"{lora_name}: a {type(org_module).__name__} is neither a Linear nor a convolution")
        sides = weight_shape(org_module)
        if factor_shapes and (misfit := oft.misfit(factor_shapes, sides)):
            raise ValueError(f"{lora_name}: its factors change a weight that {misfit}, but the base has {sides[0]}")
        shape = factor_shapes["blocks"] if factor_shapes else oft.block_shape(sides[0], lora_dim)
        # Where Q is 0 the rotation is none.
        self.oft_blocks = nn.Parameter(torch.zeros(shape, dtype=torch.float32, device="cpu"))
        if "rescale" in factor_shapes if factor_shapes else rescaled:
            sizes = sides[0], *[1] * (len(sides) - 1)
            self.rescale = nn.Parameter(torch.ones(sizes, dtype=torch.float32, device="cpu"))
        self.lora_dim = shape[1]
        if self.lora_dim == 1:
            logger.warning(
                f"{lora_name}: its {shape[0]} outputs fall into blocks of 1 at rank {lora_dim}; nothing turns there"
            )
        self._set_alpha(constraint)

    @property
    def constraint(self) -> float:
        """The largest norm of all generators for each output; 0 is no limit."""
        return self._alpha_value

    @property
    def _gain(self) -> Tensor | None:
        return self._parameters.get("rescale")

    def adapted(self, input: Tensor) -> Tensor:
        """Return the base's output, turned in float32 or better and rounded once to its own dtype."""
        base, device = self.org_module, input.device.type
        plain = self._for_kernel(input)
        if plain is not None:
            with without_autocast(plain):
                return rotated_linear(plain, base.weight, base.bias, self._skew(plain.dtype))
        assert self.org_forward is not None
        output = self.org_forward(input)
        with torch.autocast(device, enabled=False):
            combine = turned if is_traced() else fused_turn
            return combine(output, self._turn(output.dtype), base.bias, self._axis)

    def _for_kernel(self, input: Tensor) -> Tensor | None:
        """Return the input (…, in) of a plain frozen Linear, in the dtype of its weight.

        None for other layers, and if R is not the whole change.
        """
        base, device = self.org_module, input.device.type
        if not self._base_is_plain or self.multiplier != 1 or self._gain is not None or is_traced():
            return None
        if torch.is_autocast_enabled(device):
            if base.weight.dtype != torch.get_autocast_dtype(device):
                return None
            input = input.to(base.weight.dtype)
        for parameter in (base.weight, base.bias):
            if parameter is not None and (parameter.requires_grad or parameter.dtype != input.dtype):
                return None
        return input if is_plain(base.weight) else None

    def _skew(self, output_dtype: torch.dtype) -> Tensor:
        """Return Q (count, size, size), in float32 or better."""
        blocks: Tensor = self.oft_blocks
        if blocks.dtype != torch.float32 or output_dtype == torch.float64:
            blocks = blocks.to(torch.promote_types(output_dtype, torch.promote_types(blocks.dtype, torch.float32)))
        generators: Tensor = oft.skew(blocks, self.constraint)
        return generators

    def _turn(self, output_dtype: torch.dtype) -> Tensor:
        """Return the summand of each block: (m · (R - I) + I) · rescale - I, (count, size, size)."""
        turn = cayley_turn(self._skew(output_dtype))
        if self.multiplier != 1:
            turn = turn * self.multiplier
        if self._gain is None:
            return turn
        gain = self._gain.to(turn.dtype).view(turn.shape[0], 1, -1)
        scaled: Tensor = turn * gain + rotation.identity(turn) * (gain - 1.0)
        return scaled

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return all factors in one group: LoRA+ does not treat them."""
        return {"": list(self.parameters())}

    @torch.no_grad()
    def change_norm(self) -> Tensor:
        """Return ‖blocks‖, the norm that lycoris-lora limits.

        The norm of the change is not linear in anything.
        """
        norm: Tensor = torch.linalg.vector_norm(self.oft_blocks, dtype=torch.float32)
        return norm

    @torch.no_grad()
    def shrink(self, ratio: Tensor) -> None:
        """Multiply the generators by `ratio`."""
        self.oft_blocks.mul_(ratio)

    def read_alpha(self, stored: Tensor | None) -> float:
        """Return the limit; a missing alpha means no limit."""
        return read_limit(self.lora_name, stored)

    def _set_alpha(self, alpha: float) -> None:
        super()._set_alpha(alpha)
        self.scale = 1.0


class OFTInfModule(FoldableModule, OFTModule):
    """OFTModule for inference and merging."""

    @property
    def is_sum(self) -> bool:
        """False: a rotation is no sum."""
        return False

    def fold(self, tensors: Mapping[str, Tensor], rows: Tensor, multiplier: float) -> None:
        """Turn the rows."""
        _change(self.lora_name, tensors, rows).fold(rows, 0, multiplier)


def _change(name: str, tensors: Mapping[str, Tensor], rows: Tensor) -> Change:
    """Return the rotation of rows (out, in·kernel) by a module's `tensors`, in the dtype of the rows."""
    keys = {role: OFTModule.reader.key(role, None) for role in OFTModule.reader.roles}
    shapes = {role: tuple(tensors[key].shape) for role, key in keys.items() if key in tensors}
    if "blocks" not in shapes:
        raise ValueError(f"{name}.{keys['blocks']} is missing")
    if wrong := oft.check(shapes):
        raise ValueError(f"{name}: {wrong}")
    if misfit := oft.misfit(shapes, tuple(rows.shape)):
        raise ValueError(f"{name}: it {misfit}, but the base has {len(rows)}")
    alpha = read_limit(name, tensors.get("alpha"))
    return oft.change({role: tensors[keys[role]].to(rows) for role in shapes}, 1.0, alpha)


# A constraint of 0 is no limit.
_OPTIONS = {"constraint": NetworkOption(read_nonnegative, 0.0), "rescaled": NetworkOption(read_bool, False)}
TRAINED = TrainedAlgorithm("OFT", OFTModule, OFTInfModule, _OPTIONS, has_scale=False)
_functions = functions_of(__name__, None, TRAINED)
create_arch_network = create_network = _functions.create_arch_network
create_arch_network_from_weights = _functions.create_arch_network_from_weights
create_network_from_weights = _functions.create_network_from_file
prepare_network = _functions.prepare_network
# What programs that merge while they load a checkpoint call, one weight at a time.
merge_weights_to_tensor = partial(merge_into, OFTModule, _change)
