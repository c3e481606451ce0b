"""The layers of the real classes of transformers, tiny and without storage, are paths of their family."""

import re
from collections.abc import Iterator

import pytest
import torch
import transformers
from real_models import BIGCODE, GPT2, MULTIMODAL, TRANSFORMERS
from transformers.pytorch_utils import Conv1D

from lora_inspect.architectures.detection import candidates

LAYERS = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d, Conv1D)


def built(name: str, arguments: dict[str, object]) -> torch.nn.Module:
    kind = getattr(transformers, name, None)
    if kind is None:
        pytest.skip(f"this version of transformers has no {name}")
    with torch.device("meta"):
        return kind(kind.config_class(**arguments))


def layers(model: torch.nn.Module) -> Iterator[tuple[str, None, None]]:
    """What an adapter can sit on: the layers, and the parameters of all experts at once."""
    for path, module in model.named_modules():
        if isinstance(module, LAYERS):
            yield path, None, None
    for path, parameter in model.named_parameters():
        if re.search(r"experts\.\w+_proj$", path) and parameter.dim() == 3:
            yield path, None, None


def families_of(model: torch.nn.Module) -> dict[str, str]:
    return {found.architecture.name: found.layout.name for found in candidates(layers(model), {}, minimum_share=1.0)}


@pytest.mark.parametrize(
    ("name", "arguments", "family", "layout"), TRANSFORMERS, ids=[model[0] for model in TRANSFORMERS]
)
def test_every_layer_of_a_language_model_is_a_path_of_its_family(name, arguments, family, layout):
    found = families_of(built(name, arguments))
    assert found[family] == layout
    # BigCode has the names of GPT-2.
    assert found.keys() <= {family, *({"gpt2", "gpt_bigcode"} if family.startswith("gpt") else ())}


@pytest.mark.parametrize("name", MULTIMODAL)
def test_every_layer_of_a_multimodal_model_is_a_path_of_its_family(name):
    kind = getattr(transformers, name, None)
    if kind is None:
        pytest.skip(f"this version of transformers has no {name}")
    config = kind.config_class()
    for part in filter(None, (getattr(config, which, None) for which in ("text_config", "vision_config"))):
        for field in ("num_hidden_layers", "depth"):
            if getattr(part, field, None):
                setattr(part, field, 2)
        if getattr(part, "layer_types", None):
            part.layer_types = part.layer_types[:1] * 2
        if getattr(part, "num_kv_shared_layers", None):
            part.num_kv_shared_layers = 0
        for field in ("fullatt_block_indexes", "deepstack_visual_indexes"):
            if getattr(part, field, None):
                setattr(part, field, [0])
    with torch.device("meta"):
        model = kind(config)
    assert families_of(model)["llm"] == "hf-multimodal"


@pytest.mark.parametrize("add_cross_attention", [False, True])
def test_conv1d_layers_are_those_whose_weight_is_turned(add_cross_attention):
    from lora_inspect.architectures import by_name
    from lora_inspect.reading.base.base_names import leaf_of

    layout, _ = by_name("gpt2").layouts
    model = built("GPT2LMHeadModel", {**GPT2, "add_cross_attention": add_cross_attention})
    kinds = {
        (leaf_of(path), isinstance(module, Conv1D))
        for path, module in model.named_modules()
        if isinstance(module, LAYERS)
    }
    assert kinds == {(leaf, leaf in layout.transposed) for leaf, _ in kinds}
    code = built("GPTBigCodeForCausalLM", BIGCODE)
    assert not any(isinstance(module, Conv1D) for module in code.modules())
    assert by_name("gpt_bigcode").layouts[0].transposed == ()
