"""Deep copies of adapters, such as the averages of a training: their own parameters, beside the same base.

A copy is in no layer's forward. `apply_to` puts it there, around what stands there already.
"""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any

from torch import nn


def copied(module: Any, adapters: Iterable[Any], memo: dict[int, Any], shared: Iterable[Any] = ()) -> Any:
    """The deep copy of `module`, which has these `adapters`, without their base layers and what is `shared`.

    Part of a larger copy, as `memo` tells, it is one of all: that of a model has the copies of its adapters within, and
    these have the copies of its layers.
    """
    is_whole = bool(memo)
    if not is_whole:
        bases = [getattr(adapter, name, None) for adapter in adapters for name in ("org_module", "org_forward")]
        memo.update((id(one), one) for one in (*bases, *shared) if one is not None)
    copy: nn.Module = module.__class__.__new__(module.__class__)
    memo[id(module)] = copy
    copy.__dict__.update(deepcopy(module.__dict__, memo))
    if not is_whole:
        for adapter in adapters:
            memo[id(adapter)].take_out()
    return copy
