"""What a network of each architecture saves: it merges to the same weights, resumes, and loaders read it."""

import warnings
from importlib import import_module

import pytest
import torch
from architecture_models import MODELS, MODULES, distance, make, outputs, outputs_at, train
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_diffusers import DIFFUSERS

import networks
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.identify import identify_adapter

KINDS = ("lora", "rslora", "dora", "rslora+dora")

# How a file of the diffusers class begins: kohya's names where the layers are the original ones, else diffusers' own.
DOTTED = ("flux", "flux2", "hunyuan_video", "ideogram4")
FIRST_KEYS = {
    "wan": "lora_unet_blocks_0_self_attn_q.",
    "qwen_image": "lora_unet_transformer_blocks_0_attn_to_q.",
    "z_image": "lora_unet_layers_0_attention_to_q.",
    "hunyuan_video_1_5": "lora_unet_double_blocks_0_img_attn_q.",
    "framepack": "lora_unet_transformer_blocks_0_attn_to_q.",
    "kandinsky5": "lora_unet_visual_transformer_blocks_0_self_attention_to_query.",
    "krea2": "lora_unet_blocks_0_attn_wq.",
    "flux": "transformer.transformer_blocks.0.attn.to_q.",
    "flux2": "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.",
    "hunyuan_video": "transformer.transformer_blocks.0.attn.to_q.",
    "ideogram4": "transformer.layers.0.attention.to_q.",
}
# What trainers write. Families with the same names, at widths that no published model has, are told apart by it alone.
METADATA = {
    "framepack": {"ss_base_model_version": "framepack"},
    "hunyuan_video": {"ss_base_model_version": "hunyuan_video"},
    "flux": {"ss_base_model_version": "flux_kontext"},
    "flux2": {"ss_base_model_version": "flux_2_dev"},
    "z_image": {"ss_base_model_version": "z_image"},
    "ideogram4": {"ss_base_model_version": "ideogram4"},
}


def module_of(name):
    return import_module(f"{networks.__name__}.{MODULES[name]}")


def options_of(kind):
    return {"use_rslora": str("rslora" in kind), "use_dora": str("dora" in kind.split("+"))}


def trained(name, layout, kind="lora", alpha=3.0, **options):
    """A network that has learned something, and its model."""
    model = make(name, layout)
    network = module_of(name).create_arch_network(1.0, 4, alpha, None, None, model, **options_of(kind), **options)
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    train(network)
    return network.eval(), model


def save(network, name, folder, dtype=None):
    file = str(folder / "adapter.safetensors")
    network.save_weights(file, dtype, METADATA.get(name))
    return file


@pytest.mark.parametrize("kind", ["lora", "rslora+dora"])
@pytest.mark.parametrize(("name", "layout"), MODELS)
def test_what_is_saved_merges_to_what_was_trained(name, layout, kind, tmp_path):
    network, model = trained(name, layout, kind)
    runtime = outputs(network, model)
    weights = load_file(save(network, name, tmp_path))
    fresh = make(name, layout)
    merging = module_of(name).create_arch_network_from_weights(1.0, weights, unet=fresh, for_inference=True)
    base = outputs(merging, fresh)
    merging.merge_to(None, fresh, weights, safe_merge=True)
    merged = outputs(merging, fresh)
    assert distance(merged, runtime) < 1e-5 < 1e-3 < distance(base, runtime)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "layout"), [("wan", "diffusers"), ("flux", "diffusers"), ("flux", "original")])
def test_training_goes_on_where_it_was(name, layout, kind, tmp_path):
    network, model = trained(name, layout, kind)
    file = save(network, name, tmp_path)
    again, other = trained(name, layout, kind)
    again.load_weights(file)
    assert distance(outputs(again, other), outputs(network, model)) < 1e-6
    # The same alphas, so that steps have the size that they had.
    assert {lora.scale for lora in again.unet_loras} == {lora.scale for lora in network.unet_loras}
    assert again.state_dict().keys() == network.state_dict().keys()
    for key, tensor in network.state_dict().items():
        assert torch.allclose(again.state_dict()[key].float(), tensor.float(), rtol=1e-6, atol=0), key


