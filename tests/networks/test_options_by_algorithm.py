"""Every option with every algorithm: it has an effect, or is refused, or a line in the log says that it has none.

Algorithms are the files of `networks` that serve every architecture, and LoRA. What is found has to be what the table
of docs/networks.md says.
"""

import importlib
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import networks
from networks import lora_sd15, lora_wan

FOLDER = Path(networks.__file__).parent
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "networks.md"
ALGORITHMS = {"lora": lora_wan} | {
    file.stem: importlib.import_module(f"networks.{file.stem}")
    for file in sorted(FOLDER.glob("*.py"))
    if "functions_of(" in file.read_text() and not file.stem.startswith("lora")
}

WORKS, REFUSED, TOLD, SAME = "works", "refused", "no effect, logged", "the same file"


class Case(NamedTuple):
    """An option with a value; `needed` are options without which it says nothing, `trainer_s` those of trainers."""

    value: str = ""
    needed: Mapping[str, str] = {}
    trainer_s: Mapping[str, Any] = {}


NO_KERNELS = {"exclude_patterns": "['.*(conv|point)']"}
CASES = {
    "network_dim": Case(trainer_s={"dim": 3}),
    "network_alpha": Case(trainer_s={"alpha": 5.0}),
    "network_dropout": Case(trainer_s={"dropout": 0.4}),
    "scale_weight_norms": Case(trainer_s={"norm": 0.01}),
    "use_rslora": Case("True"),
    "use_dora": Case("True"),
    "dora_conv": Case("True", {"use_dora": "True"}),
    "use_tlora": Case("True"),
    "tlora_min_rank": Case("2", {"use_tlora": "True"}, {"dim": 6}),
    "tlora_alpha": Case("3", {"use_tlora": "True"}, {"dim": 6}),
    "init_lora_weights=orthogonal": Case("orthogonal"),
    "init_lora_weights=pissa": Case("pissa", NO_KERNELS),
    "loraplus_lr_ratio": Case("4"),
    "loraplus_unet_lr_ratio": Case("4"),
    "loraplus_text_encoder_lr_ratio": Case("4", trainer_s={"encoder": True}),
    "ggpo_sigma": Case("0.5", {"ggpo_beta": "0"}),
    "ggpo_beta": Case("90", {"ggpo_sigma": "0"}),
    "dropout": Case("0.4"),
    "rank_dropout": Case("0.4"),
    "module_dropout": Case("0.99"),
    "conv_dim": Case("3"),
    "conv_alpha": Case("5"),
    "enable_conv2d": Case("False"),
    "rank_pattern": Case("{'.*proj': 3}"),
    "alpha_pattern": Case("{'.*proj': 5.0}"),
    "lr_pattern": Case("{'.*proj': 5e-5}"),
    "split_qkv": Case("True"),
    "split_dims": Case("{'.*qkv': [16, 32]}"),
    "exclude_patterns": Case("['.*proj']"),
    "include_patterns": Case("['.*proj']", {"exclude_patterns": "['.*(proj|conv)']"}),
    "save_format": Case("standard", {"use_rslora": "True"}),
    "verbose": Case("True"),
}


