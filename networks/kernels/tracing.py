"""Whether torch records a forward instead of running it."""

import torch


def is_traced() -> bool:
    """Whether operations are recorded or transformed by torch itself, which takes them apart from single ones."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
