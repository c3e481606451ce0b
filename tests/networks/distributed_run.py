"""One of the processes that test_distributed starts: trains the same model in each of CASES, and notes the losses.

    python distributed_run.py RANK WORLD_SIZE FOLDER

Process 0 writes FOLDER/results.json: losses by case, and by "reference" those of one process with the whole batch.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.fsdp
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from networks.lora import create_network

KINDS = {
    "lora": {},
    "rslora+dora": {"use_rslora": "True", "use_dora": "True"},
    "frozen": {"lr_pattern": "{'.*out': 0}"},
}
WIDTH, BATCH, STEPS = 16, 8, 5


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(torch.tanh(self.into(x)))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return x


class Both(nn.Module):
    """A model and its network as one module, which is called."""

    def __init__(self, model: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.model, self.network = model, network

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def make_model() -> Model:
    torch.manual_seed(0)
    return Model().requires_grad_(False)


def adapt(model: nn.Module, kind: str) -> Any:
    torch.manual_seed(1)
    network = create_network(["Block"], "lora_unet", 1.0, 4, 2.0, None, None, model, **KINDS[kind])
    network.apply_to(None, model)
    network.prepare_optimizer_params()
    network.prepare_grad_etc(model)
    return network


def train(run: Any, parameters: list[Any], rank: int = 0, world: int = 1, average: bool = False) -> list[float]:
    """The losses of the whole batch, of which this process computes its part."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    generator = torch.Generator().manual_seed(2)
    part = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    x, target = (torch.randn(BATCH, 5, WIDTH, generator=generator)[part] for _ in range(2))
    losses = []
    for _ in range(STEPS):
        loss = nn.functional.mse_loss(run(x), target)
        loss.backward()
        if average:
            for parameter in parameters:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach().clone()
        if world > 1:
            dist.all_reduce(total)
        losses.append(total.item() / world)
    return losses


def reference(kind: str, rank: int, world: int) -> list[float]:
    model = make_model()
    network = adapt(model, kind)
    return train(model, network.get_trainable_params())


def ddp_never_called(kind: str, rank: int, world: int) -> list[float]:
    """As trainers do it: the wrapped network is never called, and they average the gradients themselves."""
    model = make_model()
    wrapped = DistributedDataParallel(adapt(model, kind))
    return train(model, wrapped.module.get_trainable_params(), rank, world, average=True)


def ddp_called(kind: str, rank: int, world: int) -> list[float]:
    model = make_model()
    network = adapt(model, kind)
    return train(DistributedDataParallel(Both(model, network)), network.get_trainable_params(), rank, world)


def shard(model: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    for block in model.blocks:
        fully_shard(block)
    return fully_shard(model)


def fsdp_of_an_adapted_base(kind: str, rank: int, world: int) -> list[float]:
    model = make_model()
    network = adapt(model, kind)
    return train(shard(model), network.get_trainable_params(), rank, world, average=True)


def fsdp_before_the_network(kind: str, rank: int, world: int) -> list[float]:
    """The magnitudes are those of a weight that no process holds as a whole."""
    model = shard(make_model())
    network = adapt(model, kind)
    return train(model, network.get_trainable_params(), rank, world, average=True)


def fsdp_of_both(kind: str, rank: int, world: int) -> list[float]:
    from torch.distributed.fsdp import fully_shard

    model = make_model()
    network = adapt(model, kind)
    both = fully_shard(Both(shard(model), network))
    return train(both, list(network.parameters()), rank, world)


def error_of(run: Any) -> str:
    try:
        run()
    except (RuntimeError, ValueError) as error:
        return str(error)
    return ""


def fsdp_of_the_network(kind: str, rank: int, world: int) -> str:
    from torch.distributed.fsdp import fully_shard

    model = make_model()
    fully_shard(adapt(model, kind))
    return error_of(lambda: model(torch.randn(2, WIDTH)))


def merge_into_shards(kind: str, rank: int, world: int) -> str:
    from networks.lora import LoRAInfModule

    model = shard(make_model())
    module = LoRAInfModule("lora_unet_x", model.blocks[0].into)
    return error_of(lambda: module.merge_to(module.state_dict()))


def save_shards(kind: str, rank: int, world: int) -> str:
    """What saving says; what it advises gives the file."""
    from torch.distributed.fsdp import fully_shard

    file = str(Path(sys.argv[3]) / f"{kind}-{rank}.safetensors")
    network, plain = adapt(make_model(), kind), adapt(make_model(), kind)
    torch.nn.init.normal_(network.unet_loras[0].lora_up.weight)
    expected = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    fully_shard(network)
    error = error_of(lambda: network.save_weights(file, None, None))
    state = network.state_dict()
    plain.load_state_dict({key: getattr(tensor, "full_tensor", lambda t=tensor: t)() for key, tensor in state.items()})
    plain.save_weights(file, None, None)
    saved = load_file(file)
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[key], tensor) for key, tensor in expected.items())
    return error


CASES = (
    reference,
    ddp_never_called,
    ddp_called,
    fsdp_of_an_adapted_base,
    fsdp_before_the_network,
    fsdp_of_both,
    fsdp_of_the_network,
    merge_into_shards,
    save_shards,
)


def main() -> None:
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    # A file and no port: nothing to be taken by another program.
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
    cases = CASES if hasattr(torch.distributed.fsdp, "fully_shard") else CASES[:3]
    results = {f"{case.__name__}-{kind}": case(kind, rank, world) for case in cases for kind in KINDS}
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
