"""The model families the toolkit knows.

To add one is to add its file, with a record named `ARCHITECTURE`, and its line below.
"""

from importlib import import_module

from .record import Architecture, Layout, Size

# A family stands after the one that it descends from: candidates are named in this order.
FILES = (
    "anima",
    "auraflow",
    "bert",
    "distilbert",
    "flux",
    "chroma",
    "flux2",
    "gpt2",
    "gpt_neox",
    "hidream_i1",
    "hunyuan_video",
    "framepack",
    "hunyuan_image",
    "hunyuan_video_1_5",
    "ideogram4",
    "kandinsky5",
    "krea2",
    "llm",
    "hidream_o1",
    "ltx_video",
    "ltx2",
    "lumina2",
    "qwen_image",
    "sd15",
    "sd2",
    "sd3",
    "sdxl",
    "t5",
    "wan",
    "z_image",
)

ARCHITECTURES: tuple[Architecture, ...] = tuple(import_module(f".{file}", __name__).ARCHITECTURE for file in FILES)

_BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}


def by_name(name: str) -> Architecture:
    """The family of that name; KeyError, which lists the known names, for any other."""
    if name not in _BY_NAME:
        raise KeyError(f"no architecture is named {name!r}; known are {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


__all__ = ["ARCHITECTURES", "Architecture", "Layout", "Size", "by_name"]
