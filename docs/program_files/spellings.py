"""The names that files have: plain LoRA of every layer of a family, in every naming scheme."""

from collections.abc import Callable
from typing import NamedTuple

from lora_inspect import schemes
from lora_inspect.architectures.record import Architecture, Layout
from lora_inspect.schemes.record import OWN, first_of
from program_files.written import A_B, ALPHA, DOWN_UP, File, Modules, folder, layers, named, plain


class Spelling(NamedTuple):
    """A column of names: the scheme whose prefix they have, and how factors of LoRA are spelled.

    `over` gives the name of a family's layout, and is None for the one that the scheme writes.
    """

    title: str
    scheme: str
    factors: str
    over: Callable[[Architecture], str | None] | None = None

    def layout(self, family: Architecture) -> Layout | None:
        """The layout of the family that the names are of, None where they have none for it."""
        if self.over:
            name = self.over(family)
        else:
            writing = schemes.by_name(self.scheme).writing
            name = writing.layout(family) if writing else None
        if name == OWN:
            return family.layouts[0]
        return next((layout for layout in family.layouts if name and name in layout.names), None)

    def modules(self, family: Architecture) -> Modules:
        """A module for each layer of the blocks; none where there are no such names."""
        layout = self.layout(family)
        return named(schemes.by_name(self.scheme), family, layers(layout)) if layout else {}


def _of_diffusers(family: Architecture) -> str | None:
    return first_of(family, "diffusers")


def _of_comfyui(family: Architecture) -> str | None:
    writing = schemes.by_name("comfyui").writing
    return writing.layout(family) if writing else None


SPELLINGS = (
    Spelling("kohya", "kohya", DOWN_UP),
    Spelling("musubi", "musubi", DOWN_UP),
    Spelling("comfyui", "comfyui", DOWN_UP),
    Spelling("comfyui A/B", "comfyui", A_B),
    Spelling("comfyui dif", "comfyui", A_B, _of_diffusers),
    Spelling("diffusers", "diffusers", A_B),
    Spelling("diffusers d/u", "diffusers", DOWN_UP),
    Spelling("bare", "dotted", A_B, _of_comfyui),
    Spelling("bare dif", "dotted", A_B, _of_diffusers),
    Spelling("peft", "peft", A_B),
    Spelling("lycoris", "lycoris", DOWN_UP),
    Spelling("onetrainer", "onetrainer", DOWN_UP),
)


def spelled(spelling: Spelling, family: Architecture, has_alpha: bool) -> File | None:
    """A plain LoRA of every layer; None where there are no such names."""
    modules = spelling.modules(family)
    if not modules:
        return None
    if spelling.scheme == "peft":
        return None if has_alpha else folder(plain(modules, A_B))
    return File(plain(modules, spelling.factors, ALPHA if has_alpha else None))