@pytest.mark.parametrize(("name", "layout"), MODELS)
def test_inside_names_are_those_of_the_model(name, layout):
    network, model = trained(name, layout)
    paths = {f"lora_unet_{path.replace('.', '_')}" for path, _ in model.named_modules()}
    assert {key.partition(".")[0] for key in network.state_dict()} <= paths
    network.load_state_dict(network.state_dict(), strict=True)


@pytest.mark.parametrize("kind", ["lora", "rslora+dora"])
@pytest.mark.parametrize(("name", "layout"), MODELS)
def test_a_file_says_what_it_is(name, layout, kind, tmp_path):
    network, _ = trained(name, layout, kind)
    adapter = read_adapter(open_checkpoint(save(network, name, tmp_path)))
    assert not adapter.problems
    assert not adapter.unclaimed
    assert len(adapter.modules) == len(network.unet_loras)
    assert adapter.dora.value == ("dora" in kind.split("+"))
    dotted = layout == "diffusers" and name in DOTTED
    assert adapter.scheme == ("diffusers" if dotted else "kohya")
    assert adapter.rslora.value == ("rslora" in kind and not dotted)
    scale = network.unet_loras[0].scale
    assert {contribution.scale for contribution in adapter.contributions} == {1.0 if dotted else scale}
    detection = identify_adapter(adapter)
    assert detection is not None
    assert detection.architecture.name == name


@pytest.mark.parametrize("name", DIFFUSERS)
def test_names_of_a_file_of_the_diffusers_class(name, tmp_path):
    network, _ = trained(name, "diffusers", "dora")
    with safe_open(save(network, name, tmp_path, torch.bfloat16), "pt") as file:
        keys, dtypes = set(file.keys()), {key: file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118
    assert any(key.startswith(FIRST_KEYS[name]) for key in keys)
    magnitude = ".lora_magnitude_vector" if name in DOTTED else ".dora_layer.weight"
    assert sum(key.endswith(magnitude) for key in keys) == len(network.unet_loras)
    assert all(dtypes[key] == torch.float32 for key in keys if key.endswith((magnitude, ".alpha")))
    if name in DOTTED:
        assert all(key.startswith("transformer.") for key in keys)
        assert not any(key.endswith(".alpha") for key in keys)


def loaders():
    """diffusers' loaders by architecture."""
    from diffusers.loaders import lora_pipeline

    return {
        "wan": lora_pipeline.WanLoraLoaderMixin,
        "flux": lora_pipeline.FluxLoraLoaderMixin,
        "flux2": lora_pipeline.Flux2LoraLoaderMixin,
        "qwen_image": lora_pipeline.QwenImageLoraLoaderMixin,
        "z_image": lora_pipeline.ZImageLoraLoaderMixin,
        "hunyuan_video": lora_pipeline.HunyuanVideoLoraLoaderMixin,
        "ideogram4": lora_pipeline.Ideogram4LoraLoaderMixin,
    }


# diffusers converts kohya's names of plain LoRA alone; its own names it reads with DoRA, and RS-LoRA is folded there.
LOADED = [
    (name, kind)
    for name in ("wan", "flux", "flux2", "qwen_image", "z_image", "hunyuan_video", "ideogram4")
    for kind in (KINDS if name in DOTTED else ("lora",))
]


def load_by_diffusers(name, file):
    loaded = make(name, "diffusers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weights, metadata = loaders()[name].lora_state_dict(file, return_lora_metadata=True)[:2]
        alphas = {"network_alphas": None} if name == "flux" else {}
        loaders()[name].load_lora_into_transformer(weights, transformer=loaded, metadata=metadata, **alphas)
    return loaded


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), LOADED)
def test_diffusers_loads_it_to_the_same_model(name, kind, tmp_path):
    network, model = trained(name, "diffusers", kind)
    runtime = outputs(network, model)
    loaded = load_by_diffusers(name, save(network, name, tmp_path))
    assert distance(outputs_at(list(runtime), loaded), runtime) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan", "qwen_image", "z_image"])
