"""Names near a mistyped one, at a cost that does not grow with the folder."""

import itertools
import os
import time

import pytest

from lora_inspect.files.discovery import nearest_path
from lora_inspect.near_names import meant, nearest_name, suggestion

NAMES = [
    "style.safetensors",
    "face.safetensors",
    "base_model.safetensors",
    "config.json",
    "Loras",
    "a.yaml",
    "a.json",
    "a.safetensors",
]
NEAREST = {
    "styel.safetensors": "style.safetensors",
    "style": "style.safetensors",
    "style.safetensor": "style.safetensors",
    "STYLE.safetensors": "style.safetensors",
    "loras": "Loras",
    "base-model.safetensors": "base_model.safetensors",
    "confg.json": "config.json",
    # an ending in common makes no two names alike
    "portrait.safetensors": None,
    "zz": None,
    # of names that differ in their ending alone the one with the nearer ending
    "a.sftensors": "a.safetensors",
    "a.jsn": "a.json",
    "": None,
}


@pytest.mark.parametrize(("name", "expected"), NEAREST.items(), ids=repr)
def test_the_nearest_name(name, expected):
    assert nearest_name(name, NAMES) == expected


@pytest.mark.parametrize("names", list(itertools.permutations(["lora1", "lora2", "lora3"])))
def test_of_names_as_near_as_each_other_it_is_the_same_one_in_any_order(names):
    assert nearest_name("lora", names) == "lora1"


@pytest.mark.parametrize("letters", ["a", "ab"])
@pytest.mark.parametrize("length", [199, 250])
def test_any_number_of_names_of_any_kind_costs_little(letters, length):
    name = letters * (length // len(letters))
    looked_at = 0

    def names():
        nonlocal looked_at
        for number in range(200_000):
            looked_at += 1
            yield name[:-6] + f"{number:06}"

    before = time.process_time()
    nearest_name(name, names())
    assert time.process_time() - before < 20
    assert looked_at < 10_000


def test_a_path_keeps_its_folder(tmp_path, monkeypatch):
    (tmp_path / "style.safetensors").touch()
    assert nearest_path(str(tmp_path / "stlye.safetensors")) == str(tmp_path / "style.safetensors")
    monkeypatch.chdir(tmp_path)
    assert nearest_path("stlye.safetensors") == "style.safetensors"
    assert nearest_path(os.path.join(".", "stlye.safetensors")) == os.path.join(".", "style.safetensors")


def test_a_link_that_leads_nowhere_is_not_near_itself(tmp_path):
    (tmp_path / "style.safetensors").symlink_to("gone")
    assert nearest_path(str(tmp_path / "style.safetensors")) is None


@pytest.mark.parametrize("ending", [".header-journal", ".0123456789abcdef.partial", ".0123456789abcdef.partial.lock"])
def test_what_a_run_has_left_is_not_meant(tmp_path, ending):
    left = tmp_path / f"style.safetensors{ending}"
    left.touch()
    asked = str(tmp_path / "stlye.safetensors")
    assert nearest_path(asked) is None
    left.with_name("styles.safetensors").touch()
    assert nearest_path(asked) == str(tmp_path / "styles.safetensors")


@pytest.mark.parametrize(
    "path", ["missing/a", "file/a", "", "/", "a\0b/c", "x" * 5000 + "/a"], ids=lambda path: path[:9]
)
def test_a_folder_that_cannot_be_read_has_no_near_names(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert nearest_path(path) is None


PROGRAMS = {
    "comfyui": "ComfyUI",
    "comfyui-0.3.64": "ComfyUI",
    "llama-cpp": "llama.cpp",
    "a1111": "AUTOMATIC1111's web UI",
    "sd-scripts": "sd-scripts",
    "sdnext": "SD.Next",
    "musubi": "musubi-tuner",
    "musubi-networks": "musubi-tuner (networks)",
}
MEANT = {
    "comfyui": "comfyui", "ComfyUI": "comfyui", "comfy ui": "comfyui", "comfy": "comfyui",
    "comfyui 0.3.64": "comfyui-0.3.64",
    "llama.cpp": "llama-cpp", "llamacpp": "llama-cpp", "LLAMA": "llama-cpp", "Automatic1111": "a1111", "A1111": "a1111",
    "SD.Next": "sdnext", "sd_scripts": "sd-scripts", "sds": "sd-scripts", "musubi-tuner": "musubi", "mus": "musubi",
    "musubi-tuner (networks)": "musubi-networks", "sd": None, "s": None, "": None, "-": None, "comfyiu": None,
    "ui": None,
}  # fmt: skip


@pytest.mark.parametrize(("value", "expected"), MEANT.items())
def test_the_name_that_another_spelling_means(value, expected):
    assert meant(value, PROGRAMS, PROGRAMS) == expected


def test_first_letters_of_different_names_mean_none():
    assert meant("com", ["comfyui", "compel"]) is None
    assert meant("com", ["compel"]) == "compel"


def test_a_mistyped_name_gets_a_question():
    assert suggestion("Comfyiu", PROGRAMS) == "; did you mean comfyui?"
    assert suggestion("zzz", PROGRAMS) == ""
