"""`state_dict`: the tensors alone, in a real pipeline or in PEFT, make the layers that a merge of the file makes."""

import os
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from adapter_files import factors_of, layout_of, rotated, shapes_in, write
from adapters import kohya
from diffusers_cases import distance
from diffusers_families import LOADERS, adapted, layers, load, merged_into, model, outputs, says, text_encoder
from loaders import adapter_parameters
from safetensors.torch import load_file, save_file

from lora_inspect import LoraInspectError, merge, state_dict
from lora_inspect.api.arguments import in_keywords
from lora_inspect.architectures import by_name

SYNTHETIC = Path(__file__).parents[1] / "fixtures" / "synthetic"
RSLORA, DORA = SYNTHETIC / "rslora_flag.safetensors", SYNTHETIC / "dora_without_flag.safetensors"
PEFT = Path(__file__).parents[1] / "fixtures" / "gguf" / "llama"
SCHEMES = ("kohya", "comfyui", "peft", "onetrainer", "diffusers")


def merged(family, plain, file, folder):
    """The model of a family with the file merged into its weights."""
    save_file(plain.state_dict(), folder / "base.safetensors", says(family))
    merge(folder / "base.safetensors", file, folder / "merged.safetensors")
    meant = model(family)
    merged_into(meant, folder / "merged.safetensors")
    return meant


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("family", "scheme", "kind"),
    sorted({*rotated(sorted(LOADERS), SCHEMES, 1), *rotated(["flux", "sdxl", "wan"], SCHEMES, 3)}),
)
@pytest.mark.slow
def test_a_pipeline_takes_the_tensors_alone(family, scheme, kind, tmp_path):
    """Each layer has another rank and alpha, which no metadata and no config says to the pipeline."""
    plain, loaded = model(family), model(family)
    file = write(scheme, family, adapted(plain), kind, tmp_path / "in", says(family))
    found = state_dict(file)
    load(family, {by_name(family).pipeline_name: loaded}, found)
    # diffusers multiplies the factors by an alpha, which is no parameter of the pipeline.
    factors = [name for name in found if not name.endswith(".alpha")]
    assert adapter_parameters(loaded) == len(factors) > 0
    before, after = outputs(plain, layers(plain)), outputs(merged(family, plain, file, tmp_path), layers(plain))
    assert distance(outputs(loaded, layers(plain)), after) < 1e-5
    assert all(distance({path: before[path]}, {path: after[path]}) > 1e-3 for path in adapted(plain))


@pytest.mark.numeric
def test_a_pipeline_takes_text_encoders_with_the_model(tmp_path, monkeypatch):
    import transformers.integrations.peft as integration

    monkeypatch.setattr(integration, "check_peft_version", lambda *_, **__: None)
    plain, encoder = model("sdxl"), text_encoder(0)
    loaded = {"unet": model("sdxl"), "text_encoder": text_encoder(0)}
    shapes = dict(list(shapes_in(layout_of("sdxl", "kohya"), "sdxl", adapted(plain)).items())[:20])
    tensors = kohya("lora_unet_", factors_of(shapes)) | kohya("lora_te1_", factors_of(adapted(encoder), seed=3))
    file = tmp_path / "in.safetensors"
    save_file({name: value.contiguous() for name, value in tensors.items()}, file, says("sdxl"))
    load("sdxl", loaded, state_dict(file))
    for name, only, network in (("unet", "model", plain), ("text_encoder", "text_encoder", encoder)):
        save_file(network.state_dict(), tmp_path / "base.safetensors", says("sdxl") if name == "unet" else None)
        merge(tmp_path / "base.safetensors", file, tmp_path / f"{name}.safetensors", only=only)
        before = outputs(network, layers(network))
        merged_into(network, tmp_path / f"{name}.safetensors")
        after = outputs(network, layers(network))
        assert distance(outputs(loaded[name], after), after) < 1e-5
        assert distance(before, after) > 1e-3


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("family", ["wan", "flux"])
def test_peft_takes_the_tensors_with_their_config(family, kind, tmp_path):
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    plain, loaded = model(family), model(family)
    file = write("kohya", family, adapted(plain), kind, tmp_path / "in", says(family))
    found = state_dict(file, "peft", keep_dora=kind == "dora")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(loaded, LoraConfig(**found.config)).eval()
        told = set_peft_model_state_dict(wrapped, found)
    assert told.unexpected_keys == []
    assert adapter_parameters(loaded) == len(found) > 0
    after = outputs(merged(family, plain, file, tmp_path), layers(plain))
    assert distance(outputs(loaded, layers(plain)), after) < 1e-5
    assert distance(outputs(plain, layers(plain)), after) > 1e-3


@pytest.mark.parametrize("names", ["diffusers", "kohya", "comfyui", "musubi", "lycoris", "onetrainer", "peft"])
@pytest.mark.parametrize(("file", "flags"), [(RSLORA, []), (PEFT, []), (DORA, ["--drop-magnitude", "--allow-loss"])])
def test_it_is_what_convert_writes(file, flags, names, run, tmp_path):
    options = {flag.removeprefix("--").replace("-", "_"): True for flag in flags}
    out = tmp_path / ("out" if names == "peft" else "out.safetensors")
    ended = run("convert", file, "--to", names, *flags, "-o", out, "--json")
    if ended.status:
        with pytest.raises(LoraInspectError) as refused:
            state_dict(file, names, **options)
        assert str(refused.value) == in_keywords(ended.refusal)
        return
    found, written = (
        state_dict(file, names, **options),
        load_file(out / "adapter_model.safetensors" if out.is_dir() else out),
    )
    assert list(found) == sorted(written)
    assert all(torch.equal(found[name], written[name]) for name in written)
    assert all(found[name].dtype == written[name].dtype for name in written)
    assert found.result.output == ""
    assert found.result.to_dict()["to"] == ended.json["to"]
    assert (found.config is not None) == (names == "peft")


def test_nothing_stays_in_the_folder_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    told = []
    found = state_dict(RSLORA, progress=lambda done, total: told.append((done, total)))
    assert (told[0], told[-1]) == ((0, 20), (20, 20))
    assert os.listdir(tmp_path) == []
    assert all(tensor.isfinite().all() for tensor in found.values())
    with pytest.raises(LoraInspectError, match="choose"):
        state_dict(DORA, "musubi")
    with pytest.raises(LoraInspectError, match="llama-cpp reads GGUF, which keeps alpha in its header"):
        state_dict(PEFT, "llama-cpp")
    with pytest.raises(ValueError, match="the name is 'nonsense'"):
        state_dict(RSLORA, "nonsense")
    assert os.listdir(tmp_path) == []
