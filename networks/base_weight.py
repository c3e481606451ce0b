"""The weight of a base layer as the numbers that it stands for."""

import torch
from torch import Tensor, nn

PLAIN_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def true_weight(base: nn.Module, dtype: torch.dtype) -> Tensor:
    """The detached weight (out, in, *kernel) in `dtype`.

    An fp8 weight is multiplied by the `scale_weight` beside it, shaped [1], [out, 1] or, for blocks along the
    input, [out, blocks, 1]; without one its values are plain casts. Raises ValueError for other storage.
    """
    weight: Tensor = base.weight.detach()  # type: ignore[operator]
    if weight.dtype in PLAIN_DTYPES:
        return weight.to(dtype)
    if not weight.is_floating_point():
        raise ValueError(f"a base weight is stored as {weight.dtype}, codes whose values are not known here")
    values = weight.to(dtype)
    scale: Tensor | None = getattr(base, "scale_weight", None)
    if scale is None:
        return values
    scale = scale.detach().to(values)
    if scale.numel() == 1:
        return values * scale.reshape(())
    out_features, columns = weight.shape[0], weight[0].numel()
    if scale.dim() == 2 and scale.shape == (out_features, 1):
        return (values.reshape(out_features, -1) * scale).reshape(weight.shape)
    if scale.dim() == 3 and scale.shape[0] == out_features and columns % scale.shape[1] == 0:
        return (values.reshape(out_features, scale.shape[1], -1) * scale).reshape(weight.shape)
    raise ValueError(f"a scale_weight of shape {list(scale.shape)} fits no weight of shape {list(weight.shape)}")
