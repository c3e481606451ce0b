"""Decoder language models of the Llama line: Llama, Mistral, Qwen, Gemma, MiniCPM, Phi-3.

Leaves as in their classes of transformers: `qkv_proj` and `gate_up_proj` are Phi-3's fused layers, the numbered
experts those of mixture models stored one by one, the others parameters of all experts at once, and `router` that of
gpt-oss. Roots: the causal model, its bare backbone, and the language part of a multimodal model, which newer and older
classes nest differently; the vision tower is that of Qwen-VL.
"""

from collections.abc import Iterator

from ..correspondence import Correspondence, Relation, below, experts, same, stack
from ..record import Architecture, Layout, under

# The parameters of all experts: the first layers of their feed-forward, and its last one.
EXPERT_PARAMETERS = ("gate_up_proj", "down_proj")
LAYER = (
    *under("self_attn", "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"),
    *under("mlp", "gate_proj", "up_proj", "down_proj", "gate_up_proj", "gate"),
    *under("mlp.experts.{i}", "gate_proj", "up_proj", "down_proj"),
    *under("mlp.experts", *EXPERT_PARAMETERS, "gate_up_projs.{i}", "down_projs.{i}"),
    "mlp.router",
    *under("mlp.shared_expert", "gate_proj", "up_proj", "down_proj"),
    "block_sparse_moe.gate",
    *under("block_sparse_moe.experts.{i}", "w1", "w2", "w3"),
)
VISION = (
    "patch_embed.proj",
    "pos_embed",
    *under("blocks.{i}.attn", "qkv", "proj"),
    *under("blocks.{i}.mlp", "linear_fc1", "linear_fc2", "gate_proj", "up_proj", "down_proj"),
    *under("merger", "linear_fc1", "linear_fc2", "mlp.0", "mlp.2"),
    *under("deepstack_merger_list.{i}", "linear_fc1", "linear_fc2"),
)
BACKBONE = ("embed_tokens", *under("layers.{i}", *LAYER))

ROOTS = ("model.", "", "model.language_model.", "language_model.model.")


def relations() -> Iterator[Relation]:
    """How fused layers, experts one by one and the parameters of all of them are related, below every root."""
    layer = (
        # Phi-3's. The query has as many rows as the layer has inputs; key and value share the rest.
        stack("self_attn.qkv_proj", *under("self_attn", "q_proj", "k_proj", "v_proj"), shares=("inputs", 1, 1)),
        stack("mlp.gate_up_proj", *under("mlp", "gate_proj", "up_proj")),
        # As transformers converts Mixtral and Qwen2-MoE, whose names most other mixtures have.
        experts("mlp.experts.gate_up_proj", *under("mlp.experts.{i}", "gate_proj", "up_proj")),
        experts("mlp.experts.down_proj", "mlp.experts.{i}.down_proj"),
        # As Unsloth has the experts of gpt-oss where it loads them in 4 bits.
        experts("mlp.experts.gate_up_proj", "mlp.experts.gate_up_projs.{i}"),
        experts("mlp.experts.down_proj", "mlp.experts.down_projs.{i}"),
        experts("mlp.experts.gate_up_proj", *under("block_sparse_moe.experts.{i}", "w1", "w3")),
        experts("mlp.experts.down_proj", "block_sparse_moe.experts.{i}.w2"),
        same("block_sparse_moe.gate", "mlp.gate"),
    )
    for root in ROOTS:
        yield from below(f"{root}layers.{{i}}", f"{root}layers.{{i}}", *layer)


ARCHITECTURE = Architecture(
    name="llm",
    title="Language model (Llama line)",
    layouts=(
        Layout("hf", (*under("model", *BACKBONE), "lm_head"), kohya_prefix=""),
        Layout("hf-backbone", BACKBONE, kohya_prefix=""),
        Layout(
            "hf-multimodal",
            (*under("model.language_model", *BACKBONE), *under("model.visual", *VISION), "lm_head"),
            kohya_prefix="",
        ),
        Layout(
            "hf-multimodal-nested",
            (*under("language_model.model", *BACKBONE), "language_model.lm_head"),
            kohya_prefix="",
        ),
    ),
    correspondence=Correspondence(relations),
)
