"""convert --to, loaded by the real libraries: every key, and the layers that a merge of the input makes."""

import json

import pytest
import torch
from adapter_files import factors_of, layout_of, rotated, save, shapes_in, write
from adapters import NAMES, dotted, kohya
from diffusers_cases import distance
from diffusers_families import (
    COMPONENTS,
    adapted,
    copied,
    layers,
    load,
    merged_into,
    model,
    outputs,
    says,
    text_encoder,
)
from loaders import LIBRARIES, adapter_parameters, tensors_in
from safetensors.torch import save_file

from lora_inspect.architectures import by_name

pytestmark = [pytest.mark.numeric, pytest.mark.slow]

SCHEMES = ("kohya", "comfyui", "peft", "onetrainer", "diffusers")
CASES = [
    (name, *case)
    for name, library in LIBRARIES.items()
    for case in rotated(library.families, SCHEMES, 3 if name == "diffusers" else 2)
]


@pytest.mark.parametrize(("target", "family", "scheme", "kind"), CASES)
def test_every_layer_of_a_model(target, family, scheme, kind, run, tmp_path):
    plain, library = model(family), LIBRARIES[target]
    shapes = adapted(plain)
    file = write(scheme, family, shapes, kind, tmp_path / "in", says(family))
    save_file(plain.state_dict(), tmp_path / "base.safetensors", says(family))
    out, options = tmp_path / f"out{library.suffix}", library.options if kind == "dora" else ()
    for command in (
        ("convert", file, "--to", target, *options, "-o", out),
        ("merge", tmp_path / "base.safetensors", file, "-o", tmp_path / "merged.safetensors"),
    ):
        ended = run(*command)
        assert ended.status == 0, ended.stderr
    meant, loaded = model(family), model(family)
    merged_into(meant, tmp_path / "merged.safetensors")
    # diffusers puts the alphas of names that it renames into the factors.
    factors = [key for key in tensors_in(out) if target != "diffusers" or not key.endswith(".alpha")]
    assert library.load(family, loaded, out) == len(factors) > 0
    before, after = outputs(plain, layers(plain)), outputs(meant, layers(meant))
    assert distance(outputs(loaded, layers(plain)), after) < 1e-5
    assert all(distance({path: before[path]}, {path: after[path]}) > 1e-3 for path in shapes)


@pytest.mark.parametrize("target", ["diffusers", "peft"])
@pytest.mark.parametrize(("family", "scheme"), [("flux", "diffusers"), ("wan", "peft"), ("sd3", "kohya")])
def test_biases_of_up_layers(family, scheme, target, run, tmp_path):
    """Each with the scale of its own module, which goes elsewhere in every one of these names."""
    plain, library = model(family), LIBRARIES[target]
    shapes = {path: shape for path, shape in adapted(plain).items() if layers(plain)[path].bias is not None}
    names = NAMES[scheme]
    adapter = factors_of(shapes_in(layout_of(family, scheme), family, shapes))
    pipeline = by_name(family).pipeline_name
    tensors = names.tensors(adapter, pipeline)
    suffix = names.spelling.up.removesuffix("weight") + "bias"
    for path, own in adapter.items():
        tensors[names.module(path, pipeline) + suffix] = torch.randn(len(own.up))
    file = save(scheme, adapter, tensors, "lora", tmp_path / "in", says(family))
    if scheme == "peft":
        config = file / "adapter_config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "lora_bias": True}))
    save_file(plain.state_dict(), tmp_path / "base.safetensors", says(family))
    out = tmp_path / f"out{library.suffix}"
    for command in (
        ("convert", file, "--to", target, "-o", out),
        ("merge", tmp_path / "base.safetensors", file, "-o", tmp_path / "merged.safetensors"),
    ):
        ended = run(*command)
        assert ended.status == 0, ended.stderr
    meant, loaded = model(family), model(family)
    merged_into(meant, tmp_path / "merged.safetensors")
    assert library.load(family, loaded, out) == len(tensors_in(out)) == 3 * len(shapes)
    assert distance(outputs(loaded, shapes), outputs(meant, shapes)) < 1e-5
    assert all(not torch.equal(layers(plain)[path].bias, layers(meant)[path].bias) for path in shapes)


# A fused layer that sd-scripts saves in slices, and the layers of diffusers that they are.
SLICED = {
    "lora_unet_double_blocks_0_txt_attn_qkv": [
        f"transformer_blocks.0.attn.add_{part}_proj" for part in ("q", "k", "v")
    ],
    "lora_unet_single_blocks_0_linear1": [
        f"single_transformer_blocks.0.{part}" for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ],
}


