"""Sums of small random adapters by the API, whole and hostile: right as dense float64 matrices have them, or refused.

A case is a folder of files, a verb with its options, and the changes that the files are. The files are of a few layers
of one family in the names of three programs, of several algorithms and element types; one in four has a defect.
"""

import os
import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import lora_inspect
from lora_inspect import LoraInspectError, open_adapter

LAYERS: dict[str, tuple[int, ...]] = {
    "blocks.0.self_attn.q": (12, 10), "blocks.0.self_attn.k": (12, 10), "blocks.0.ffn.0": (20, 10),
    "blocks.1.ffn.2": (10, 20), "blocks.1.cross_attn.o": (9, 9), "patch_embedding": (8, 4, 1, 2, 2),
}  # fmt: skip
PREFIXES = {"kohya": "lora_unet_", "comfyui": "diffusion_model.", "peft": "base_model.model."}
FLOATS = (torch.float32,) * 4 + (torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)
# Relative to the norms of all terms: the factors are rounded to the type, and directions below 1e-7 are left out.
ROUNDING = {"F64": 2e-6, "F32": 2e-6, "F16": 4e-3, "BF16": 3e-2}
DEFECTS = (
    "torn", "torn header", "flipped", "NaN", "infinity", "alpha", "shape", "rank 0", "whole numbers", "other layer",
    "no up", "empty", "huge",
)  # fmt: skip
ALPHAS = (float("inf"), float("nan"), -float("inf"), 1e38, -2.0, 0.0, 1e-38)


@dataclass
class Sum:
    """A case: the verb, its arguments and options, and the change of each layer, None where a defect decides it."""

    verb: str
    named: list[Any]
    output: str | None
    options: dict[str, Any]
    meant: dict[str, Tensor] | None
    # The norm of all terms together, of which rounding is a share.
    size: dict[str, float] = field(default_factory=dict)
    defect: str = ""


@dataclass
class _File:
    path: str
    changes: dict[str, Tensor]
    is_sound: bool
    step: int


def drawn(seed: int, number: int, folder: Path) -> Sum:
    """The same case for the same seed and number."""
    source = random.Random(f"{seed}:{number}")
    numbers = torch.Generator().manual_seed(source.getrandbits(60))
    verb = source.choice(("combine", "combine", "combine", "resize", "average"))
    count = {"combine": source.choice((1, 2, 2, 3, 4)), "resize": 1, "average": source.choice((2, 2, 3))}[verb]
    defect = source.choice(DEFECTS) if source.random() < 0.25 else ""
    wrong = source.randrange(count)
    files = [
        _written(source, numbers, folder / f"adapter-{100 * (at + 1)}", defect if at == wrong else "")
        for at in range(count)
    ]
    options = _options(source, verb)
    multipliers = [source.choice((1.0, 1.0, 0.7, -0.3, 2.0, -1.5, 0.25)) for _ in files]
    weights = [1.0 / count] * count
    if "beta" in options:
        beta = options["beta"]
        weights = [beta ** (count - 1 - at) * (1.0 if at == 0 else 1.0 - beta) for at in range(count)]
    named: list[Any] = [(one.path, m) for one, m in zip(files, multipliers, strict=True)]
    if options.get("of") == "factors":
        named = [one.path for one in files]
    if verb != "average":
        weights = [1.0] * count
    meant: dict[str, Tensor] = {}
    size: dict[str, float] = {}
    for one, multiplier, weight in zip(files, multipliers, weights, strict=True):
        for path, change in one.changes.items():
            term = weight * multiplier * change
            meant[path] = meant.get(path, torch.zeros_like(change)) + term
            size[path] = size.get(path, 0.0) + float(term.norm())
    is_folder = files[0].path.endswith("peft") and "to" not in options
    output = str(folder / ("out" if is_folder else "out.safetensors"))
    is_known = all(one.is_sound for one in files) and options.get("of") != "factors"
    return Sum(
        verb,
        named[0] if verb == "resize" else named,
        None if source.random() < 0.1 else output,
        options,
        meant if is_known else None,
        size,
        defect,
    )


