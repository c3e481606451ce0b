"""What the published checkpoints of a mixture call the layers of single experts: as Mixtral's do, or as most others.

The classes of transformers 5 have the experts of a layer in `mlp.experts.gate_up_proj` and `mlp.experts.down_proj`. The
files of most have `mlp.experts.{i}.gate_proj` for them, those of Mixtral's line `block_sparse_moe.experts.{i}.w1`.
Source: the conversion mapping of transformers 5.24, and the classes.
"""

from collections.abc import Collection

# The `model_type` of a config of the line.
_KINDS = frozenset(("kimi_linear", "minimax", "minimax_m2", "mixtral", "phimoe"))
_NORMS = ("self_attn.q_norm.weight", "post_attention_layernorm.weight")
_FEED_FORWARD, _EXPERTS = "mlp.", "mlp.experts."
# What tells a layer of the line where there is no config: which of those norms it has, and what beside its experts.
_LAYERS = (
    {"post_attention_layernorm.weight", "mlp.gate.weight"},  # Mixtral, MiniMax
    {*_NORMS, "mlp.gate.weight", "mlp.e_score_correction_bias"},  # MiniMax-M2
    {"post_attention_layernorm.weight", "mlp.router.weight"},  # PhiMoE
)


def is_block_sparse(kinds: Collection[str], layer: Collection[str]) -> bool:
    """Whether a model is of the line, by the kinds that its config says, or by the names in one of its layers."""
    if kinds:
        return not _KINDS.isdisjoint(kinds)
    told = {
        name for name in layer if name in _NORMS or (name.startswith(_FEED_FORWARD) and not name.startswith(_EXPERTS))
    }
    return told in _LAYERS
