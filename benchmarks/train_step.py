"""What a training step costs: ours and PEFT's LoRA and DoRA, beside the frozen base alone.

    python benchmarks/train_step.py [--rounds 40] [--threads N] [--bf16]
                                    [--layers 8] [--width 1024] [--tokens 2048] [--rank 32]

A step is forward, backward and AdamW over a chain of Linear layers, in float32 with a batch of 8; the base alone
is its forward and the gradient of its input. Every round runs each of them once, in an order that rotates, and
ratios are taken within a round: the machine may drift, the medians of the ratios hardly do. With one thread it is
the process's own time that counts, which neighbours on a busy machine leave alone; two threads wait for each other.
Prints the table, and what is kept for the backward pass. Exits with 1 where a limit, which is for float32, is
exceeded.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from networks.lora import LoRAModule

BATCH = 8
KINDS: dict[str, dict[str, bool]] = {
    "LoRA": {},
    "DoRA": {"use_dora": True},
    "RS-LoRA + DoRA": {"use_dora": True, "use_rslora": True},
}


def base_model(arguments: argparse.Namespace) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(arguments.width, arguments.width) for _ in range(arguments.layers)]
    return nn.Sequential(*layers).requires_grad_(False).to(arguments.dtype)


def ours(arguments: argparse.Namespace, options: dict[str, bool]) -> tuple[nn.Module, list[nn.Parameter]]:
    base = base_model(arguments)
    parameters: list[nn.Parameter] = []
    for layer in base:
        module = LoRAModule("layer", layer, 1.0, arguments.rank, arguments.rank, **options)
        module.apply_to()
        parameters.extend(module.parameters())
    return base, parameters


def theirs(arguments: argparse.Namespace, options: dict[str, bool]) -> tuple[nn.Module, list[nn.Parameter]]:
    names = [str(number) for number in range(arguments.layers)]
    config = peft.LoraConfig(r=arguments.rank, lora_alpha=arguments.rank, target_modules=names, **options)
    model = peft.get_peft_model(base_model(arguments), config)
    return model, [parameter for parameter in model.parameters() if parameter.requires_grad]


def clock() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def make_step(
    model: nn.Module, parameters: list[nn.Parameter], input: Tensor, gradient: Tensor
) -> Callable[[], tuple[float, int]]:
    """A step that returns its seconds, and the bytes that autograd kept for it apart from parameters."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-5) if parameters else None
    own = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    own |= {tensor.untyped_storage().data_ptr() for tensor in parameters}

    def step(count: bool = False) -> tuple[float, int]:
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        start = clock()
        leaf = input.detach().requires_grad_()
        if count:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                output = model(leaf)
        else:
            output = model(leaf)
        output.backward(gradient)
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        return clock() - start, sum(size for place, size in kept.items() if place not in own)

    return step


def measure(arguments: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each round and kept bytes, by what was run."""
    models: dict[str, tuple[nn.Module, list[nn.Parameter]]] = {"base": (base_model(arguments), [])}
    for kind, options in KINDS.items():
        models[f"PEFT {kind}"] = theirs(arguments, options)
        models[f"our {kind}"] = ours(arguments, options)
    shape = (BATCH, arguments.tokens // BATCH, arguments.width)
    input, gradient = (torch.randn(shape).to(arguments.dtype) for _ in range(2))
    steps: dict[str, Any] = {name: make_step(*model, input, gradient) for name, model in models.items()}
    kept = {name: step(count=True)[1] for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(arguments.rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(steps[name]()[0])
    return seconds, kept


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(above, below, strict=True))


def overhead(above: list[float], below: list[float], base: list[float]) -> float:
    """The median of (above - base) / (below - base)."""
    return ratio(
        [one - floor for one, floor in zip(above, base, strict=True)],
        [one - floor for one, floor in zip(below, base, strict=True)],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--bf16", dest="dtype", action="store_const", const=torch.bfloat16, default=torch.float32)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    seconds, kept = measure(arguments)
    base = seconds["base"]
    print(f"{'':20s} {'ms':>7s} {'/ base':>7s} {'kept MB':>8s}")
    for name, times in seconds.items():
        milliseconds = 1000 * statistics.median(times)
        print(f"{name:20s} {milliseconds:7.1f} {ratio(times, base):7.3f} {kept[name] / 1e6:8.1f}")
    limits = [
        ("our LoRA step / PEFT's", ratio(seconds["our LoRA"], seconds["PEFT LoRA"]), 1.05),
        ("our DoRA step / our LoRA step", ratio(seconds["our DoRA"], seconds["our LoRA"]), 1.15),
        ("our DoRA's overhead / PEFT's", overhead(seconds["our DoRA"], seconds["PEFT DoRA"], base), 0.6),
    ]
    for name, found, limit in limits:
        print(f"{name}: {found:.3f} (limit {limit})")
    sys.exit(arguments.dtype == torch.float32 and any(found > limit for _, found, limit in limits))


if __name__ == "__main__":
    main()
