"""What a training step costs: ours, PEFT's and LyCORIS's LoRA, DoRA, LoHa, LoKr and OFT, beside the frozen base alone.

    python benchmarks/train_step.py [--rounds 15] [--rank 16] [--dtype float32|bfloat16] [--kinds LoRA DoRA …]
                                    [--shapes 1x512x3072 …]

A step is forward, backward and AdamW over a chain of Linear layers (layers x tokens x width), the factors in float32;
the base alone is its forward and the gradient of its input. Every round runs each of them once, in an order that
rotates, and ratios are taken within a round: the machine may drift, the medians of the ratios hardly do. It is the
processor's time of one thread that counts, which neighbours on a busy machine leave alone. Kept bytes are those of the
tensors that autograd saves for the backward pass, parameters apart.

Prints a table of Markdown, and exits with 1 where a limit is exceeded.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import lycoris.modules as lycoris
import peft
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from networks.loha import LoHaModule
from networks.lokr import LoKrModule
from networks.lora import LoRAModule
from networks.oft import OFTModule

SHAPES = ("1x256x512", "1x512x3072", "8x512x2048", "1x4096x3072")
# The first parameters of all of them: a name, the layer, the multiplier, the rank and alpha.
Wrap = Callable[..., nn.Module]


class Kind(NamedTuple):
    """One algorithm, as each of the three has it: modules that wrap a layer, and a config of PEFT by its keywords.

    `limits` are what our step may cost at most, in float32 and in bfloat16, over another's step; `kept` the same of
    the kept bytes.
    """

    ours: Wrap
    peft: Callable[[int, list[str]], Any]
    lycoris: Wrap
    limits: Mapping[tuple[str, torch.dtype], float]
    kept: Mapping[str, float] = MappingProxyType({})


def wrapped(module: Any, **options: Any) -> Wrap:
    return lambda layer, rank: module("layer", layer, 1.0, rank, rank, **options)


def lora_config(**options: Any) -> Callable[[int, list[str]], Any]:
    return lambda rank, names: peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names, **options)


BOTH = (torch.float32, torch.bfloat16)
AS_PEFT = {("PEFT", dtype): 1 / 0.95 for dtype in BOTH}
PRODUCTS = {**AS_PEFT, **{("LyCORIS", dtype): 0.8 for dtype in BOTH}}
KINDS = {
    "LoRA": Kind(wrapped(LoRAModule), lora_config(), wrapped(lycoris.LoConModule), AS_PEFT),
    "RS-LoRA": Kind(
        wrapped(LoRAModule, use_rslora=True),
        lora_config(use_rslora=True),
        wrapped(lycoris.LoConModule, rs_lora=True),
        AS_PEFT,
    ),
    "DoRA": Kind(
        wrapped(LoRAModule, use_dora=True),
        lora_config(use_dora=True),
        wrapped(lycoris.LoConModule, weight_decompose=True),
        AS_PEFT,
    ),
    "LoHa": Kind(
        wrapped(LoHaModule),
        lambda rank, names: peft.LoHaConfig(r=rank, alpha=rank, target_modules=names),
        wrapped(lycoris.LohaModule),
        PRODUCTS,
        {"LyCORIS": 0.8},
    ),
    "LoKr": Kind(
        wrapped(LoKrModule),
        lambda rank, names: peft.LoKrConfig(r=rank, alpha=rank, target_modules=names),
        wrapped(lycoris.LokrModule),
        PRODUCTS,
        {"LyCORIS": 0.8},
    ),
    "OFT": Kind(
        wrapped(OFTModule),
        lambda rank, names: peft.OFTConfig(r=0, oft_block_size=rank, target_modules=names),
        wrapped(lycoris.DiagOFTModule),
        AS_PEFT,
    ),
}
OURS, *OTHERS = ("ours", "PEFT", "LyCORIS")


class Shape(NamedTuple):
    """A chain of `layers` square Linear layers of a `width`, and the tokens that go through it."""

    layers: int
    tokens: int
    width: int


class Measured(NamedTuple):
    """Seconds of each round, and the bytes that one step keeps."""

    seconds: list[float]
    kept: int


def base_model(shape: Shape, dtype: torch.dtype, device: str) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(shape.width, shape.width) for _ in range(shape.layers)]
    return nn.Sequential(*layers).requires_grad_(False).to(device, dtype)


def with_modules(base: nn.Sequential, wrap: Wrap, rank: int) -> tuple[nn.Module, list[nn.Parameter]]:
    parameters: list[nn.Parameter] = []
    for layer in base:
        module: Any = wrap(layer, rank)
        module.apply_to()
        module.to(layer.weight.device)
        parameters.extend(module.parameters())
    return base, parameters


def with_peft(base: nn.Sequential, config: Any) -> tuple[nn.Module, list[nn.Parameter]]:
    model = peft.get_peft_model(base, config)
    return model, [parameter for parameter in model.parameters() if parameter.requires_grad]


def started(parameters: Sequence[nn.Parameter]) -> None:
    """Leaves no factor at the zero that it starts with, which some products would make free."""
    for parameter in parameters:
        if not parameter.any():
            nn.init.normal_(parameter, std=1e-3)


def clock_of(device: torch.device) -> Callable[[], float]:
    """Return a clock of the processor's time, or of the time until the device has done its work."""
    if device.type == "cpu":
        return time.process_time

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def make_step(
    model: nn.Module, parameters: list[nn.Parameter], input: Tensor, gradient: Tensor
) -> Callable[[], tuple[float, int]]:
    """A step that returns its seconds, and the bytes that autograd kept for it apart from parameters."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-5) if parameters else None
    clock = clock_of(input.device)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *parameters)}

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


def measure(
    shape: Shape, dtype: torch.dtype, rank: int, kinds: Sequence[str], rounds: int, device: str = "cpu"
) -> dict[str, Measured]:
    """What every step cost, by kind and name, and by "base"."""
    models: dict[str, tuple[nn.Module, list[nn.Parameter]]] = {"base": (base_model(shape, dtype, device), [])}
    layers = [str(number) for number in range(shape.layers)]
    for kind in kinds:
        one = KINDS[kind]
        models[f"{kind} ours"] = with_modules(base_model(shape, dtype, device), one.ours, rank)
        models[f"{kind} PEFT"] = with_peft(base_model(shape, dtype, device), one.peft(rank, layers))
        models[f"{kind} LyCORIS"] = with_modules(base_model(shape, dtype, device), one.lycoris, rank)
    input, gradient = (torch.randn(1, shape.tokens, shape.width).to(device, dtype) for _ in range(2))
    steps: dict[str, Any] = {}
    for name, (model, parameters) in models.items():
        started(parameters)
        steps[name] = make_step(model, parameters, input, gradient)
    found: dict[str, Measured] = {}
    for name, step in steps.items():
        try:
            found[name] = Measured([], step(count=True)[1])
        except RuntimeError as error:
            if name.endswith(OURS):
                raise
            print(f"{name} does not run in {dtype}: {str(error).splitlines()[0]}", file=sys.stderr)
    names = list(found)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].seconds.append(steps[name]()[0])
    return found


def ratio(above: Measured, below: Measured) -> float:
    return statistics.median(one / other for one, other in zip(above.seconds, below.seconds, strict=True))


def table(found: dict[str, Measured], kinds: Sequence[str], shape: Shape, dtype: torch.dtype) -> list[str]:
    """Prints a line a kind; returns what is beyond a limit."""
    wrong = []
    where = f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
    for kind in kinds:
        ours, others = found[f"{kind} {OURS}"], {name: found.get(f"{kind} {name}") for name in OTHERS}
        cells = [where, kind, f"{1000 * statistics.median(ours.seconds):.0f}", f"{ratio(ours, found['base']):.2f}"]
        cells += [f"{ratio(ours, other):.2f}" if other else "" for other in others.values()]
        cells += [f"{one.kept / 2**20:.1f}" if one else "" for one in (ours, *others.values())]
        for name, other in others.items():
            if other is None:
                continue
            for limit, taken, what in (
                (KINDS[kind].limits.get((name, dtype)), ratio(ours, other), "step"),
                (KINDS[kind].kept.get(name), ours.kept / other.kept, "bytes"),
            ):
                if limit is not None and taken > limit:
                    wrong.append(f"{where} {kind}: {taken:.2f} of {name}'s {what} (limit {limit:.2f})")
        print(f"| {' | '.join(cells)} |", flush=True)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=("float32", "bfloat16"))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--shapes", nargs="+", default=SHAPES, metavar="LAYERSxTOKENSxWIDTH")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wrong = print_tables(arguments.shapes, arguments.dtype, arguments.rank, arguments.kinds, arguments.rounds)
    print("", *wrong, sep="\n")
    sys.exit(bool(wrong))


def print_tables(
    shapes: Sequence[str], dtypes: Sequence[str], rank: int, kinds: Sequence[str], rounds: int, device: str = "cpu"
) -> list[str]:
    """Print the table of all shapes and element types; return a line for each limit that is exceeded."""
    print("| layers x tokens x width | | ms | / base | / PEFT | / LyCORIS | kept MiB | PEFT | LyCORIS |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    wrong = []
    for text in shapes:
        shape = Shape(*map(int, text.split("x")))
        for dtype in (getattr(torch, name) for name in dtypes):
            wrong += table(measure(shape, dtype, rank, kinds, rounds, device), kinds, shape, dtype)
    return wrong


if __name__ == "__main__":
    main()
