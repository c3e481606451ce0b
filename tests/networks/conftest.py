"""Independent float64 formulas, and the models that the tests adapt."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

# For devices that are not here torch keeps every seed with the stack of the call, at twice what seeding itself takes.
for device in (torch.cuda, torch.xpu):
    if not device.is_available():
        device.manual_seed_all = lambda seed: None

KINDS = ("lora", "rslora", "dora", "rslora+dora")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def options_of(kind: str) -> dict[str, bool]:
    """The keywords of a kind of module."""
    return {"use_rslora": "rslora" in kind, "use_dora": "dora" in kind.split("+")}


def oracle_weight(base: Tensor, module: Any, alpha: float, kind: str, multiplier: float = 1.0) -> Tensor:
    """The merged weight in float64, of the module's factors and the base weight as they are."""
    up, down = module.lora_up.weight.double(), module.lora_down.weight.double()
    rank = down.shape[0]
    scale = alpha / math.sqrt(rank) if "rslora" in kind else alpha / rank
    delta = torch.einsum("or,ri->oi", up.flatten(1), down.flatten(1)).view(base.shape)
    combined = base.double() + multiplier * scale * delta
    if "dora" not in kind.split("+"):
        return combined
    norms = torch.linalg.vector_norm(combined, dim=1, keepdim=True)
    return module.dora_layer.weight.double()[:, None] / norms * combined


def perturb(module: Any, strength: float = 0.03) -> None:
    """Factors and magnitude as after some training."""
    with torch.no_grad():
        for factor in module.factors:
            factor.up.weight.normal_(std=strength)
        if module.use_dora:
            module.dora_layer.weight.mul_(1 + 0.1 * torch.randn_like(module.dora_layer.weight))


@pytest.fixture
def reference() -> SimpleNamespace:
    return SimpleNamespace(weight=oracle_weight, options=options_of, perturb=perturb)


class Block(nn.Module):
    """A block with what networks have to tell apart: Linears, a modulation, convolutions with and without a kernel."""

    def __init__(self, features: int = 12) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"to_q": nn.Linear(features, features), "to_out": nn.Linear(features, features)})
        self.img_mod = nn.Linear(features, features)
        self.conv = nn.Conv2d(features, features, 3, padding=1)
        self.point = nn.Conv2d(features, features, 1)
        self.norm = nn.LayerNorm(features)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn["to_out"](torch.tanh(self.attn["to_q"](self.norm(x))) + self.img_mod(x))
        image = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], 2, -1)
        image = self.point(torch.tanh(self.conv(image)))
        return x + image.flatten(2).transpose(1, 2)


class Model(nn.Module):
    """Two blocks, and a Linear outside of them."""

    def __init__(self, features: int = 12) -> None:
        super().__init__()
        self.embed = nn.Linear(features, features)
        self.blocks = nn.ModuleList(Block(features) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.fixture
def make_model() -> Callable[..., Model]:
    def make(seed: int = 1) -> Model:
        torch.manual_seed(seed)
        return Model().requires_grad_(False).eval()

    return make


@pytest.fixture
def wan() -> Callable[[], nn.Module]:
    """diffusers' Wan in its smallest size, and what it takes."""
    import diffusers

    def make() -> nn.Module:
        torch.manual_seed(2)
        model = diffusers.WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            in_channels=4,
            out_channels=4,
            text_dim=16,
            freq_dim=16,
            ffn_dim=32,
            num_layers=2,
            rope_max_seq_len=32,
        )
        return model.requires_grad_(False).eval()

    return make


@pytest.fixture
def wan_input() -> dict[str, Tensor]:
    return {
        "hidden_states": torch.randn(1, 4, 2, 8, 8),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 7, 16),
    }
