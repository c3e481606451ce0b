"""The rules of programs on files of combine: what is right of both inputs is right of their sum."""

import pytest
from adapter_files import adapter_file
from diffusers_families import says
from diffusers_pipelines import weights
from safetensors.torch import save_file

import lora_inspect
from lora_inspect.ops.compat import compat

pytestmark = pytest.mark.slow

MULTIPLIERS = (0.7, -0.3)
SAME = "same meaning"
FAMILIES = ("flux", "qwen_image", "sdxl", "wan", "z_image")
# The names that an output has, and a program that reads these names in each family.
READERS = {"kohya": "comfyui", "comfyui": "comfyui", "diffusers": "diffusers"}
KINDS = [("lora", "lora"), ("lora", "rslora flag"), ("rslora flag", "lora")]


def written(family, names, kind, seed, file):
    made = adapter_file(family, names, kind, True, weights(family), seed, says(family)["ss_base_model_version"])
    save_file({key: tensor.contiguous() for key, tensor in made.tensors.items()}, file, made.metadata)
    return file


def pair(family, names, kinds, folder):
    return [
        written(family, spelled, kind, number, folder / f"{number}.safetensors")
        for number, (spelled, kind) in enumerate(zip(names, kinds, strict=True))
    ]


def right_in(file):
    """The programs that make of a file what it means."""
    return {one.program.name for one in compat(str(file)).verdicts if one.verdict == SAME}


@pytest.mark.parametrize("names", ["kohya", "comfyui", "comfyui, down and up"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_reads_both_reads_the_sum(family, names, tmp_path):
    files, out = pair(family, (names, names), ("lora", "lora"), tmp_path), tmp_path / "out.safetensors"
    lora_inspect.combine(list(zip(files, MULTIPLIERS, strict=True)), out)
    programs = right_in(files[0]) & right_in(files[1])
    assert programs
    assert programs - right_in(out) == set()


@pytest.mark.parametrize("kinds", KINDS, ids=" and ".join)
@pytest.mark.parametrize("to", READERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_program_of_the_names_reads_the_sum(family, to, kinds, tmp_path):
    files, out = pair(family, ("kohya", "diffusers"), kinds, tmp_path), tmp_path / "out.safetensors"
    lora_inspect.combine(list(zip(files, MULTIPLIERS, strict=True)), out, to=to)
    (verdict,) = compat(str(out), READERS[to]).verdicts
    assert (verdict.verdict, verdict.says) == (SAME, "")
