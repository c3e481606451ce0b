"""Families whose modules all programs call alike: only what stands before the paths differs, and nothing is unknown."""

import layouts
import pytest
from adapters import dotted, factors, kohya
from safetensors.torch import load_file, save_file

from lora_inspect.architectures import by_name

pytestmark = pytest.mark.numeric

# How the names of files begin.
PREFIXES = {"lora_unet_": kohya, "diffusion_model.": dotted, "transformer.": dotted, "": dotted}


def test_the_families_are_those_of_one_naming():
    assert layouts.alike() == ["ernie_image", "hidream_i1", "kandinsky5", "qwen_image"]


@pytest.mark.parametrize("layout", ["original", "diffusers"])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", layouts.alike())
def test_convert_changes_the_prefix_alone(name, prefix, layout, tmp_path, run):
    own = layouts.first_layout(name)
    file = PREFIXES[prefix](prefix, factors(own, [path.removesuffix(".weight") for path in own]))
    file = {key: value for key, value in file.items() if not key.endswith(".alpha")}
    save_file(file, tmp_path / "adapter.safetensors", {"ss_base_model_version": by_name(name).metadata_names[0]})
    ended = run("convert", tmp_path / "adapter.safetensors", "--layout", layout, "-o", tmp_path / "out.safetensors")
    assert ended.status == 0, ended.stderr
    found = load_file(tmp_path / "out.safetensors")
    dots = {"original": "diffusion_model.", "diffusers": "transformer."}[layout]
    written = dots if prefix.endswith("n_model.") or prefix == "transformer." else prefix
    modules = {key.removesuffix(".weight").rpartition(".lora_")[0] for key in file}
    assert {key.removesuffix(".weight").rpartition(".lora_")[0] for key in found if ".lora_" in key} == {
        written + module.removeprefix(prefix) for module in modules
    }