def test_diffusers_refuses_rslora_under_kohya_s_names(name, tmp_path):
    """For its flags; in standard form there are none, and alpha/rank is the whole scale."""
    network, _ = trained(name, "diffusers", "rslora")
    with pytest.raises((ValueError, IndexError)):  # each converter stumbles over them in its own way
        load_by_diffusers(name, save(network, name, tmp_path))
    network, model = trained(name, "diffusers", "rslora", save_format="standard")
    runtime = outputs(network, model)
    loaded = load_by_diffusers(name, save(network, name, tmp_path))
    assert distance(outputs_at(list(runtime), loaded), runtime) < 1e-5


def test_pissa_in_diffusers_names(tmp_path):
    """A file of twice the rank on the untouched base, from which training goes on."""
    options = {"init_lora_weights": "pissa"}
    network, model = trained("flux", "diffusers", **options)
    runtime = outputs(network, model)
    file = save(network, "flux", tmp_path)
    loaded = make("flux", "diffusers")
    loaded.load_lora_adapter(load_file(file), prefix="transformer")
    assert distance(outputs_at(list(runtime), loaded), runtime) < 1e-5
    again, other = trained("flux", "diffusers", **options)
    again.load_weights(file)
    assert distance(outputs(again, other), runtime) < 1e-5


def test_wan_reads_diffusers_names_too(tmp_path):
    network, model = trained("wan", "diffusers", "dora")
    folded = {}
    for key, tensor in network.state_dict().items():
        name, _, tail = key.partition(".")
        path = (
            next(path for path, _ in model.named_modules() if name == f"lora_unet_{path.replace('.', '_')}")
            if tail
            else ""
        )
        if tail == "lora_up.weight":
            folded[f"transformer.{path}.lora_B.weight"] = tensor * network.get_submodule(name).scale
        elif tail == "lora_down.weight":
            folded[f"transformer.{path}.lora_A.weight"] = tensor
        elif tail == "dora_layer.weight":
            folded[f"transformer.{path}.lora_magnitude_vector"] = tensor
    save_file(folded, tmp_path / "adapter.safetensors")
    again, other = trained("wan", "diffusers", "dora")
    again.load_weights(str(tmp_path / "adapter.safetensors"))
    assert distance(outputs(again, other), outputs(network, model)) < 1e-6


def test_diffusers_loads_ranks_that_differ(tmp_path):
    patterns = {"rank_pattern": r"{'.*to_k': 2}", "alpha_pattern": r"{'.*to_v': 8.0}"}
    network, model = trained("flux", "diffusers", **patterns)
    runtime = outputs(network, model)
    loaded = make("flux", "diffusers")
    loaded.load_lora_adapter(load_file(save(network, "flux", tmp_path)), prefix="transformer")
    assert distance(outputs_at(list(runtime), loaded), runtime) < 1e-5


def test_peft_metadata_of_another_program_is_read(tmp_path):
    """diffusers' own file of the same adapter, whose scale stands in its metadata."""
    network, model = trained("flux", "diffusers")
    runtime = outputs(network, model)
    loaded = make("flux", "diffusers")
    loaded.load_lora_adapter(load_file(save(network, "flux", tmp_path)), prefix="transformer", adapter_name="a")
    for layer in loaded.modules():
        if hasattr(layer, "lora_B"):
            layer.lora_B["a"].weight.data.mul_(2)
            layer.scaling["a"] = 0.5
    loaded.peft_config["a"].lora_alpha = 2
    loaded.save_lora_adapter(tmp_path, adapter_name="a", weight_name="peft.safetensors")
    with safe_open(tmp_path / "peft.safetensors", "pt") as file:
        metadata = file.metadata()
    weights = {f"transformer.{key}": tensor for key, tensor in load_file(tmp_path / "peft.safetensors").items()}
    save_file(weights, tmp_path / "named.safetensors", metadata)
    again, other = trained("flux", "diffusers")
    again.load_weights(str(tmp_path / "named.safetensors"))
    assert distance(outputs(again, other), runtime) < 1e-5


def test_files_of_the_original_model_train_on_in_diffusers_class(tmp_path):
    """One to one: a file of either model is a file of the other."""
    network, _ = trained("wan", "diffusers")
    weights = load_file(save(network, "wan", tmp_path))
    assert all(tensor.shape for key, tensor in weights.items() if not key.endswith(".alpha"))
    original = make("wan", "original")
    names = {f"lora_unet_{path.replace('.', '_')}" for path, _ in original.named_modules()}
    assert {key.partition(".")[0] for key in weights} <= names


