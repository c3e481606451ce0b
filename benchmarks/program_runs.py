"""Loads real-shape adapters, and the fixes of those that are wrong, in diffusers and PEFT, into models of full size.

    PYTHONPATH=tests:fixtures:fixtures/record_shapes python benchmarks/program_runs.py diffusers [NAME...]

Models are on torch's meta device, so that only adapters have numbers: seeded ones here. Of every layer that the library
adapts, the change of an input is compared with the rows of what the trainer's file says, at alpha/rank; each row of the
file has to be found once. Plain LoRA and the factors of DoRA are compared, magnitudes are not, and of other algorithms
only if the file is loaded. Prints what happened to each adapter, and counts.
"""

import re
import shlex
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch
from models import DIFFUSERS, diffusers_model, transformers_model
from peft.tuners.lora import LoraLayer
from real_shapes import recorded, tensors, write
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lora_inspect
from lora_inspect.architectures import by_name

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DOWN = (".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", ".down.weight")
UP = (".lora_up.weight", ".lora_B.weight", ".lora_B.default.weight", ".up.weight")
NEAR = 0.02


def filled(name: str, folder: Path) -> Path:
    """The adapter of that name with seeded numbers; alphas are those that the trainer wrote."""
    path = write(name, folder)
    random = torch.Generator().manual_seed(7)
    found = {
        key: torch.full(shape, number, dtype=DTYPES[dtype])
        if number is not None
        else (torch.randn(shape, generator=random) * 0.05).to(DTYPES[dtype])
        for key, (dtype, shape, number) in tensors(name).items()
    }
    save_file(found, path, recorded()[name]["metadata"] or None)
    return path


def probe(features: int) -> Tensor:
    """An input of that width, the same each time."""
    return torch.randn(features, generator=torch.Generator().manual_seed(features))


def change(scale: float, down: Tensor, up: Tensor) -> tuple[int, Tensor]:
    """Returns the output that LoRA adds to a layer for the probe, and the width of its input."""
    down, up = down.float().flatten(1), up.float().flatten(1)
    return down.shape[1], scale * (up @ (down @ probe(down.shape[1])))


def meant(name: str, path: Path) -> list[tuple[int, Tensor]]:
    """Returns the changes that the trainer's file means, by alpha/rank or by its configuration."""
    found = load_file(path)
    config = recorded()[name]["config"]
    told = recorded()[name]["metadata"].get("lora_adapter_metadata", "")
    is_rs = bool(config.get("use_rslora")) or '.use_rslora": true' in told
    changes = []
    for key, down in found.items():
        ending = next((end for end in DOWN if key.endswith(end)), None)
        if ending:
            up = found[key.removesuffix(ending) + UP[DOWN.index(ending)]]
            alpha = found.get(key.removesuffix(ending) + ".alpha")
            rank = down.shape[0]
            number = float(alpha) if alpha is not None else float(config.get("lora_alpha", rank))
            changes.append(change(number / (rank**0.5 if is_rs else rank), down, up))
    return changes


def applied(network: nn.Module) -> list[tuple[int, Tensor]]:
    """Returns the outputs that the adapted layers of a network add."""
    changes = []
    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            for one in layer.lora_A:
                changes.append(change(layer.scaling[one], layer.lora_A[one].weight, layer.lora_B[one].weight))
    return changes


def compared(wanted: list[tuple[int, Tensor]], found: list[tuple[int, Tensor]]) -> str:
    """Empty where each row that is wanted is found once; else what differs."""
    rows = {width: torch.cat([y for own, y in wanted if own == width]) for width, _ in wanted}
    covered = {width: torch.zeros(len(one), dtype=torch.int) for width, one in rows.items()}
    odd = 0
    for width, y in found:
        if not y.any():
            continue
        for part in (y,) if _place(rows.get(width), y) is not None else y.chunk(2):
            at = _place(rows.get(width), part)
            if at is None:
                odd += 1
            else:
                covered[width][at : at + len(part)] += 1
    missing = sum(int((one == 0).sum()) for one in covered.values())
    total = sum(map(len, rows.values()))
    if not odd and not missing:
        return ""
    return f"{odd} of {len(found)} layers bear another change, {missing} of {total} rows are missing"


def _place(rows: Tensor | None, y: Tensor) -> int | None:
    """Where y stands among the rows."""
    if rows is None:
        return None
    size = float(y.norm())
    first = float(y[:8].norm())
    windows = rows.unfold(0, 8, 1) if len(rows) >= 8 else rows[None]
    near = (windows - y[: windows.shape[1]]).norm(dim=1) <= 4 * NEAR * max(first, size / len(y) ** 0.5)
    for at in near.nonzero().flatten().tolist():
        if at + len(y) <= len(rows) and float((rows[at : at + len(y)] - y).norm()) <= NEAR * size:
            return int(at)
    return None