@pytest.mark.parametrize("target", LIBRARIES)
def test_slices_of_a_fused_layer(target, run, tmp_path):
    meant, loaded, library = model("flux"), model("flux"), LIBRARIES[target]
    numbers, tensors, rank = torch.Generator().manual_seed(4), {}, 2
    for alpha, (name, paths) in enumerate(SLICED.items(), 3):
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha))
        for number, path in enumerate(paths):
            weight = layers(meant)[path].weight
            down = torch.randn((rank, weight.shape[1]), generator=numbers)
            up = 0.1 * torch.randn((weight.shape[0], rank), generator=numbers)
            tensors |= {f"{name}.lora_down.{number}.weight": down, f"{name}.lora_up.{number}.weight": up}
            weight.add_(alpha / rank * up @ down)
    save_file(tensors, tmp_path / "in.safetensors", says("flux"))
    out = tmp_path / f"out{library.suffix}"
    ended = run("convert", tmp_path / "in.safetensors", "--to", target, "-o", out)
    assert ended.status == 0, ended.stderr
    assert library.load("flux", loaded, out) == len(tensors_in(out)) > 0
    assert distance(outputs(loaded, layers(meant)), outputs(meant, layers(meant))) < 1e-5


# The CLIP encoders whose adapters the pipelines of diffusers read, and what files call them.
ENCODERS = {"sd15": 1, "sdxl": 2, "sd3": 2, "flux": 1}
PREFIXES = {
    "kohya": (kohya, "lora_unet_", ("lora_te1_", "lora_te2_")),
    "onetrainer": (kohya, "lora_{pipeline}_", ("lora_te1_", "lora_te2_")),
    "diffusers": (dotted, "{pipeline}.", ("text_encoder.", "text_encoder_2.")),
    "comfyui": (dotted, "diffusion_model.", ("text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer.")),
}


@pytest.fixture
def any_peft(monkeypatch):
    """transformers asks for a later PEFT than the one that diffusers is tested with; the loading itself is the same."""
    import transformers.integrations.peft as integration

    monkeypatch.setattr(integration, "check_peft_version", lambda *_, **__: None)


@pytest.mark.parametrize("scheme", PREFIXES)
@pytest.mark.parametrize("family", ENCODERS)
def test_text_encoders_beside_the_model(family, scheme, run, tmp_path, any_peft):
    spell, of_model, of_encoders = PREFIXES[scheme]
    pipeline = by_name(family).pipeline_name
    fresh = {pipeline: model(family)}
    fresh |= {name: text_encoder(at) for at, name in zip(range(ENCODERS[family]), COMPONENTS, strict=False)}
    tensors = {}
    for (component, network), prefix in zip(fresh.items(), (of_model, *of_encoders), strict=False):
        shapes = adapted(network)
        if component == pipeline:
            shapes = shapes_in(layout_of(family, scheme), family, dict(list(shapes.items())[:20]))
        tensors |= spell(prefix.format(pipeline=pipeline), factors_of(shapes, seed=len(tensors)))
    file = tmp_path / "in.safetensors"
    if (family, scheme) == ("sd15", "kohya"):
        tensors = {name.replace("lora_te1_", "lora_te_"): value for name, value in tensors.items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, file, says(family))
    ended = run("convert", file, "--to", "diffusers", "-o", tmp_path / "out.safetensors")
    assert ended.status == 0, ended.stderr
    loaded = {component: copied(network) for component, network in fresh.items()}
    load(family, loaded, tmp_path / "out.safetensors")
    assert sum(map(adapter_parameters, loaded.values())) == len(tensors_in(tmp_path / "out.safetensors"))
    for component, network in fresh.items():
        only = "model" if component == pipeline else component
        save_file(network.state_dict(), tmp_path / "base.safetensors", says(family) if only == "model" else None)
        merged = tmp_path / f"{component}.safetensors"
        ended = run("merge", tmp_path / "base.safetensors", file, "--only", only, "-o", merged)
        assert ended.status == 0, ended.stderr
        before = outputs(network, layers(network))
        merged_into(network, merged)
        after = outputs(network, layers(network))
        assert distance(outputs(loaded[component], after), after) < 1e-5
        assert distance(before, after) > 1e-3
