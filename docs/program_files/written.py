"""A small adapter as it is written: its factors are zeros.

What a program makes of a file depends on its names, on shapes, and on the numbers that scale.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "fixtures")]

from make_synthetic import element, encode  # noqa: E402

from lora_inspect.architectures.patterns import pattern_of  # noqa: E402
from lora_inspect.architectures.record import Architecture, Layout  # noqa: E402
from lora_inspect.reading.model.settings import Settings  # noqa: E402
from lora_inspect.schemes.record import Scheme  # noqa: E402

WIDTH, RANK, ALPHA = 16, 4, 3.0
Shape = tuple[int, ...]
# How many inputs modules have, by what they are called in keys.
Modules = Mapping[str, int]
# Tensors by name, each all of one number.
Tensors = dict[str, tuple[Shape, float]]


class File(NamedTuple):
    """Tensors, metadata, and a config beside the tensors, None for a file alone.

    `settings` are what a user has to say of it, because the file does not.
    """

    tensors: Tensors
    metadata: Mapping[str, str] = MappingProxyType({})
    config: Mapping[str, object] | None = None
    settings: Settings = Settings()

    def write(self, folder: Path) -> str:
        """Writes it into `folder`, which is made; the path to open."""
        folder.mkdir()
        path = folder / "adapter_model.safetensors"
        tensors = {
            name: ("F32", shape, element("F32", number) * prod(shape)) for name, (shape, number) in self.tensors.items()
        }
        path.write_bytes(encode(tensors, self.metadata))
        if self.config is None:
            return str(path)
        (folder / "adapter_config.json").write_text(json.dumps(self.config), encoding="utf-8")
        return str(folder)


def layers(layout: Layout) -> Iterator[str]:
    """The paths of layers in the innermost blocks, which adapters are trained on, but for those of few models."""
    lists = [name.replace("{i}", "#") for name, _ in layout.blocks]
    inner = tuple(f"{one}." for one in lists if not any(other.startswith(f"{one}.") for other in lists))
    for path in layout.paths:
        is_inside = pattern_of(path, ".").startswith(inner) if inner else "{i}" in path
        # Wan's models of text to video have none of those.
        if is_inside and not path.endswith("_img"):
            yield path


def named(scheme: Scheme, family: Architecture, paths: Iterable[str]) -> Modules:
    """The modules at these paths as keys name them, each of the first block.

    Their inputs are as wide as tells the family where nothing else does: the tokens of a text encoder.
    """
    told = {size.path: size.in_features for size in family.sizes if size.out_features is None}
    writing = scheme.writing
    prefix = writing.prefixes.get(family.name, writing.prefix).format(pipeline=family.pipeline_name) if writing else ""
    return {scheme.module(path.replace("{i}", "0"), prefix): told.get(path) or WIDTH for path in paths}


A_B, DOWN_UP = "A/B", "down/up"
_FACTORS = {A_B: (".lora_A.weight", ".lora_B.weight"), DOWN_UP: (".lora_down.weight", ".lora_up.weight")}


def plain(modules: Modules, factors: str, alpha: float | None = None, rank: int = RANK) -> Tensors:
    """The factors of LoRA for each module, with an alpha tensor where there is one."""
    down, up = _FACTORS[factors]
    found: Tensors = {}
    for module, inputs in modules.items():
        found |= {module + down: ((rank, inputs), 0.0), module + up: ((WIDTH, rank), 0.0)}
        if alpha is not None:
            found[f"{module}.alpha"] = ((), alpha)
    return found


def folder(tensors: Tensors, **fields: object) -> File:
    """A folder of PEFT, whose config names every module and says alpha/rank."""
    modules = {key.partition(".lora_")[0] for key in tensors if ".lora_" in key}
    targets = sorted({module.rpartition(".")[2] for module in modules})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": targets, **fields}
    return File(tensors, config=config)
