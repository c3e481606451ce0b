"""The effect of one unknown key in a file, in every pipeline of diffusers that has a record.

diffusers 0.42.1 with PEFT 0.21.2 loads the files here: the whole `load_lora_weights` of each pipeline, on tiny models.
"""

import re

import pytest
import torch
from adapters import NAMES, PEFT, Names
from unknown_keys import BEHIND, OTHERS, PLACES, ROOTS

from lora_inspect.architectures import by_name
from lora_inspect.ops.compat import compat

pytestmark = pytest.mark.slow

SAME, REFUSED = "same meaning", "refused"
NOWHERE, ANYWHERE, IN_NO_MODEL = frozenset[str](), frozenset(PLACES), ROOTS | {"bare"}
OWN = (
    *("wan", "qwen_image", "z_image", "sdxl", "sd15", "sd2", "sd3", "flux2", "ltx2", "hunyuan_video", "framepack"),
    *("ideogram4", "kandinsky5", "krea2", "auraflow", "cosmos", "ltx_video", "hidream_i1", "anima", "lumina2"),
)
# Of each family the names, whether each layer has an alpha, and the places in which a key changes nothing.
CASES = [
    *((family, "diffusers", False, NOWHERE) for family in OWN),
    *((family, "diffusers", False, ANYWHERE) for family in ("flux", "chroma")),
    ("flux", "diffusers, down and up", False, ANYWHERE),
    *((family, "kohya", True, IN_NO_MODEL) for family in ("flux", "chroma")),
    ("flux", "comfyui, down and up", True, IN_NO_MODEL),
    ("flux", "onetrainer", True, NOWHERE),
    *((family, "kohya", True, NOWHERE) for family in ("wan", "qwen_image", "z_image", "sdxl", "sd15", "sd2")),
    ("sdxl", "kohya, diffusers", True, NOWHERE),
    *((family, "comfyui", False, NOWHERE) for family in ("wan", "qwen_image", "flux2", "hidream_i1", "anima")),
    ("z_image", "comfyui, diffusers", False, NOWHERE),
    ("wan", "comfyui, down and up", True, NOWHERE),
    *((family, "bare", True, NOWHERE) for family in ("qwen_image", "z_image")),
    ("flux2", "kohya", True, ANYWHERE),
    ("ltx2", "comfyui", False, IN_NO_MODEL),
    ("hunyuan_video", "diffusion-pipe", False, NOWHERE),
]
# The beginnings of the paths of a file's layers, if all are too many, or too wide as HunyuanVideo's single blocks.
LAYERS = {
    **dict.fromkeys(("hunyuan_video", "flux2", "flux", "chroma"), "transformer_blocks.0.attn."),
    "ltx2": "transformer_blocks.0.attn1.",
    **dict.fromkeys(("sdxl", "sd15", "sd2"), "mid_block."),
}
# One check decides for diffusers' own names: it asks for a word in every key.
FEW = ("two words", "stranger", "bare", "other module")


@pytest.mark.parametrize(("family", "names", "has_alpha", "places"), CASES, ids=[" ".join(case[:2]) for case in CASES])
def test_in_pipelines(family, names, has_alpha, places, tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    from adapter_files import adapter_file
    from diffusers_families import copied, load
    from diffusers_pipelines import loaded, network, weights
    from program_grid import Weight, observe
    from safetensors.torch import save_file

    monkeypatch.setitem(NAMES, "diffusion-pipe", Names("diffusion_model.", "original", False, PEFT))
    known, file = by_name(family), tmp_path / "adapter.safetensors"
    base = {path: own for path, own in weights(family).items() if path.startswith(LAYERS.get(family, ""))}
    made = adapter_file(family, names, "lora", has_alpha, base, says=(*known.metadata_names, "")[0])
    meant = {path: Weight(base[path].double(), weight) for path, weight in made.meant.items()}
    prefix = NAMES[names].prefix.format(pipeline=known.pipeline_name)
    keys, wrong, untouched = keys_of(made.tensors, prefix), [], copied(network(family))
    if names == "diffusers" and not places:
        keys = {place: keys[place] for place in FEW}

    def said_of(extra):
        tensors = {**made.tensors, **{key: torch.ones(2) for key in extra}}
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, made.metadata)
        (verdict,) = compat(str(file), "diffusers").verdicts
        return verdict.verdict

    for place, key in keys.items():
        if said_of([key]) != (SAME if place in places else REFUSED):
            wrong.append((place, "said"))
        if place not in places and not is_refused(load, family, {known.pipeline_name: untouched}, file):
            wrong.append((place, "seen"))
    assert wrong == []
    assert said_of([keys[place] for place in PLACES if place in places]) == SAME
    assert observe(meant, lambda: loaded(family, file)).verdict == SAME


QKV, PROJ = "double_blocks.0.processor.qkv_lora1", "double_blocks.0.processor.proj_lora1"
# It takes each key with this name for a factor of the fused layer.
OF_XLABS = {
    QKV: frozenset(PLACES) - {*BEHIND, *OTHERS},
    PROJ: ANYWHERE,
}


@pytest.mark.parametrize("module", OF_XLABS)
def test_in_the_names_of_xlabs(module, tmp_path):
    pytest.importorskip("diffusers")
    from diffusers_families import copied, load
    from diffusers_pipelines import loaded, network, weights
    from program_grid import Weight, observe
    from safetensors.torch import save_file

    numbers, base, file = torch.Generator().manual_seed(3), weights("flux"), tmp_path / "adapter.safetensors"
    parts = {
        QKV: [f"transformer_blocks.0.attn.to_{one}" for one in "qkv"],
        PROJ: ["transformer_blocks.0.attn.to_out.0"],
    }
    tensors, meant = {}, {}
    for name, paths in parts.items():
        own = torch.cat([base[path] for path in paths]).double()
        down, up = torch.randn(4, own.shape[1], generator=numbers), torch.randn(len(own), 4, generator=numbers)
        tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
        changed = (own + up.double() @ down.double()).chunk(len(paths))
        meant |= {path: Weight(base[path].double(), value) for path, value in zip(paths, changed, strict=True)}
    keys = {
        place: key.format(module=module, prefix="", other=module.replace("0", "7", 1)) for place, key in PLACES.items()
    }
    keys |= {"block": "double_blocks.foo", "fused": "stray_qkv.foo"}
    for place, key in keys.items():
        save_file({**tensors, key: torch.ones(2)}, file)
        (said,) = compat(str(file), "diffusers").verdicts
        is_same = place in OF_XLABS[module]
        assert said.verdict == (SAME if is_same else REFUSED), (key, said.says)
        assert is_same or is_refused(load, "flux", {"transformer": copied(network("flux"))}, file), key
    save_file({**tensors, **{keys[place]: torch.ones(2) for place in OF_XLABS[module]}}, file)
    assert observe(meant, lambda: loaded("flux", file)).verdict == SAME


def keys_of(tensors, prefix):
    """Return a key for each place, with the first numbered layer of the file as its module."""
    layers = [key.rpartition(".lora_")[0] for key in tensors if ".lora_" in key]
    module = next(layer for layer in layers if re.search(r"[._]\d+[._]", layer))
    other = re.sub(r"(?<=[._])\d+(?=[._])", "7", module, count=1)
    return {place: key.format(module=module, prefix=prefix, other=other) for place, key in PLACES.items()}


def is_refused(load, *arguments):
    """Return True if the pipeline raises an error."""
    try:
        load(*arguments)
    except (ValueError, KeyError, IndexError, AttributeError, AssertionError, NotImplementedError):
        return True
    return False