class CLIPMLP(nn.Module):
    """A text encoder of networks that sd-scripts knows, for the one option that is about those."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(48, 48)


class WanAttentionBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(48, 48), nn.Linear(48, 48, bias=False)
        self.conv, self.point = nn.Conv2d(48, 48, 3, padding=1), nn.Conv2d(48, 48, 1)

    def forward(self, x):
        x = self.proj(torch.tanh(self.qkv(x)))
        image = x.transpose(1, 2).unflatten(2, (2, -1))
        return self.point(torch.tanh(self.conv(image))).flatten(2).transpose(1, 2)


class Transformer2DModel(WanAttentionBlock):
    pass


def effects(module, options, log, folder, dim=2, alpha=3.0, dropout=None, norm=None, encoder=False, weights=None):
    """All that a network made with the options, or with them and `weights`, is seen to do."""
    torch.manual_seed(3)
    block = Transformer2DModel() if encoder else WanAttentionBlock()
    model, x = nn.Sequential(block).requires_grad_(False), torch.randn(2, 8, 48)
    encoders = [CLIPMLP()] if encoder else None
    if module is not lora_wan:
        options = {"architecture": "sd15" if encoder else "wan", **options}
    elif encoder:
        module = lora_sd15
    log.clear()
    if weights is None:
        network = module.create_arch_network(1.0, dim, alpha, None, encoders, model, neuron_dropout=dropout, **options)
    else:
        network = module.create_arch_network_from_weights(1.0, weights, encoders, model, **options)
    network.apply_to(encoders, model)
    seen = {"start": {key: tensor.clone() for key, tensor in network.state_dict().items()}}
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    groups, descriptions = network.prepare_optimizer_params(unet_lr=1e-3)
    seen["rates"] = [descriptions, [(group["lr"], len(group["params"])) for group in groups]]
    if norm is not None:
        network.apply_max_norm_regularization(norm)
    file = str(folder / "adapter.safetensors")
    network.save_weights(file, None, None)
    seen["file"] = load_file(file)
    network.eval()
    seen["output"] = {"": model(x)}
    network.train()
    network.set_timestep_mask([0.2, 0.7])
    if "ggpo_sigma" in options:
        model(x).square().sum().backward()
        network.update_grad_norms()
        network.update_norms()
    seen["step"] = {"": model(x)}
    seen["log"] = list(log.messages)
    return seen


def differ(one, other):
    if not isinstance(one, dict):
        return one != other
    return one.keys() != other.keys() or any(
        one[key].shape != other[key].shape or not torch.allclose(one[key], other[key], atol=1e-6) for key in one
    )


def outcome(algorithm, option, log, folder, weights=None):
    """What comes of the option with the algorithm; fails where that is nothing and nobody is told."""
    module, case = ALGORITHMS[algorithm], CASES[option]
    name = option.partition("=")[0]
    settings = {**case.trainer_s, "weights": weights}
    changed = {name: case.value} if case.value else {}
    plain_settings = settings if case.value else {"weights": weights}
    needed = dict(case.needed)
    try:
        plain = effects(module, needed, log, folder, **plain_settings)
    except ValueError as error:
        if name != "save_format":
            return refusal(error, algorithm, *needed)
        needed = {}
        plain = effects(module, needed, log, folder, **plain_settings)
    try:
        with_it = effects(module, needed | changed, log, folder, **settings)
    except ValueError as error:
        return refusal(error, algorithm, name)
    about = {"init_lora_weights": ["start"], "verbose": ["log"]}.get(name, ["rates", "file", "output", "step"])
    if any(differ(plain[kind], with_it[kind]) for kind in about):
        return WORKS
    if any(re.search(rf"\b{name}\b.*no effect", message) for message in with_it["log"]):
        return TOLD
    assert name == "save_format", f"{option} does nothing with {algorithm}, and nothing says so"
    return SAME


def refusal(error, algorithm, *names):
    message = str(error)
    assert "\n" not in message
    assert any(name.removeprefix("network_").removeprefix("use_") in message.lower() for name in names), message
    return REFUSED


def documented():
    """The cells of the table by algorithm and option."""
    section = DOCUMENTATION.read_text().partition("### Options and algorithms")[2].partition("\n#")[0]
    lines = section.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    head, _, *body = rows
    table = {}
    for names, *cells in body:
        for option in re.findall(r"`([^`]+)`", names):
            table |= {(title.lower(), option): cell for title, cell in zip(head[1:], cells, strict=True)}
    return table


@pytest.mark.parametrize("option", CASES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_option_works_or_says_why_not(algorithm, option, caplog, tmp_path):
    caplog.set_level("INFO")
    found = outcome(algorithm, option, caplog, tmp_path)
    assert documented()[algorithm, option] == found, "the table of docs/networks.md says otherwise"


@pytest.mark.slow
@pytest.mark.parametrize("option", [option for option, case in CASES.items() if case.value])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_option_beside_weights_works_or_says_why_not(algorithm, option, caplog, tmp_path):
    caplog.set_level("INFO")
    weights = effects(ALGORITHMS[algorithm], {}, caplog, tmp_path, **CASES[option].trainer_s)["file"]
    found = outcome(algorithm, option, caplog, tmp_path, weights)
    fresh = documented()[algorithm, option]
    # Weights have settled layers, ranks, alphas and starts; what is refused without them is so beside them.
    assert found in {WORKS: (WORKS, TOLD, REFUSED, SAME), REFUSED: (REFUSED, TOLD)}.get(fresh, (fresh, TOLD))


def test_the_table_has_every_option_and_algorithm():
    from networks.network_args import _OPTIONS

    assert {option.partition("=")[0] for option in CASES} >= set(_OPTIONS)
    assert documented().keys() == {(algorithm, option) for algorithm in ALGORITHMS for option in CASES}
