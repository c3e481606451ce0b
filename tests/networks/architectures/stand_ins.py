"""Stand-ins for the models' original code.

A stand-in has the class names of the original code, here by the path of the block, and the layers that the tables of
`lora_inspect.architectures` list for the layout that trainers of musubi-tuner's kind train.
"""

from typing import NamedTuple

from torch import nn

from lora_inspect.architectures import by_name

BLOCKS = 2
WIDTH = 12


class Original(NamedTuple):
    """Class names by the path of the module, "" for the model; layers that are no Linear; the layout's index."""

    classes: dict[str, str]
    convolutions: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    layout: int = 0


MM_CLASSES = {"double_blocks.{i}": "MMDoubleStreamBlock"}
STREAM_CLASSES = {"double_blocks.{i}": "DoubleStreamBlock", "single_blocks.{i}": "SingleStreamBlock"}
ORIGINALS = {
    "hunyuan_video": Original(
        {"": "HYVideoDiffusionTransformer", **MM_CLASSES, "single_blocks.{i}": "MMSingleStreamBlock"}, ("img_in.proj",)
    ),
    "hunyuan_video_1_5": Original(
        {"": "HunyuanVideo_1_5_DiffusionTransformer", **MM_CLASSES}, ("img_in.proj",), ("cond_type_embedding",)
    ),
    "framepack": Original(
        {
            "": "HunyuanVideoTransformer3DModelPacked",
            "transformer_blocks.{i}": "HunyuanVideoTransformerBlock",
            "single_transformer_blocks.{i}": "HunyuanVideoSingleTransformerBlock",
            "context_embedder.token_refiner.refiner_blocks.{i}": "HunyuanVideoIndividualTokenRefinerBlock",
        },
        ("x_embedder.proj", "clean_x_embedder.proj", "clean_x_embedder.proj_2x", "clean_x_embedder.proj_4x"),
    ),
    "wan": Original(
        {"": "WanModel", "blocks.{i}": "WanAttentionBlock", "vace_blocks.{i}": "VaceWanAttentionBlock"},
        ("patch_embedding", "vace_patch_embedding"),
    ),
    "flux": Original({"": "Flux", **STREAM_CLASSES}),
    "flux2": Original({"": "Flux2", **STREAM_CLASSES}),
    "qwen_image": Original({"": "QwenImageTransformer2DModel", "transformer_blocks.{i}": "QwenImageTransformerBlock"}),
    "z_image": Original(
        {
            "": "ZImageTransformer2DModel",
            "layers.{i}": "ZImageTransformerBlock",
            "noise_refiner.{i}": "ZImageTransformerBlock",
            "context_refiner.{i}": "ZImageTransformerBlock",
            "all_final_layer.2-1": "FinalLayer",
            "t_embedder": "TimestepEmbedder",
        },
        layout=1,
    ),
    "kandinsky5": Original(
        {
            "": "DiffusionTransformer3D",
            "text_transformer_blocks.{i}": "TransformerEncoderBlock",
            "visual_transformer_blocks.{i}": "TransformerDecoderBlock",
        }
    ),
    "hidream_o1": Original(
        {
            "": "Qwen3VLForConditionalGeneration",
            "model.language_model.layers.{i}": "Qwen3VLTextDecoderLayer",
            "model.x_embedder": "BottleneckPatchEmbed",
            "model.final_layer2": "FinalLayer",
            "model.t_embedder1": "TimestepEmbedder",
            "model.visual.patch_embed": "Qwen3VLVisionPatchEmbed",
            "model.visual.blocks.{i}": "Qwen3VLVisionBlock",
            "model.visual.merger": "Qwen3VLVisionPatchMerger",
            "model.visual.deepstack_merger_list.{i}": "Qwen3VLVisionPatchMerger",
        },
        ("model.visual.patch_embed.proj",),
        ("model.visual.pos_embed",),
    ),
    "ideogram4": Original(
        {"": "Ideogram4Transformer", "layers.{i}": "Ideogram4TransformerBlock"}, (), ("embed_image_indicator",)
    ),
    "krea2": Original(
        {
            "": "SingleStreamDiT",
            "blocks.{i}": "SingleStreamBlock",
            "txtfusion": "TextFusionTransformer",
            "txtfusion.layerwise_blocks.{i}": "TextFusionBlock",
            "txtfusion.refiner_blocks.{i}": "TextFusionBlock",
            "last": "LastLayer",
        }
    ),
}


def stand_in(name: str) -> nn.Module:
    """A model with the class names, and with two of each block; every layer has its own random weight."""
    original = ORIGINALS[name]
    root = _container(original.classes[""])
    for path in by_name(name).layouts[original.layout].paths:
        for number in range(BLOCKS if "{i}" in path else 1):
            place = root
            *parents, leaf = path.split(".")
            for depth, part in enumerate(parents):
                child = str(number) if part == "{i}" else part
                if child not in place._modules:
                    place.add_module(child, _container(original.classes.get(".".join(parents[: depth + 1]), "Module")))
                place = place.get_submodule(child)
            place.add_module(leaf, _layer(path, original))
    if name == "hidream_o1":
        root.add_module("lm_head", nn.Linear(WIDTH, WIDTH))
        root.hidream_o1_task = "i2i"  # type: ignore[assignment]
    return root


def _container(name: str) -> nn.Module:
    module: nn.Module = type(name, (nn.Module,), {})()
    return module


def _layer(path: str, original: Original) -> nn.Module:
    if path in original.embeddings:
        return nn.Embedding(4, WIDTH)
    if path in original.convolutions:
        return nn.Conv3d(4, WIDTH, (1, 2, 2), stride=(1, 2, 2))
    return nn.Linear(WIDTH, 3 * WIDTH if path.endswith(("qkv", "linear1")) else WIDTH)
