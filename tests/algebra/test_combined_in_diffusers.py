"""combine, loaded by the real pipelines of diffusers: the file is both adapters at their multipliers."""

import warnings

import pytest
import torch
from adapter_files import adapter_file, layout_of, shapes_in
from adapters import Factors, dotted, kohya, shapes_of_factors
from diffusers.loaders import lora_pipeline
from diffusers_families import (
    COMPONENTS,
    LOADERS,
    adapted,
    copied,
    layers,
    outputs,
    says,
    text_encoder,
)
from diffusers_pipelines import loaded, network, weights
from loaders import in_peft, tensors_in
from safetensors.torch import save_file

import lora_inspect
from lora_inspect.architectures import by_name

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]

MULTIPLIERS = (0.7, -0.3)
SAME = 1e-5


@pytest.fixture
def any_peft(monkeypatch):
    """transformers asks for a later PEFT than the one that diffusers is tested with; the loading itself is the same."""
    import transformers.integrations.peft as integration

    monkeypatch.setattr(integration, "check_peft_version", lambda *_, **__: None)


def combined(files, folder, to=None, suffix=".safetensors"):
    out = folder / f"out{suffix}"
    result = lora_inspect.combine(list(zip(files, MULTIPLIERS, strict=True)), out, to=to)
    assert result.error < 1e-6
    return out


def pair(family, names, kinds, folder):
    """Two files of a family in names and of kinds of their own, and the weights at the multipliers, in float64."""
    base, files = weights(family), []
    meant = {path: weight.double() for path, weight in base.items()}
    for number, (spelled, kind, multiplier) in enumerate(zip(names, kinds, MULTIPLIERS, strict=True)):
        made = adapter_file(
            family, spelled, kind, True, base, seed=20 + number, says=says(family)["ss_base_model_version"]
        )
        files.append(folder / f"{number}.safetensors")
        save_file({key: tensor.contiguous() for key, tensor in made.tensors.items()}, files[-1], made.metadata)
        for path, weight in made.meant.items():
            meant[path] = meant[path] + multiplier * (weight - base[path].double())
    return files, meant


def assert_same(found, meant, family):
    """Every change within the bound, relative to its norm."""
    base = weights(family)
    changes = {path: (weight - base[path].double()).norm() for path, weight in meant.items()}
    assert all(changes.values())
    errors = {path: float((found[path].double() - meant[path]).norm() / change) for path, change in changes.items()}
    assert max(errors.values()) < SAME


# Names of a second file are of the other layout where the family has two: fused parts in the one, apart in the other.
NAMES = (("kohya", "diffusers"), ("diffusers", "kohya"), ("comfyui", "kohya"))
# RS-LoRA says so in a flag, and the ranks of the last one differ from layer to layer.
KINDS = (("lora", "rslora flag"), ("rslora flag", "uneven"))
# What pipelines read of the outputs; the names of the inputs are kept where no others are asked for.
READ = {
    "flux": {None: NAMES[:2], "diffusers": NAMES, "kohya": NAMES, "comfyui": NAMES[:2]},
    "wan": {None: NAMES, "diffusers": NAMES, "kohya": NAMES, "comfyui": NAMES},
    "qwen_image": {None: NAMES, "diffusers": NAMES, "kohya": NAMES, "comfyui": NAMES},
    "z_image": {None: NAMES[:2], "diffusers": NAMES, "kohya": NAMES},
    "sdxl": {None: NAMES[:2], "diffusers": NAMES, "kohya": NAMES},
}
# Pipelines of UNets give the attention layers of kohya's files one scale, so that ranks that differ are misread.
EVEN = ("sdxl", "kohya")
CELLS = [
    (family, names, kinds, to)
    for family, targets in READ.items()
    for to, every in targets.items()
    for names in every
    for kinds in KINDS
    if kinds == KINDS[0] or (to in (None, "diffusers") and (family, to or names[0]) != EVEN)
]


@pytest.mark.parametrize(("family", "names", "kinds", "to"), CELLS)
def test_pipelines_make_both_adapters_of_it(family, names, kinds, to, tmp_path):
    files, meant = pair(family, names, kinds, tmp_path)
    assert_same(loaded(family, combined(files, tmp_path, to)), meant, family)


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("family", READ)
def test_peft_makes_both_adapters_of_it(family, names, tmp_path):
    files, meant = pair(family, names, KINDS[0], tmp_path)
    out, own = combined(files, tmp_path, "peft", suffix=""), copied(network(family))
    assert in_peft(family, own, out) == len(tensors_in(out)) > 0
    found = {}
    for path in meant:
        layer = own.get_submodule(path)
        layer.merge()
        found[path] = layer.get_base_layer().weight
    assert_same(found, meant, family)


