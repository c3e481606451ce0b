"""Bases with Conv1D layers, Linear layers under their names, and both: against PEFT's own merges, and in float64."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

pytestmark = [
    pytest.mark.numeric,
    pytest.mark.filterwarnings(
        "ignore:fan_in_fan_out is set to:UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"
    ),
]

GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 32, "n_positions": 8}
IDS = {"bos_token_id": 0, "eos_token_id": 1}


def gpt2(**options):
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(**GPT2, **IDS, **options))


def big_code(multi_query):
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

    return GPTBigCodeForCausalLM(GPTBigCodeConfig(multi_query=multi_query, **GPT2, **IDS))


def gpt_neo():
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    kinds = [[["global"], 1]]
    return GPTNeoForCausalLM(GPTNeoConfig(max_position_embeddings=8, attention_types=kinds, **sizes, **IDS))


def image_gpt():
    from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling

    return ImageGPTForCausalImageModeling(ImageGPTConfig(**GPT2))


def openai_gpt():
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    return OpenAIGPTLMHeadModel(OpenAIGPTConfig(**GPT2))


ALL = ["c_attn", "c_proj", "c_fc"]
# model, targets, how many of the weights are stored as (in, out)
MODELS = {
    "GPT-2": (gpt2, ALL, 4),
    "GPT-2's square layer alone": (gpt2, ["attn.c_proj"], 1),
    "GPT-2 with cross attention": (lambda: gpt2(add_cross_attention=True), ["c_attn", "q_attn", "c_proj"], 6),
    "BigCode, multi-query": (lambda: big_code(True), ALL, 0),
    "BigCode, multi-head": (lambda: big_code(False), ALL, 0),
    "BigCode's square layer alone": (lambda: big_code(True), ["attn.c_proj"], 0),
    "GPT-Neo": (gpt_neo, ["q_proj", "out_proj", "c_fc", "c_proj"], 0),
    "GPT-Neo's MLP alone": (gpt_neo, ["c_fc", "c_proj"], 0),
    "ImageGPT": (image_gpt, ALL, 4),
    "OpenAI GPT": (openai_gpt, ALL, 4),
}


def train(model, targets, folder: Path, **options):
    """A base folder and a PEFT adapter of it, and the weights that PEFT merges."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    (folder / "base").mkdir()
    weights = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    weights.pop("lm_head.weight", None)
    save_file(weights, folder / "base" / "model.safetensors")
    config = LoraConfig(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False, **options)
    peft = get_peft_model(model, config)
    for name, parameter in peft.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.1 * torch.rand_like(parameter)
    peft.save_pretrained(folder / "adapter")
    return weights, peft.merge_and_unload().state_dict()


def config_says(folder: Path, flag: bool):
    path = folder / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fan_in_fan_out": flag}))


def merged(folder: Path, **options):
    plan = plan_merge(
        str(folder / "base" / "model.safetensors"), [(str(folder / "adapter"), 1.0)], MergeOptions(**options)
    )
    merge(plan, str(folder / "merged.safetensors"), force=True)
    return plan, load_file(folder / "merged.safetensors")


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize(("make", "targets", "transposed"), MODELS.values(), ids=MODELS)
def test_equals_peft_on_every_kind_of_layer(make, targets, transposed, use_dora, tmp_path):
    base, expected = train(make(), targets, tmp_path, use_dora=use_dora)
    plan, found = merged(tmp_path)
    assert sum(item.transposed for item in plan.orientations.values()) == transposed
    assert plan.folds
    for name in plan.folds:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(found[name], base[name], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("make", [gpt2, lambda: big_code(True)], ids=["GPT-2", "BigCode"])
@pytest.mark.parametrize("flag", [False, True])
def test_a_wrong_flag_in_the_config_changes_nothing_where_siblings_know_better(flag, make, use_dora, tmp_path):
    _, expected = train(make(), ALL, tmp_path, use_dora=use_dora)
    config_says(tmp_path, flag)
    plan, found = merged(tmp_path)
    assert {item.source for item in plan.orientations.values()} == {"shape", "siblings"}
    for name in plan.folds:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_a_wrong_flag_that_nothing_corrects_is_refused_and_the_option_settles_it(tmp_path):
    _, expected = train(gpt_neo(), ["q_proj", "out_proj", "c_fc"], tmp_path)
    config_says(tmp_path, True)
    with pytest.raises(LoraInspectError, match=r"_proj\.weight .*--transposed no or --transposed yes"):
        merged(tmp_path)
    plan, found = merged(tmp_path, transposed={"*": False})
    for name in plan.folds:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


def mixed(order, wide):
    """A model of a square Linear and a square Conv1D, with or without a Conv1D that is not square."""
    from transformers.pytorch_utils import Conv1D

    class Mixed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = {}
            for name in order:
                self.add_module(name, {"linear": torch.nn.Linear, "conv": Conv1D}[name](8, 8))
            if wide:
                self.wide = Conv1D(12, 8)

        def forward(self, x):
            return x

    return Mixed()


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("order", [("linear", "conv"), ("conv", "linear")])
def test_a_square_linear_beside_a_square_conv1d_is_never_merged_wrongly_in_silence(order, wide, tmp_path):
    _, expected = train(mixed(order, wide), list(order), tmp_path)
    with pytest.raises(LoraInspectError, match=r"conv\.weight .*is square, .*--transposed"):
        merged(tmp_path)
    _, found = merged(tmp_path, transposed={"conv": True, "linear": False})
    for name in ("conv.weight", "linear.weight"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_square_linear_layers_alone_need_no_option(tmp_path):
    class Layers(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = {}
            self.fc1, self.fc2, self.fc3 = (torch.nn.Linear(8, 8) for _ in range(3))

        def forward(self, x):
            return x

    _, expected = train(Layers(), ["fc1", "fc2", "fc3"], tmp_path)
    plan, found = merged(tmp_path)
    assert len(plan.folds) == 3
    for name in plan.folds:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("axis", ["output", "input"])
@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 8)])
def test_dora_on_a_transposed_weight_follows_the_formula_on_both_axes(shape, axis, tmp_path):
    """W' = m V / |V| with V = W + 1.5 B A in the layer's own (out, in), whichever way W is stored."""
    generator = torch.Generator().manual_seed(0)
    out, inputs = shape
    weight, up = torch.randn(out, inputs, generator=generator), torch.randn(out, 2, generator=generator)
    down = torch.randn(2, inputs, generator=generator)
    magnitude = 1 + torch.rand((out, 1) if axis == "output" else (1, inputs), generator=generator)
    # c_fc is a sibling by name, whose bias tells that its (in, out) is (5, 7).
    base = {"h.0.c_proj.weight": weight.t().contiguous(), "h.1.c_proj.weight": torch.ones(5, 7)}
    save_file(base | {"h.1.c_proj.bias": torch.ones(7)}, tmp_path / "base.safetensors")
    names = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(3.0), "dora_scale": magnitude}
    save_file({f"h.0.c_proj.{name}": tensor for name, tensor in names.items()}, tmp_path / "adapter.safetensors")
    plan = plan_merge(
        str(tmp_path / "base.safetensors"), [(str(tmp_path / "adapter.safetensors"), 1.0)], MergeOptions()
    )
    merge(plan, str(tmp_path / "out.safetensors"))
    found = load_file(tmp_path / "out.safetensors")["h.0.c_proj.weight"].t().double()
    combined = weight.double() + 1.5 * up.double() @ down.double()
    norm = combined.norm(dim=1 if axis == "output" else 0, keepdim=True)
    torch.testing.assert_close(found, magnitude.double() * combined / (norm + 2.0**-23), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [(2, 3, 5), (4, 3, 3)])