@pytest.mark.parametrize("kind", ["lora", "rslora+dora"])
@pytest.mark.parametrize("name", ["wan", "krea2", "flux"])
def test_lora_inspect_merges_it_into_the_diffusers_base(name, kind, tmp_path):
    network, model = trained(name, "diffusers", kind)
    runtime = outputs(network, model)
    fresh = make(name, "diffusers")
    save_file(fresh.state_dict(), tmp_path / "base.safetensors")
    plan = plan_merge(str(tmp_path / "base.safetensors"), [(save(network, name, tmp_path), 1.0)], MergeOptions())
    merge(plan, str(tmp_path / "merged.safetensors"))
    fresh.load_state_dict(load_file(tmp_path / "merged.safetensors"))
    assert distance(outputs_at(list(runtime), fresh), runtime) < 1e-5


def test_slices_have_no_names_in_diffusers():
    with pytest.raises(ValueError, match="has slices, but diffusers has no names for these"):
        trained("flux2", "diffusers", split_dims=r"{'.*to_qkv_mlp_proj': [32, 32, 32, 192]}")


def test_diffusers_would_give_magnitudes_to_slices():
    """It makes a magnitude for every layer as soon as one has it, and slices have none."""
    options = {"split_dims": r"{'.*to_qkv_mlp_proj': [32, 32, 32, 192]}", "save_format": "standard"}
    with pytest.raises(ValueError, match=r"to_qkv_mlp_proj has no magnitude, but diffusers applies magnitudes to all"):
        trained("flux2", "diffusers", "dora", **options)


@pytest.mark.parametrize("name", DIFFUSERS)
def test_weights_of_another_architecture_are_refused(name, tmp_path):
    other = "krea2" if name != "krea2" else "wan"
    network, _ = trained(other, "diffusers")
    weights = load_file(save(network, other, tmp_path))
    with pytest.raises(ValueError, match=r"no layer in the model|cannot be used"):
        module_of(name).create_arch_network_from_weights(1.0, weights, unet=make(name, "diffusers"))


def test_metadata_of_folded_scales_does_not_name_their_rule(tmp_path):
    network, _ = trained("flux", "diffusers", "rslora")
    file = str(tmp_path / "adapter.safetensors")
    network.save_weights(file, None, {"ss_network_args": '{"use_rslora": "True", "verbose": "True"}'})
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert metadata["ss_network_args"] == '{"verbose": "True"}'
    assert metadata["lora_inspect.scale"] == "alpha/rank"
    assert not read_adapter(open_checkpoint(file)).problems


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_slices_under_diffusers_names_have_no_standard_form(kind, tmp_path):
    """Fused they have names, and diffusers reads them as it reads every other layer: up @ down, at scale 1."""
    width = make("flux2", "diffusers").single_transformer_blocks[0].attn.to_qkv_mlp_proj.out_features
    options = {"split_dims": {"single.*to_qkv_mlp_proj": [10, width - 10]}, "save_format": "standard"}
    network, model = trained("flux2", "diffusers", kind, **options)
    wanted = outputs(network, model)
    weights = load_file(save(network, "flux2", tmp_path))
    assert {key.rpartition(".lora_")[2] for key in weights} == {"A.weight", "B.weight"}
    fresh = make("flux2", "diffusers")
    with torch.no_grad():
        for key in weights:
            if key.endswith("lora_A.weight"):
                layer = fresh.get_submodule(key.removeprefix("transformer.").removesuffix(".lora_A.weight"))
                layer.weight += (weights[key.replace("lora_A", "lora_B")].double() @ weights[key].double()).float()
    assert distance(outputs_at(list(wanted), fresh), wanted) < 1e-5
    again, other = trained("flux2", "diffusers", kind, **options)
    again.load_weights(str(tmp_path / "adapter.safetensors"))
    assert distance(outputs(again, other), wanted) < 1e-6
    assert [lora.scale for lora in again.unet_loras] == [lora.scale for lora in network.unet_loras]
