"""What the setting of the family does to a reading, and what is said where it contradicts the file."""

import pytest
from adapters import base, families, lora

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.file_info import inspect_adapter
from lora_inspect.reading.model.settings import Settings

# Names of FLUX.1, Chroma and others.
OPEN = lora("lora_unet_double_blocks_0_img_mlp_0")


@pytest.fixture
def inspected(write_safetensors):
    def inspect_with(tensors, named, metadata=None):
        file = open_checkpoint(str(write_safetensors(tensors, metadata or {}, name="a.safetensors")))
        return inspect_adapter(file, Settings(architecture=named))

    return inspect_with


def told(info):
    return [(problem.code, problem.message) for problem in info.adapter.problems]


def test_of_several_families_the_named_one_is_left(inspected):
    assert len(inspected(OPEN, None).candidates) > 1
    info = inspected(OPEN, "chroma")
    assert [candidate.architecture.name for candidate in info.candidates] == ["chroma"]
    assert told(info) == []


def test_a_family_that_is_none_of_them_narrows_nothing_and_is_an_error(inspected):
    info = inspected(OPEN, "wan")
    assert info.candidates == inspected(OPEN, None).candidates
    ((code, message),) = told(info)
    assert code == "setting-contradicts"
    assert message.startswith("the names and shapes of its modules match FLUX.1, Chroma, ")
    assert message.endswith(", so it is not for wan; leave architecture=wan (--architecture) out")


def test_a_family_that_is_known_is_repeated(inspected):
    info = inspected(OPEN, "flux", {"ss_base_model_version": "flux1"})
    assert told(info) == [("setting-repeats", "architecture=flux repeats what the names and shapes of its modules say")]


@pytest.mark.parametrize("tensors", [lora("lora_unet_odd_0_q"), base(1)], ids=["unknown", "base"])
def test_what_is_of_no_known_family_is_not_of_the_named_one(tensors, inspected):
    assert told(inspected(tensors, "flux")) == [
        (
            "setting-contradicts",
            "the names and shapes of its modules match no known model family, so it is not for flux; leave "
            "architecture=flux (--architecture) out",
        )
    ]


def test_every_verb_takes_it_on_the_path(write_safetensors, run, tmp_path):
    file = f"{write_safetensors(OPEN, name='a.safetensors')}:architecture=flux"
    assert families(run("info", file, "--json").json) == ["flux"]
    assert run("check", file).status == 0
    assert run("compat", file, "--json").status == 0
    out = tmp_path / "out.safetensors"
    assert run("convert", file, "--to", "comfyui", "-o", out).status == 0
    assert run("convert", file, "-o", out, "--force").status == 0
    assert "so it is not for wan" in run("convert", file.replace("flux", "wan"), "-o", out, "--force").refusal
