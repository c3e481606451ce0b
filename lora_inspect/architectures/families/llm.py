"""Decoder language models of the Llama line.

Llama, Mistral, Qwen, Gemma, MiniCPM, Phi, DeepSeek, Granite and StarCoder 2. Leaves as in their classes of
transformers: `qkv_proj` and `gate_up_proj` are Phi-3's fused layers, the numbered experts those of mixture models
stored one by one, the others parameters of all experts at once, and `router` that of gpt-oss. `switch_mlp`, and in
gpt-oss `experts.gate_proj` and `experts.up_proj`, are mlx-lm's names for its layers of all experts. Roots: the causal
model, its bare backbone, and the language part of a multimodal model with its vision tower, which newer and older
classes nest differently.
"""

from collections.abc import Iterator

from ..correspondence import Correspondence, Relation, below, experts, parameters, same, stack
from ..record import Architecture, Layout, under

# The parameters of all experts: the first layers of their feed-forward, and its last one.
EXPERT_PARAMETERS = ("gate_up_proj", "down_proj")
LAYER = (
    *under("self_attn", "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"),
    *under("mlp", "gate_proj", "up_proj", "down_proj", "gate_up_proj", "gate"),
    *under("mlp.experts.{i}", "gate_proj", "up_proj", "down_proj"),
    *under("mlp.experts", *EXPERT_PARAMETERS, "gate_up_projs.{i}", "down_projs.{i}", "gate_proj", "up_proj"),
    *under("mlp.switch_mlp", "gate_proj", "up_proj", "down_proj"),
    "mlp.router",
    *under("mlp.shared_expert", "gate_proj", "up_proj", "down_proj"),
    "mlp.shared_expert_gate",
    "block_sparse_moe.gate",
    *under("block_sparse_moe.experts.{i}", "w1", "w2", "w3"),
    *under("block_sparse_moe.switch_mlp", "gate_proj", "up_proj", "down_proj"),
    # Granite.
    *under("block_sparse_moe.experts", *EXPERT_PARAMETERS),
    *under("block_sparse_moe", "input_linear", "output_linear", "router", "router.layer"),
    *under("shared_mlp", "input_linear", "output_linear"),
    # Phi 1 and 2, and StarCoder 2.
    "self_attn.dense",
    *under("mlp", "fc1", "fc2", "c_fc", "c_proj"),
    # DeepSeek.
    *under("self_attn", "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),
    *under("mlp.shared_experts", "gate_proj", "up_proj", "down_proj"),
    # Qwen3-Next and Qwen 3.5.
    *under("linear_attn", "in_proj_qkvz", "in_proj_ba", "conv1d", "out_proj"),
    *under("linear_attn", "in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a"),
    # Gemma 4.
    "per_layer_input_gate",
    "per_layer_projection",
)
# Of Qwen-VL.
VISION = (
    "patch_embed.proj",
    "pos_embed",
    *under("blocks.{i}.attn", "qkv", "proj"),
    *under("blocks.{i}.mlp", "linear_fc1", "linear_fc2", "gate_proj", "up_proj", "down_proj", "fc1", "fc2"),
    *under("merger", "linear_fc1", "linear_fc2", "mlp.0", "mlp.2"),
    *under("deepstack_merger_list.{i}", "linear_fc1", "linear_fc2"),
)
# Of Gemma 3 and Llava (SigLIP and CLIP), and of Mistral 3 (Pixtral).
TOWER = (
    *under("embeddings", "patch_embedding", "position_embedding"),
    *under("encoder.layers.{i}.self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
    *under("encoder.layers.{i}.mlp", "fc1", "fc2"),
    *under("head", "attention.out_proj", "mlp.fc1", "mlp.fc2"),
    "patch_conv",
    *under("transformer.layers.{i}.attention", "q_proj", "k_proj", "v_proj", "o_proj"),
    *under("transformer.layers.{i}.feed_forward", "gate_proj", "up_proj", "down_proj"),
)
PROJECTOR = under("multi_modal_projector", "linear_1", "linear_2", "patch_merger.merging_layer")
BACKBONE = (
    "embed_tokens",
    "embed_tokens_per_layer",
    "per_layer_model_projection",
    *under("layers.{i}", *LAYER),
)
HEADS = ("lm_head", "score")

ROOTS = ("model.", "", "model.language_model.", "language_model.model.")


def relations() -> Iterator[Relation]:
    """Yield the relations of fused layers, single experts and parameters of all experts, below every root."""
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
        same("mlp.router", "block_sparse_moe.gate"),  # PhiMoE
        # Granite's parameters of all experts and its router, as its class and its checkpoints have them.
        same("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.input_linear"),
        same("block_sparse_moe.experts.down_proj", "block_sparse_moe.output_linear"),
        same("block_sparse_moe.router", "block_sparse_moe.router.layer"),
        # As the models of mlx-lm put the experts together.
        experts("mlp.switch_mlp.gate_proj", "mlp.experts.{i}.gate_proj"),
        experts("mlp.switch_mlp.up_proj", "mlp.experts.{i}.up_proj"),
        experts("mlp.switch_mlp.down_proj", "mlp.experts.{i}.down_proj"),
        parameters("mlp.experts.gate_up_proj", *under("mlp.switch_mlp", "gate_proj", "up_proj")),
        parameters("mlp.experts.down_proj", "mlp.switch_mlp.down_proj"),
        parameters("mlp.experts.gate_up_proj", *under("mlp.experts", "gate_proj", "up_proj")),
        experts("block_sparse_moe.switch_mlp.gate_proj", "block_sparse_moe.experts.{i}.w1"),
        experts("block_sparse_moe.switch_mlp.up_proj", "block_sparse_moe.experts.{i}.w3"),
        experts("block_sparse_moe.switch_mlp.down_proj", "block_sparse_moe.experts.{i}.w2"),
        parameters("mlp.experts.gate_up_proj", *under("block_sparse_moe.switch_mlp", "gate_proj", "up_proj")),
        parameters("mlp.experts.down_proj", "block_sparse_moe.switch_mlp.down_proj"),
    )
    for root in ROOTS:
        yield from below(f"{root}layers.{{i}}", f"{root}layers.{{i}}", *layer)


ARCHITECTURE = Architecture(
    name="llm",
    title="Language model (Llama line)",
    layouts=(
        Layout("hf", (*under("model", *BACKBONE), *HEADS), kohya_prefix=""),
        Layout("hf-backbone", BACKBONE, kohya_prefix=""),
        Layout(
            "hf-multimodal",
            (
                *under("model.language_model", *BACKBONE),
                *under("model.visual", *VISION),
                *under("model.vision_tower", *TOWER),
                *under("model", *PROJECTOR),
                *HEADS,
            ),
            kohya_prefix="",
        ),
        Layout(
            "hf-multimodal-nested",
            (
                *under("language_model.model", *BACKBONE),
                "language_model.lm_head",
                *under("vision_tower.vision_model", *TOWER),
                *under("vision_tower", *TOWER),
                *PROJECTOR,
            ),
            kohya_prefix="",
        ),
    ),
    # Those of the models with the widths of HiDream-O1, which has the same layers.
    base_names=("qwen",),
    correspondence=Correspondence(relations),
)
