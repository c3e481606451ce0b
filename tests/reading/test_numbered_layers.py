"""cloneofsimo's numbers are the layers of real models, walked as its program walks them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter

ATTENTION = ("CrossAttention", "Attention")
BOTH = ("GEGLU", *ATTENTION)
RANK = 2


def unet(order):
    """A tiny UNet with the blocks of Stable Diffusion 1.x, and its transformers' layers in the `order` of a version."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 16, 24, 32), norm_num_groups=4, attention_head_dim=2, cross_attention_dim=20,
        sample_size=8,
    )  # fmt: skip
    for module in model.modules():
        if type(module).__name__ == "BasicTransformerBlock":
            for name in order:
                module._modules[name] = module._modules.pop(name)
    return model


def text_encoder():
    import transformers

    config = transformers.CLIPTextConfig(
        hidden_size=12, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, vocab_size=9,
        max_position_embeddings=5,
    )  # fmt: skip
    torch.manual_seed(1)
    return transformers.CLIPTextModel(config)


def walked(model, classes):
    """The layers below modules of the classes, in the order in which they are registered."""
    found = {}
    for path, module in model.named_modules():
        if type(module).__name__ in classes:
            inner = module.named_modules(prefix=path)
            found |= {name: layer.weight for name, layer in inner if isinstance(layer, torch.nn.Linear)}
    return found


def saved(name, layers, classes, seed=2):
    """An adapter of the layers as the program saves it: (tensors, metadata, expected weights)."""
    generator = torch.Generator().manual_seed(seed)
    tensors, metadata, changed = {}, {name: json.dumps(list(classes))}, {}
    for number, (path, weight) in enumerate(layers.items()):
        up = torch.randn(weight.shape[0], RANK, generator=generator)
        down = torch.randn(RANK, weight.shape[1], generator=generator)
        tensors |= {f"{name}:{number}:up": up, f"{name}:{number}:down": down}
        metadata[f"{name}:{number}:rank"] = str(RANK)
        changed[f"{path}.weight"] = weight.double() + up.double() @ down.double()
    return tensors, metadata, changed


MODELS = {
    "unet": lambda: unet(("attn1", "attn2", "ff")),
    "unet of diffusers before 0.13": lambda: unet(("attn1", "ff", "attn2")),
    "text_encoder": text_encoder,
}
CLASSES = {"unet": (BOTH, ATTENTION, ("GEGLU",)), "text_encoder": (("CLIPAttention",),)}
CASES = [(model, classes) for model in MODELS for classes in CLASSES[model.split()[0]]]


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize(("model", "classes"), CASES, ids=str)
def test_every_number_is_the_layer_that_the_program_walks_to(model, classes, tmp_path, run):
    made, name = MODELS[model](), model.split()[0]
    tensors, metadata, changed = saved(name, walked(made, classes), classes)
    assert len(changed) == {"unet": 16 * 8 * (classes != ("GEGLU",)) + 16 * ("GEGLU" in classes)}.get(name, 12)
    save_file(tensors, tmp_path / "adapter.safetensors", metadata)
    record = run("info", tmp_path / "adapter.safetensors", "--json").json
    assert (record["kind"], record["scheme"], record["modules"]) == ("adapter", "cloneofsimo", len(changed))
    assert (record["scales"], record["unclaimed"], record["problems"]) == ({"1": len(changed)}, [], [])

    base = {key: value.contiguous() for key, value in made.state_dict().items()}
    save_file(base, tmp_path / "base.safetensors")
    out = tmp_path / "out.safetensors"
    ended = run("merge", tmp_path / "base.safetensors", tmp_path / "adapter.safetensors", "-o", out)
    assert ended.status == 0, ended.stderr
    merged = load_file(out)
    for key, value in base.items():
        if key in changed:
            torch.testing.assert_close(merged[key].double(), changed[key], rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(merged[key], value)


@pytest.mark.numeric
def test_convert_keeps_the_numbers_or_writes_names(tmp_path, run):
    made = unet(("attn1", "attn2", "ff"))
    tensors, metadata, changed = saved("unet", walked(made, BOTH), BOTH)
    adapter, out = tmp_path / "adapter.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, adapter, {**metadata, "ss_base_model_version": "sd_v1"})
    assert run("convert", adapter, "-o", out).status == 0
    assert all(torch.equal(value, tensors[key]) for key, value in load_file(out).items())
    assert run("convert", adapter, "-o", out, "--layout", "diffusers", "--force").status == 0
    named = load_file(out)
    assert run("info", out, "--json").json["scheme"] == "diffusers"
    for key, value in changed.items():
        path = key.removesuffix(".weight")
        found = named[f"unet.{path}.lora_B.weight"].double() @ named[f"unet.{path}.lora_A.weight"].double()
        weight = made.get_submodule(path).weight.double()
        torch.testing.assert_close(weight + found, value, rtol=1e-12, atol=1e-12)


def refusal(tmp_path, tensors, metadata):
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "own.safetensors", metadata)
    adapter = read_adapter(open_checkpoint(str(tmp_path / "own.safetensors")))
    (problem,) = (one for one in adapter.problems if one.code == "scheme-unknown")
    assert problem.severity == "error"
    assert "layers of text_encoder have numbers, as in files of cloneofsimo's lora" in problem.message
    assert not adapter.modules
    return problem.message


def test_what_does_not_tell_the_layers_is_refused_by_name(tmp_path):
    tensors, metadata, _ = saved("text_encoder", walked(text_encoder(), ("CLIPAttention",)), ("CLIPAttention",))

    def without(*keys):
        return {key: value for key, value in tensors.items() if key not in keys}

    gap = without("text_encoder:3:up", "text_encoder:3:down")
    assert "the numbers are not 0 to 10" in refusal(tmp_path, gap, metadata)
    assert "a layer has only text_encoder:3:down" in refusal(tmp_path, without("text_encoder:3:up"), metadata)
    odd = {**tensors, "text_encoder:3:up": torch.ones(5, RANK)}
    assert "their shapes match no known order" in refusal(tmp_path, odd, metadata)
    fewer = without("text_encoder:11:up", "text_encoder:11:down")
    assert "their shapes match no known order" in refusal(tmp_path, fewer, metadata)
    for said in ('["ResnetBlock2D", "CLIPAttention"]', '{"a": 1}', "[1]", "[", "[]"):
        assert "lora-inspect knows the order only for CLIPAttention" in refusal(
            tmp_path, tensors, {"text_encoder": said}
        )
    assert "name no classes" in refusal(tmp_path, tensors, None)


def test_a_convolution_is_not_taken_for_a_layer(tmp_path):
    tensors, metadata, _ = saved("text_encoder", walked(text_encoder(), ("CLIPAttention",)), ("CLIPAttention",))
    conv = {**tensors, "text_encoder:0:down": tensors["text_encoder:0:down"][:, :, None, None]}
    assert "their shapes match no known order" in refusal(tmp_path, conv, metadata)
