"""Models beside adapters, by the names that real libraries and repositories give their tensors."""

import pytest
from adapters import base, loras

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.file_info import OTHER_MODELS, inspect, other_model

MARKS = [(kind.title, mark) for kind in OTHER_MODELS for mark in kind.marks]


def file_of(names, write_safetensors, name="file.safetensors"):
    return write_safetensors(dict.fromkeys(names, ("F32", (4, 4), 1.0)), name=name)


@pytest.mark.parametrize(("title", "mark"), MARKS)
def test_each_mark_names_its_kind(title, mark, write_safetensors):
    info = inspect(str(file_of([mark, "x.weight"], write_safetensors)))
    assert (info.kind != "adapter", info.other_model) == (True, title)


def test_adapters_and_pipelines_are_none_of_them(write_safetensors):
    for tensors in (loras(), base(2)):
        assert inspect(str(write_safetensors(tensors))).other_model is None
    whole = ["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.decoder.mid.block_1.conv1.weight"]
    assert other_model(whole) is None
    assert other_model(["x.weight"]) is None


def tiny(name, folder):
    """The names of the tensors in a file of a small model of a class of diffusers or transformers."""
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    makers = {
        "AutoencoderKL": lambda: diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4),
        "ControlNetModel": lambda: diffusers.ControlNetModel(
            block_out_channels=(8, 8), down_block_types=("DownBlock2D", "DownBlock2D"), norm_num_groups=4,
            cross_attention_dim=8, conditioning_embedding_out_channels=(8, 8),
        ),
        "CLIPTextModel": lambda: transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=9, **sizes)),
        "CLIPVisionModel": lambda: transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(image_size=8, patch_size=4, **sizes)
        ),
    }  # fmt: skip
    makers[name]().save_pretrained(folder)
    (file,) = folder.glob("*.safetensors")
    return set(open_checkpoint(str(file)).tensors)


REAL = {
    "AutoencoderKL": "VAE",
    "ControlNetModel": "ControlNet",
    "CLIPTextModel": "text encoder",
    "CLIPVisionModel": "image encoder",
}


@pytest.mark.parametrize(("name", "title"), REAL.items())
def test_models_of_libraries_have_the_marks(name, title, tmp_path):
    assert other_model(tiny(name, tmp_path)) == title


def test_a_folder_names_them_in_the_column_of_models(write_safetensors, tmp_path, run, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    write_safetensors(loras(), name="many/a.safetensors")
    file = file_of(["decoder.mid_block.resnets.0.conv1.weight", "x.weight"], write_safetensors, "many/vae.safetensors")
    rows = run("info", tmp_path / "many", "--all").stdout.splitlines()
    assert [row.split()[1] for row in rows[1:3]] == ["?", "VAE"]
    assert run("info", file).stdout.startswith("No adapter: a VAE of 2 tensors\n")
    assert run("info", file, "--json").json["other_model"] == "VAE"
    assert "it is no adapter (VAE), so check covers only its header" in run("check", file).stdout
    assert rows[2].split()[2] == "other"
    assert rows[-1] == "1 adapter: 1 fine by its header; 1 other model"
    assert run("info", tmp_path / "many", "--where", "model=vae", "--all").stdout.splitlines()[1].startswith("vae ")
