"""Layers that sd-scripts trained in parts (split_qkv) and saved as one, with the alpha of a part.

Their rank is that of all parts together, so the alpha that belongs to it is as many times larger.
"""

import json
from collections.abc import Mapping

from torch import Tensor

from lora_inspect.reading.model.evidence import close
from lora_inspect.reading.peft.match_budget import Steps
from lora_inspect.reading.scale.requested_rank import AskedRanks, read_asked_ranks, saves_parts

from .reading import is_factor


def with_whole_alphas(
    weights: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """The weights of a file with the alphas of the ranks that they have, and the metadata without split_qkv.

    Raises ValueError where the alpha is neither that of a part nor that of the whole layer.
    """
    asked = read_asked_ranks(metadata, Steps())
    if asked is None or not saves_parts(metadata):
        return weights, metadata
    whole = dict(weights)
    for key, up in weights.items():
        name = key.removesuffix(".lora_up.weight")
        parts = next((count for words, count in asked.options.split if all(word in name for word in words)), 1)
        if name == key or parts == 1 or f"{name}.alpha" not in weights or not is_factor(up):
            continue
        if not _is_block_diagonal(up, parts):
            continue
        alpha = float(weights[f"{name}.alpha"])
        whole[f"{name}.alpha"] = weights[f"{name}.alpha"].float() * _times(
            name, alpha, asked, up.shape[1] // parts, parts
        )
    options = {name: value for name, value in asked.args.items() if name != "split_qkv"}
    return whole, {**metadata, "ss_network_args": json.dumps(options)}


def _times(name: str, alpha: float, asked: AskedRanks, rank: int, parts: int) -> int:
    wanted = float(rank) if asked.alpha == 0 else asked.alpha
    if wanted is None:
        raise ValueError(
            f"{name}: split_qkv saved it in {parts} parts, and without ss_network_alpha nothing says whether its alpha "
            f"{alpha:g} is that of a part; settle it with `lora-inspect convert`, and load what that writes"
        )
    if close(alpha, wanted):
        return parts
    if close(alpha, parts * wanted):
        return 1
    raise ValueError(
        f"{name}: split_qkv saved it in {parts} parts, but its alpha {alpha:g} is neither the {wanted:g} that was "
        f"asked for nor {parts} times that; store the alpha that was meant"
    )


def _is_block_diagonal(up: Tensor, parts: int) -> bool:
    """Whether the first and the last row are 0 outside of the first and the last part."""
    rank, rest = divmod(up.shape[1], parts)
    return not rest and rank > 0 and not up[0, rank:].float().any() and not up[-1, :-rank].float().any()
