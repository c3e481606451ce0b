"""Adapters of every layer of a model as trainers write them, in the names and the layout of a scheme."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from adapters import Factors, dotted, factors, kohya
from safetensors.torch import save_file
from torch import Tensor

from lora_inspect.architectures import by_name
from lora_inspect.architectures.patterns import pattern_of, patterns_of
from lora_inspect.architectures.record import Architecture
from lora_inspect.schemes.writing import first_of

Shapes = Mapping[str, tuple[int, ...]]


class Names(NamedTuple):
    """What trainers call the modules of a family: a prefix, and the paths of a layout."""

    spell: Callable[[str, dict[str, Factors]], dict[str, Tensor]]
    prefix: str
    layout: Callable[[Architecture], str | None]

    def knows(self, family: str) -> bool:
        """Whether it has a name for every layer of the family."""
        known = by_name(family)
        own = {layout.name for layout in known.layouts if not layout.borrowed}
        return self.layout(known) in own and (family, self.layout(known)) != BLOCKS_ALONE


# The family and the layout of which the blocks alone are listed.
BLOCKS_ALONE = ("hunyuan_video_1_5", "comfyui")


def of_diffusers(family: Architecture) -> str | None:
    return first_of(family, "diffusers")


NAMES = {
    "kohya": Names(kohya, "lora_unet_", lambda family: family.layouts[0].name),
    "comfyui": Names(dotted, "diffusion_model.", lambda family: first_of(family, "comfyui", "original", "diffusers")),
    "onetrainer": Names(kohya, "lora_{pipeline}_", of_diffusers),
    "diffusers": Names(dotted, "{pipeline}.", of_diffusers),
    "peft": Names(dotted, "base_model.model.", of_diffusers),
    "lycoris": Names(kohya, "lycoris_", of_diffusers),
}
KINDS = ("dora", "lora", "rslora")


def shapes_in(layout: str, family: str, shapes: Shapes) -> Shapes:
    """The weights that a family has in a `layout`, which in that of diffusers have these `shapes`."""
    known = by_name(family)
    own = next(one for one in known.layouts if one.name == layout)
    patterns = patterns_of(own.paths, ".")
    found: dict[str, tuple[int, ...]] = {}
    for path, (rows, inputs, *kernel) in shapes.items():
        links = [link for link in known.correspondence.links(path) if pattern_of(link.path, ".") in patterns]
        assert links or pattern_of(path, ".") in patterns, path
        for link in links:
            arrangement, number = link.relation.arrangement, rows
            if arrangement and link.is_whole:
                number = arrangement.rows(link.part, rows, inputs)
            elif arrangement:
                number = arrangement.runs(rows, inputs)[link.part].rows
            found[link.path] = (number, inputs, *kernel)
        if not links:
            found[path] = (rows, inputs, *kernel)
    return found


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
    known, names = by_name(family), NAMES[scheme]
    layout = names.layout(known)
    adapter = factors_of(shapes_in(layout, family, shapes), kind == "dora", seed)
    tensors = names.spell(names.prefix.format(pipeline=known.pipeline_name), adapter)
    return save(scheme, adapter, tensors, kind, folder, says)


def save(
    scheme: str,
    adapter: dict[str, Factors],
    tensors: dict[str, Tensor],
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


def rotated(families: Sequence[str], schemes: Sequence[str], count: int) -> list[tuple[str, str, str]]:
    """(family, scheme, kind): `count` kinds of every family, so that every scheme has its turn with every kind."""
    found = []
    for number, family in enumerate(families):
        known = [scheme for scheme in schemes if NAMES[scheme].knows(family)]
        found += [(family, known[(number + at) % len(known)], KINDS[(number + at) % len(KINDS)]) for at in range(count)]
    return found
