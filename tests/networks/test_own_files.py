"""Files of our own LoHa, LoKr and OFT networks: `merge` and Python make of them what the network's forward makes."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[2]
ALGORITHMS = ("loha", "lokr", "oft")


@pytest.fixture(params=ALGORITHMS)
def trained(request, wan, wan_input, tmp_path):
    """The algorithm, its file, and what the trained model makes of the input."""
    module = importlib.import_module(f"lora_inspect.networks.{request.param}")
    model = wan()
    network = module.create_arch_network(1.0, 4, 2, None, None, model)
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    file = tmp_path / f"{request.param}.safetensors"
    # A trainer names the module, as sd-scripts has it for one of its own.
    network.save_weights(file, torch.float32, {"ss_network_module": f"networks.{request.param}"})
    return request.param, file, model(**wan_input).sample


def test_the_command_merges_what_the_network_trained(trained, wan, wan_input, run):
    _, file, expected = trained
    base, merged = file.with_name("base.safetensors"), file.with_name("merged.safetensors")
    model = wan()
    save_file({name: tensor.clone() for name, tensor in model.state_dict().items()}, base)
    assert not torch.allclose(model(**wan_input).sample, expected, atol=1e-2)
    assert run("merge", base, file, "-o", merged).status == 0
    model.load_state_dict(load_file(merged))
    assert torch.allclose(model(**wan_input).sample, expected, atol=1e-5)


def test_the_network_merges_it_in_python_as_it_is_documented(trained, wan, wan_input, monkeypatch):
    algorithm, file, expected = trained
    (code,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "networks_files.md").read_text(encoding="utf-8"), re.DOTALL
    )
    monkeypatch.chdir(file.parent)
    model = wan()
    assert not torch.allclose(model(**wan_input).sample, expected, atol=1e-2)
    written = code.replace("loha", algorithm).replace("0.8", "1.0")
    exec(compile(written, "networks_files.md", "exec"), {"model": model})
    assert torch.allclose(model(**wan_input).sample, expected, atol=1e-5)
