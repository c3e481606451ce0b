from collections.abc import Iterator

import diffusers
import pytest
import torch

from lora_inspect.architectures.detection import Detection, candidates

LAYERS = (
    torch.nn.Linear,
    torch.nn.Conv1d,
    torch.nn.Conv2d,
    torch.nn.Conv3d,
    torch.nn.ConvTranspose1d,
    torch.nn.Embedding,
)
HEADS = {"num_attention_heads": 2}
STREAMS = {**HEADS, "attention_head_dim": 16, "num_layers": 1, "num_single_layers": 1}
HUNYUAN = {**HEADS, "attention_head_dim": 10, "num_layers": 1, "num_refiner_layers": 1, "text_embed_dim": 16}
UNET = {
    "block_out_channels": (32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
}
SDXL = {
    **UNET,
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
}
WAN = {**HEADS, "attention_head_dim": 12, "text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2}

# Class, arguments of a tiny model, and the families whose names it has: more than one where another family has all
# of its names, which widths, indices or metadata then have to tell apart.
MODELS = [
    ("UNet2DConditionModel", {**UNET, "cross_attention_dim": 768}, {"sd15"}),
    ("UNet2DConditionModel", {**UNET, "cross_attention_dim": 1024}, {"sd2"}),
    ("UNet2DConditionModel", {**SDXL, "cross_attention_dim": 2048}, {"sdxl"}),
    (
        "SD3Transformer2DModel",
        {
            **HEADS,
            "attention_head_dim": 8,
            "num_layers": 2,
            "caption_projection_dim": 16,
            "dual_attention_layers": (0,),
        },
        {"sd3"},
    ),
    ("FluxTransformer2DModel", {**STREAMS, "guidance_embeds": True}, {"flux"}),
    ("ChromaTransformer2DModel", {**STREAMS, "approximator_hidden_dim": 32}, {"chroma"}),
    ("Flux2Transformer2DModel", STREAMS, {"flux2"}),
    ("WanTransformer3DModel", WAN, {"wan"}),
    ("WanTransformer3DModel", {**WAN, "added_kv_proj_dim": 24, "image_dim": 16}, {"wan"}),
    ("WanVACETransformer3DModel", {**WAN, "vace_layers": [0, 1]}, {"wan"}),
    (
        "HunyuanVideoTransformer3DModel",
        {**HUNYUAN, "num_single_layers": 1, "guidance_embeds": True, "rope_axes_dim": (2, 4, 4)},
        {"hunyuan_video", "framepack"},
    ),
    ("HunyuanVideo15Transformer3DModel", HUNYUAN, {"hunyuan_video_1_5"}),
    (
        "HunyuanVideoFramepackTransformer3DModel",
        {**HUNYUAN, "num_single_layers": 1, "has_image_proj": True, "has_clean_x_embedder": True},
        {"framepack"},
    ),
    (
        "HunyuanImageTransformer2DModel",
        {**HUNYUAN, "num_single_layers": 1, "text_embed_2_dim": 16, "guidance_embeds": True},
        {"hunyuan_image"},
    ),
    ("QwenImageTransformer2DModel", {**HEADS, "attention_head_dim": 16, "num_layers": 2}, {"qwen_image"}),
    (
        "QwenImageTransformer2DModel",
        {**HEADS, "attention_head_dim": 16, "num_layers": 1, "use_additional_t_cond": True},
        {"qwen_image"},
    ),
    (
        "ZImageTransformer2DModel",
        {"dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [4, 6, 6]},
        {"z_image"},
    ),
    ("Lumina2Transformer2DModel", {"hidden_size": 96, "num_layers": 2, "num_attention_heads": 1}, {"lumina2"}),
    (
        "Kandinsky5Transformer3DModel",
        {"model_dim": 32, "ff_dim": 64, "num_text_blocks": 1, "num_visual_blocks": 1, "axes_dims": (4, 6, 6)},
        {"kandinsky5"},
    ),
    (
        "HiDreamImageTransformer2DModel",
        {
            **STREAMS,
            "patch_size": 2,
            "in_channels": 4,
            "caption_channels": [16, 16],
            "text_emb_dim": 16,
            "num_routed_experts": 2,
            "max_resolution": (16, 16),
            "llama_layers": [0, 1],
        },
        {"hidream_i1"},
    ),
    ("LTXVideoTransformer3DModel", {**HEADS, "attention_head_dim": 16, "num_layers": 1}, {"ltx_video", "ltx2"}),
    (
        "LTX2VideoTransformer3DModel",
        {"num_layers": 1, "gated_attn": True, "audio_gated_attn": True, "cross_attn_mod": True},
        {"ltx2"},
    ),
    ("AuraFlowTransformer2DModel", {"num_mmdit_layers": 1, "num_single_dit_layers": 1}, {"auraflow"}),
    ("CosmosTransformer3DModel", {**HEADS, "attention_head_dim": 16, "num_layers": 1}, {"cosmos1", "cosmos", "anima"}),
    (
        "CosmosTransformer3DModel",
        {
            **HEADS,
            "attention_head_dim": 16,
            "num_layers": 1,
            "use_crossattn_projection": True,
            "img_context_dim_in": 16,
            "img_context_dim_out": 16,
        },
        {"cosmos"},
    ),
    (
        "AceStepTransformer1DModel",
        {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
        },
        {"ace_step_1_5"},
    ),
    ("Ideogram4Transformer2DModel", {**HEADS, "attention_head_dim": 16, "num_layers": 1}, {"ideogram4"}),
    ("Krea2Transformer2DModel", {"num_layers": 1}, {"krea2"}),
]


def layers(name: str, arguments: dict[str, object]) -> Iterator[tuple[str, int, int]]:
    """The Linear, convolution and embedding layers of a model without storage: (path, out features, in features)."""
    with torch.device("meta"):
        model = getattr(diffusers, name)(**arguments)
    for path, module in model.named_modules():
        if isinstance(module, LAYERS):
            yield path, module.weight.shape[0], module.weight.shape[1]


# Chroma of diffusers 0.42 builds a class that diffusers itself deprecates.
@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    MODELS,
    ids=[f"{'-'.join(sorted(expected))}-{name}" for name, _, expected in MODELS],
)
def test_every_layer_of_a_diffusers_model_is_a_path_of_its_family(
    name: str, arguments: dict[str, object], expected: set[str]
):
    modules = list(layers(name, arguments))
    found: tuple[Detection, ...] = candidates(modules, {}, minimum_share=1.0)
    assert {detection.architecture.name for detection in found} == expected
    assert {detection.layout.name for detection in found} == {"diffusers"}


# Models of no family that is known here, whose attention has the names of one that is.
@pytest.mark.parametrize(
    "name",
    [
        "AllegroTransformer3DModel",
        "CogVideoXTransformer3DModel",
        "CogView4Transformer2DModel",
        "PixArtTransformer2DModel",
        "SanaTransformer2DModel",
    ],
)
def test_a_model_of_no_known_family_is_never_one_of_them(name: str):
    with torch.device("meta"):
        model = getattr(diffusers, name)()
    linear = {path: layer for path, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    attention = [path for path in linear if path.split(".")[-1] in ("to_q", "to_k", "to_v") or ".to_out." in path]
    assert attention
    for paths in (attention, [path for path in attention if path.endswith("attn1.to_q")], list(linear)):
        modules = [(path, linear[path].out_features, linear[path].in_features) for path in paths]
        assert len(candidates(modules, {})) != 1, paths
    weights = [(key[: -len(".weight")], value) for key, value in model.state_dict().items() if key.endswith(".weight")]
    base = [(path, value.shape[0], value.shape[1]) for path, value in weights if value.dim() > 1]
    assert len(candidates(base, {}, minimum_share=0.5)) != 1
