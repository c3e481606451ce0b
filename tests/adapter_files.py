"""Adapters of all layers of a model family, in the names and the layout of a scheme, and files of them.

The weights are those of a model in the layout of diffusers. `write` is for LoRA and DoRA of layers of these shapes, and
`adapter_file` for every kind of `adapters`, with the weights that are meant.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import layouts
import torch
from adapters import KINDS, KINDS_OF_FILES, NAMES, Factors, Shape, adapter, factors
from safetensors.torch import save_file
from torch import Tensor

from lora_inspect.architectures import by_name
from lora_inspect.architectures.correspondence import Link
from lora_inspect.architectures.patterns import pattern_of, patterns_of
from lora_inspect.architectures.record import Layout

ALL_KINDS = KINDS | KINDS_OF_FILES
Shapes = Mapping[str, Shape]
Weights = Mapping[str, Tensor]


def layout_of(family: str, names: str) -> str | None:
    """The layout of the family that the names are of; None where it is the one of diffusers under another name."""
    known = by_name(family)
    asked = NAMES[names].layout
    own = {name: one.name for one in known.layouts if not one.borrowed for name in one.names}
    if asked == "kohya":
        return known.layouts[0].name
    if asked == "comfyui":
        all_names = {name for one in known.layouts for name in one.names}
        # Trainers of a family that borrows this layout write other names.
        return own.get(next((name for name in ("comfyui", "original", "diffusers") if name in all_names), ""))
    plain = {"kohya, diffusers": "kohya", "comfyui, diffusers": "comfyui"}.get(names)
    if asked not in own or (plain and layout_of(family, plain) == own[asked]):
        return None
    return own[asked]


def _links(family: str, layout: str, path: str) -> list[Link]:
    """Where a layer of diffusers is in the layout; nowhere else where the layout calls it the same."""
    known = by_name(family)
    patterns = patterns_of(next(one for one in known.layouts if layout in one.names).paths, ".")
    links = [link for link in known.correspondence.links(path) if pattern_of(link.path, ".") in patterns]
    assert links or pattern_of(path, ".") in patterns, path
    return links


def shapes_in(layout: str, family: str, shapes: Shapes) -> Shapes:
    """The weights that a family has in a `layout`, which in that of diffusers have these `shapes`."""
    found: dict[str, Shape] = {}
    for path, (rows, inputs, *kernel) in shapes.items():
        links = _links(family, layout, path)
        for link in links:
            arrangement, number = link.relation.arrangement, rows
            if arrangement is not None and link.is_whole:
                number = arrangement.rows(link.part, rows, inputs)
            elif arrangement is not None:
                number = arrangement.runs(rows, inputs)[link.part].rows
            found[link.path] = (number, inputs, *kernel)
        if not links:
            found[path] = (rows, inputs, *kernel)
    return found


class Arranged(NamedTuple):
    """Weights of a layout made of those of diffusers: `homes` has by path the weights whose rows it has, and which."""

    weights: dict[str, Tensor]
    homes: dict[str, list[tuple[str, list[tuple[int, int, int]]]]]

    def rows(self, path: str) -> Iterator[tuple[str, slice, slice]]:
        """(path in diffusers, its rows, those of the layer that they are)."""
        for home, runs in self.homes[path]:
            for start, end, source in runs:
                yield home, slice(source, source + end - start), slice(start, end)


def arranged(family: str, layout: str, weights: Weights) -> Arranged:
    """The weights as a layout has them, without the fused layers of which a part is not among the weights.

    No adapter could be of those.
    """
    shapes = shapes_in(layout, family, {path: tuple(weight.shape) for path, weight in weights.items()})
    made = Arranged({path: torch.zeros(shape) for path, shape in shapes.items()}, {path: [] for path in shapes})
    for path, weight in weights.items():
        rows, inputs = weight.shape[:2]
        links = _links(family, layout, path)
        for link in links:
            arrangement, runs = link.relation.arrangement, [(0, rows, 0)]
            if arrangement is not None and link.is_whole:
                runs = list(arrangement.runs(shapes[link.path][0], inputs)[link.part].each())
            elif arrangement is not None:
                runs = list(arrangement.runs(rows, inputs)[link.part].inverted.each())
            made.homes[link.path].append((path, runs))
        if not links:
            made.homes[path].append((path, [(0, rows, 0)]))
    whole = {}
    for path, weight in made.weights.items():
        for home, of_home, own in made.rows(path):
            weight[own] = weights[home][of_home]
        if sum(own.stop - own.start for _, _, own in made.rows(path)) == len(weight):
            whole[path] = weight
    return Arranged(whole, made.homes)


def factors_of(shapes: Shapes, dora: bool = False, seed: int = 7) -> dict[str, Factors]:
    """Factors of layers of these shapes, each of another rank and alpha, whose change is of the weights' size."""
    numbers = torch.Generator().manual_seed(seed)
    weights = {f"{path}.weight": 0.1 * torch.randn(shape, generator=numbers) for path, shape in shapes.items()}
    made = factors(weights, list(shapes), dora, seed)
    return {path: own._replace(up=0.1 * own.up) for path, own in made.items()}


def write(
    scheme: str, family: str, shapes: Shapes, kind: str, folder: Path, says: Mapping[str, str], seed: int = 7
) -> Path:
    """A file, or the folder of PEFT, with an adapter of each layer whose weight in diffusers has one of the `shapes`.

    Its factors are those of the layout that the scheme has, fused where that one fuses.
    """
    layout = layout_of(family, scheme)
    assert layout is not None
    adapter = factors_of(shapes_in(layout, family, shapes), kind == "dora", seed)
    return save(scheme, adapter, NAMES[scheme].tensors(adapter, by_name(family).pipeline_name), kind, folder, says)


