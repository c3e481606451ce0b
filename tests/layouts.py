"""Bases of tiny models in the original layout of their family, and what diffusers' own converters make of them.

A base is a mapping of tensor names to tensors. Numbers are random, so that a row has no double.
"""

import warnings
from collections.abc import Callable, Mapping
from itertools import product
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from lora_inspect.architectures import by_name, every
from lora_inspect.architectures.record import is_parameter

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers.loaders import lora_conversion_utils as lora_utils
    from diffusers.loaders import single_file_utils as real

# diffusers' converter of FLUX knows one width.
FLUX_WIDTH = 3072
# Layers of FLUX in the layout of diffusers, and in the original one.
SPLIT = [
    "transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k", "transformer_blocks.0.attn.to_v",
    "transformer_blocks.0.attn.add_k_proj", "transformer_blocks.0.attn.to_out.0", "transformer_blocks.0.ff.net.0.proj",
    "transformer_blocks.1.attn.to_v", "transformer_blocks.1.norm1_context.linear",
    "single_transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.attn.to_k",
    "single_transformer_blocks.0.attn.to_v", "single_transformer_blocks.0.proj_mlp",
    "single_transformer_blocks.1.proj_mlp", "single_transformer_blocks.1.proj_out",
    "norm_out.linear", "proj_out", "x_embedder", "time_text_embed.guidance_embedder.linear_2",
]  # fmt: skip
FUSED = [
    "double_blocks.0.img_attn.qkv", "double_blocks.1.txt_attn.qkv", "double_blocks.1.txt_attn.proj",
    "double_blocks.0.img_mlp.2", "double_blocks.0.img_mod.lin", "single_blocks.0.linear1", "single_blocks.1.linear2",
    "single_blocks.1.modulation.lin", "final_layer.adaLN_modulation.1", "final_layer.linear", "txt_in",
    "vector_in.in_layer",
]  # fmt: skip


def tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def split(name: str) -> tuple[str, str]:
    """The path of a tensor's module, and what stands behind it; a parameter that is no module's is its own path."""
    path, _, parameter = name.rpartition(".")
    return (path, ".weight" if parameter == "scale" else f".{parameter}") if parameter in _OF_MODULES else (name, "")


# What modules have; the RMSNorm of FLUX and its descendants calls its weight `scale`.
_OF_MODULES = ("weight", "bias", "scale")
_OF_QUERY_AND_KEY = ("_q", "_k", "q_norm", "k_norm")
_SCALES = (
    *("query_norm", "key_norm", "distilled_guidance_layer.norms.0", "distilled_guidance_layer.norms.1"),
    *("qnorm", "knorm", "prenorm", "postnorm", "txtmlp.0", "last.norm"),
)


def norms(layout, blocks: int = 2, biases: bool = True) -> dict[str, tuple[int, ...]]:
    """The shapes of a tensor or two of every norm and parameter of a layout."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in (path.replace("{i}", str(number)) for path in layout.norms for number in range(blocks)):
        if is_parameter(path):
            shapes[path] = (1, 6, 4)
        elif path.endswith(_SCALES):
            shapes[f"{path}.scale"] = (6,)
        else:
            shapes[f"{path}.weight"] = (6,)
            if biases and not path.endswith(_OF_QUERY_AND_KEY):
                shapes[f"{path}.bias"] = (6,)
    return shapes


def flux(blocks: int = 1, width: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The original layout. Only `linear1` has the rows of the real model, of `width` inputs each."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(path: str, out: int) -> None:
        shapes[f"{path}.weight"], shapes[f"{path}.bias"] = (out, width), (out,)

    for path in ("img_in", "txt_in", "final_layer.linear"):
        linear(path, width)
    linear("final_layer.adaLN_modulation.1", 2 * width)
    for path in ("time_in", "vector_in", "guidance_in"):
        linear(f"{path}.in_layer", width)
        linear(f"{path}.out_layer", width)
    for block in (f"double_blocks.{number}" for number in range(blocks)):
        for stream in ("img", "txt"):
            linear(f"{block}.{stream}_attn.qkv", 3 * width)
            linear(f"{block}.{stream}_attn.proj", width)
            linear(f"{block}.{stream}_mlp.0", 4 * width)
            linear(f"{block}.{stream}_mlp.2", width)
            linear(f"{block}.{stream}_mod.lin", 6 * width)
            shapes |= {f"{block}.{stream}_attn.norm.{norm}_norm.scale": (4,) for norm in ("query", "key")}
    for block in (f"single_blocks.{number}" for number in range(blocks)):
        linear(f"{block}.linear1", 7 * FLUX_WIDTH)
        linear(f"{block}.linear2", width)
        linear(f"{block}.modulation.lin", 3 * width)
        shapes |= {f"{block}.norm.{norm}_norm.scale": (4,) for norm in ("query", "key")}
    return tensors(shapes, seed, dtype)


def flux_in_diffusers(base: dict[str, Tensor]) -> dict[str, Tensor]:
    return real.convert_flux_transformer_checkpoint_to_diffusers(dict(base))


def unet(config: dict[str, object], seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A UNet in diffusers' names, with the tensors of a UNet2DConditionModel of this `config`."""
    import diffusers

    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel(**config)
    return tensors({name: tuple(value.shape) for name, value in model.state_dict().items()}, seed, dtype)


