"""Sums of a fused layer and of its split parts, either way: the rows of Q, K and V below one another, in float64."""

import pytest
import torch
from dense_sums import ENDS, factors
from safetensors.torch import load_file, save_file

from lora_inspect import combine

SIZE = 12
FUSED = {"double_blocks.0.img_attn.qkv": (3 * SIZE, SIZE), "double_blocks.0.img_mlp.0": (20, SIZE)}
SPLIT = {f"transformer_blocks.0.attn.to_{part}": (SIZE, SIZE) for part in "qkv"}
SPLIT |= {"transformer_blocks.0.ff.net.0.proj": (20, SIZE)}
MODELS = {"flux": {"ss_base_model_version": "flux1"}}


def written(place, layers, seed, kind, flat):
    """A file, and the change of each layer by path; Q, K and V of split ones are those of `flat` names."""
    own, tensors, dense = factors(seed, 3, layers), {}, {}
    for path, (down, up) in own.items():
        name = f"lora_unet_{path.replace('.', '_')}" if flat else f"diffusion_model.{path}"
        dense[path] = up.double() @ down.double()
        if kind == "full":
            tensors[f"{name}.diff"] = (up @ down).contiguous()
            dense[path] = tensors[f"{name}.diff"].double()
        else:
            tensors |= dict(zip([name + end for end in ENDS["kohya"]], (down, up), strict=True))
            tensors[f"{name}.alpha"] = torch.tensor(1.5)
            dense[path] = 0.5 * dense[path]
    save_file(tensors, place, MODELS["flux"])
    return str(place), dense


def fused_of(dense):
    """The fused layers of split ones."""
    rows = [dense[f"transformer_blocks.0.attn.to_{part}"] for part in "qkv"]
    return dict(zip(FUSED, (torch.cat(rows), dense["transformer_blocks.0.ff.net.0.proj"]), strict=True))


def read(file, layers):
    tensors, found = load_file(file), {}
    for path in layers:
        name = f"lora_unet_{path.replace('.', '_')}"
        if f"{name}.diff" in tensors:
            found[path] = tensors[f"{name}.diff"].double()
            continue
        down, up = (tensors[name + end].double() for end in ENDS["kohya"])
        found[path] = float(tensors[f"{name}.alpha"]) / len(down) * up @ down
    return found


@pytest.mark.parametrize(
    "kinds", [("lora", "lora"), ("full", "lora"), ("lora", "full"), ("full", "full")], ids="-".join
)
@pytest.mark.parametrize("rule", [{}, {"rank": 4}, {"size": "12kB"}], ids=str)
@pytest.mark.parametrize("first", ["fused", "split"])
def test_rows_are_those_of_the_layer(first, rule, kinds, tmp_path):
    fused = written(tmp_path / "fused.safetensors", FUSED, 1, kinds[0], True)
    split = written(tmp_path / "split.safetensors", SPLIT, 2, kinds[1], True)
    named = [(fused[0], 0.7), (split[0], -1.5)]
    combine(named if first == "fused" else named[::-1], tmp_path / "out.safetensors", **rule)
    own = fused_of(split[1])
    meant = {path: 0.7 * fused[1][path] - 1.5 * own[path] for path in FUSED}
    if first == "split":
        parts = dict(zip([*SPLIT][:3], meant["double_blocks.0.img_attn.qkv"].split(SIZE), strict=True))
        meant = {**parts, "transformer_blocks.0.ff.net.0.proj": meant["double_blocks.0.img_mlp.0"]}
    found = read(tmp_path / "out.safetensors", meant)
    for path, value in meant.items():
        rank = len(
            load_file(tmp_path / "out.safetensors").get(f"lora_unet_{path.replace('.', '_')}.lora_down.weight", ())
        )
        best = float(torch.linalg.svdvals(value)[rank:].norm()) if rank else 0.0
        assert float((found[path] - value).norm()) == pytest.approx(best, rel=1e-5, abs=2e-6 * float(value.norm())), (
            path
        )
