from collections.abc import Iterator

import diffusers
import pytest
import torch
from layouts import split
from real_models import DIFFUSERS

from lora_inspect.architectures import by_name
from lora_inspect.architectures.detection import Detection, candidates
from lora_inspect.architectures.patterns import pattern_of

LAYERS = (
    torch.nn.Linear,
    torch.nn.Conv1d,
    torch.nn.Conv2d,
    torch.nn.Conv3d,
    torch.nn.ConvTranspose1d,
    torch.nn.Embedding,
)


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
    DIFFUSERS,
    ids=[f"{'-'.join(sorted(expected))}-{name}" for name, _, expected in DIFFUSERS],
)
def test_every_layer_of_a_diffusers_model_is_a_path_of_its_family(
    name: str, arguments: dict[str, object], expected: set[str]
):
    modules = list(layers(name, arguments))
    found: tuple[Detection, ...] = candidates(modules, {}, minimum_share=1.0)
    assert {detection.architecture.name for detection in found} == expected
    assert {detection.layout.name for detection in found} == {"diffusers"}


# diffusers converts adapters of these alone, and leaves what their norms are called open.
WITHOUT_NORMS = {"ace_step_1_5", "ideogram4"}
# Parameters that no relation has: those of Cosmos 1.0 alone, and one that has another shape in the original model.
NOT_RELATED = {
    "CosmosTransformer3DModel": {f"learnable_pos_embed.pos_emb_{axis}" for axis in "thw"},
    "Krea2Transformer2DModel": {"transformer_blocks.#.scale_shift_table", "final_layer.scale_shift_table"},
}


@pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [case for case in DIFFUSERS if any(by_name(f).correspondence.relations for f in case[2] - WITHOUT_NORMS)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_norm_and_parameter_of_a_diffusers_model_is_one_of_its_family(name, arguments, expected):
    with torch.device("meta"):
        model = getattr(diffusers, name)(**arguments)
    named = {
        pattern_of(path, ".")
        for family in expected
        for layout in by_name(family).layouts
        if layout.name == "diffusers"
        for path in layout.named
    }
    found = {pattern_of(path, ".") for parameter, _ in model.named_parameters() for path in [split(parameter)[0]]}
    assert found - named == NOT_RELATED.get(name, set())


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
