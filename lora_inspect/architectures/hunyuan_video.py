"""HunyuanVideo.

Leaves as in the HYVideoDiffusionTransformer of the original repository, in ComfyUI's HunyuanVideo class, which is
built of FLUX.1 blocks, and in the HunyuanVideoTransformer3DModel of diffusers.
"""

from .flux import DIFFUSERS_DOUBLE, DIFFUSERS_SINGLE, ORIGINAL_DOUBLE, ORIGINAL_SINGLE, PROPORTIONS
from .record import MODULATION, NORM, Architecture, Layout, Size, Training, under
from .text_encoders import CLIP_L, LLAMA_8B

ORIGINAL_TEXT = (
    "txt_in.input_embedder",
    *under("txt_in.t_embedder.mlp", "0", "2"),
    *under("txt_in.c_embedder", "linear_1", "linear_2"),
    *under(
        "txt_in.individual_token_refiner.blocks.{i}",
        "self_attn_qkv",
        "self_attn_proj",
        "mlp.fc1",
        "mlp.fc2",
        "adaLN_modulation.1",
    ),
)
ORIGINAL_STREAMS = (
    *under("img_mlp", "fc1", "fc2"),
    *under("txt_mlp", "fc1", "fc2"),
    "img_mod.linear",
    "txt_mod.linear",
)
ORIGINAL = (
    "img_in.proj",
    *ORIGINAL_TEXT,
    *under("time_in.mlp", "0", "2"),
    *under("vector_in", "in_layer", "out_layer"),
    *under("guidance_in.mlp", "0", "2"),
    *under(
        "double_blocks.{i}",
        "img_attn_qkv",
        "img_attn_proj",
        "txt_attn_qkv",
        "txt_attn_proj",
        *ORIGINAL_STREAMS,
    ),
    *under("single_blocks.{i}", "linear1", "linear2", "modulation.linear"),
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
)
COMFYUI_TEXT = (
    "txt_in.input_embedder",
    *under("txt_in.t_embedder", "in_layer", "out_layer"),
    *under("txt_in.c_embedder", "in_layer", "out_layer"),
    *under(
        "txt_in.individual_token_refiner.blocks.{i}",
        "self_attn.qkv",
        "self_attn.proj",
        "mlp.0",
        "mlp.2",
        "adaLN_modulation.1",
    ),
)
COMFYUI = (
    "img_in.proj",
    *COMFYUI_TEXT,
    *under("time_in", "in_layer", "out_layer"),
    *under("vector_in", "in_layer", "out_layer"),
    *under("guidance_in", "in_layer", "out_layer"),
    *under("double_blocks.{i}", *ORIGINAL_DOUBLE, "img_mod.lin", "txt_mod.lin"),
    *under("single_blocks.{i}", *ORIGINAL_SINGLE, "modulation.lin"),
    "final_layer.linear",
    "final_layer.adaLN_modulation.1",
)
DIFFUSERS_TEXT = (
    *under("context_embedder.time_text_embed.timestep_embedder", "linear_1", "linear_2"),
    *under("context_embedder.time_text_embed.text_embedder", "linear_1", "linear_2"),
    "context_embedder.proj_in",
    *under(
        "context_embedder.token_refiner.refiner_blocks.{i}",
        *under("attn", "to_q", "to_k", "to_v", "to_out.0"),
        "ff.net.0.proj",
        "ff.net.2",
        "norm_out.linear",
    ),
)
DIFFUSERS = (
    "x_embedder.proj",
    *DIFFUSERS_TEXT,
    *under("time_text_embed.timestep_embedder", "linear_1", "linear_2"),
    *under("time_text_embed.text_embedder", "linear_1", "linear_2"),
    *under("time_text_embed.guidance_embedder", "linear_1", "linear_2"),
    *under("transformer_blocks.{i}", *DIFFUSERS_DOUBLE, "norm1.linear", "norm1_context.linear"),
    *under("single_transformer_blocks.{i}", *DIFFUSERS_SINGLE, "norm.linear"),
    "norm_out.linear",
    "proj_out",
)
ORIGINAL_PROPORTIONS = (
    ("double_blocks.{i}.img_attn_qkv", 3, 1),
    ("double_blocks.{i}.txt_attn_qkv", 3, 1),
    ("double_blocks.{i}.img_attn_proj", 1, 1),
    ("double_blocks.{i}.txt_attn_proj", 1, 1),
    ("double_blocks.{i}.img_mlp.fc1", 4, 1),
    ("double_blocks.{i}.img_mlp.fc2", 1, 4),
    ("double_blocks.{i}.txt_mlp.fc1", 4, 1),
    ("double_blocks.{i}.txt_mlp.fc2", 1, 4),
)
ORIGINAL_BLOCKS = (("double_blocks", 20), ("single_blocks", 40))
DIFFUSERS_BLOCKS = (("transformer_blocks", 20), ("single_transformer_blocks", 40))

ARCHITECTURE = Architecture(
    name="hunyuan_video",
    title="HunyuanVideo",
    layouts=(
        Layout("original", ORIGINAL, blocks=ORIGINAL_BLOCKS),
        Layout("comfyui", COMFYUI, blocks=ORIGINAL_BLOCKS),
        Layout("diffusers", DIFFUSERS, kohya_prefix="lora_transformer_", blocks=DIFFUSERS_BLOCKS),
    ),
    sizes=tuple(Size(None, path, out * 3072, in_ * 3072) for path, out, in_ in (*ORIGINAL_PROPORTIONS, *PROPORTIONS)),
    metadata_names=("hunyuan_video", "hunyuan-video"),
    text_encoders=(LLAMA_8B, CLIP_L),
    training=Training(
        classes=("MMDoubleStreamBlock", "MMSingleStreamBlock"),
        diffusers_classes=("HunyuanVideoTransformerBlock", "HunyuanVideoSingleTransformerBlock"),
        models=("HYVideoDiffusionTransformer", "HunyuanVideoTransformer3DModel"),
        # diffusers has its modulation inside the norms.
        excludes=(MODULATION, NORM),
        keys=("hv",),
    ),
)
