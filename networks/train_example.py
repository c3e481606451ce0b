"""Train a LoRA, an RS-LoRA and a DoRA on a tiny FLUX transformer, on the CPU, in well under a minute.

    python -m networks.train_example [--folder FOLDER] [--steps 120]

The model learns the outputs of another one with a low-rank change in its weights. Each adapter is saved into FOLDER
(the current one by default), described by `lora-inspect info`, and loaded into diffusers. The outputs of diffusers and
of the training are compared. In the names of diffusers the RS-LoRA scale is multiplied into the factors, as nothing
there could state it. Needs diffusers and peft, which the extra `example` installs.
"""

import argparse
import copy
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import torch
from torch import Tensor, nn

from . import lora_flux

# What trains with the adapter and loads it, peft behind the scenes of diffusers.
_PROGRAMS = ("diffusers", "peft")
RANK, ALPHA = 8, 8
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": "True"},
    "dora": {"use_dora": "True", "loraplus_lr_ratio": "4"},
}


def tiny_flux() -> nn.Module:
    """Return a FLUX transformer of one double and one single block, the same each time."""
    diffusers: Any = importlib.import_module("diffusers")
    torch.manual_seed(0)
    model: nn.Module = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    return model.requires_grad_(False).eval()


def batch() -> dict[str, Tensor]:
    """Return inputs of the model: sixteen image tokens and five of text."""
    return {
        "hidden_states": torch.randn(4, 16, 4),
        "encoder_hidden_states": torch.randn(4, 5, 16),
        "pooled_projections": torch.randn(4, 16),
        "timestep": torch.rand(4),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(5, 3),
        "guidance": torch.ones(4),
    }


def teacher_of(model: nn.Module) -> nn.Module:
    """Return a copy with rank-2 changes of the blocks' weights, as an adapter could make them."""
    teacher = copy.deepcopy(model)
    for name, layer in teacher.named_modules():
        if isinstance(layer, nn.Linear) and "transformer_blocks" in name and "norm" not in name:
            change = torch.randn(layer.out_features, 2) @ torch.randn(2, layer.in_features)
            layer.weight += change / layer.in_features**0.5
    return teacher


def train(kind: str, file: str, steps: int) -> tuple[float, float]:
    """Train an adapter of `kind`, write it to `file`, and return the first and the last loss."""
    model = tiny_flux()
    teacher = teacher_of(model)
    network = lora_flux.create_arch_network(1.0, RANK, ALPHA, None, None, model, **KINDS[kind])
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    groups, _ = network.prepare_optimizer_params(unet_lr=3e-3)
    optimizer = torch.optim.AdamW(groups)
    losses: list[float] = []
    for _ in _shown(f"Training {kind}", steps):
        inputs = batch()
        with torch.no_grad():
            target = teacher(**inputs).sample
        loss = nn.functional.mse_loss(model(**inputs).sample, target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    network.save_weights(file, torch.float32, {"ss_base_model_version": "flux1"})
    _compare_with_diffusers(model, file)
    few = max(1, steps // 10)
    return sum(losses[:few]) / few, sum(losses[-few:]) / few


def _compare_with_diffusers(trained: nn.Module, file: str) -> None:
    """Raise RuntimeError if diffusers' output of the file differs from that of the training."""
    from safetensors.torch import load_file

    loaded = tiny_flux()
    loaded.load_lora_adapter(load_file(file), prefix="transformer")  # type: ignore[operator]
    inputs = batch()
    with torch.no_grad():
        expected, found = trained(**inputs).sample, loaded(**inputs).sample
    difference = float((found - expected).abs().max() / expected.abs().max())
    if difference > 1e-4:
        raise RuntimeError(f"{file}: diffusers' output differs by {difference:.2g} of the largest entry")
    click.echo(f"{file}: loads in diffusers, whose output differs by {difference:.1g} of the largest entry")


def _shown(label: str, steps: int) -> Iterator[int]:
    """Yield the steps, with a progress bar if a person can see it."""
    if not sys.stderr.isatty():
        yield from range(steps)
        return
    with click.progressbar(range(steps), label=label, file=sys.stderr) as bar:
        yield from bar


def _check_programs() -> None:
    """Exit with a sentence if a program for the comparison is missing."""
    for name in _PROGRAMS:
        try:
            importlib.import_module(name)
        except ImportError as error:
            sys.exit(
                f"Error: the example needs {' and '.join(_PROGRAMS)}, but {name} cannot be imported ({error}); "
                'install the extra `example` with `pip install ".[example]"` in the folder of lora-inspect.'
            )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", default=os.curdir)
    parser.add_argument("--steps", type=int, default=120)
    arguments = parser.parse_args()
    _check_programs()
    for kind in KINDS:
        file = os.path.join(arguments.folder, f"example_{kind}.safetensors")
        first, last = train(kind, file, arguments.steps)
        click.echo(f"{file}: loss {first:.3g} to {last:.3g}")
        subprocess.run([sys.executable, "-m", "lora_inspect", "info", file], check=True)
        click.echo()


if __name__ == "__main__":
    main()
