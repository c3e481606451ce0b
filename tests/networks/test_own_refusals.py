"""Files of our own LoHa and LoKr networks: what the commands say of them, and that the way which they name works."""

import importlib
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
ALGORITHMS = {"lokr": "LoKr"}


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
    network.save_weights(file, torch.float32, {})
    return request.param, file, model(**wan_input).sample


def test_the_way_out_that_is_named_is_the_network_that_wrote_the_file(trained, run, write_safetensors):
    algorithm, file, _ = trained
    base = write_safetensors({"blocks.0.attn1.to_q.weight": ("F32", (24, 24), 1)}, name="base.safetensors")
    for words in (["merge", base, file, "-o", "out"], ["convert", file, "-o", "out"]):
        sentence = run(*words).refusal
        assert sentence.startswith(f"{file}: {ALGORITHMS[algorithm]} is not built yet")
        assert sentence.endswith(
            f"merge it in Python with `merge_to` of lora_inspect.networks.{algorithm}, which trained it."
        )
    assert f"lora_inspect.networks.{algorithm}, which trained it" in run("info", file).stdout


def test_the_way_out_works_as_it_is_documented(trained, wan, wan_input, monkeypatch):
    algorithm, file, expected = trained
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "networks.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(file.parent)
    model = wan()
    assert not torch.allclose(model(**wan_input).sample, expected, atol=1e-2)
    written = code.replace("loha", algorithm).replace("0.8", "1.0")
    exec(compile(written, "networks.md", "exec"), {"model": model})
    assert torch.allclose(model(**wan_input).sample, expected, atol=1e-5)


@pytest.mark.parametrize("fixture", ["crepe-lycoris-lokr-conv"])
def test_files_of_other_programs_are_left_to_those(fixture, run, fixtures):
    file = fixtures / "refused" / fixture / "lycoris.safetensors"
    assert run("convert", file, "-o", "out").refusal.endswith("; merge it with the program that trained it.")