# What text encoders are called beside the model, by the names of a file.
SPELLED = {
    "kohya": (kohya, "lora_unet_", ("lora_te1_", "lora_te2_")),
    "diffusers": (dotted, "{pipeline}.", ("text_encoder.", "text_encoder_2.")),
}
ENCODERS = {"sd15": 1, "sdxl": 2, "flux": 1, "wan": 0}
# One rank and one alpha for all layers of a file, as trainers have them.
SIZES = ((4, 3.0), (2, 5.0))


def fresh(family):
    """The model and the text encoders of a pipeline; of transformers the layers that trainers adapt most."""
    own = {by_name(family).pipeline_name: network(family)}
    own |= {name: text_encoder(at) for at, name in zip(range(ENCODERS[family]), COMPONENTS, strict=False)}
    return own


def shapes_of(family, component, own):
    if component.startswith("text_encoder") or family in ("sd15", "sdxl"):
        return adapted(own)
    return {path: tuple(weight.shape) for path, weight in weights(family).items()}


def drawn(shape, size, numbers):
    rank, alpha = size
    of_down, of_up = shapes_of_factors(shape, rank)
    return Factors(torch.randn(of_down, generator=numbers), 0.1 * torch.randn(of_up, generator=numbers), alpha)


def whole(family, networks, spelling, number, folder):
    """A file with an adapter of the layers of the networks, convolutions as well, in one spelling."""
    spell, of_model, of_encoders = SPELLED[spelling]
    pipeline, tensors = by_name(family).pipeline_name, {}
    numbers = torch.Generator().manual_seed(30 + number)
    for (component, own), prefix in zip(networks.items(), (of_model, *of_encoders), strict=False):
        shapes = shapes_of(family, component, own)
        if component == pipeline:
            shapes = shapes_in(layout_of(family, spelling), family, shapes)
        layers_of = {path: drawn(shape, SIZES[number], numbers) for path, shape in shapes.items()}
        tensors |= spell(prefix.format(pipeline=pipeline), layers_of)
    if (family, spelling) == ("sd15", "kohya"):
        tensors = {name.replace("lora_te1_", "lora_te_"): value for name, value in tensors.items()}
    if spelling == "diffusers":
        # Pipelines refuse alphas under these names: that of a layer goes into its up factor.
        rank, alpha = SIZES[number]
        tensors = {key: alpha / rank * value if ".lora_B" in key else value for key, value in tensors.items()}
        tensors = {key: value for key, value in tensors.items() if not key.endswith(".alpha")}
    file = folder / f"{number}.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, file, says(family))
    return file


def with_adapters(family, networks, files, multipliers):
    """Copies of the networks, with files loaded by the pipeline and set to their multipliers."""
    own = {component: copied(one) for component, one in networks.items()}
    loader = getattr(lora_pipeline, LOADERS[family])
    pipeline = type("Pipeline", (loader,), {"hf_device_map": None, "components": own})()
    for name in COMPONENTS:
        setattr(pipeline, name, None)
    for name, one in own.items():
        setattr(pipeline, name, one)
    names = [f"own{number}" for number in range(len(files))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, file in zip(names, files, strict=True):
            pipeline.load_lora_weights(str(file), adapter_name=name)
    pipeline.set_adapters(names, list(multipliers))
    return own


def of_all_layers(networks, like):
    return {
        f"{component}.{path}": value.double()
        for component, own in networks.items()
        for path, value in outputs(own, layers(like[component])).items()
    }


@pytest.mark.parametrize(
    ("spellings", "to"),
    [
        (("kohya", "diffusers"), None),
        (("kohya", "kohya"), "diffusers"),
        (("diffusers", "kohya"), None),
        (("diffusers", "kohya"), "kohya"),
    ],
)
@pytest.mark.parametrize("family", ENCODERS)
def test_set_adapters_of_both_is_the_same(family, spellings, to, tmp_path, any_peft):
    networks = fresh(family)
    files = [whole(family, networks, one, at, tmp_path) for at, one in enumerate(spellings)]
    before = of_all_layers(networks, networks)
    meant = of_all_layers(with_adapters(family, networks, files, MULTIPLIERS), networks)
    found = of_all_layers(with_adapters(family, networks, [combined(files, tmp_path, to)], (1.0,)), networks)
    changes = {path: float((value - before[path]).norm()) for path, value in meant.items()}
    wrong = {path: float((found[path] - value).norm()) for path, value in meant.items()}
    assert {path: error for path, error in wrong.items() if error > SAME * changes[path]} == {}
    assert sum(map(bool, changes.values())) == sum(len(shapes_of(family, *one)) for one in networks.items())
