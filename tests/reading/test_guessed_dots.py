"""Names as musubi-tuner's `convert_lora.py --target other` writes them are read as the layers that they are of."""

import pytest
import torch
from adapters import assert_within, expected, factors, families, lora
from safetensors.torch import load_file, save_file

from lora_inspect.architectures import by_name

# Of Wan and of all others: what is a word with an underscore again, once every underscore was made a dot.
_OF_WAN = {"cross.attn": "cross_attn", "self.attn": "self_attn", "k.img": "k_img", "v.img": "v_img"}
_OF_OTHERS = {
    "double.blocks.": "double_blocks.", "single.blocks.": "single_blocks.", "img.": "img_", "txt.": "txt_",
    "attn.": "attn_",
}  # fmt: skip
# The layouts that it trains, and what it calls the family.
TRAINED = {
    "flux": ("original", "flux_kontext"),
    "flux2": ("original", "flux_2_dev"),
    "framepack": ("diffusers", "framepack"),
    "hunyuan_video": ("original", "hunyuan_video"),
    "hunyuan_video_1_5": ("original", "hunyuan_video_1_5"),
    "ideogram4": ("original", "ideogram4"),
    "kandinsky5": ("diffusers", "kandinsky5"),
    "krea2": ("original", "krea2"),
    "wan": ("original", "wan"),
    "z_image": ("diffusers", "z_image"),
}


def guessed(path):
    """What the program makes of `lora_unet_` and the path."""
    name = path.replace("_", ".")
    words = _OF_WAN if ".cross.attn." in name or ".self.attn." in name else _OF_OTHERS
    for wrong, right in words.items():
        name = name.replace(wrong, right)
    return name


def paths_of(family):
    layout, _ = TRAINED[family]
    (own,) = (one for one in by_name(family).layouts if one.name == layout)
    return [path.replace("{i}", "1") for path in own.paths]


@pytest.mark.parametrize("prefix", ["diffusion_model.", "transformer.", ""], ids=["default", "transformer", "none"])
@pytest.mark.parametrize("family", TRAINED)
def test_dots_are_those_of_the_family(family, prefix, write_safetensors, run):
    """Trap 15."""
    paths = paths_of(family)
    wrong = [path for path in paths if guessed(path) != path]
    assert wrong
    tensors = {}
    for path in paths:
        tensors |= lora(prefix + guessed(path), rank=2, spelling="peft", alpha=None)
    file = write_safetensors(tensors, {"ss_base_model_version": TRAINED[family][1]})
    record = run("info", file, "--json", "--modules").json
    assert sorted(item["path"] for item in record["module_list"]) == sorted(paths)
    assert (record["modules"], record["unclaimed"]) == (len(paths), [])
    assert family in families(record)
    (evidence,) = (item for item in record["evidence"] if item["about"] == "names")
    assert evidence["says"].startswith(f"the dots of {len(wrong)} names are those that musubi-tuner guesses")


@pytest.mark.numeric
def test_merge_and_convert_find_the_layers(run, tmp_path):
    paths = ["double_blocks.0.img_attn.qkv", "double_blocks.0.txt_mlp.2", "single_blocks.0.linear1"]
    generator = torch.Generator().manual_seed(0)
    base = {f"{path}.weight": torch.randn(6, 4, generator=generator) for path in paths}
    adapter = {path: own._replace(alpha=own.down.shape[0]) for path, own in factors(base, paths).items()}
    tensors = {}
    for path, own in adapter.items():
        name = f"diffusion_model.{guessed(path)}"
        tensors |= {f"{name}.lora_A.weight": own.down, f"{name}.lora_B.weight": own.up}
    assert "diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight" in tensors
    save_file(base, tmp_path / "base.safetensors")
    save_file(tensors, tmp_path / "other.safetensors", {"ss_base_model_version": "flux_kontext"})
    out = tmp_path / "out.safetensors"
    ended = run("merge", tmp_path / "base.safetensors", tmp_path / "other.safetensors", "-o", out)
    assert ended.status == 0, ended.stderr
    assert_within(load_file(out), *expected(base, adapter, 1.0, interpolate=False))
    ended = run("convert", tmp_path / "other.safetensors", "--to", "comfyui", "-o", out, "--force")
    assert ended.status == 0, ended.stderr
    assert {key.partition(".lora_")[0] for key in load_file(out) if ".lora_" in key} == {
        f"diffusion_model.{path}" for path in paths
    }


@pytest.mark.parametrize(
    "metadata", [{}, {"ss_base_model_version": "flux1"}, {"ss_base_model_version": "wan"}], ids=str
)
def test_nothing_is_guessed_where_nothing_says_who_wrote_it(metadata, write_safetensors, run):
    name = "diffusion_model.double_blocks.0.img_attn_qkv"
    record = run(
        "info", write_safetensors(lora(name, spelling="peft", alpha=None), metadata), "--json", "--modules"
    ).json
    assert [item["module"] for item in record["module_list"]] == [name]
    assert not [item for item in record["evidence"] if item["about"] == "names"]


@pytest.mark.parametrize("prefix", ["text_encoder.", "base_model.model."])
def test_names_that_it_does_not_write_are_left(prefix, write_safetensors, run):
    name = f"{prefix}double_blocks.0.img_attn_qkv"
    file = write_safetensors(lora(name, spelling="peft"), {"ss_base_model_version": "flux_kontext"})
    assert [item["module"] for item in run("info", file, "--json", "--modules").json["module_list"]] == [name]
