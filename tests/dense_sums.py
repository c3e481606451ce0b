"""Small adapters of plain LoRA in files, and the dense matrices in float64 that they and the outputs are.

A file is read here by the rules of its loaders: alpha/rank beside kohya's names, and those of the config for PEFT.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

LAYERS = {"blocks.0.self_attn.q": (24, 20), "blocks.0.ffn.0": (40, 20), "blocks.1.ffn.2": (20, 40)}
KERNELS = {"down_blocks.0.resnets.0.conv1": (12, 8, 3, 3), "mid_block.resnets.0.conv1": (8, 6, 1, 1)}
ENDS = {"kohya": (".lora_down.weight", ".lora_up.weight"), "peft": (".lora_A.weight", ".lora_B.weight")}


def key(path):
    """The name of a module in kohya's files."""
    return "lora_unet_" + path.replace(".", "_")


def factors(seed, rank, layers=LAYERS, dtype=torch.float32, size=0.1):
    """down and up of each layer by path, rounded to a type."""
    numbers = torch.Generator().manual_seed(seed)
    found = {}
    for path, (rows, columns, *kernel) in layers.items():
        down = torch.randn(rank, columns, *kernel, generator=numbers)
        up = size * torch.randn(rows, rank, *[1] * len(kernel), generator=numbers)
        found[path] = down.to(dtype), up.to(dtype)
    return found


def dense(own, scale):
    """The change of each layer as a matrix."""
    return {path: scale * (up.double().flatten(1) @ down.double().flatten(1)) for path, (down, up) in own.items()}


def kohya(place, seed, rank=4, alpha=2.0, metadata=None, extra=(), **options):
    """A file and its changes; without an alpha that of the rank counts."""
    own = factors(seed, rank, **options)
    tensors = dict(extra)
    for path, (down, up) in own.items():
        tensors |= {key(path) + end: value for end, value in zip(ENDS["kohya"], (down, up), strict=True)}
        tensors |= {} if alpha is None else {f"{key(path)}.alpha": torch.tensor(alpha)}
    save_file(tensors, place, metadata)
    return str(place), dense(own, 1.0 if alpha is None else alpha / rank)


def peft(place, seed, rank=4, alpha=2.0, stabilised=False, config=None, extra=(), **options):
    """A folder with its config, and its changes."""
    own = factors(seed, rank, **options)
    tensors = {
        f"base_model.model.{path}{end}": value
        for path, pair in own.items()
        for end, value in zip(ENDS["peft"], pair, strict=True)
    }
    Path(place).mkdir()
    save_file({**tensors, **dict(extra)}, Path(place, "adapter_model.safetensors"))
    said = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "use_rslora": stabilised, "target_modules": [*own]}
    Path(place, "adapter_config.json").write_text(json.dumps({**said, **(config or {})}))
    return str(place), dense(own, alpha / (rank**0.5 if stabilised else rank))


def summed(*terms):
    """Σ multiplier · changes over (multiplier, changes)."""
    found = {}
    for multiplier, changes in terms:
        for path, value in changes.items():
            found[path] = found.get(path, 0.0) + multiplier * value
    return found


def read(place, layers=LAYERS):
    """The changes in an output, by the rule of a loader of its kind."""
    is_folder = Path(place).is_dir()
    tensors = load_file(Path(place, "adapter_model.safetensors") if is_folder else place)
    config = json.loads(Path(place, "adapter_config.json").read_text()) if is_folder else {}
    stabilised = config.get("use_rslora") or "use_rslora_flag" in tensors
    names = ENDS["peft" if is_folder else "kohya"]
    found = {}
    for path in layers:
        name = f"base_model.model.{path}" if is_folder else key(path)
        if f"{name}.diff" in tensors:
            found[path] = tensors[f"{name}.diff"].double().flatten(1)
        if name + names[0] not in tensors:
            continue
        down, up = (tensors[name + end].double().flatten(1) for end in names)
        rank = len(down)
        if is_folder:
            alpha = config["alpha_pattern"].get(path, config["lora_alpha"])
            assert config["rank_pattern"].get(path, config["r"]) == rank
        else:
            alpha = float(tensors.get(f"{name}.alpha", rank))
        found[path] = alpha / (rank**0.5 if stabilised else rank) * (up @ down)
    return found


def metadata_of(file):
    """The metadata of a safetensors file."""
    with safe_open(str(file), "pt") as opened:
        return opened.metadata()


def relative(found, meant):
    """The relative error of all layers together, in the Frobenius norm."""
    assert found.keys() == meant.keys()
    lost = sum(float((found[path] - meant[path]).square().sum()) for path in meant)
    return (lost / sum(float(value.square().sum()) for value in meant.values())) ** 0.5


def tails(meant, ranks):
    """The relative error of the best trims to the ranks by path, of all layers together (Eckart and Young)."""
    values = {path: torch.linalg.svdvals(value) for path, value in meant.items()}
    lost = sum(float(own[ranks[path] :].square().sum()) for path, own in values.items())
    return (lost / sum(float(own.square().sum()) for own in values.values())) ** 0.5


def ranks_of(file):
    """The ranks in an output of kohya's names by path-like key."""
    return {name.removesuffix(ENDS["kohya"][0]): len(own) for name, own in load_file(file).items() if "down" in name}
