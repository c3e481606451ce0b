"""Training goes on from what other trainers saved: more layers than ours by default, and other names of the same."""

import json
import re
from importlib import import_module

import pytest
import torch
from architecture_models import MODULES, distance, make, outputs_at
from pairs import crossed
from safetensors.torch import save_file
from torch import nn

import networks

RANK, ALPHA = 4, 2.0


def module_of(name):
    return import_module(f"{networks.__name__}.{MODULES[name]}")


def network_of(name, layout="original", rank=RANK, alpha=1.0, **options):
    model = make(name, layout)
    network = module_of(name).create_arch_network(1.0, rank, alpha, None, None, model, **options)
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    return network.eval(), model


BLOCKS = re.compile(r"(transformer_blocks|double_blocks|single_blocks|blocks|layers|(noise|context)_refiner)\.\d.*")


def factors_of(model):
    """(down, up) of every Linear in a block, by its dotted path."""
    torch.manual_seed(5)
    return {
        path: (torch.randn(RANK, layer.in_features), torch.randn(layer.out_features, RANK))
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and BLOCKS.fullmatch(path)
    }


def expected(model, factors, scale):
    """What the layers make of one input with the changes added to their weights in float64."""
    with torch.no_grad():
        for path, (down, up) in factors.items():
            weight = model.get_submodule(path).weight
            weight.copy_(weight.double() + scale * up.double() @ down.double())
    return outputs_at(list(factors), model)


def kohya_file(factors, folder, alpha=ALPHA):
    tensors = {}
    for path, (down, up) in factors.items():
        name = f"lora_unet_{path.replace('.', '_')}"
        tensors |= {
            f"{name}.lora_down.weight": down,
            f"{name}.lora_up.weight": up,
            f"{name}.alpha": torch.tensor(alpha),
        }
    save_file(tensors, folder / "other.safetensors")
    return str(folder / "other.safetensors")


# The option that a new network would need for the same layers, by family; what musubi-tuner (the first two) and
# sd-scripts (FLUX) adapt by default, and what Z-Image's own option adapts.
DEFAULTS = {
    "qwen_image": "exclude_mod=False",
    "hunyuan_video_1_5": "include_patterns",
    "flux": "include_patterns",
    "z_image": "include_refiner=True",
}


@pytest.mark.parametrize(("name", "option"), DEFAULTS.items())
def test_files_with_layers_that_are_left_out_by_default_are_refused(name, option, tmp_path, caplog):
    """The modulation of musubi-tuner's Qwen-Image and HunyuanVideo 1.5, and of sd-scripts' FLUX."""
    network, model = network_of(name)
    factors = {path: pair for path, pair in factors_of(model).items() if name != "z_image" or "modulation" not in path}
    usual = len(network.unet_loras)
    assert len(factors) > usual
    file = kohya_file(factors, tmp_path)
    with caplog.at_level("INFO"):
        assert network.load_weights(file).missing_keys == []
    assert len(network.unet_loras) == len(factors)
    assert sum(option in line and f"{len(factors) - usual} layers" in line for line in caplog.messages) == 1
    wanted = expected(make(name, "original"), factors, ALPHA / RANK)
    assert distance(outputs_at(list(factors), model), wanted) < 1e-5
    # Again: nothing comes twice. All of it is trained, and saved.
    network.load_weights(file)
    groups, _ = network.prepare_optimizer_params(unet_lr=1e-3)
    assert sum(len(group["params"]) for group in groups) == 2 * len(factors)
    network.save_weights(str(tmp_path / "saved.safetensors"), None, None)
    again, other = network_of(name)
    again.load_weights(str(tmp_path / "saved.safetensors"))
    assert distance(outputs_at(list(factors), other), wanted) < 1e-5
    named, _ = module_of(name).create_network_from_weights(1.0, file, None, None, make(name, "original"))
    assert len(named.unet_loras) == len(factors)


