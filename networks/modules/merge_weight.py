"""One weight of a checkpoint at a time, for programs that merge while they load: `merge_weights_to_tensor`."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lora_inspect.maths.change import Change
from lora_inspect.maths.torch_threads import whole_products

from ..files import reading
from ..kernels.base_weight import is_plain, storage_of


def merge_into(
    module_class: Any,
    change_of: Callable[[str, Mapping[str, Tensor], Tensor, int], Change],
    model_weight: Tensor,
    lora_name: str,
    lora_sd: Mapping[str, Tensor],
    lora_weight_keys: set[str],
    multiplier: float,
    calc_device: torch.device | str,
) -> Tensor:
    """The weight with the module called `lora_name` merged, in its own dtype; as it is where there is no such module.

    `module_class` has the reader and the prefix of its algorithm, `change_of(name, tensors, rows, rank)` makes the
    change of rows (out, in·kernel). The keys that were used are removed from `lora_weight_keys`. Computed on
    `calc_device` in float32 or better. Raises ValueError for a weight that is no plain float, for what is no factor of
    the algorithm, and for factors that do not fit the weight.
    """
    keys = [key for key in lora_sd if key.partition(".")[0] == lora_name and key in lora_weight_keys]
    if multiplier == 0 or not any(key.startswith(f"{lora_name}.{module_class.prefix}") for key in keys):
        return model_weight
    if not is_plain(model_weight):
        stored = storage_of(model_weight)
        raise ValueError(f"{lora_name}: the base is stored as {stored}, which no change can be added to")
    working = torch.promote_types(model_weight.dtype, torch.float32)
    merged = model_weight.to(calc_device, working, copy=True)
    read = reading.read({key: lora_sd[key] for key in keys}, reader=module_class.reader.with_every_role)
    module, rows = read.modules[lora_name], merged.view(merged.shape[0], -1)
    with whole_products(rows.device.type):
        change_of(lora_name, module.tensors, rows, module.rank).fold(rows, 0, multiplier)
    lora_weight_keys.difference_update(keys)
    return merged.to(model_weight.device, model_weight.dtype)
