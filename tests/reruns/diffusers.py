"""diffusers: the pipelines of the tests over their tiny models."""

from collections.abc import Iterator
from pathlib import Path

from diffusers_families import LOADERS
from diffusers_pipelines import bias_of, loaded
from torch import Tensor

from reruns import Asked, Case, Loading, Weights, grid


def version() -> str:
    """That of diffusers, and of PEFT, which computes what it loads."""
    from importlib import import_module

    return " with PEFT ".join(import_module(name).__version__ for name in ("diffusers", "peft"))


def load(family: str, state: dict[str, Tensor], file: Path) -> Weights:
    """The model of the pipeline with the file merged, and what that adds to its biases."""
    found, changed = loaded(family, file), {}
    for name in state:
        path, _, parameter = name.rpartition(".")
        changed[name] = found[path] if parameter == "weight" else found[name] - bias_of(family, path)
    return changed


def cases(record: str, asked: Asked, folder: Path) -> Iterator[Case]:
    """The grid of every family whose pipeline loads adapters."""
    return grid(Loading(dict.fromkeys(LOADERS, "diffusers"), load), record, asked, folder)
