"""What diffusers loads of an adapter it loads of the converted one, to the same model; and flags do not stop it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.training_utils import _collate_lora_metadata
from diffusers_cases import (
    KINDS,
    LOADERS,
    Case,
    Models,
    difference,
    models,
    of_diffusers,
    of_networks,
    outputs_at,
    with_alphas,
)
from peft import LoKrConfig, LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.reading.file_info import inspect
from lora_inspect.reporting.file_record import as_json
from networks import train_example

pytestmark = pytest.mark.slow

# Families whose adapters the network saves under diffusers' own names.
DOTTED = ("flux", "flux2", "hunyuan_video", "ideogram4")
# diffusers converts kohya's names of these, plain LoRA alone.
CONVERTED = ("wan", "qwen_image", "z_image")


@pytest.fixture
def text_encoders(monkeypatch):
    """transformers asks for a later PEFT than the one that diffusers is tested with; the loading itself is the same."""
    import transformers.integrations.peft as integration

    monkeypatch.setattr(integration, "check_peft_version", lambda *_, **__: None)


def standard(file: Path, keep_dora: bool = False) -> Path:
    output = file.with_name("standard.safetensors")
    result = convert_to_standard(str(file), str(output), ConvertOptions(keep_dora=keep_dora))
    assert result.exact
    before, after = (as_json(inspect(str(path)), modules=True) for path in (file, output))
    scales = [{(m["module"], m["algorithm"]): m["scale"] for m in info["module_list"]} for info in (before, after)]
    assert scales[1] == pytest.approx(scales[0], rel=1e-6)
    assert after["scales"] == before["scales"]
    return output


def load(networks: Models, file: Path) -> Models:
    networks.load(file)
    return networks


def same_after(case, tolerance=1e-5):
    before = load(case.fresh(), case.file)
    after = load(case.fresh(), standard(case.file, case.keeps_dora))
    assert after.keys() == before.keys() > 0
    assert difference(after, case.meant) < tolerance
    assert difference(after, before.outputs()) < tolerance
    assert difference(case.fresh(), case.meant) > 1e-3
    return after


@pytest.mark.numeric
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", LOADERS)
def test_what_diffusers_saves_with_metadata(family, kind, tmp_path):
    same_after(of_diffusers(family, kind, tmp_path))


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("family", LOADERS)
def test_what_diffusers_saves_without_metadata_keeps_its_bytes(family, kind, tmp_path):
    case = of_diffusers(family, kind, tmp_path, with_metadata=False)
    same_after(case)
    before, after = load_file(case.file), load_file(tmp_path / "standard.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("family", "kind"), [*((f, k) for f in DOTTED for k in KINDS), *((f, "lora") for f in CONVERTED)]
)
def test_what_our_network_saves(family, kind, tmp_path):
    same_after(of_networks(family, kind, tmp_path))


@pytest.mark.numeric
@pytest.mark.parametrize("family", CONVERTED)
def test_flags_that_diffusers_refuses_are_gone(family, tmp_path):
    case = of_networks(family, "rslora", tmp_path)
    with pytest.raises((ValueError, IndexError)):
        load(case.fresh(), case.file)
    assert difference(load(case.fresh(), standard(case.file)), case.meant) < 1e-5


@pytest.mark.numeric
@pytest.mark.parametrize("with_flag", [False, True], ids=["alphas", "alphas and the RS-LoRA flag"])
@pytest.mark.parametrize("family", ["wan", "flux", "qwen_image", "z_image", "sdxl"])
def test_alphas_under_diffusers_names_that_it_refuses_or_ignores(family, with_flag, tmp_path):
    case = of_diffusers(family, "lora", tmp_path, with_metadata=False)
    file = with_alphas(case, 6.0, with_flag)
    if family != "flux":  # the one that reads them
        with pytest.raises(ValueError, match=r"LoRA checkpoint|state_dict|Target modules"):
            load(case.fresh(), file)
    after = load(case.fresh(), standard(file))
    scaled = case.file.with_name("scaled.safetensors")  # by hand: alpha/rank, or alpha/sqrt(rank), in lora_B
    save_file(
        {
            key: tensor * (6.0 / tensor.shape[1] ** (0.5 if with_flag else 1.0)) if ".lora_B." in key else tensor
            for key, tensor in load_file(case.file).items()
        },
        scaled,
    )
    assert difference(after, load(case.fresh(), scaled).outputs()) < 1e-5


@pytest.mark.numeric
@pytest.mark.parametrize("with_metadata", [True, False])
@pytest.mark.parametrize("kind", ["lora", "rslora"])
@pytest.mark.parametrize("family", ["flux", "sdxl"])
def test_text_encoders_keep_their_component(family, kind, with_metadata, tmp_path, text_encoders):
    same_after(of_diffusers(family, kind, tmp_path, with_metadata, with_text_encoder=True))
    components = {key.partition(".")[0] for key in load_file(tmp_path / "standard.safetensors")}
    assert components == {"unet" if family == "sdxl" else "transformer", "text_encoder"}


@pytest.mark.numeric
def test_metadata_without_a_component_of_the_file_goes(tmp_path, text_encoders):
    """diffusers takes an empty config for that component, and fails."""
    case = of_diffusers("flux", "rslora", tmp_path, with_text_encoder=True)
    with safe_open(case.file, "pt") as file:
        embedded = json.loads(file.metadata()["lora_adapter_metadata"])
    kept = {key: value for key, value in embedded.items() if not key.startswith("text_encoder.")}
    tensors = load_file(case.file)
    save_file(tensors, case.file, {"lora_adapter_metadata": json.dumps(kept)})
    with pytest.raises(ValueError, match="target"):
        load(case.fresh(), case.file)
    after = load(case.fresh(), standard(case.file))
    transformer = {path: value for path, value in case.meant.items() if path.startswith("transformer.")}
    assert after.keys() == len(tensors)
    assert difference(after, transformer) < 1e-5


def embedded(file: Path) -> dict[str, Any]:
    """The configs that a file has in its metadata, by the names of their fields."""
    with safe_open(file, "pt") as opened:
        found: dict[str, Any] = json.loads(opened.metadata()["lora_adapter_metadata"])
    return found


@pytest.mark.numeric
@pytest.mark.parametrize("also", ["norm_out.linear", "", "proj_out"], ids=["one more", "all others", "an adapted one"])
def test_layers_without_a_rank_are_no_targets_of_the_config(also, tmp_path):
    """diffusers ignores differences beside LoRA. With a rank of 0 the config would be refused by PEFT itself."""
    case = of_diffusers("flux", "rslora", tmp_path)
    tensors, metadata = load_file(case.file), {"lora_adapter_metadata": json.dumps(embedded(case.file))}
    adapted = {key.removeprefix("transformer.").rpartition(".lora_")[0] for key in tensors}
    layers = case.fresh().networks["transformer"].named_modules()
    for path, layer in layers:
        if isinstance(layer, nn.Linear) and (path == also or not (also or path in adapted)):
            tensors[f"transformer.{path}.diff"] = torch.ones_like(layer.weight)
    save_file(tensors, case.file, metadata)
    assert difference(load(case.fresh(), case.file), case.meant) < 1e-5
    file = standard(case.file)
    assert difference(load(case.fresh(), file), case.meant) < 1e-5
    config = {key.removeprefix("transformer."): value for key, value in embedded(file).items()}
    network = case.fresh().networks["transformer"]
    network.add_adapter(LoraConfig(**config))
    made = {
        name.removesuffix(".lora_A.default.weight"): len(tensor)
        for name, tensor in network.named_parameters()
        if ".lora_A." in name
    }
    assert made == {path: len(tensors[f"transformer.{path}.lora_A.weight"]) for path in adapted}


@pytest.mark.numeric
@pytest.mark.parametrize("rank", [2, 64], ids=["products", "whole factors"])
def test_a_lokr_keeps_its_own_config(rank, tmp_path):
    trained = models("flux2")
    network = trained.networks["transformer"]
    torch.manual_seed(5)
    config = LoKrConfig(
        r=rank, alpha=6, target_modules=["to_q", "to_k", "proj_out"], rank_pattern={"to_q": rank - 1},
        alpha_pattern={"to_k": 5}, init_weights=False,
    )  # fmt: skip
    network.add_adapter(config)
    file = tmp_path / "lokr.safetensors"
    trained.loader.save_lora_weights(
        tmp_path,
        weight_name=file.name,
        transformer_lora_layers=get_peft_model_state_dict(network),
        **_collate_lora_metadata(trained.networks),
    )
    network.eval()
    case = Case(file, trained.outputs(), lambda: models("flux2"))
    assert difference(load(case.fresh(), file), case.meant) < 1e-5
    assert difference(load(case.fresh(), standard(file)), case.meant) < 1e-5
    assert difference(case.fresh(), case.meant) > 1e-3


@pytest.mark.numeric
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["flux", "z_image", "sdxl"])
def test_what_a_model_saves_of_itself(family, kind, tmp_path):
    """`save_lora_adapter`: bare names, and metadata without a component."""
    trained = load(models(family), of_diffusers(family, kind, tmp_path).file)
    (component,) = trained.networks
    model = trained.networks[component]
    model.save_lora_adapter(tmp_path, adapter_name="default_0", weight_name="model.safetensors")
    file = standard(tmp_path / "model.safetensors", "dora" in kind)
    fresh = models(family)
    fresh.networks[component].load_lora_adapter(str(file), prefix=None, use_safetensors=True)
    assert fresh.keys() == trained.keys()
    assert difference(fresh, trained.outputs()) < 1e-5


@pytest.mark.numeric
@pytest.mark.parametrize("kind", train_example.KINDS)
def test_the_example_of_the_networks(kind, tmp_path):
    """Its 34 keys became a ValueError."""
    file = tmp_path / "example.safetensors"
    train_example.train(kind, str(file), steps=2)
    found = []
    for path in (file, standard(file, kind == "dora")):
        model = train_example.tiny_flux()
        networks = load(Models(models("flux").loader, {"transformer": model}), path)
        found.append((networks.keys(), networks.outputs()))
    assert found[0][0] == found[1][0] == (51 if kind == "dora" else 34)
    assert all(torch.equal(found[0][1][path], found[1][1][path]) for path in found[0][1])


@pytest.mark.numeric
def test_every_layer_of_a_whole_flux(tmp_path):
    """The 988 keys of a published file; 646 of them were loaded under kohya's names."""
    listed = (Path(__file__).parents[1] / "architectures" / "keys" / "flux_diffusers.txt").read_text().splitlines()
    paths = [line.split()[0] for line in listed if not line.startswith("#")]

    def whole():
        import diffusers
        from tiny_diffusers import DIFFUSERS

        kind, arguments = DIFFUSERS["flux"]
        torch.manual_seed(0)
        model = getattr(diffusers, kind)(**{**arguments, "num_layers": 19, "num_single_layers": 38})
        return Models(models("flux").loader, {"transformer": model.requires_grad_(False).eval()})

    torch.manual_seed(1)
    model, tensors, alpha = whole().networks["transformer"], {}, 8
    for path in paths:
        layer = model.get_submodule(path)
        tensors[f"transformer.{path}.lora_A.weight"] = torch.randn(2, layer.in_features)
        tensors[f"transformer.{path}.lora_B.weight"] = torch.randn(layer.out_features, 2)
    config = {"r": 2, "lora_alpha": alpha, "use_rslora": True, "target_modules": paths}
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config.items()})}
    save_file(tensors, tmp_path / "whole.safetensors", metadata)
    before = load(whole(), tmp_path / "whole.safetensors")
    after = load(whole(), standard(tmp_path / "whole.safetensors"))
    assert before.keys() == after.keys() == len(tensors) == 988
    first, second = (outputs_at(paths[::13], each.networks["transformer"]) for each in (before, after))
    assert max(float((first[p] - second[p]).abs().max() / first[p].abs().max()) for p in first) < 1e-5


def test_the_same_models_are_made_each_time():
    assert difference(models("flux"), models("flux").outputs()) == 0
