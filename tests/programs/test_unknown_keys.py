"""One key that nobody knows in a file that is right otherwise, in every program: its own code says what comes of it.

InvokeAI cannot be installed here, so what its conversions did with such files is written out: its code ran on each.
"""

import json

import numpy as np
import pytest
import torch
from adapters import lora
from gguf_files import pair, write_adapter
from unknown_keys import BEHIND, OUTSIDE, PLACES

from lora_inspect.ops.compat import compat

SAME, REFUSED, UNTESTED = "same meaning", "refused", "not tested"
UNET = "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
# Of each family the names, and the places in which it puts up with a key.
IN_INVOKEAI = [
    ("sd_v1", "lora_unet_", UNET, ("kohya",), BEHIND),
    ("sdxl_base_v1-0", "lora_unet_", UNET, ("kohya",), BEHIND),
    ("sdxl_base_v1-0", "lora_unet_", "input_blocks_4_1_transformer_blocks_0_attn2_to_k", ("kohya",), BEHIND),
    ("flux1", "lora_unet_", "double_blocks_0_txt_attn_proj", ("kohya",), BEHIND),
    ("wan", "lora_unet_", "blocks_0_self_attn_q", ("kohya", "peft"), {*BEHIND, *OUTSIDE, "bare"}),
    ("wan", "lora_unet_", "blocks_0_attn1_to_q", ("kohya", "peft"), {*BEHIND, *OUTSIDE, "bare"}),
    ("wan", "diffusion_model.", "blocks.0.self_attn.q", ("kohya", "peft"), {"two words", *OUTSIDE, "bare"}),
    ("wan", "diffusion_model.", "blocks.0.attn1.to_q", ("kohya", "peft"), {"two words", *OUTSIDE, "bare"}),
    ("wan", "transformer.", "blocks.0.attn1.to_q", ("kohya", "peft"), {"two words", *OUTSIDE, "bare"}),
    ("wan", "", "blocks.0.attn1.to_q", ("kohya", "peft"), {"two words", *OUTSIDE, "bare"}),
    ("qwen_image", "lora_unet_", "transformer_blocks_0_attn_add_q_proj", ("kohya",), {*BEHIND, *OUTSIDE}),
    ("qwen_image", "transformer.", "transformer_blocks.0.attn.add_q_proj", ("kohya", "peft"), {"two words"}),
    ("qwen_image", "", "transformer_blocks.0.attn.add_q_proj", ("kohya", "peft"), {"two words"}),
    ("z_image", "transformer.", "layers.0.attention.to_q", ("kohya", "peft"), {"two words"}),
    ("z_image", "diffusion_model.", "layers.0.attention.to_q", ("kohya", "peft"), {"two words"}),
]
WIDTHS = {"sd_v1": 768, "sdxl_base_v1-0": 2048}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("version", "prefix", "path", "spellings", "loaded"), IN_INVOKEAI)
def test_in_invokeai(version, prefix, path, spellings, loaded, place, write_safetensors):
    module = prefix + path
    key = PLACES[place].format(module=module, prefix=prefix, other=module.replace("0", "7", 1))
    for spelling in spellings:
        alpha = None if spelling == "peft" else 4.0
        tensors = lora(module, 4, alpha, 8, WIDTHS.get(version, 8), spelling)
        metadata = {"ss_base_model_version": version}
        for extra, verdict in (({}, SAME), ({key: ("F32", (2,), 1.0)}, SAME if place in loaded else REFUSED)):
            (found,) = compat(str(write_safetensors({**tensors, **extra}, metadata)), "invokeai").verdicts
            assert found.verdict == verdict, (spelling, key, found.says)


# The web UI groups keys by the name before the first dot, and raises where a layer that it finds has none of its kinds;
# names that it does not find it passes over. It adds a `bias` to the change, and leaves the layer where it cannot. That
# is read in its source.
IN_A1111 = {
    **dict.fromkeys(sorted(BEHIND | OUTSIDE), SAME),
    "bias": "nothing loaded",
    "other module": REFUSED,
    "other module's weight": REFUSED,
}