def original_unet(name: str) -> list[str]:
    """The layers of the original UNet: which blocks it has stands in its configuration file, as v1-inference.yaml."""
    family = by_name(name)
    levels = {"sdxl": (0, 2, 10), "sd15": (1, 1, 1, 0), "sd2": (1, 1, 1, 0)}[name]
    (original,) = (layout for layout in family.layouts if layout.name == "original")
    transformer = [p.split("input_blocks.{i}.1.")[1] for p in original.named if p.startswith("input_blocks.{i}.1.")]
    resnet = ("in_layers.0", "in_layers.2", "out_layers.0", "out_layers.3", "emb_layers.1", "skip_connection")

    def attention(block: str, depth: int) -> set[str]:
        leaves = [leaf for leaf in transformer if "{i}" in leaf or leaf.startswith(("proj", "norm"))]
        return {f"{block}.{leaf.replace('{i}', str(at))}" for leaf, at in product(leaves, range(depth))}

    paths = {"time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2"}
    paths |= {"label_emb.0.0", "label_emb.0.2"} if name == "sdxl" else set()
    at = 1
    for level, depth in enumerate(levels):
        for _ in range(2):
            paths |= {f"input_blocks.{at}.0.{leaf}" for leaf in resnet}
            paths |= attention(f"input_blocks.{at}.1", depth) if depth else set()
            at += 1
        if level + 1 < len(levels):
            paths.add(f"input_blocks.{at}.0.op")
            at += 1
    paths |= {f"middle_block.{block}.{leaf}" for block in (0, 2) for leaf in resnet}
    paths |= attention("middle_block.1", max(levels[-1], 1))
    at = 0
    for level, depth in enumerate(reversed(levels)):
        for unit in range(3):
            paths |= {f"output_blocks.{at}.0.{leaf}" for leaf in resnet}
            paths |= attention(f"output_blocks.{at}.1", depth) if depth else set()
            if unit == 2 and level + 1 < len(levels):
                paths.add(f"output_blocks.{at}.{2 if depth else 1}.conv")
            at += 1
    return sorted(paths)


def unet_names(original: list[str], config: dict[str, object]) -> dict[str, str]:
    """diffusers' path of each layer of an original UNet, as its converter has it."""
    marked = {
        f"model.diffusion_model.{path}.{parameter}": torch.tensor(float(at))
        for at, path in enumerate(original)
        for parameter in ("weight", "bias")
    }
    converted = real.convert_ldm_unet_checkpoint(marked, {"layers_per_block": 2, **config})
    return {original[int(value)]: name.rpartition(".")[0] for name, value in converted.items()}


# A tiny UNet of SDXL.
UNET = {
    "block_out_channels": (32, 32, 64),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4, 8),
    "transformer_layers_per_block": (1, 2, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 80,
    "cross_attention_dim": 2048,
}


def sdxl() -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a tiny UNet by both names, as diffusers' own conversion pairs them."""
    diffusers = unet(UNET)
    pairs = unet_names(original_unet("sdxl"), {"addition_embed_type": "text_time"})
    names = {
        f"{theirs}.{parameter}": f"{ours}.{parameter}"
        for ours, theirs in pairs.items()
        for parameter in ("weight", "bias")
        if f"{theirs}.{parameter}" in diffusers
    }
    return diffusers, names


def alike() -> list[str]:
    """The families whose modules all programs call alike."""
    return [family.name for family in every() if any(layout.also for layout in family.layouts)]


def first_layout(name: str) -> dict[str, Tensor]:
    """A narrow base of the first layout of a family, with every `{i}` at 0."""
    return tensors({f"{path.replace('{i}', '0')}.weight": (6, 4) for path in by_name(name).layouts[0].paths})


class Synthetic(NamedTuple):
    """A base with one tensor for every layer of the original layout, and diffusers' converter of such a base.

    `rows` are the shapes of the layers at paths that end so; all others are (6, 4). Not every converter knows biases,
    nor layers outside of the blocks; `more` are names of other tensors that one asks for, and the last of several
    blocks has none at the ends `not_last`.
    """

    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    rows: Mapping[str, tuple[int, int]] = MappingProxyType({})
    biases: bool = True
    blocks: int = 2
    below: str = ""
    more: tuple[str, ...] = ()
    not_last: tuple[str, ...] = ()


def adapter_of_ideogram4(base):
    """What the converter of adapters makes of the layers, whose rows are those of `lora_B`."""
    adapter = {name.replace(".weight", ".lora_B.weight"): value for name, value in base.items()}
    adapter |= {name.replace(".weight", ".lora_A.weight"): torch.ones(4, 4) for name in base}
    converted = lora_utils._convert_non_diffusers_ideogram4_lora_to_diffusers(adapter)
    return {
        name.removeprefix("transformer.").replace(".lora_B.", "."): value
        for name, value in converted.items()
        if ".lora_B." in name
    }


