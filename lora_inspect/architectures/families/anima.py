"""Anima: Cosmos Predict 2 with an adapter of a language model.

Leaves as in the original transformer, and in the CosmosTransformer3DModel of diffusers, which has no such adapter. A
file of only the blocks may be one of Cosmos, which has the same blocks.
"""

from ..correspondence import Correspondence
from ..record import Architecture, Layout, Switch, TrainedEncoder, Training, under
from ..text_encoders import QWEN3_06B, QWEN3_BLOCKS, T5_11B
from .cosmos import DIFFUSERS, DIFFUSERS_NORMS, PREDICT2, PREDICT2_NORMS, relations, sizes

LANGUAGE_MODEL_ADAPTER = under(
    "llm_adapter",
    "embed",
    *under(
        "blocks.{i}",
        *under("self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),
        *under("cross_attn", "q_proj", "k_proj", "v_proj", "o_proj"),
        "mlp.0",
        "mlp.2",
    ),
    "out_proj",
)

ARCHITECTURE = Architecture(
    name="anima",
    title="Anima",
    descends_from="cosmos",
    layouts=(
        Layout("original", (*PREDICT2, *LANGUAGE_MODEL_ADAPTER), blocks=(("blocks", 28),), norms=PREDICT2_NORMS),
        Layout(
            "diffusers",
            DIFFUSERS,
            kohya_prefix="lora_transformer_",
            blocks=(("transformer_blocks", 28),),
            norms=DIFFUSERS_NORMS,
        ),
    ),
    sizes=sizes(None, 2048),
    metadata_names=("anima", "anima-preview", "anima-unknown"),
    base_names=("anima",),
    text_encoders=(QWEN3_06B, T5_11B),
    correspondence=Correspondence(relations),
    training=Training(
        classes=("Block", "PatchEmbed", "TimestepEmbedding", "FinalLayer", "LLMAdapterTransformerBlock"),
        diffusers_classes=("CosmosTransformerBlock",),
        models=("Anima",),
        excludes=(r".*(_modulation|_norm|_embedder|final_layer).*",),
        switches=(Switch("train_llm_adapter", default=False, excluding=False, excludes=(r"llm_adapter\..*",)),),
        keys=("anima",),
        text_encoders=(TrainedEncoder("lora_te", QWEN3_BLOCKS),),
    ),
)
