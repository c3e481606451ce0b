"""HiDream-O1: a Qwen3-VL language model that predicts pixels.

Leaves as in the Qwen3VLForConditionalGeneration of the original repository; ComfyUI's single file drops the `model.` of
the root. An adapter of only the decoder layers has the names of a Qwen3-VL adapter, and the widths of one of Qwen3-VL
8B, as in ComfyUI's HiDreamO1TextConfig.
"""

from ..correspondence import Correspondence, same
from ..record import MODULATION, Architecture, Layout, Size, Training, under

LANGUAGE_LAYER = (
    *under("self_attn", "q_proj", "k_proj", "v_proj", "o_proj"),
    *under("mlp", "gate_proj", "up_proj", "down_proj"),
)
VISION = (
    "patch_embed.proj",
    "pos_embed",
    *under("blocks.{i}", "attn.qkv", "attn.proj", "mlp.linear_fc1", "mlp.linear_fc2"),
    *under("merger", "linear_fc1", "linear_fc2"),
    *under("deepstack_merger_list.{i}", "linear_fc1", "linear_fc2"),
)
COMFYUI = (
    *under("language_model.layers.{i}", *LANGUAGE_LAYER),
    *under("visual", *VISION),
    *under("x_embedder", "proj1", "proj2"),
    *under("t_embedder1.mlp", "0", "2"),
    "final_layer2.linear",
)

# Of a decoder layer: (path, out, in). Of the published models with these names Qwen3-VL 8B alone is as wide.
WIDTHS = (
    ("self_attn.q_proj", 4096, 4096),
    ("self_attn.k_proj", 1024, 4096),
    ("self_attn.v_proj", 1024, 4096),
    ("self_attn.o_proj", 4096, 4096),
    ("mlp.gate_proj", 12288, 4096),
    ("mlp.up_proj", 12288, 4096),
    ("mlp.down_proj", 4096, 12288),
)
ROOTS = ("model.", "")

DECODER_CLASSES = ("Qwen3VLTextDecoderLayer",)
PIXEL_CLASSES = ("BottleneckPatchEmbed", "FinalLayer")
VISUAL_CLASSES = ("Qwen3VLVisionPatchEmbed", "Qwen3VLVisionBlock", "Qwen3VLVisionPatchMerger")
TEXT_TO_IMAGE = (*DECODER_CLASSES, *PIXEL_CLASSES)
IMAGE_TO_IMAGE = (*TEXT_TO_IMAGE, *VISUAL_CLASSES)

ARCHITECTURE = Architecture(
    name="hidream_o1",
    title="HiDream-O1",
    descends_from="llm",
    layouts=(
        Layout("original", under("model", *COMFYUI), blocks=(("model.language_model.layers", 36),)),
        Layout("comfyui", COMFYUI, blocks=(("language_model.layers", 36),)),
    ),
    sizes=tuple(
        Size(None, f"{root}language_model.layers.{{i}}.{path}", out, in_) for root in ROOTS for path, out, in_ in WIDTHS
    ),
    correspondence=Correspondence(lambda: (same(f"model.{path}", path) for path in COMFYUI)),
    metadata_names=("hidream_o1_image", "hidream-o1-image", "hidream_o1"),
    base_names=("hidream-o1",),
    training=Training(
        classes=(*IMAGE_TO_IMAGE, "TimestepEmbedder"),
        models=("Qwen3VLForConditionalGeneration",),
        excludes=(MODULATION, r".*(embed_tokens|lm_head).*"),
        task_attribute="hidream_o1_task",
        tasks=(("t2i", TEXT_TO_IMAGE), ("i2i", IMAGE_TO_IMAGE)),
        keys=("ho1",),
    ),
)