@pytest.mark.parametrize(
    ("name", "options", "way_in"),
    [
        ("qwen_image", {"exclude_mod": "True"}, "exclude_mod=False"),
        ("qwen_image", {"exclude_patterns": "['.*_mod.*']"}, "exclude_mod=False"),
        ("hunyuan_video_1_5", {"exclude_patterns": "['.*_mod.*']"}, "include_patterns"),
        ("z_image", {"include_refiner": "False"}, "include_refiner=True"),
    ],
)
def test_what_the_user_left_out_stays_out_and_the_error_names_the_option(name, options, way_in, tmp_path):
    network, model = network_of(name, **options)
    file = kohya_file({p: f for p, f in factors_of(model).items() if "adaLN" not in p}, tmp_path)
    before = len(network.unet_loras)
    with pytest.raises(ValueError, match=rf"not in the network: .*; {way_in} takes in"):
        network.load_weights(file)
    assert len(network.unet_loras) == before


def test_no_layer_is_added_behind_an_optimiser_s_back(tmp_path):
    network, model = network_of("qwen_image")
    file = kohya_file(factors_of(model), tmp_path)
    network.prepare_optimizer_params(unet_lr=1e-3)
    with pytest.raises(ValueError, match="exclude_mod=False takes in"):
        network.load_weights(file)


def test_a_file_that_does_not_fit_adds_no_layer(tmp_path):
    network, model = network_of("qwen_image", rank=8)
    with pytest.raises(ValueError, match="has rank 4, but the network has rank 8"):
        network.load_weights(kohya_file(factors_of(model), tmp_path))
    assert len(network.unet_loras) == 24


def test_added_layers_are_what_the_options_make_of_all_others(tmp_path):
    options = {"use_rslora": "True", "use_dora": "True"}
    teacher, model = network_of("qwen_image", exclude_mod="False", **options)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    file = str(tmp_path / "all.safetensors")
    teacher.save_weights(file, None, None)
    network, other = network_of("qwen_image", **options)
    network.set_multiplier(0.5)
    teacher.set_multiplier(0.5)
    network.load_weights(file)
    paths = list(factors_of(model))
    assert distance(outputs_at(paths, other), outputs_at(paths, model)) < 1e-6


SPELLINGS = {
    "ComfyUI, A and B": ("diffusion_model.", False, ("lora_A.weight", "lora_B.weight")),
    "ComfyUI, down and up": ("diffusion_model.", False, ("lora_down.weight", "lora_up.weight")),
    "diffusers": ("transformer.", False, ("lora_A.weight", "lora_B.weight")),
    "diffusers, adapter name": ("transformer.", False, ("lora_A.default.weight", "lora_B.default.weight")),
    "diffusers, old": ("transformer.", False, ("lora.down.weight", "lora.up.weight")),
    "bare": ("", False, ("lora_A.weight", "lora_B.weight")),
    "OneTrainer": ("lora_transformer_", True, ("lora_down.weight", "lora_up.weight")),
    "LyCORIS": ("lycoris_", True, ("lora_down.weight", "lora_up.weight")),
    "Wan-Fun": ("lora_unet__", True, ("lora_down.weight", "lora_up.weight")),
}


def spelled(factors, spelling, alpha):
    prefix, flat, roles = SPELLINGS[spelling]
    tensors = {}
    for path, pair in factors.items():
        module = prefix + (path.replace(".", "_") if flat else path)
        tensors |= {f"{module}.{role}": factor for role, factor in zip(roles, pair, strict=True)}
        if alpha is not None:
            tensors[f"{module}.alpha"] = torch.tensor(alpha)
    return tensors


