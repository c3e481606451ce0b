"""`adapt` in the models of torch and of transformers, whose blocks and layers are their own."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from networks import adapt


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(5))


def is_untouched(model: nn.Module) -> bool:
    return not any("forward" in vars(module) or module._forward_pre_hooks for module in model.modules())


def encoder(layers: int = 2) -> nn.TransformerEncoder:
    torch.manual_seed(3)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, layers).eval()


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_torch_s_encoder_calls_its_adapters_in_evaluation_mode(padded, grad, x):
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if padded else None
    model = encoder()
    network = adapt(model, rank=2)
    with torch.no_grad():
        for lora in network.unet_loras:
            lora.lora_up.weight.normal_()
    model.train()
    expected = model(x, src_key_padding_mask=mask)
    model.eval()
    with torch.set_grad_enabled(grad):
        found = model(x, src_key_padding_mask=mask)
    kept = slice(None) if mask is None else ~mask
    torch.testing.assert_close(found[kept], expected[kept])
    assert found.requires_grad == grad


def test_torch_s_encoder_is_as_fast_as_before_when_the_network_is_removed(x):
    model = encoder()
    adapt(model, rank=2).remove()
    assert is_untouched(model)
    assert model.use_nested_tensor


@pytest.mark.parametrize("first", [0, 1])
def test_an_encoder_packs_no_samples_before_the_last_of_two_networks_is_removed(first, x):
    model, mask = encoder(), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    base = model(x)
    networks = [adapt(model, f".*linear{number}", rank=2) for number in (1, 2)]
    networks.pop(first).remove()
    with torch.no_grad():
        torch.testing.assert_close(model(x, src_key_padding_mask=mask)[0], base[0])
    assert not model.use_nested_tensor
    networks.pop().remove()
    assert is_untouched(model)
    assert model.use_nested_tensor


def test_a_copy_of_a_network_has_the_blocks_of_the_same_model(x):
    model = encoder()
    network = adapt(model, rank=2)
    averaged = copy.deepcopy(network)
    assert averaged.fast_paths.blocks == network.fast_paths.blocks
    network.remove()
    averaged.apply_to(None, model)
    with torch.no_grad():
        for lora in averaged.unet_loras:
            lora.lora_up.weight.normal_()
        adapted = model(x)
        averaged.set_enabled(False)
        assert not torch.equal(model(x), adapted)
    averaged.remove()
    assert is_untouched(model)


def language_model(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    ends = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1}
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, **ends)).eval()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **ends)).eval()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT reads it of any model
@pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning")  # PEFT sees by itself how a Conv1D stores its weight
@pytest.mark.parametrize(
    ("kind", "targets", "options"),
    [
        ("llama", "LlamaAttention", {"alpha": 8}),
        ("llama", "LlamaAttention", {"alpha": 8, "rslora": True}),
        ("llama", ["LlamaAttention", "LlamaMLP"], {"dora": True}),
        ("gpt2", "GPT2Attention", {"alpha": 8}),
        ("gpt2", "GPT2Block", {"alpha": 8, "rslora": True}),
    ],
)
def test_peft_and_merge_make_the_same_of_a_language_model(kind, targets, options, run, tmp_path):
    peft = pytest.importorskip("peft")
    model, tokens = language_model(kind), torch.randint(0, 100, (2, 8))
    base = model(tokens).logits
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, tmp_path / "base.safetensors")
    network = adapt(model, targets, rank=4, **options)
    optimizer = torch.optim.AdamW(network.get_trainable_params(), lr=1e-2)
    for _ in range(5):
        loss = model(tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.save_weights(tmp_path / "trained.safetensors")
    assert run("convert", tmp_path / "trained.safetensors", "--to", "peft", "-o", tmp_path / "peft").status == 0
    merged = tmp_path / "merged.safetensors"
    assert run("merge", tmp_path / "base.safetensors", tmp_path / "trained.safetensors", "-o", merged).status == 0
    plain = language_model(kind)
    plain.load_state_dict(load_file(merged))
    with torch.no_grad():
        trained = model(tokens).logits
        assert (trained - base).abs().max() > 0.1
        found = peft.PeftModel.from_pretrained(language_model(kind), tmp_path / "peft")(tokens).logits
        torch.testing.assert_close(found, trained, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(plain(tokens).logits, trained, atol=1e-4, rtol=1e-4)


class Conv1D(nn.Module):
    """As transformers has it: a Linear layer whose weight is (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def test_a_transposed_linear_is_adapted_by_lora_alone(caplog):
    model = nn.Sequential(Conv1D(6, 8))
    with caplog.at_level("INFO"):
        network = adapt(model, rank=2, alpha=6, dora=True)
    [lora] = network.unet_loras
    assert "DoRA enabled on 0 modules, disabled on: 1 non-Linear" in caplog.text
    with torch.no_grad():
        lora.lora_up.weight.normal_()
    x = torch.randn(3, 8)
    down, up = lora.lora_down.weight, lora.lora_up.weight
    torch.testing.assert_close(model(x), x @ model[0].weight + 3 * (x @ down.T) @ up.T)
    for options in ({"algorithm": "loha"}, {"algorithm": "lokr"}, {"algorithm": "oft"}, {"init_lora_weights": "pissa"}):
        with pytest.raises(ValueError, match="Conv1D"):
            adapt(nn.Sequential(Conv1D(6, 8)), **options)
