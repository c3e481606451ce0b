"""Algorithms known by the names of their tensors, so that a file that uses one is refused by the right name."""

from collections.abc import Callable

from lora_inspect.algorithms.record import Algorithm, Shapes


def _named(
    name: str,
    title: str,
    *suffixes: str,
    marks: tuple[str, ...] = (),
    fits: Callable[[Shapes], bool] | None = None,
    why: str = "",
) -> Algorithm:
    roles = {suffix.lstrip("."): suffix for suffix in suffixes}
    return Algorithm(name=name, title=title, dialects={"": roles}, marks=marks, fits=fits, why=why)


RECOGNISED = (
    _named(
        "oft_flux",
        "OFT of sd-scripts in slices",
        *(f".oft_blocks.{number}" for number in range(4)),
        why="turns slices of a layer, which sd-scripts alone does, while it runs the layer; use the file there",
    ),
    _named(
        "reshaped",
        "a weight that ComfyUI widens",
        ".reshape_weight",
        why="is to be padded with zeros before what is beside it is added, and a merge keeps the shapes of its base; "
        "write a base with the wider weight, and the adapter without its reshape_weight",
    ),
)
