"""ACE-Step 1.5.

Leaves as in the decoder of the original repository, the only part that its trainer adapts, and as in the
AceStepTransformer1DModel of diffusers. There is also the whole model, where ComfyUI has the decoder next to encoders
and tokenizers; no adapter of these is known.
"""

from collections.abc import Iterator

from ..correspondence import Correspondence, Relation, same
from ..record import Architecture, Layout, Size, under
from ..text_encoders import QWEN3_06B

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
DIFFUSERS_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = under("mlp", "gate_proj", "up_proj", "down_proj")
COMMON = (
    *under("time_embed", "linear_1", "linear_2", "time_proj"),
    *under("time_embed_r", "linear_1", "linear_2", "time_proj"),
    "condition_embedder",
    *under("layers.{i}", *FEED_FORWARD),
)
DECODER = (
    "proj_in.1",
    *COMMON,
    *under("layers.{i}.self_attn", *ATTENTION),
    *under("layers.{i}.cross_attn", *ATTENTION),
    "proj_out.1",
)
DIFFUSERS = (
    "proj_in_conv",
    *COMMON,
    *under("layers.{i}.self_attn", *DIFFUSERS_ATTENTION),
    *under("layers.{i}.cross_attn", *DIFFUSERS_ATTENTION),
    "proj_out_conv",
)


def relations() -> Iterator[Relation]:
    """Yield the relations of the decoder to the model of diffusers, and of both to the whole model."""
    own = (
        same("proj_in.1", "proj_in_conv"),
        same("proj_out.1", "proj_out_conv"),
        *(
            same(f"layers.{{i}}.{attention}.{layer}", f"layers.{{i}}.{attention}.{other}")
            for attention in ("self_attn", "cross_attn")
            for layer, other in zip(ATTENTION, DIFFUSERS_ATTENTION, strict=True)
        ),
    )
    yield from own
    yield from (same(f"decoder.{path}", path) for path in DECODER)
    yield from (relation._replace(whole=f"decoder.{relation.whole}") for relation in own)


ARCHITECTURE = Architecture(
    name="ace_step_1_5",
    title="ACE-Step 1.5",
    layouts=(
        Layout("original", DECODER, blocks=(("layers", 24),)),
        Layout("comfyui", under("decoder", *DECODER), blocks=(("decoder.layers", 24),)),
        Layout("diffusers", DIFFUSERS, kohya_prefix="lora_transformer_", blocks=(("layers", 24),)),
    ),
    sizes=tuple(
        Size(None, f"{root}layers.{{i}}.{attention}.{layer}", out, 2048)
        for root, layers in (("", ATTENTION), ("decoder.", ATTENTION), ("", DIFFUSERS_ATTENTION))
        for attention in ("self_attn", "cross_attn")
        for layer, out in zip(layers, (2048, 1024, 1024, 2048), strict=True)
    ),
    text_encoders=(QWEN3_06B,),
    correspondence=Correspondence(relations),
)
