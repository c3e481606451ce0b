"""Files of some trainers in the real pipelines of diffusers, beside the verdict: names and parts of their own."""

import shlex

import diffusers
import diffusers_families
import diffusers_pipelines
import pytest
import torch
from adapter_files import adapter_file
from adapters import DEFAULT, NAMES, PEFT, Names
from diffusers_pipelines import bias_of, loaded, weights
from program_grid import Weight, observe
from safetensors.torch import save_file

from lora_inspect.architectures import by_name
from lora_inspect.ops.compat import compat

pytestmark = pytest.mark.slow

SAME, PARTLY = "same meaning", "partly loaded"


def made_of(family, names, kind="lora", has_alpha=False, lacks=()):
    """(tensors, metadata, the weights that are meant) of an adapter of all layers but those with one of `lacks`."""
    base = {path: own for path, own in weights(family).items() if not any(part in path for part in lacks)}
    file = adapter_file(family, names, kind, has_alpha, base, says=(*by_name(family).metadata_names, "")[0])
    meant = {path: Weight(base[path].double(), weight) for path, weight in file.meant.items()}
    for path, change in file.biases.items():
        bias = bias_of(family, path).double()
        meant[f"{path}.bias"] = Weight(bias, bias + change)
    return file.tensors, file.metadata, meant


def judged(family, tensors, metadata, meant, file):
    """(the verdict of `compat`, what the pipeline did to the layers that are meant)."""
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, metadata)
    (verdict,) = compat(str(file), "diffusers").verdicts
    return verdict, observe(meant, lambda: loaded(family, file))


def test_the_fix_of_kohyas_names_of_flux2(tmp_path, run):
    """It swaps the halves of the last modulation, which the pipeline does not."""
    tensors, metadata, meant = made_of("flux2", "kohya", has_alpha=True)
    assert "lora_unet_final_layer_adaLN_modulation_1.lora_up.weight" in tensors
    file, written = tmp_path / "adapter.safetensors", tmp_path / "written.safetensors"
    verdict, seen = judged("flux2", tensors, metadata, meant, file)
    assert verdict.verdict == seen.verdict != SAME
    ended = run(*shlex.split(verdict.fix)[1:])
    assert ended.status == 0, ended.stderr
    written = shlex.split(verdict.fix)[-1]
    assert compat(written, "diffusers").verdicts[0].verdict == SAME
    assert observe(meant, lambda: loaded("flux2", written)).verdict == SAME


def test_lightx2v_of_which_differences_of_norms_are_removed(tmp_path):
    tensors, metadata, meant = made_of("wan", "comfyui, down and up", "bias beside lora", lacks=("embed", "proj_out"))
    norms = {f"diffusion_model.blocks.{at}.self_attn.norm_q.diff": torch.ones(24) for at in range(2)}
    verdict, seen = judged("wan", tensors, metadata, meant, tmp_path / "plain.safetensors")
    assert (verdict.verdict, seen.verdict) == (SAME, SAME)
    verdict, seen = judged("wan", {**tensors, **norms}, metadata, meant, tmp_path / "adapter.safetensors")
    assert (verdict.verdict, verdict.silent, seen.verdict) == (PARTLY, True, SAME)


def test_the_second_expert_is_left_out_beside_the_first(tmp_path):
    tensors, metadata, meant = made_of("wan", "diffusers")
    second = {key.replace("transformer.", "transformer_2.", 1): tensor.clone() for key, tensor in tensors.items()}
    verdict, seen = judged("wan", {**tensors, **second}, metadata, meant, tmp_path / "adapter.safetensors")
    assert (verdict.verdict, verdict.silent, seen.verdict) == (PARTLY, True, SAME)


@pytest.mark.parametrize("family", ["qwen_image", "z_image"])
def test_an_adapters_name_inside_as_diffsynth_has_it(family, tmp_path, monkeypatch):
    monkeypatch.setitem(NAMES, "diffsynth", Names("", "diffusers", False, DEFAULT))
    tensors, metadata, meant = made_of(family, "diffsynth")
    verdict, seen = judged(family, tensors, metadata, meant, tmp_path / "adapter.safetensors")
    assert (verdict.verdict, seen.verdict) == (SAME, SAME)


def test_hunyuan_video_by_diffusion_pipe(tmp_path, monkeypatch):
    """Without the fused layers of single blocks, of which the pipeline knows one width, far larger than here."""
    monkeypatch.setitem(NAMES, "diffusion-pipe", Names("diffusion_model.", "original", False, PEFT))
    lacks = ("single_transformer_blocks", "context_embedder", "time_text_embed", "norm_out", "proj_out", "x_embedder")
    tensors, metadata, meant = made_of("hunyuan_video", "diffusion-pipe", lacks=lacks)
    assert "diffusion_model.double_blocks.0.img_attn_qkv.lora_A.weight" in tensors
    verdict, seen = judged("hunyuan_video", tensors, metadata, meant, tmp_path / "adapter.safetensors")
    assert (verdict.verdict, seen.verdict) == (SAME, SAME)


@pytest.mark.parametrize(
    ("names", "has_alpha"),
    [("kohya", True), ("comfyui", False), ("comfyui, down and up", True)],
    ids=lambda part: str(part),
)
def test_the_layers_of_wan_for_images(names, has_alpha, tmp_path, monkeypatch):
    """A model of image to video has them; the conversion takes those of keys and values, or none of either."""
    torch.manual_seed(3)
    _, arguments = diffusers_families.FAMILIES["wan"]
    model = diffusers.WanTransformer3DModel(**{**arguments, "num_layers": 1, "added_kv_proj_dim": 24, "image_dim": 16})
    model.requires_grad_(False).eval()
    monkeypatch.setattr(diffusers_pipelines, "network", lambda family: model)
    layers = diffusers_families.layers(model)
    base = {path: layer.weight for path, layer in layers.items() if path.startswith("blocks.")}
    assert "blocks.0.attn2.add_k_proj" in base
    made = adapter_file("wan", names, "lora", has_alpha, base, says="wan")
    meant = {path: Weight(base[path].double(), weight) for path, weight in made.meant.items()}
    verdict, seen = judged("wan", made.tensors, made.metadata, meant, tmp_path / "adapter.safetensors")
    assert (verdict.verdict, seen.verdict) == (SAME, SAME)
    one = {key: tensor for key, tensor in made.tensors.items() if "v_img" not in key}
    verdict, seen = judged("wan", one, made.metadata, meant, tmp_path / "one.safetensors")
    assert (verdict.verdict, seen.verdict) == ("refused", "refused")
