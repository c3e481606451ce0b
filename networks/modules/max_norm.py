"""Max-norm regularisation: no module's change may be larger than a given norm."""

from collections.abc import Sequence

import torch

from lora_inspect.maths.torch_threads import whole_products

from .adapter_module import AdapterModule


@torch.no_grad()
def limit_norms(modules: Sequence[AdapterModule], limit: float) -> tuple[int, float, float]:
    """Shrinks every change whose Frobenius norm, scale included, exceeds `limit`, to exactly that.

    Returns how many were shrunk, and the mean and the largest norm afterwards. The device is waited for once, not
    once per module.
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
