"""What the names of files in the pages stand for: small adapters over one small base, made when a page names them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn

FIXTURES = Path(__file__).parents[1] / "fixtures"
SYNTHETIC = FIXTURES / "synthetic"
RANK = 4
# Layers that the base has, as kohya's names call them.
LAYERS = tuple(f"lora_unet_blocks_{block}_self_attn_{part}" for block in range(3) for part in "qkvo")

Make = Callable[[Path], None]


def copy(fixture: str) -> Make:
    """A fixture, a file or a folder."""

    def make(path: Path) -> None:
        source = FIXTURES / fixture
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, path)

    return make


def link(fixture: str) -> Make:
    """A folder of the checkout, as it is."""
    return lambda path: path.symlink_to(FIXTURES.parent / fixture)


def drawn(seed: int, step: int = 0, **metadata: str) -> Make:
    """LoRA of drawn numbers on layers of the base, which are 24 wide; those of several steps differ by some noise."""
    from safetensors.numpy import save_file

    def make(path: Path) -> None:
        numbers, noise = np.random.default_rng(seed), np.random.default_rng(1000 + step)
        tensors: dict[str, np.ndarray] = {}
        for layer in LAYERS:
            tensors[f"{layer}.lora_down.weight"] = numbers.normal(size=(RANK, 24)).astype(np.float32)
            tensors[f"{layer}.lora_up.weight"] = (0.02 * numbers.normal(size=(24, RANK))).astype(np.float32)
            tensors[f"{layer}.alpha"] = np.array(RANK, np.float32)
        if step:
            for key in (key for key in tensors if key.endswith("weight")):
                away = noise.normal(size=tensors[key].shape).astype(np.float32)
                tensors[key] += np.float32(0.2 * tensors[key].std()) * away
        save_file(tensors, path, metadata)

    return make


def folder(*names: str) -> Make:
    """A folder of files that have names of their own in the pages."""

    def make(path: Path) -> None:
        path.mkdir()
        for name in names:
            FILES[name](path / name)

    return make


def library(path: Path) -> None:
    """A folder of two changes, one of them twice: in another element type and at half of its strength as well."""
    from safetensors.numpy import load_file, save_file

    folder("style.safetensors", "face.safetensors")(path)
    tensors = load_file(path / "style.safetensors")
    halved = {key: value / 2 if key.endswith(".alpha") else value for key, value in tensors.items()}
    save_file({key: np.asarray(value, np.float16) for key, value in halved.items()}, path / "style-half.safetensors")


def biased(path: Path) -> None:
    """A LoRA that changes a bias as well."""
    from safetensors.numpy import load_file, save_file

    FILES["face.safetensors"](path)
    save_file({**load_file(path), f"{LAYERS[0]}.diff_b": np.full(24, 0.01, np.float32)}, path)


def text(*lines: str) -> Make:
    """A file of text."""

    def make(path: Path) -> None:
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    return make


def wan_model() -> "nn.Module":
    """A model with the layers of two blocks of Wan, as its class calls them."""
    from torch import nn

    block = type("WanAttentionBlock", (nn.Module,), {})

    def made() -> nn.Module:
        one = block()
        one.self_attn = nn.ModuleDict({name: nn.Linear(24, 24) for name in "qkvo"})
        return one

    return nn.ModuleDict({"blocks": nn.ModuleList(made() for _ in range(3))}).requires_grad_(False)


def trained_loha(path: Path) -> None:
    """What the network of LoHa saves for that model."""
    import torch

    from networks import loha

    model = wan_model()
    network = loha.create_arch_network(1.0, RANK, 1.0, None, None, model)
    network.apply_to(None, model, apply_text_encoder=False, apply_unet=True)
    network.save_weights(str(path), torch.float32, {})


def pickled(path: Path) -> None:
    """A pickle of tensors alone, as PEFT wrote them before it wrote safetensors."""
    import torch

    torch.save({"base_model.model.q.lora_A.weight": torch.ones(2, 3)}, path)


def config(path: Path) -> None:
    """The folder of a model with its configuration."""
    path.mkdir()
    shutil.copyfile(FIXTURES / "gguf/llama/config.json", path / "config.json")


def peft(path: Path) -> None:
    """A PEFT adapter of a language model."""
    path.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copyfile(FIXTURES / "gguf/llama" / name, path / name)


FILES: dict[str, Make] = {
    "fixtures": link("fixtures"),
    "base.safetensors": copy("synthetic/base_f32.safetensors"),
    "adapter.safetensors": copy("synthetic/comfyui_alpha.safetensors"),
    "rslora.safetensors": copy("synthetic/rslora_flag.safetensors"),
    "dora.safetensors": copy("synthetic/dora_without_flag.safetensors"),
    "diffusers.safetensors": copy("synthetic/diffusers_without_alpha.safetensors"),
    "wan.safetensors": copy("synthetic/rslora_flag.safetensors"),
    "wan-style.safetensors": copy("synthetic/dora_and_rslora_flags.safetensors"),
    "style.safetensors": drawn(1, ss_output_name="style"),
    "face.safetensors": drawn(2, ss_output_name="face"),
    **{f"style-00000{step}.safetensors": drawn(1, step, ss_output_name="style") for step in (4, 6, 8)},
    "weights.toml": text('["style.safetensors"]', "multiplier = 0.8", "blocks.blocks.0-1 = 0.3"),
    "trained.safetensors": copy("hashed/smart_falcon_4_lokr.safetensors"),
    "cast.safetensors": copy("synthetic/bf16_alpha_and_flags.safetensors"),
    "loha.safetensors": trained_loha,
    "biased.safetensors": biased,
    "lora.bin": pickled,
    "adapter": peft,
    "model": config,
    "library": library,
    "loras": folder("rslora.safetensors", "face.safetensors"),
    "folder": folder("rslora.safetensors", "dora.safetensors", "face.safetensors"),
}
# Those that a command makes of the others.
MERGED = {
    "merged.safetensors": "merge base.safetensors style.safetensors:0.8 face.safetensors -o",
    "tuned.safetensors": "merge base.safetensors style.safetensors -o",
}
# What names in blocks of Python stand for that no block gives.
NAMES: dict[str, Callable[[], Any]] = {"model": wan_model}
