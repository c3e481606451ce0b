"""--architecture and :architecture=NAME in the verbs that read adapters: the family of files that may be of several."""

import pytest
from adapters import lora

import lora_inspect
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.errors import AmbiguousError
from lora_inspect.ops.convert import convert_to_standard

QUERY = "transformer.transformer_blocks.{}.attn.to_q"


@pytest.fixture
def ambiguous(write_safetensors):
    """A file of FLUX.1, Chroma or another family with such layers."""
    tensors = {}
    for number in range(4):
        tensors |= lora(QUERY.format(number), rank=4, alpha=None, out=3072, inputs=3072, spelling="peft")
    return write_safetensors(tensors, name="ambiguous.safetensors")


@pytest.fixture
def wan(fixtures):
    return fixtures / "synthetic" / "comfyui_alpha.safetensors"


def commands(file, tmp_path):
    return {
        "info": ["info", file],
        "check": ["check", file],
        "compat": ["compat", file],
        "convert": ["convert", file, "--to", "comfyui", "-o", tmp_path / "a.safetensors"],
        "combine": ["combine", file, "--to", "comfyui", "-o", tmp_path / "b.safetensors"],
        "resize": ["resize", file, "--rank", "2", "--to", "comfyui", "-o", tmp_path / "c.safetensors"],
        "compare": ["compare", file, file],
    }


@pytest.mark.parametrize("verb", ["info", "check", "compat", "convert", "combine", "resize", "compare"])
def test_every_verb_takes_the_family(verb, ambiguous, wan, tmp_path, run):
    words = commands(ambiguous, tmp_path)[verb]
    assert run(*words, "--architecture", "flux").status == 0
    named = [f"{word}:architecture=flux" if word == ambiguous else word for word in words]
    if verb != "compare":
        assert run(*named, *(["--force"] if "-o" in words else [])).status == 0
    mistyped = run(*words, "--architecture", "fluxx")
    assert (mistyped.status, "fluxx is no model family; the nearest name is flux." in mistyped.stderr) == (2, True)
    other = run(*commands(wan, tmp_path)[verb], "--architecture", "flux")
    assert "so it is not for flux" in " ".join((other.stdout + other.stderr).split())


def test_the_family_is_that_of_the_answer(ambiguous, run):
    shown = run("info", ambiguous, "--architecture", "flux").stdout
    assert shown.startswith("LoRA for FLUX.1 - rank 4")
    assert "not tested" in run("compat", ambiguous, "--for", "comfyui").stdout
    assert (
        "ComfyUI 0.33.0  same meaning" in run("compat", ambiguous, "--for", "comfyui", "--architecture", "flux").stdout
    )
    assert lora_inspect.compat(ambiguous, program="comfyui", architecture="flux").verdicts[0].verdict == "same meaning"


def test_of_a_folder_it_is_said_of_the_files_that_leave_it_open(ambiguous, wan, tmp_path, run, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    (tmp_path / "wan.safetensors").write_bytes(wan.read_bytes())
    rows = run("info", tmp_path, "--architecture", "flux").stdout.splitlines()
    assert [row.split()[1] for row in rows[1:3]] == ["FLUX.1", "Wan"]
    assert run("check", tmp_path, "--architecture", "flux").status == 0
    assert "2 load correctly" in run("compat", tmp_path, "--for", "comfyui", "--architecture", "flux").stdout
    ended = run("convert", tmp_path, "--to", "comfyui", "--all-files", "-o", tmp_path / "out", "--architecture", "flux")
    assert ended.stdout.splitlines()[-1] == "2 converted"


def test_a_mistyped_setting_gets_the_nearest_name(ambiguous, run):
    assert "fluxx is no model family; the nearest name is flux" in run("info", f"{ambiguous}:architecture=fluxx").stderr


def test_module_without_place_in_all_families_asks_for_family(write_safetensors, tmp_path):
    # In the original names it stands elsewhere in Stable Diffusion XL than in 1.x and 2.x.
    name = "unet.up_blocks.0.upsamplers.0.conv"
    file = write_safetensors(lora(name, rank=4, alpha=None, out=640, inputs=640, spelling="peft"))
    with pytest.raises(AmbiguousError, match=r"has no known counterpart in comfyui names.*with --architecture sd"):
        convert_to_standard(str(file), str(tmp_path / "out.safetensors"), ConvertOptions(scheme="comfyui"))


def test_to_name_one_of_the_families_in_the_metadata_needs_no_flag(ambiguous, tmp_path, run):
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    named = run("metadata", "set", ambiguous, "ss_base_model_version=flux1", "-o", one)
    assert (named.status, "the architecture from FLUX.1 or" in named.stderr) == (0, True)
    assert run("info", one).stdout.startswith("LoRA for FLUX.1 - ")
    refusal = run("metadata", "set", one, "ss_base_model_version=chroma", "-o", two).refusal
    assert "the architecture from FLUX.1 to Chroma" in refusal
    assert "--allow-meaning-change" in refusal
    assert not two.exists()
