"""Which layers each network module adapts, against lists written from the models' own code."""

import inspect
import pickle
from importlib import import_module

import pytest
from architecture_models import MODELS, MODULES, leaves, make

import networks
from networks import lora_hidream_o1, lora_kandinsky, lora_krea2, lora_qwen_image, lora_zimage


def create(name, model, **options):
    module = import_module(f"{networks.__name__}.{MODULES[name]}")
    return module.create_arch_network(1.0, 4, 2.0, None, None, model, neuron_dropout=None, **options)


def adapted(network, model):
    paths = {id(layer): path for path, layer in model.named_modules()}
    return {paths[id(lora.org_module)] for lora in network.unet_loras}


@pytest.mark.parametrize(("name", "layout"), MODELS)
def test_adapted_leaves_are_the_committed_list(name, layout):
    model = make(name, layout)
    assert adapted(create(name, model), model) == leaves(name, layout, model)


@pytest.mark.parametrize("task", ["t2i", "i2i"])
def test_hidream_adapts_what_the_task_needs(task):
    model = make("hidream_o1", "original")
    model.hidream_o1_task = task
    assert adapted(create("hidream_o1", model), model) == leaves("hidream_o1", "original", model)


def test_hidream_without_a_task_is_an_error():
    model = make("hidream_o1", "original")
    del model.hidream_o1_task
    with pytest.raises(ValueError, match="hidream_o1_task is None, not t2i or i2i"):
        create("hidream_o1", model)


def test_hidream_leaves_the_patch_convolution_alone_with_conv_dim_0():
    model = make("hidream_o1", "original")
    left_out = leaves("hidream_o1", "original", model) - adapted(create("hidream_o1", model, conv_dim="0"), model)
    assert left_out == {"model.visual.patch_embed.proj"}


# U-1: a pattern that never matches a dotted name would leave 14.
@pytest.mark.parametrize(
    ("options", "per_block"), [({}, 12), ({"exclude_mod": "True"}, 12), ({"exclude_mod": "false"}, 14)]
)
@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_qwen_image_blocks(layout, options, per_block):
    model = make("qwen_image", layout)
    found = adapted(create("qwen_image", model, **options), model)
    assert len(found) == per_block * len(model.transformer_blocks._modules)
    assert any("_mod." in path for path in found) == (per_block == 14)


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_z_image_refiners_on_demand(layout):
    model = make("z_image", layout)
    found = adapted(create("z_image", model, include_refiner="True"), model)
    refiners = {path for path in found if "_refiner" in path}
    assert found - refiners == leaves("z_image", layout, model)
    blocks = len(model.noise_refiner._modules) + len(model.context_refiner._modules)
    assert len(refiners) == 7 * blocks
    assert not any("modulation" in path for path in found)


# U-25: the default includes are no whitelist, and never outrank what the user excludes.
def test_kandinsky_includes_do_not_outrank_the_users_excludes():
    model = make("kandinsky5", "original")
    found = adapted(create("kandinsky5", model, exclude_patterns=r"['.*to_query']"), model)
    everything = leaves("kandinsky5", "original", model)
    assert found == {path for path in everything if not path.endswith("to_query")}


def test_krea2_adapts_every_linear():
    model = make("krea2", "original")
    assert len(adapted(create("krea2", model), model)) == 8 + 3 * 2 * 8
    found = adapted(create("krea2", model, exclude_patterns="['.*']", include_patterns=r"['blocks\\..*attn.*']"), model)
    assert found == {
        path for path in leaves("krea2", "original", model) if path.startswith("blocks.") and "attn" in path
    }


@pytest.mark.parametrize(("name", "layout"), [model for model in MODELS if model[0] != "krea2"])
def test_modulation_layers_are_in_reach_of_an_include(name, layout):
    model = make(name, layout)
    found = adapted(create(name, model, include_patterns=r"['.*']"), model)
    more = found - leaves(name, layout, model)
    # Wan, Flux.2 and HiDream-O1 have no modulation inside the blocks.
    assert bool(more) == (name not in ("wan", "flux2", "hidream_o1"))
    assert all("mod" in path or "norm" in path or "refiner" in path for path in more)


def test_an_option_of_another_architecture_is_unknown():
    with pytest.raises(ValueError, match="unknown network_args option 'exclude_mod'"):
        create("flux", make("flux", "original"), exclude_mod="False")


@pytest.mark.parametrize("name", [*MODULES.values(), "loha", "lokr", "oft"])
def test_each_module_has_the_functions_that_trainers_call(name):
    module = import_module(f"{networks.__name__}.{name}")
    created = inspect.signature(module.create_arch_network).parameters
    assert list(created) == [
        "multiplier",
        "network_dim",
        "network_alpha",
        "vae",
        "text_encoders",
        "unet",
        "neuron_dropout",
        "kwargs",
    ]
    assert created["neuron_dropout"].default is None
    names = list(inspect.signature(module.create_arch_network_from_weights).parameters)
    assert names == ["multiplier", "weights_sd", "text_encoders", "unet", "for_inference", "kwargs"]
    for function in (module.create_arch_network, module.create_arch_network_from_weights):
        assert function.__module__ == module.__name__
        assert function.__doc__
    assert pickle.loads(pickle.dumps(module.create_arch_network)) is module.create_arch_network
    assert callable(module.create_network)


def test_constants_that_other_programs_import():
    assert lora_qwen_image.QWEN_IMAGE_TARGET_REPLACE_MODULES == ["QwenImageTransformerBlock"]
    assert lora_zimage.ZIMAGE_TARGET_REPLACE_MODULES == ["ZImageTransformerBlock"]
    assert lora_kandinsky.KANDINSKY5_TARGET_REPLACE_MODULES == ["TransformerEncoderBlock", "TransformerDecoderBlock"]
    assert lora_krea2.KREA2_TARGET_REPLACE_MODULES is None
    assert lora_hidream_o1.HIDREAM_O1_T2I_TARGET_REPLACE_MODULES == [
        "Qwen3VLTextDecoderLayer",
        "BottleneckPatchEmbed",
        "FinalLayer",
    ]
    assert lora_hidream_o1.HIDREAM_O1_TARGET_REPLACE_MODULES[-1] == "TimestepEmbedder"