@pytest.mark.parametrize("place", IN_A1111)
@pytest.mark.parametrize(
    ("version", "path", "width"),
    [("sd_v1", UNET, 768), ("sdxl_base_v1-0", "input_blocks_4_1_transformer_blocks_0_attn2_to_k", 2048)],
)
def test_in_the_web_ui(version, path, width, place, write_safetensors):
    module = f"lora_unet_{path}"
    other = module.replace("attn2_to_k", "attn2_to_v")
    key = PLACES[place].format(module=module, prefix="lora_unet_", other=other)
    tensors = {**lora(module, 4, 4.0, 8, width), key: ("F32", (2,), 1.0)}
    (found,) = compat(str(write_safetensors(tensors, {"ss_base_model_version": version})), "a1111").verdicts
    assert found.verdict == IN_A1111[place], found.says


@pytest.mark.slow
@pytest.mark.parametrize("names", ["kohya", "comfyui, down and up"])
@pytest.mark.parametrize("place", ["one word", "two words", "stranger", "root's weight"])
def test_in_the_pipeline_of_flux(names, place, tmp_path):
    pytest.importorskip("diffusers")
    from adapter_files import adapter_file
    from diffusers_pipelines import loaded, weights
    from program_grid import Weight, differs, observe
    from safetensors.torch import save_file

    base, file = weights("flux"), tmp_path / "adapter.safetensors"
    made = adapter_file("flux", names, "lora", True, base, says="flux1")
    meant = {path: Weight(base[path].double(), weight) for path, weight in made.meant.items()}
    factor = next(key for key in made.tensors if key.endswith(".lora_down.weight"))
    prefix = "lora_unet_" if names == "kohya" else "diffusion_model."
    key = PLACES[place].format(module=factor.removesuffix(".lora_down.weight"), prefix=prefix)
    save_file({**made.tensors, key: torch.ones(2)}, file, made.metadata)
    (said,) = compat(str(file), "diffusers").verdicts
    assert not differs(said, observe(meant, lambda: loaded("flux", file)))
    assert said.verdict == (SAME if place == "root's weight" else REFUSED)


# What PEFT has no module for it drops, and so it does with what is no factor.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("place", [*PLACES, "a weight of the model"])
def test_in_peft(place, tmp_path):
    """A weight of the model itself is loaded in its place, which is no adapter."""
    pytest.importorskip("peft")
    import language_models
    import peft_kinds
    from peft import PeftModel
    from safetensors.torch import load_file, save_file

    folder = peft_kinds.make("LlamaForCausalLM", peft_kinds.KINDS["plain"], tmp_path)
    file = f"{folder.path}/adapter_model.safetensors"
    tensors = load_file(file)
    module = next(iter(tensors)).partition(".lora_")[0]
    norm = next(name for name, _ in language_models.model("LlamaForCausalLM").named_parameters() if "norm" in name)
    names = {"module": module, "prefix": "base_model.model.", "other": module.replace(".0.", ".7.")}
    key = PLACES.get(place, f"base_model.model.{norm}").format(**names)
    is_of_model = place not in PLACES
    size = len(language_models.model("LlamaForCausalLM").get_parameter(norm)) if is_of_model else 2
    save_file({**tensors, key: 3 * torch.ones(size)}, file)
    network = PeftModel.from_pretrained(language_models.model("LlamaForCausalLM"), str(folder.path)).eval()
    assert folder.is_like_trained(language_models.output(network)) != is_of_model
    (found,) = compat(str(folder.path), "peft").verdicts
    assert found.verdict == ("not tested" if is_of_model else SAME)


# sd-scripts passes over each of them, as its networks did on small models; its code cannot be installed here.
IN_SD_SCRIPTS = [
    ("sd_v1", UNET.replace("attn2_to_k", "attn1_to_q"), 8),
    ("sdxl_base_v1-0", "input_blocks_4_1_transformer_blocks_0_attn1_to_q", 8),
    ("flux1", "double_blocks_0_img_attn_proj", 8),
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("version", "path", "width"), IN_SD_SCRIPTS)
def test_in_sd_scripts(version, path, width, place, write_safetensors):
    module = f"lora_unet_{path}"
    key = PLACES[place].format(module=module, prefix="lora_unet_", other=f"{module[:-1]}_x")
    tensors = {**lora(module, 4, 4.0, 8, width), key: ("F32", (2,), 1.0)}
    (found,) = compat(str(write_safetensors(tensors, {"ss_base_model_version": version})), "sd-scripts").verdicts
    assert found.verdict == SAME, found.says