def test_slices_of_a_transposed_weight_land_on_their_columns(rows, tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 10, generator=generator)  # (in, out)
    parts = [(torch.randn(2, 6, generator=generator), torch.randn(count, 2, generator=generator)) for count in rows]
    save_file({"a.qkv.weight": base}, tmp_path / "base.safetensors")
    tensors = {"lora_unet_a_qkv.alpha": torch.tensor(1.0)}
    for number, (down, up) in enumerate(parts):
        tensors[f"lora_unet_a_qkv.lora_down.{number}.weight"] = down
        tensors[f"lora_unet_a_qkv.lora_up.{number}.weight"] = up
    save_file(tensors, tmp_path / "adapter.safetensors")
    plan = plan_merge(
        str(tmp_path / "base.safetensors"), [(str(tmp_path / "adapter.safetensors"), 2.0)], MergeOptions()
    )
    merge(plan, str(tmp_path / "out.safetensors"))
    found = load_file(tmp_path / "out.safetensors")["a.qkv.weight"]
    delta = torch.cat([2.0 * 0.5 * up.double() @ down.double() for down, up in parts])
    torch.testing.assert_close(found.double(), base.double() + delta.t(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("make", [gpt2, lambda: big_code(True)], ids=["GPT-2", "BigCode"])
def test_convert_with_a_base_takes_the_orientation_that_merge_takes(make, flag, tmp_path):
    """The whole change of a DoRA module at full rank, against PEFT's own merge."""
    base, expected = train(make(), ALL, tmp_path, use_dora=True)
    config_says(tmp_path, flag)
    options = ConvertOptions(base=str(tmp_path / "base" / "model.safetensors"), max_error=0.0)
    convert_to_standard(str(tmp_path / "adapter"), str(tmp_path / "out"), options)
    out = tmp_path / "out"
    tensors = load_file(out / "adapter_model.safetensors" if out.is_dir() else out)
    stored_transposed = make is gpt2
    checked = 0
    for leaf in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        name = f"transformer.h.0.{leaf}.weight"
        keys = {end: next(key for key in tensors if f"h.0.{leaf}." in key and end in key.replace("lora_A", "lora_down")
                          .replace("lora_B", "lora_up")) for end in ("lora_down", "lora_up")}  # fmt: skip
        delta = tensors[keys["lora_up"]].double() @ tensors[keys["lora_down"]].double()  # scale 1: alpha is the rank
        change = expected[name].double() - base[name].double()
        change = change.t() if stored_transposed else change
        assert (delta - change).norm() <= 1e-4 * change.norm()
        checked += 1
    assert checked == 4


def test_convert_has_the_option_that_its_refusal_names(run, tmp_path):
    train(gpt_neo(), ["out_proj"], tmp_path, use_dora=True)
    config_says(tmp_path, True)
    command = "convert", tmp_path / "adapter", "-o", tmp_path / "out", "--base", tmp_path / "base", "--rank", "16"
    assert "--transposed no or --transposed yes" in run(*command).refusal
    assert run(*command, "--transposed", "no").status == 0
