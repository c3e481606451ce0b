"""How much `compat` knows of about a hundred adapters of real names and widths: few verdicts are unknown."""

import sys
from pathlib import Path

import pytest
from real_shapes import recorded, tensors, write
from safetensors import safe_open

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from program_table import cells, has_family, shares

# The most unknown verdicts on files of families that a program has: a change that lowers a number lowers it here.
MOST_UNKNOWN = {
    "a1111": 0,
    "ai-toolkit": 7,
    "blissful": 1,
    "comfyui": 0,
    "comfyui-0.3.64": 0,
    "diffsynth": 0,
    "diffusers": 1,
    "forge": 7,
    "invokeai": 0,
    "llama-cpp": 2,
    "lmdeploy": 1,
    "mlx-lm": 0,
    "musubi": 1,
    "musubi-networks": 2,
    "nunchaku": 0,
    "nunchaku-compose": 0,
    "ollama": 0,
    "onetrainer": 0,
    "peft": 0,
    "sd-scripts": 0,
    "sd-scripts-flux-merge": 0,
    "sd-scripts-sdxl-merge": 0,
    "sdnext": 0,
    "sglang": 2,
    "stable-diffusion-cpp": 0,
    "tgi": 0,
    "vllm": 3,
    "wanvideo": 0,
    "wanvideo-unmerged": 0,
}
# What programs are known to make of these files, from the grids of this folder: never the same meaning.
NOT_THE_SAME = {
    "flux-diffusers-rslora": ("comfyui", "comfyui-0.3.64"),
    "flux-lokr": ("diffusers", "musubi", "sd-scripts"),
    "llama-3.2-3b-rslora": ("llama-cpp", "sglang"),
    "llama-3.2-3b-dora": ("llama-cpp", "sglang", "vllm"),
    "llama-3.2-1b-saved-head": ("llama-cpp", "sglang", "vllm"),
    "llama-3-8b-qv": ("mlx-lm",),
    "llama-3.2-1b-mlx": ("peft", "vllm", "llama-cpp"),
    "sdxl-diffusers": ("comfyui", "forge", "invokeai", "a1111", "sd-scripts"),
    "sdxl-lokr-full": ("diffusers", "sd-scripts"),
    "sdxl-dora": ("a1111", "comfyui", "diffusers"),
    "wan2.1-diffusers": ("comfyui", "musubi"),
    "wan2.1-14b-musubi": ("lycoris", "peft"),
    "wan2.1-diffusion-pipe": ("musubi",),
    "qwen-image-ai-toolkit": ("invokeai", "musubi"),
    "z-image-musubi": ("invokeai",),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return cells(tmp_path_factory.mktemp("adapters"))


def test_there_are_about_a_hundred_of_every_kind_of_trainer():
    kinds = {name.partition("-")[2] or name for name in recorded()}
    assert len(recorded()) >= 100
    for trainer in ("kohya", "musubi", "onetrainer", "ai-toolkit", "diffusers", "diffsynth", "diffusion-pipe", "mlx"):
        assert any(trainer in kind for kind in kinds), trainer


@pytest.mark.parametrize("name", ["sdxl-kohya", "wan2.1-14b-musubi", "flux-diffusers"])
def test_files_are_what_safetensors_reads(name, tmp_path):
    wanted = tensors(name)
    with safe_open(write(name, tmp_path), "pt") as file:
        assert set(file.keys()) == set(wanted)
        for key, (_, shape, number) in wanted.items():
            assert tuple(file.get_slice(key).get_shape()) == shape
            if number is not None:
                assert float(file.get_tensor(key)) == pytest.approx(number, rel=2**-8)


@pytest.mark.slow
@pytest.mark.parametrize("program", MOST_UNKNOWN)
def test_few_are_unknown(found, program):
    pairs, unknown = shares(found)[program]
    assert pairs >= unknown
    assert unknown <= MOST_UNKNOWN[program], [
        (one.adapter, one.says)
        for one in found
        if one.program == program and one.has_family and one.verdict == "not tested"
    ]


@pytest.mark.slow
def test_every_program_has_its_number(found):
    assert set(shares(found)) == set(MOST_UNKNOWN)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOT_THE_SAME)
def test_none_says_the_same_meaning_where_it_is_known_not_to_be(found, name):
    said = {one.program: one.verdict for one in found if one.adapter == name}
    assert [program for program in NOT_THE_SAME[name] if said[program] == "same meaning"] == []


def test_a_program_without_models_of_a_family_does_not_count():
    assert has_family("diffusers", "wan")
    assert not has_family("a1111", "wan")