# musubi-tuner merged each of these into small models; its code cannot be installed here.
IN_MUSUBI = [
    ("wan", "blocks_0_self_attn_q"),
    ("flux1", "double_blocks_0_img_attn_proj"),
    ("z_image", "layers_0_attention_to_q"),
]


@pytest.mark.parametrize("place", sorted(BEHIND | {"stranger", "bare", "root's weight", "other module"}))
@pytest.mark.parametrize("program", ["musubi", "musubi-networks"])
@pytest.mark.parametrize(("version", "path"), IN_MUSUBI)
def test_in_musubi(version, path, program, place, write_safetensors):
    module = f"lora_unet_{path}"
    key = PLACES[place].format(module=module, prefix="lora_unet_", other=f"{module[:-1]}x")
    tensors = {**lora(module, 4, 4.0, 16, 16), key: ("F32", (2,), 1.0)}
    (found,) = compat(str(write_safetensors(tensors, {"ss_base_model_version": version})), program).verdicts
    assert found.verdict == SAME, found.says


# Programs of language models. Their own code ran on each of these files, and on the same without the key (2026-12-01):
# - vLLM 0.33.0: its config, names and loading, which expects the layers of a Llama;
# - SGLang 0.5.23: its config, loading, fusing and copy into the buffers of two blocks, with layers that slice nothing;
# - llama.cpp: its converter, of llama-cpp-python 0.3.36, on a Llama of transformers, and itself, of xllamacpp
#   2026.10.11549, on GGUF files;
# - mlx-lm 0.32.2: its `load_adapters` on its own Llama.
# All other modules of vLLM and SGLang were replaced by empty ones.
ROOT = "base_model.model."
BLOCK = f"{ROOT}model.layers.0"
# Keys that mean something to one of the programs.
OTHERS = {
    "alpha": f"{BLOCK}.self_attn.q_proj.alpha",
    "third layer": f"{BLOCK}.self_attn.k_proj.foo",
    "no layer": f"{BLOCK}.foo",
    "no root": "layers.0.foo",
    "behind a factor": f"{BLOCK}.self_attn.q_proj.lora_A.weight.foo",
    "copy": f"{BLOCK}.self_attn.q_proj.base_layer.weight",
    "norm's key": f"{BLOCK}.input_layernorm.foo",
    "norm's bias": f"{BLOCK}.input_layernorm.bias",
    "norm": f"{BLOCK}.input_layernorm.weight",
    "last norm": f"{ROOT}model.norm.weight",
    "stranger's norm": "stray.norm",
    "embedding": f"{ROOT}model.embed_tokens.weight",
    "head": f"{ROOT}lm_head.weight",
    "classifier": f"{ROOT}score.weight",
    "added tokens": f"{ROOT}stray.input_embeddings.weight",
}
KEYS = {
    **{
        place: key.format(
            module=f"{BLOCK}.self_attn.q_proj", prefix=ROOT, other=f"{ROOT}model.layers.7.self_attn.q_proj"
        )
        for place, key in PLACES.items()
    },
    **OTHERS,
}
# The keys with which each program loads the file as without them; all others it refuses.
LOADED = {
    "vllm": set(),
    "sglang": set(PLACES) - BEHIND - {"other module", "other module's weight"}
    | {"stranger's norm", "last norm", "embedding", "head", "classifier"},
    "llama-cpp": {"copy", "norm", "last norm"},
}
# Weights of the model, which PEFT loads in their place: a program that passes over them does something else.
OF_MODEL = {"norm", "last norm", "embedding", "head", "classifier"}


