"""Bases of tiny models in the original layout of their family, and what diffusers' own converters make of them.

A base is a mapping of tensor names to tensors. Numbers are random, so that a row has no double.
"""

import warnings
from itertools import product

import torch
from torch import Tensor

from lora_inspect.architectures import by_name

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers.loaders import single_file_utils as real

# diffusers' converter of FLUX knows one width.
FLUX_WIDTH = 3072


def tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


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
    transformer = [p.split("input_blocks.{i}.1.")[1] for p in original.paths if p.startswith("input_blocks.{i}.1.")]
    resnet = ("in_layers.2", "out_layers.3", "emb_layers.1", "skip_connection")

    def attention(block: str, depth: int) -> set[str]:
        leaves = [leaf for leaf in transformer if "{i}" in leaf or leaf.startswith("proj")]
        return {f"{block}.{leaf.replace('{i}', str(at))}" for leaf, at in product(leaves, range(depth))}

    paths = {"time_embed.0", "time_embed.2", "input_blocks.0.0", "out.2"}
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
