"""Decoder language models of the Llama line: Llama, Mistral, Qwen, Gemma, MiniCPM, Phi-3.

Leaves as in their classes of transformers: `qkv_proj` and `gate_up_proj` are Phi-3's fused layers, the numbered
experts those of mixture models stored one by one. Roots: the causal model, its bare backbone, and the language part
of a multimodal model, which newer and older classes nest differently; the vision tower is that of Qwen-VL.
"""

from .correspondence import Correspondence, below, stack
from .record import Architecture, Layout, under
from .rows import INPUTS

LAYER = (
    *under("self_attn", "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"),
    *under("mlp", "gate_proj", "up_proj", "down_proj", "gate_up_proj", "gate"),
    *under("mlp.experts.{i}", "gate_proj", "up_proj", "down_proj"),
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

# Phi-3's fused layers. The query has as many rows as the layer has inputs; key and value share the rest.
FUSED = (
    stack("self_attn.qkv_proj", *under("self_attn", "q_proj", "k_proj", "v_proj"), shares=(INPUTS, 1, 1)),
    stack("mlp.gate_up_proj", *under("mlp", "gate_proj", "up_proj")),
)
ROOTS = ("model.", "", "model.language_model.", "language_model.model.")

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
    correspondence=Correspondence(
        lambda: (r for layers in (f"{root}layers.{{i}}" for root in ROOTS) for r in below(layers, layers, *FUSED))
    ),
)