def _options(source: random.Random, verb: str) -> dict[str, Any]:
    rules: tuple[dict[str, Any], ...] = (
        {"rank": source.choice((1, 2, 3, 5, 9, 40))},
        {"energy": source.choice((0.5, 0.9, 0.99, 1.0))},
        {"max_error": source.choice((0.0, 0.1, 0.5, 0.9))},
        {"size": f"{source.choice((1, 5, 6, 8, 15, 60))}kB"},
        {"max_rank": source.choice((1, 4, 30))},
    )
    options = dict(source.choice(rules)) if verb == "resize" or source.random() < 0.4 else {}
    if verb == "average" and not options and source.random() < 0.5:
        options = dict(source.choice(({"exact": True}, {"of": "factors"}, {"beta": 0.6}, {"uniform": True})))
    if source.random() < 0.2 and options.get("of") != "factors":
        options["to"] = source.choice(("kohya", "comfyui"))
    if source.random() < 0.2:
        options["dtype"] = source.choice((torch.float32, torch.bfloat16, torch.float16))
    return options


def _written(source: random.Random, numbers: torch.Generator, place: Path, defect: str) -> _File:
    """A file, or PEFT's folder, with some of the layers."""
    names = source.choice(("kohya", "kohya", "comfyui", "peft"))
    dtype = source.choice(FLOATS)
    rank, alpha = source.choice((1, 2, 3, 5, 8, 14)), source.choice((None, 1.0, 0.5, 4.0, 16.0))
    tensors: dict[str, Tensor] = {}
    changes: dict[str, Tensor] = {}
    for path in source.sample(list(LAYERS), source.choice((1, 2, 3, len(LAYERS)))):
        name = PREFIXES[names] + (path.replace(".", "_") if names == "kohya" else path)
        kind = source.choice(("lora", "lora", "lora", "loha", "full")) if names == "kohya" else "lora"
        own, changes[path] = _module(numbers, LAYERS[path], kind, rank, alpha, dtype, names)
        tensors |= {f"{name}.{end}": value for end, value in own.items()}
        if alpha is not None and names != "peft" and kind != "full":
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    tensors = _with_defect(source, tensors, defect)
    file = Path(f"{place}.safetensors")
    if names == "peft":
        file = Path(f"{place}-peft") / "adapter_model.safetensors"
        file.parent.mkdir()
        said = f'"r": {rank}, "lora_alpha": {rank if alpha is None else alpha}, "target_modules": ["q"]'
        (file.parent / "adapter_config.json").write_text(f'{{"peft_type": "LORA", {said}}}')
    save_file({name: value.clone().contiguous() for name, value in tensors.items()}, file)
    _damaged(source, file, defect)
    path = str(file.parent if names == "peft" else file)
    return _File(path, changes, not defect, 0)