def save(
    scheme: str,
    adapter: Mapping[str, Factors],
    tensors: Mapping[str, Tensor],
    kind: str,
    folder: Path,
    says: Mapping[str, str],
) -> Path:
    """The tensors of an adapter as files of the scheme hold them."""
    folder.mkdir(parents=True, exist_ok=True)
    if scheme != "peft":
        if kind == "rslora":
            tensors = {**tensors, "use_rslora_flag": torch.tensor(True)}
        file = folder / "adapter.safetensors"
        save_file({key: value.contiguous() for key, value in tensors.items()}, file, dict(says))
        return file
    kept = {key: value.contiguous() for key, value in tensors.items() if not key.endswith(".alpha")}
    save_file(kept, folder / "adapter_model.safetensors", dict(says))
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 1,
        "rank_pattern": {f"^{path}": len(own.down) for path, own in adapter.items()},
        "alpha_pattern": {f"^{path}": own.alpha for path, own in adapter.items()},
        "target_modules": sorted(adapter),
        "use_rslora": kind == "rslora",
        "use_dora": kind == "dora",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


# The family and the layout of which the blocks alone are listed.
BLOCKS_ALONE = ("hunyuan_video_1_5", "comfyui")


def rotated(families: Sequence[str], schemes: Sequence[str], count: int) -> list[tuple[str, str, str]]:
    """(family, scheme, kind): `count` kinds of every family, so that every scheme has its turn with every kind."""
    found, kinds = [], ("dora", "lora", "rslora")
    for number, family in enumerate(families):
        known = [scheme for scheme in schemes if layout_of(family, scheme)]
        known = [scheme for scheme in known if (family, layout_of(family, scheme)) != BLOCKS_ALONE]
        found += [(family, known[(number + at) % len(known)], kinds[(number + at) % len(kinds)]) for at in range(count)]
    return found


# Suffixes of LyCORIS for differences of the weight and the bias of a norm, and of a parameter.
_OF_NORMS = {".weight": ".w_norm", ".bias": ".b_norm", "": ".diff"}


def norm_differences(base: Weights, layout: Layout) -> dict[str, Tensor]:
    """By tensor of the base, one of a norm or a parameter of the layout, what is added to it."""
    norms = patterns_of(layout.norms, ".")
    paths = {layouts.split(name)[0] for name in base} - set(layouts.matrices(base))
    names = [name for name in base if (path := layouts.split(name)[0]) in paths and pattern_of(path, ".") in norms]
    assert names
    numbers = torch.Generator().manual_seed(11)
    return {name: torch.randn(base[name].shape, generator=numbers) for name in names}


def spelled_norms(differences: Weights, name_of: Callable[[str], str]) -> dict[str, Tensor]:
    """The tensors of an adapter; `name_of` makes the name of a module of its path."""
    named = {name: layouts.split(name) for name in differences}
    return {name_of(path) + _OF_NORMS[end]: differences[name] for name, (path, end) in named.items()}


def with_norms(
    values: Weights, bounds: Weights, differences: Weights, multiplier: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The float64 tensors and bounds with the differences in them, of any float32 sum."""
    sums = {name: values[name] + multiplier * value.double() for name, value in differences.items()}
    errors = {name: (value.abs() + values[name].abs()) * 2.0**-22 for name, value in sums.items()}
    return {**values, **sums}, {**bounds, **errors}


@dataclass
class AdapterFile:
    """Tensors and metadata, the weights that they mean, those without their magnitude, and what is added to biases."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    meant: dict[str, Tensor] = field(default_factory=dict)
    plain: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)


def adapter_file(
    family: str, names: str, kind: str, has_alpha: bool, weights: Weights, seed: int = 7, says: str = ""
) -> AdapterFile:
    """A file of the kind that changes the layers of these weights, which are those of the model in diffusers."""
    made, spelled, pipeline = ALL_KINDS[kind], NAMES[names], by_name(family).pipeline_name
    own = arranged(family, layout_of(family, names) or "diffusers", weights)
    layers = {path: {"weight": weight, "bias": torch.zeros(len(weight))} for path, weight in own.weights.items()}
    tensors, meant = adapter(
        made, layers, lambda path: spelled.module(path, pipeline), has_alpha, seed, spelled.spelling, size=0.3
    )
    file = AdapterFile(tensors, {"ss_base_model_version": says} if says else {})
    file.meant = {path: weight.double().clone() for path, weight in weights.items()}
    if made.config is not None and has_alpha:
        config = {"target_modules": [*weights], **made.config}
        config = {f"{pipeline}.{key}": value for key, value in config.items()}
        file.metadata |= {"format": "pt", "lora_adapter_metadata": json.dumps(config)}
    for name, weight in meant.items():
        path, _, parameter = name.rpartition(".")
        for home, rows, of_layer in own.rows(path):
            if parameter == "bias":
                no_change = torch.zeros(len(weights[home])).double()
                file.biases.setdefault(home, no_change)[rows] = weight.meant[of_layer]
                continue
            file.meant[home][rows] = weight.meant[of_layer]
            if weight.plain is not None:
                file.plain.setdefault(home, weights[home].double().clone())[rows] = weight.plain[of_layer]
    return file