def in_diffusers(name: str, path: Path) -> list[tuple[int, Tensor]]:
    """Returns the outputs that the family's pipeline adds, those of all text encoders among them."""
    import copy

    import diffusers_families

    family = recorded()[name]["family"]
    model = next(own for own in sorted(DIFFUSERS, key=len, reverse=True) if name.startswith(own) or own == _like(name))
    network = copy.deepcopy(diffusers_model(model))
    parts = {by_name(family).pipeline_name: network}
    texts = {"sd15": ("clip-l",), "sdxl": ("clip-l", "clip-g"), "sd3": ("clip-l", "clip-g"), "flux": ("clip-l",)}
    for number, text in enumerate(texts.get(family, ())):
        parts["text_encoder" if not number else f"text_encoder_{number + 1}"] = copy.deepcopy(transformers_model(text))
    diffusers_families.load(family, parts, path)
    return [one for part in parts.values() for one in applied(part)]


def _like(name: str) -> str:
    """The model that an adapter is for, whose name it does not begin with."""
    table = {"wan2.1-1.3b": "wan-1.3b", "wan2.1-i2v": "wan-i2v-14b", "wan2.1-finetrainers": "wan-1.3b",
             "wan2": "wan-14b", "sd21": "sd21"}  # fmt: skip
    return next((model for start, model in table.items() if name.startswith(start)), "")


def in_peft(name: str, path: Path) -> list[tuple[int, Tensor]]:
    """Returns the outputs that PEFT adds with the folder."""
    import copy

    from models import TRANSFORMERS
    from peft import PeftModel

    model = next(own for own in sorted(TRANSFORMERS, key=len, reverse=True) if name.startswith(own.rpartition("-")[0]))
    model = next((own for own in TRANSFORMERS if name.startswith(own)), model)
    network = PeftModel.from_pretrained(
        copy.deepcopy(transformers_model(model)), str(path.parent), low_cpu_mem_usage=True
    )
    return applied(network)


# It would move the numbers of adapters to the meta device, where those of the model are not.
LoraLayer._move_adapter_to_device_of_base_layer = lambda *args, **more: None
LOADS = {"diffusers": in_diffusers, "peft": in_peft}


def run_one(name: str, program: str, folder: Path) -> tuple[str, str]:
    """Returns the outcome for an adapter: `same` or `fix` right or wrong, or why nothing was run."""
    path = filled(name, folder / name)
    (judged,) = lora_inspect.compat(path, program=program).verdicts
    wanted = meant(name, path)
    file, kind = path, "same meaning"
    if judged.verdict != "same meaning":
        if not judged.fix:
            return f"{judged.verdict}, no fix", judged.says
        kind = "fix"
        words = shlex.split(judged.fix)
        at = words.index("-o") + 1
        words[at] = str(folder / "fixed" / Path(words[at]).name)
        Path(words[at]).parent.mkdir(exist_ok=True)
        ran = subprocess.run(
            [sys.executable, "-m", "lora_inspect", *words[1:]], capture_output=True, text=True, cwd=path.parent
        )
        if ran.returncode:
            return "fix failed", ran.stderr[-300:]
        file = Path(words[at])
        file = file / "adapter_model.safetensors" if file.is_dir() else file
    try:
        found = LOADS[program](name, file)
    except Exception as error:  # what a program raises is its own matter
        return f"{kind}: raises", f"{type(error).__name__}: {str(error)[:300]}"
    if not wanted:
        return f"{kind}: loaded, not LoRA", f"{len(found)} layers"
    differs = compared(wanted, found)
    return (f"{kind}: WRONG", differs) if differs else (f"{kind}: right", f"{len(found)} layers")


def main(program: str, *only: str) -> None:
    """Prints what happened to each adapter, and counts."""
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    for name, one in recorded().items():
        if (only and name not in only) or (program == "peft") != (one["family"] == "llm"):
            continue
        if not one["family"] or re.search("gguf|mlx", name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            happened, says = run_one(name, program, Path(folder))
        counts[happened] += 1
        print(f"{name:32} {happened:24} {says}", flush=True)
    for happened, count in counts.most_common():
        print(f"{count:4} {happened}")


if __name__ == "__main__":
    main(*sys.argv[1:])
