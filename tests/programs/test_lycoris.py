"""LyCORIS's own wrapper on tiny models of diffusers: what it makes of files of every kind is what its rules say.

Where the rules say nothing of a file, that is a gap, and stands in a list here.
"""

import copy
import logging
import shlex

import pytest
import torch
from adapters import ALPHA, KINDS, RANK, adapter
from diffusers_families import model, says
from lycoris.wrapper import create_lycoris_from_weights
from program_grid import Weight, differs, is_gap, observe
from safetensors.torch import save_file
from torch import nn

from lora_inspect.ops.compat import compat

pytestmark = pytest.mark.slow

FAMILIES = ("flux", "sdxl", "wan")
LAYERS, NORMS = (nn.Linear, nn.Conv2d, nn.Conv3d), (nn.LayerNorm, nn.GroupNorm)
# The layers of a model that have an adapter.
COUNT = 6


def layers(network, kind):
    """Some layers of a model that can have such an adapter, of sizes that the factors divide."""
    types = NORMS if kind.startswith("norm") else nn.Linear if kind == "lokr low-rank" else LAYERS
    found = {
        path: layer
        for path, layer in network.named_modules()
        if isinstance(layer, types) and layer.weight is not None and layer.bias is not None and is_even(layer.weight)
    }
    return dict(list(found.items())[:: len(found) // COUNT or 1][:COUNT])


def is_even(weight):
    return all(size >= 16 and size % 4 == 0 for size in weight.shape[:2]) and weight.numel() < 1e5


def input_of(layer):
    numbers = torch.Generator().manual_seed(3)
    if isinstance(layer, nn.Linear):
        return torch.randn(40, layer.in_features, generator=numbers)
    if isinstance(layer, nn.LayerNorm):
        return torch.randn(40, *layer.normalized_shape, generator=numbers)
    if isinstance(layer, nn.GroupNorm):
        return torch.randn(4, layer.num_channels, 3, 3, generator=numbers)
    return torch.randn(2, layer.in_channels, *(2 * size + 1 for size in layer.kernel_size), generator=numbers)


def parts(layer, input):
    """What a layer adds to its bias of an input, and the bias, both as the layer computes them."""
    with torch.no_grad():
        bias = layer(torch.zeros_like(input))
        return layer(input) - bias, bias.flatten(2)[0, :, 0] if bias.dim() > 2 else bias[0]


def in_outputs(weights, layers):
    """The weights as `parts` of their layer's output for an input."""
    found = {}
    for name, weight in weights.items():
        path, _, parameter = name.rpartition(".")
        if parameter == "bias":
            found[name] = weight
            continue
        input, outputs = input_of(layers[path]).double(), []
        for value in weight:
            own = copy.deepcopy(layers[path]).double()
            if value is not None:
                own.weight.copy_(value)
            outputs.append(None if value is None else parts(own, input)[0])
        found[name] = Weight(*outputs)
    return found


def applied(family, file, weights, paths):
    """The program's forward: what its layers make of an input."""
    network = model(family)
    own, _ = create_lycoris_from_weights(1.0, str(file), network)
    own.apply_to()
    # The layers that it took over keep it.
    own.eval()
    found = {}
    for path in paths:
        layer = network.get_submodule(path)
        found[f"{path}.weight"], found[f"{path}.bias"] = parts(layer, input_of(paths[path]))
    return found


def merged(family, file, weights, paths):
    """The weights that `merge_to` leaves in the model."""
    network = model(family)
    own, _ = create_lycoris_from_weights(1.0, str(file), network)
    with torch.no_grad():
        own.merge_to(1.0)
    return network.state_dict()


PROGRAMS = {"lycoris": applied, "lycoris-merge": merged}
FLAT = {"lycoris": "lycoris_", "kohya": "lora_unet_", "OneTrainer": "lora_transformer_"}
DOTTED = {"diffusers": "transformer.", "comfyui": "diffusion_model.", "peft": "base_model.model."}


def spelled(scheme):
    if scheme in FLAT:
        return lambda path: FLAT[scheme] + path.replace(".", "_")
    return lambda path: DOTTED[scheme] + path


GRID = [
    *(
        (family, "lycoris", kind, has_alpha)
        for family in FAMILIES
        for kind in KINDS
        for has_alpha in (True, False)
        # The norms of FLUX have no bias.
        if (family, kind) != ("flux", "norm")
    ),
    *(
        (family, scheme, kind, True)
        for family in FAMILIES
        for scheme in (*FLAT, *DOTTED)
        if scheme != "lycoris"
        for kind in ("lora", "rslora flag", "lokr whole")
    ),
]
# Cells of the grid of which the rules say nothing: differences of norms and of biases alone tell no family.
GAPS = {
    (family, "lycoris", kind, has_alpha, name)
    for family, _, kind, has_alpha in GRID
    if kind in ("norm", "bias alone")
    for name in PROGRAMS
}


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)


def judged(tensors, weights, family, own, tmp_path):
    """For each program what is said of a file, and what is seen of it."""
    file = tmp_path / "adapter.safetensors"
    save_file(tensors, file, says(family))
    for name, load in PROGRAMS.items():
        meant = in_outputs(weights, own) if load is applied else weights
        seen = observe(meant, lambda load=load: load(family, file, weights, own))
        (said,) = compat(str(file), name).verdicts
        yield name, said, seen


@pytest.mark.numeric
@pytest.mark.parametrize(("family", "scheme", "kind", "has_alpha"), GRID)
def test_what_the_rules_say_is_what_it_does(family, scheme, kind, has_alpha, tmp_path):
    found = layers(model(family), kind)
    tensors, weights = adapter(KINDS[kind], own_tensors(found), spelled(scheme), has_alpha)
    for name, said, seen in judged(tensors, weights, family, found, tmp_path):
        assert differs(said, seen) == "", name
        assert is_gap(said) == ((family, scheme, kind, has_alpha, name) in GAPS), (name, said.says, seen)


def own_tensors(layers):
    return {path: dict(layer.named_parameters(recurse=False)) for path, layer in layers.items()}


@pytest.mark.numeric
@pytest.mark.parametrize("family", ["sdxl", "wan"])
def test_norms_beside_layers(family, tmp_path):
    tensors, weights, own = {}, {}, {}
    for kind in ("lora", "norm"):
        found = layers(model(family), kind)
        made, meant = adapter(KINDS[kind], own_tensors(found), spelled("lycoris"), True)
        tensors, weights, own = tensors | made, weights | meant, own | found
    for name, said, seen in judged(tensors, weights, family, own, tmp_path):
        assert (said.verdict, seen.verdict) == ("same meaning", "same meaning"), name


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["loha", "lokr low-rank"])
def test_only_the_forward_is_right_where_the_scale_is_not_one(kind, tmp_path):
    """The merge multiplies by the scale once more."""
    found = layers(model("wan"), kind)
    tensors, weights = adapter(KINDS[kind], own_tensors(found), spelled("lycoris"), True)
    (_, said, seen), (_, of_merge, in_merge) = judged(tensors, weights, "wan", found, tmp_path)
    assert (said.factor, seen.factor) == (1.0, 1.0)
    assert (of_merge.factor, in_merge.factor) == (ALPHA / RANK, ALPHA / RANK)