def written(key, write_safetensors, value=("F32", (2,), 1.0)):
    tensors = {key: value} if key else {}
    for leaf in ("q_proj", "k_proj", "v_proj", "o_proj"):
        tensors |= lora(f"{BLOCK}.self_attn.{leaf}", 4, None, 8, 8, "peft")
    file = write_safetensors(tensors, name="adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
    (file.parent / "adapter_config.json").write_text(json.dumps(config))
    return file.parent


@pytest.mark.parametrize("program", LOADED)
def test_the_file_itself_is_loaded(program, write_safetensors):
    assert compat(str(written("", write_safetensors)), program).verdicts[0].verdict == SAME


@pytest.mark.parametrize("place", KEYS)
@pytest.mark.parametrize("program", LOADED)
def test_in_folders_of_peft(program, place, write_safetensors):
    value = ("F32", (), 6.0) if place == "alpha" else ("F32", (2,), 1.0)
    (found,) = compat(str(written(KEYS[place], write_safetensors, value)), program).verdicts
    due = SAME if place in LOADED[program] else REFUSED
    # A classifier's head, which no language model has, may be loaded by vLLM where it serves a classifier.
    is_open = place in OF_MODEL and (due == SAME or (program, place) == ("vllm", "classifier"))
    assert found.verdict == (UNTESTED if is_open else due), found.says


IN_GGUF = {
    **{place: key.format(module="blk.0.attn_q", prefix="", other="blk.7.attn_q") for place, key in PLACES.items()},
    "behind a weight": "blk.0.attn_q.weight.scale",
    "norm's key": "blk.0.attn_norm.foo",
    "norm's bias": "blk.0.attn_norm.bias",
}


@pytest.mark.parametrize("place", IN_GGUF)
def test_in_files_of_llama_cpp(place, tmp_path):
    """llama.cpp itself refuses all but factors and weights of norms, which it leaves out."""
    tensors = {**pair("blk.0.attn_q", 8, 8, 2), IN_GGUF[place]: np.ones(2, np.float32)}
    (found,) = compat(write_adapter(tmp_path / "a.gguf", tensors), "llama-cpp").verdicts
    assert (found.verdict, IN_GGUF[place] in found.says) == (REFUSED, True)


# It loads them for every architecture in the same way, and Ollama hands it GGUF files as they are.
@pytest.mark.parametrize("program", ["llama-cpp", "ollama"])
@pytest.mark.parametrize("architecture", ["gpt2", "qwen3"])
def test_in_files_of_other_models(program, architecture, tmp_path):
    tensors = pair("blk.0.ffn_up", 8, 8, 2)
    for more, due in (({}, SAME), ({"stray.foo": np.ones(2, np.float32)}, REFUSED)):
        file = write_adapter(tmp_path / "a.gguf", {**tensors, **more}, architecture=architecture)
        assert compat(file, program).verdicts[0].verdict == due


@pytest.mark.parametrize("norm", ["blk.0.attn_norm.weight", "output_norm.weight"])
def test_norms_in_files_of_llama_cpp_are_left_out(norm, tmp_path):
    tensors = {**pair("blk.0.attn_q", 8, 8, 2), norm: np.ones(8, np.float32)}
    assert compat(write_adapter(tmp_path / "a.gguf", tensors), "llama-cpp").verdicts[0].verdict == UNTESTED


@pytest.mark.parametrize("place", [*PLACES, "no magnitude", "no factor"])
def test_in_mlx_lm(place, write_safetensors):
    module = "model.layers.0.self_attn.q_proj"
    more = {"no magnitude": "{module}.n", "no factor": "{module}.lora_c"}
    key = {**PLACES, **more}[place].format(module=module, prefix="model.", other=module.replace("0", "7"))
    factors = {f"{module}.lora_a": ("F32", (8, 2), 0.5), f"{module}.lora_b": ("F32", (2, 8), 0.25)}
    parameters = {"rank": 2, "scale": 2.5, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters}
    for tensors, due in ((factors, SAME), ({**factors, key: ("F32", (2,), 1.0)}, REFUSED)):
        file = write_safetensors(tensors, name="adapters.safetensors")
        (file.parent / "adapter_config.json").write_text(json.dumps(config))
        assert compat(str(file.parent), "mlx-lm").verdicts[0].verdict == due