@pytest.mark.slow
@crossed(
    made=(("wan", "original"), ("wan", "diffusers"), ("flux", "original")),
    spelling=SPELLINGS.keys(),
    alpha=(None, ALPHA),
    rslora=(False, True),
)
def test_files_in_other_programs_names_do_not_resume(made, spelling, alpha, rslora, tmp_path):
    name, layout = made
    network, model = network_of(name, layout, alpha=3.0, use_rslora=str(rslora))
    adapted = {id(lora.org_module): path for path, lora in ((None, lora) for lora in network.unet_loras)}
    factors = {p: f for p, f in factors_of(model).items() if id(model.get_submodule(p)) in adapted}
    assert len(factors) == len(network.unet_loras)
    tensors = spelled(factors, spelling, alpha)
    file = str(tmp_path / "named.safetensors")
    save_file(tensors, file)
    if rslora and (alpha is not None or SPELLINGS[spelling][1]):
        with pytest.raises(ValueError, match="RS-LoRA flag mismatch"):
            network.load_weights(file)
        return
    assert network.load_weights(file).missing_keys == []
    wanted = expected(make(name, layout), factors, 1.0 if alpha is None else alpha / RANK)
    assert distance(outputs_at(list(factors), model), wanted) < 1e-5
    if rslora:
        return
    merged = make(name, layout)
    merging = module_of(name).create_arch_network_from_weights(1.0, tensors, unet=merged, for_inference=True)
    merging.merge_to(None, merged, tensors)
    assert distance(outputs_at(list(factors), merged), wanted) < 1e-5


def test_names_of_the_family_s_other_layout_do_not_resume(tmp_path):
    """Wan in diffusers' names goes on in the original code, and the other way round."""
    pairs = {"blocks.0.self_attn.q": "blocks.0.attn1.to_q", "blocks.1.ffn.2": "blocks.1.ffn.net.2"}
    for layout, other in (("original", "diffusers"), ("diffusers", "original")):
        network, model = network_of("wan", layout)
        own, foreign = (list(pairs), list(pairs.values())) if layout == "original" else (pairs.values(), list(pairs))
        factors = {p: f for p, f in factors_of(model).items() if p in own}
        renamed = dict(zip(foreign, (factors[p] for p in own), strict=True))
        for prefix, flat in (("diffusion_model.", False), ("transformer.", False), ("lora_transformer_", True)):
            spelling = {False: "ComfyUI, A and B", True: "OneTrainer"}[flat]
            tensors = spelled(renamed, spelling, None if not flat else 4.0)
            tensors = {key.replace("diffusion_model.", prefix): tensor for key, tensor in tensors.items()}
            save_file(tensors, tmp_path / f"{other}.safetensors")
            network.load_weights(str(tmp_path / f"{other}.safetensors"))
            wanted = expected(make("wan", layout), factors, 1.0)
            assert distance(outputs_at(list(factors), model), wanted) < 1e-5


@pytest.mark.parametrize("algorithm", ["loha", "lokr", "oft"])
def test_loha_lokr_and_oft_under_comfyui_s_names_do_not_resume(algorithm, tmp_path):
    module = import_module(f"{networks.__name__}.{algorithm}")
    model, other = make("wan", "original"), make("wan", "original")
    network, again = (module.create_arch_network(1.0, 4, 2.0, None, None, m) for m in (model, other))
    for each, base in ((network, model), (again, other)):
        each.apply_to(None, base)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    network.save_weights(str(tmp_path / "own.safetensors"), None, None)
    paths = {f"lora_unet_{path.replace('.', '_')}": path for path, _ in model.named_modules()}
    tensors = {}
    for key, tensor in network.state_dict().items():
        name, _, tail = key.partition(".")
        tensors[f"diffusion_model.{paths[name]}.{tail}"] = tensor.contiguous()
    save_file(tensors, tmp_path / "comfyui.safetensors")
    assert again.load_weights(str(tmp_path / "comfyui.safetensors")).missing_keys == []
    layers = [paths[lora.lora_name] for lora in network.unet_loras]
    assert distance(outputs_at(layers, other), outputs_at(layers, model)) < 1e-6


