"""Cosmos 1.0, the first Predict.

Leaves as in the CosmosTransformer3DModel of diffusers, which it shares with Predict 2. The names of its own checkpoints
(`blocks.block0.blocks.1.block.attn.to_q.0`) count blocks within a segment and are not known here.
"""

from ..record import Architecture, Layout
from ..text_encoders import T5_11B
from .cosmos import DIFFUSERS, sizes

ARCHITECTURE = Architecture(
    name="cosmos1",
    title="Cosmos 1.0",
    layouts=(Layout("diffusers", DIFFUSERS, kohya_prefix="lora_transformer_", blocks=(("transformer_blocks", 36),)),),
    sizes=tuple(
        size for name, width in (("7B", 4096), ("14B", 5120)) for size in sizes(name, width) if size.path in DIFFUSERS
    ),
    text_encoders=(T5_11B,),
)
