"""Tiny pipelines of diffusers with text encoders of the real widths, files that change these, and what is loaded."""

import json
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import diffusers_families
import torch
from adapter_files import ALL_KINDS, arranged, layout_of
from adapters import NAMES, Spelling, Weight, adapter
from diffusers_pipelines import network, weights
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_inspect.architectures import by_name

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        T5Config,
        T5EncoderModel,
    )

# The classes of the encoders of the real pipelines, and their widths.
ENCODERS: dict[str, dict[str, tuple[Any, int]]] = {
    "sd15": {"text_encoder": (CLIPTextModel, 768)},
    "sd2": {"text_encoder": (CLIPTextModel, 1024)},
    "sdxl": {"text_encoder": (CLIPTextModel, 768), "text_encoder_2": (CLIPTextModelWithProjection, 1280)},
    "sd3": {
        "text_encoder": (CLIPTextModelWithProjection, 768),
        "text_encoder_2": (CLIPTextModelWithProjection, 1280),
        "text_encoder_3": (T5EncoderModel, 4096),
    },
    "flux": {"text_encoder": (CLIPTextModel, 768), "text_encoder_2": (T5EncoderModel, 4096)},
}
_LEAVES = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "q", "k", "v", "o", "wi_0", "wi_1", "wo")


@cache
def encoder(family: str, component: str) -> nn.Module:
    """An encoder with one small block, never changed."""
    kind, width = ENCODERS[family][component]
    torch.manual_seed(7 + len(component) + width)
    if kind is T5EncoderModel:
        config: Any = T5Config(
            d_model=width, d_kv=8, d_ff=20, num_layers=1, num_heads=2, vocab_size=20, feed_forward_proj="gated-gelu"
        )
    else:
        config = CLIPTextConfig(
            hidden_size=width, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2, vocab_size=20,
            projection_dim=8, max_position_embeddings=8,
        )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = kind(config)
    return made.requires_grad_(False).eval()


def paths_of(family: str, component: str) -> dict[str, str]:
    """The layers of an encoder that trainers adapt: their path in files, and in the encoder of this transformers.

    Files have the `text_model.` that CLIPTextModel had before transformers 5.
    """
    is_clip = ENCODERS[family][component][0] is not T5EncoderModel
    found = {}
    for path, layer in encoder(family, component).named_modules():
        if isinstance(layer, nn.Linear) and path.rpartition(".")[2] in _LEAVES:
            found[path if not is_clip or path.startswith("text_model.") else f"text_model.{path}"] = path
    return found


class File(NamedTuple):
    """Tensors and metadata of an adapter, and what its weights mean by "component:path"."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    meant: dict[str, Weight]

    def write(self, file: Path) -> None:
        """Writes it as a file of safetensors."""
        save_file({key: tensor.contiguous() for key, tensor in self.tensors.items()}, file, self.metadata)


def adapter_of(
    family: str,
    names: str,
    kind: str,
    has_alpha: bool,
    prefixes: Mapping[str, str],
    spelling: Spelling | None = None,
    has_model: bool = True,
) -> File:
    """A file of a kind in the `names` of a scheme, that changes the model and the encoders with these `prefixes`."""
    made, scheme, known = ALL_KINDS[kind], NAMES[names], by_name(family)
    pipeline, spelled = known.pipeline_name, spelling or scheme.spelling
    tensors: dict[str, Tensor] = {}
    meant: dict[str, Weight] = {}
    targets: dict[str, list[str]] = {}
    if has_model:
        base = weights(family)
        own = arranged(family, layout_of(family, names) or "diffusers", base)
        layers = {path: {"weight": weight} for path, weight in own.weights.items()}
        tensors, changed = adapter(
            made, layers, lambda path: scheme.module(path, pipeline), has_alpha, 7, spelled, size=0.3
        )
        full = {path: weight.double().clone() for path, weight in base.items()}
        plain = {path: weight.double().clone() for path, weight in base.items()}
        for name, weight in changed.items():
            for home, rows, of_layer in own.rows(name.removesuffix(".weight")):
                full[home][rows] = weight.meant[of_layer]
                plain[home][rows] = (weight.meant if weight.plain is None else weight.plain)[of_layer]
        is_dora = any(weight.plain is not None for weight in changed.values())
        for path in base:
            weight = Weight(base[path].double(), full[path], plain[path] if is_dora else None)
            meant[f"{pipeline}:{path}"] = weight
        targets[pipeline] = list(base)
    for component, prefix in prefixes.items():
        paths, model = paths_of(family, component), encoder(family, component)
        layers = {path: {"weight": model.get_submodule(inner).weight} for path, inner in paths.items()}
        tell = prefix.endswith("_")
        more, changed = adapter(
            made,
            layers,
            lambda path, prefix=prefix, tell=tell: prefix + (path.replace(".", "_") if tell else path),
            has_alpha,
            9,
            spelled,
            size=0.3,
        )
        tensors |= more
        meant |= {f"{component}:{paths[name.removesuffix('.weight')]}": own for name, own in changed.items()}
        targets[component] = sorted({path.rpartition(".")[2] for path in paths})
    metadata = {"ss_base_model_version": (*known.metadata_names, "")[0]}
    if made.config is not None:
        config = {
            f"{component}.{key}": value
            for component, paths in targets.items()
            for key, value in {"target_modules": paths, **made.config}.items()
        }
        metadata |= {"format": "pt", "lora_adapter_metadata": json.dumps(config)}
    return File(tensors, metadata, meant)


def loaded(family: str, file: Path) -> dict[str, Tensor]:
    """The weights of model and encoders with the file loaded, by "component:path"; raises what the pipeline raises."""
    own = {by_name(family).pipeline_name: diffusers_families.copied(network(family))}
    own |= {name: diffusers_families.copied(encoder(family, name)) for name in ENCODERS[family]}
    diffusers_families.load(family, own, file)
    found = {}
    for component, model in own.items():
        for path, layer in model.named_modules():
            if isinstance(layer, BaseTunerLayer):
                # What PEFT does not fold is the bias of a layer that has none.
                layer.lora_bias = dict.fromkeys(getattr(layer, "lora_bias", ()), False)
                layer.merge()
                found[f"{component}:{path}"] = layer.get_base_layer().weight
            elif isinstance(layer, nn.Linear | nn.Conv2d) and ".lora_" not in path and "base_layer" not in path:
                found[f"{component}:{path}"] = layer.weight
        assert not any(parameter.is_meta for parameter in model.parameters())
    return found