def adapter_of_ltx2(base):
    """Only the converter of adapters knows the layers of LTX-2.3."""
    adapter = {f"diffusion_model.{name}": value for name, value in base.items()}
    converted = lora_utils._convert_non_diffusers_ltx2_lora_to_diffusers(adapter)
    return {name.removeprefix("transformer."): value for name, value in converted.items()}


SYNTHETIC = {
    # The converter of HunyuanVideo knows one width, and so does that of Lumina, whose query is as wide as the inputs.
    "hunyuan_video": Synthetic(real.convert_hunyuan_video_transformer_to_diffusers, {"linear1": (7 * 3072, 4)}),
    "lumina2": Synthetic(real.convert_lumina2_to_diffusers, {"qkv": (3840, 2304)}, blocks=1),
    "flux2": Synthetic(real.convert_flux2_transformer_checkpoint_to_diffusers, biases=False),
    "sd3": Synthetic(
        real.convert_sd3_transformer_checkpoint_to_diffusers,
        {"adaLN_modulation.1": (24, 4), "1.context_block.adaLN_modulation.1": (8, 4)},
        not_last=("context_block.attn.proj", "context_block.mlp.fc1", "context_block.mlp.fc2"),
    ),
    "auraflow": Synthetic(
        real.convert_auraflow_transformer_checkpoint_to_diffusers,
        biases=False,
        more=("init_x_linear.bias",),
    ),
    "z_image": Synthetic(real.convert_z_image_transformer_checkpoint_to_diffusers, biases=False),
    "ltx_video": Synthetic(real.convert_ltx_transformer_checkpoint_to_diffusers),
    "ltx2": Synthetic(adapter_of_ltx2),
    "cosmos": Synthetic(real.convert_cosmos_transformer_checkpoint_to_diffusers),
    "anima": Synthetic(real.convert_cosmos_transformer_checkpoint_to_diffusers),
    "krea2": Synthetic(real.convert_krea2_transformer_checkpoint_to_diffusers, biases=False),
    "ideogram4": Synthetic(adapter_of_ideogram4, biases=False, below="layers."),
}


def synthetic(name):
    family, made = by_name(name), SYNTHETIC[name]
    shapes = dict.fromkeys(made.more, (6,))
    for template in family.layouts[0].paths:
        for number in range(made.blocks):
            path = template.replace("{i}", str(number))
            is_last = template != path and number == made.blocks - 1
            if not path.startswith(made.below) or (is_last and path.endswith(made.not_last or ("-",))):
                continue
            shape = [(6, 4), *(shape for end, shape in made.rows.items() if path.endswith(end))][-1]
            shapes[f"{path}.weight"] = shape
            if made.biases:
                shapes[f"{path}.bias"] = shape[:1]
    return tensors(shapes | norms(family.layouts[0], made.blocks, made.biases))


# Lumina's query is as wide as its inputs, of which its converter knows one number.
NARROW = [name for name in SYNTHETIC if name != "lumina2"]


def in_diffusers(name: str, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """What diffusers makes of a base like that of `synthetic`."""
    return {key: value for key, value in SYNTHETIC[name].convert(dict(base)).items() if value is not None}


def matrices(base: dict[str, Tensor]) -> list[str]:
    """The layers, but for Anima's adapter of the language model, which is no part of diffusers' model."""
    paths = [key.removesuffix(".weight") for key, value in base.items() if value.dim() == 2]
    return [path for path in paths if not path.startswith("llm_adapter")]


def tiny(name: str) -> torch.nn.Module:
    """A language model with fewer key-value heads than heads."""
    import transformers

    sizes = {
        "vocab_size": 16, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "rms_norm_eps": 1e-5,
        "attn_implementation": "eager", "tie_word_embeddings": False,
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**sizes)
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


# How Phi3Attention and Phi3MLP of transformers take their outputs apart: 4 heads and twice 2 of them, 4 rows each.
PHI3 = {
    "self_attn.q_proj": ("self_attn.qkv_proj", 0, 16),
    "self_attn.k_proj": ("self_attn.qkv_proj", 16, 24),
    "self_attn.v_proj": ("self_attn.qkv_proj", 24, 32),
    "mlp.gate_proj": ("mlp.gate_up_proj", 0, 12),
    "mlp.up_proj": ("mlp.gate_up_proj", 12, 24),
}


def split_phi3(fused: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a Llama that computes the same."""
    state = {name: value for name, value in fused.items() if "qkv_proj" not in name and "gate_up" not in name}
    for layer in ("model.layers.0", "model.layers.1"):
        for part, (whole, start, stop) in PHI3.items():
            state[f"{layer}.{part}.weight"] = fused[f"{layer}.{whole}.weight"][start:stop].clone()
    return state
