"""The training network on a GPU: its losses, its kernels next to PEFT's, and a merge, each against the processor.

    python benchmarks/gpu.py [--device cuda] [--rounds 15]

Prints two tables of Markdown:
- Trainings with one seed on the device and on the processor, both in float32 without TF32, and the merges of their
  factors. The losses may differ by 1e-3 of their size. The merged weights may differ by 1e-4 of the largest change.
- The table of `train_step.py`, with the time of steps on the device and PEFT's steps in the same rounds.

Exits with 1 where a bound is exceeded.
"""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import torch
import train_step
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

STEPS, RANK, ALPHA, WIDTH = 20, 8, 4.0, 256
LOSS_BOUND, MERGE_BOUND = 1e-3, 1e-4
# A module of the training network, and its options.
NETWORKS: dict[str, tuple[str, dict[str, str]]] = {
    "LoRA": ("lora_wan", {}),
    "RS-LoRA": ("lora_wan", {"use_rslora": "true"}),
    "DoRA": ("lora_wan", {"use_dora": "true"}),
    "LoHa": ("loha", {"architecture": "wan"}),
    "LoKr": ("lokr", {"architecture": "wan"}),
    "OFT": ("oft", {"architecture": "wan"}),
}


class WanAttentionBlock(nn.Module):
    """Two layers that the network finds by the class's name."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, input: Tensor) -> Tensor:
        found: Tensor = input + self.o(nn.functional.silu(self.q(input)))
        return found


def drawn(seed: int, *shape: int) -> Tensor:
    """Return the same numbers for every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tiny_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(WanAttentionBlock(), WanAttentionBlock()).requires_grad_(False)


def module_of(kind: str) -> Any:
    return importlib.import_module(f"networks.{NETWORKS[kind][0]}")


def train(kind: str, device: str) -> tuple[list[float], dict[str, Tensor]]:
    """Train a network on `device` from the same factors and data as on any other; return its losses and its tensors."""
    model, teacher = tiny_model(), tiny_model()
    for number, weight in enumerate(teacher.parameters()):
        if weight.dim() > 1:
            weight += drawn(100 + number, len(weight), 2) @ drawn(200 + number, 2, weight.shape[1]) / WIDTH
    torch.manual_seed(1)
    network = module_of(kind).create_arch_network(1.0, RANK, ALPHA, None, None, model, **NETWORKS[kind][1])
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    for one in (model, teacher, network):
        one.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for step in range(STEPS):
        input = drawn(step, 64, WIDTH).to(device)
        loss = nn.functional.mse_loss(model(input), teacher(input))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses, {key: value.detach().cpu() for key, value in network.state_dict().items()}


def merged(kind: str, tensors: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    """Merge trained tensors into the model on `device`; return the model's weights."""
    model = tiny_model().to(device)
    network = module_of(kind).create_arch_network_from_weights(
        1.0, tensors, unet=model, for_inference=True, **NETWORKS[kind][1]
    )
    network.merge_to(None, model, tensors, device=device)
    return {key: value.cpu() for key, value in model.state_dict().items()}


def compare_networks(device: str) -> list[str]:
    """Print the table of losses and merges; return a line for each bound that is exceeded."""
    wrong = []
    print("| | first loss | last loss | largest difference of losses | error of the merge |\n|---|---|---|---|---|")
    before = tiny_model().state_dict()
    for kind in NETWORKS:
        (here, tensors), (there, _) = train(kind, "cpu"), train(kind, device)
        losses = max(abs(one / other - 1) for one, other in zip(there, here, strict=True))
        expected, found = merged(kind, tensors, "cpu"), merged(kind, tensors, device)
        change = max(float((value - before[key]).abs().max()) for key, value in expected.items())
        error = max(float((value - expected[key]).abs().max()) for key, value in found.items()) / change
        print(f"| {kind} | {there[0]:.4f} | {there[-1]:.4f} | {losses:.1e} | {error:.1e} |", flush=True)
        for name, value, bound in (("losses", losses, LOSS_BOUND), ("merges", error, MERGE_BOUND)):
            if not value <= bound:
                wrong.append(f"{kind}: {name} differ by {value:.1e} (bound {bound:.0e})")
        if not there[-1] < 0.97 * there[0]:
            wrong.append(f"{kind}: the loss does not fall")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", nargs="+", default=train_step.SHAPES, metavar="LAYERSxTOKENSxWIDTH")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("Error: torch finds no GPU; name another device with --device.")
    torch.backends.cuda.matmul.allow_tf32 = False
    where = torch.cuda.get_device_name() if arguments.device.startswith("cuda") else arguments.device
    print(f"{where}, torch {torch.__version__}\n")
    wrong = compare_networks(arguments.device)
    print()
    # The limits of `train_step.py` are those of a processor.
    train_step.print_tables(
        arguments.shapes, ("float32", "bfloat16"), 16, tuple(train_step.KINDS), arguments.rounds, arguments.device
    )
    print("", *wrong, sep="\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