def test_peft_files_need_their_config(tmp_path):
    network, model = network_of("wan")
    factors = {p: f for p, f in factors_of(model).items() if p.endswith("self_attn.q")}
    tensors = {
        f"base_model.model.{path}.{role}.weight": factor
        for path, pair in factors.items()
        for role, factor in zip(("lora_A", "lora_B"), pair, strict=True)
    }
    file = str(tmp_path / "adapter_model.safetensors")
    save_file(tensors, file)
    with pytest.raises(ValueError, match=r"adapter_config.json and not in the file; rewrite"):
        network.load_weights(file)
    save_file(tensors, file, {"lora_adapter_metadata": json.dumps({"r": RANK, "lora_alpha": ALPHA})})
    network.load_weights(file)
    wanted = expected(make("wan", "original"), factors, ALPHA / RANK)
    assert distance(outputs_at(list(factors), model), wanted) < 1e-5


def test_one_tensor_in_two_spellings_is_an_error(tmp_path):
    network, model = network_of("wan")
    factors = {p: f for p, f in factors_of(model).items() if p.endswith("self_attn.q")}
    both = spelled(factors, "ComfyUI, A and B", None) | spelled(factors, "diffusers", None)
    save_file({key: tensor.clone() for key, tensor in both.items()}, tmp_path / "both.safetensors")
    with pytest.raises(ValueError, match="is there twice, in two spellings"):
        network.load_weights(str(tmp_path / "both.safetensors"))


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("alpha_of", ["a part", "the whole"])
def test_a_file_of_sd_scripts_split_qkv_goes_on_at_a_third_of_its_strength(split, alpha_of, tmp_path):
    network, model = network_of("flux", split_qkv=str(split), rank=RANK if split else 3 * RANK)
    path, name = "double_blocks.0.img_attn.qkv", "lora_unet_double_blocks_0_img_attn_qkv"
    layer = model.get_submodule(path)
    size = layer.out_features // 3
    torch.manual_seed(5)
    parts = [(torch.randn(RANK, layer.in_features), torch.randn(size, RANK)) for _ in range(3)]
    tensors = {
        f"{name}.lora_down.weight": torch.cat([down for down, _ in parts]),
        f"{name}.lora_up.weight": torch.block_diag(*(up for _, up in parts)),
        f"{name}.alpha": torch.tensor(ALPHA if alpha_of == "a part" else 3 * ALPHA),
    }
    metadata = {
        "ss_network_module": "networks.lora_flux",
        "ss_network_dim": str(RANK),
        "ss_network_alpha": str(ALPHA),
        "ss_network_args": json.dumps({"split_qkv": "True"}),
    }
    file = str(tmp_path / "sd_scripts.safetensors")
    save_file(tensors, file, metadata)
    base = make("flux", "original")
    delta = torch.cat([up.double() @ down.double() for down, up in parts])
    with torch.no_grad():
        weight = base.get_submodule(path).weight
        weight.copy_(weight.double() + ALPHA / RANK * delta)
    wanted = outputs_at([path], base)
    network.load_weights(file)
    assert distance(outputs_at([path], model), wanted) < 1e-5
    merged = make("flux", "original")
    options = {"split_qkv": "True"} if split else {}
    again, _ = module_of("flux").create_network_from_weights(1.0, file, None, None, merged, **options)
    again.apply_to(None, merged)
    again.load_weights(file)
    assert distance(outputs_at([path], merged), wanted) < 1e-5
    base = make("flux", "original")
    merging, weights = module_of("flux").create_network_from_weights(1.0, file, None, None, base, for_inference=True)
    merging.merge_to(None, base, weights)
    assert distance(outputs_at([path], base), wanted) < 1e-5
    save_file(tensors, file, metadata | {"ss_network_alpha": "5.0"})
    with pytest.raises(ValueError, match=r"alpha \d is neither the 5 that was asked for"):
        network.load_weights(file)