def base_of(family, tmp_path):
    file = tmp_path / "base.safetensors"
    save_file({key: value.contiguous() for key, value in model(family).state_dict().items()}, file)
    return str(file)


@pytest.mark.parametrize(("family", "scheme", "kind", "has_alpha"), GRID)
def test_every_fix_makes_the_file_right(family, scheme, kind, has_alpha, tmp_path, run):
    found = layers(model(family), kind)
    tensors, weights = adapter(KINDS[kind], own_tensors(found), spelled(scheme), has_alpha)
    file = tmp_path / "adapter.safetensors"
    save_file(tensors, file, says(family))
    (said,) = compat(str(file), "lycoris").verdicts
    if said.fix is None:
        assert said.verdict in ("same meaning", "not tested"), said.says
        return
    fix = said.fix.replace("BASE", base_of(family, tmp_path))
    ended = run(*shlex.split(fix)[1:])
    assert ended.status == 0, ended.stderr
    output = shlex.split(fix)[-1]
    (mended,) = compat(output, "lycoris").verdicts
    assert mended.verdict == "same meaning", mended.says
    meant = in_outputs(weights, found)
    if "--max-error" in fix:
        after = applied(family, output, weights, found)
        wrong = sum(float((after[name].double() - one.meant).square().sum()) for name, one in meant.items())
        right = sum(float((one.meant - one.base).square().sum()) for one in meant.values())
        assert wrong < 0.011**2 * right
    else:
        assert observe(meant, lambda: applied(family, output, weights, found)).verdict == "same meaning"