def _module(
    numbers: torch.Generator, shape: Sequence[int], kind: str, rank: int, alpha: float | None, dtype: Any, names: str
) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of a module by the ends of their names, and its change as a matrix, of the numbers as stored."""

    def random_numbers(*sides: int) -> Tensor:
        return torch.randn(sides, generator=numbers).to(dtype)

    rows, *columns = shape
    inputs = int(torch.tensor(columns).prod())
    scale = 1.0 if alpha is None else alpha / rank
    if kind == "full":
        value = random_numbers(*shape)
        return {"diff": value}, value.double().flatten(1)
    if kind == "loha":
        sides = {f"hada_w{at}_{end}": random_numbers(*own) for at in (1, 2) for end, own in (
            ("a", (rows, rank)), ("b", (rank, inputs))
        )}  # fmt: skip
        one, other = (sides[f"hada_w{at}_a"].double() @ sides[f"hada_w{at}_b"].double() for at in (1, 2))
        return sides, scale * one * other
    up, down = random_numbers(rows, rank, *[1] * (len(columns) - 1)), random_numbers(rank, *columns)
    ends = ("lora_up.weight", "lora_down.weight") if names == "kohya" else ("lora_B.weight", "lora_A.weight")
    change = scale * up.double().flatten(1) @ down.double().flatten(1)
    return dict(zip(ends, (up, down), strict=True)), change


def _with_defect(source: random.Random, tensors: Mapping[str, Tensor], defect: str) -> dict[str, Tensor]:
    """The tensors with one of the defects that are in numbers, shapes and types."""
    found = dict(tensors)
    name = source.choice([name for name, value in found.items() if value.dim()])
    value = found[name]
    if defect in ("NaN", "infinity"):
        bad = value.float()
        bad.flatten()[source.randrange(bad.numel())] = float("nan" if defect == "NaN" else "inf")
        found[name] = bad
    elif defect == "alpha":
        alphas = [key for key in found if key.endswith("alpha")]
        found[source.choice(alphas) if alphas else f"{name.split('.')[0]}.alpha"] = torch.tensor(source.choice(ALPHAS))
    elif defect == "shape":
        found[name] = source.choice((value[1:], value[:, 1:], value.flatten(), value.unsqueeze(0)))
    elif defect == "rank 0":
        found[name] = source.choice((value[:0], value[:, :0]))
    elif defect == "whole numbers":
        kind = source.choice((torch.int8, torch.int32, torch.bool, torch.int64))
        found[name] = (3 * value.float()).to(kind)
    elif defect == "other layer":
        found["lora_unet_nowhere_at_all.lora_up.weight"] = value.clone()
    elif defect == "no up":
        del found[name]
    elif defect == "huge":
        found[name] = value.double() * 10.0 ** source.choice((30, 160, 300))
    return found or {"x": torch.ones(1)}


def _damaged(source: random.Random, file: Path, defect: str) -> None:
    content = bytearray(file.read_bytes())
    if defect == "torn":
        content = content[: source.randrange(len(content))]
    elif defect == "torn header":
        content = content[: source.randrange(8 + struct.unpack("<Q", content[:8])[0])]
    elif defect == "flipped":
        content[source.randrange(len(content))] ^= 1 << source.randrange(8)
    elif defect == "empty":
        content = bytearray()
    file.write_bytes(content)


def pictured(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def examine(case: Sum, folder: Path) -> str:
    """Run the case; return `refused`, `planned` or `written`, and raise AssertionError where a promise is broken."""
    before = pictured(folder)
    result, refused = _called(case)
    if refused:
        assert isinstance(refused, LoraInspectError) or "give one of them" in str(refused), repr(refused)
        assert pictured(folder) == before, "something is left"
        assert "\n" not in str(refused)
        return "refused"
    after = pictured(folder)
    assert {name: after.get(name) for name in before} == before, "an input was changed"
    if case.output is None:
        assert after == before
        return "planned"
    new = sorted(after.keys() - before.keys())
    assert {name.split(os.sep)[0] for name in new} == {os.path.basename(case.output)}
    _check(case, result)
    return "written"


def _called(case: Sum) -> tuple[Any, Exception | None]:
    try:
        return getattr(lora_inspect, case.verb)(case.named, case.output, **case.options), None
    except (LoraInspectError, ValueError) as error:
        return None, error


def _check(case: Sum, result: Any) -> None:
    """Holds the output, as its own reader has it, to the dense sum."""
    modules = {_path_of(one.key): one for one in open_adapter(case.output or "").modules}
    weights = {name: own for name, own in new_weights(case.output or "").items() if not name.endswith("alpha")}
    assert weights
    assert all(bool(torch.isfinite(own.double()).all()) for own in weights.values())
    if case.defect in ("flipped", "huge", "alpha"):
        return  # numbers that are in the file, and beyond those that its reader computes with
    found = {path: one.delta(dtype=torch.float64).double() for path, one in modules.items()}
    assert all(bool(torch.isfinite(value).all()) for value in found.values())
    if case.meant is None:
        return
    assert found.keys() <= case.meant.keys()
    largest = max(case.size.values())
    for path, meant in case.meant.items():
        # A copy of eight bits has no other type.
        share = max(ROUNDING.get(kind, 2e-6) for kind in result.dtype.split(" and "))
        bound = share * case.size[path] + 1e-12 * largest
        if path not in found:
            assert float(meant.norm()) <= bound or "size" in case.options, path
            continue
        rank = getattr(modules[path], "rank", None)
        values = torch.linalg.svdvals(meant)
        is_trimmed = bool(case.options.keys() & {"rank", "energy", "max_error", "size", "max_rank"})
        is_trimmed |= case.verb == "average" and "exact" not in case.options
        best = float(values[rank:].norm()) if is_trimmed and rank is not None else 0.0
        lost = float((found[path].reshape(meant.shape) - meant).norm())
        bound += 4 * (result.rounding or 0.0) * largest
        assert lost <= best * (1 + 1e-6) + bound, (path, lost, best, bound)


def _path_of(key: str) -> str:
    for prefix in PREFIXES.values():
        key = key.removeprefix(prefix)
    return next(path for path in LAYERS if path.replace(".", "_") == key.replace(".", "_"))


def new_weights(output: str) -> dict[str, Tensor]:
    """The tensors of an output."""
    return load_file(os.path.join(output, "adapter_model.safetensors") if os.path.isdir(output) else output)
