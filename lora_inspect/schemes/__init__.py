"""The registry of naming schemes, in the order in which they are tried. To add one: write its file, name it here."""

from lora_inspect.schemes.comfyui import COMFYUI
from lora_inspect.schemes.diffusers import DIFFUSERS
from lora_inspect.schemes.dotted import DOTTED
from lora_inspect.schemes.kohya import KOHYA
from lora_inspect.schemes.lycoris import LYCORIS
from lora_inspect.schemes.peft import PEFT
from lora_inspect.schemes.record import ModuleName, Scheme

SCHEMES: tuple[Scheme, ...] = (KOHYA, LYCORIS, PEFT, COMFYUI, DIFFUSERS, DOTTED)


def by_name(name: str) -> Scheme:
    """The scheme called `name`; raises KeyError."""
    return _BY_NAME[name]


def recognise(module: str) -> ModuleName:
    """The parts of a module's name in the first scheme that spells it so; `dotted` takes whatever is left."""
    for scheme in SCHEMES:
        if name := scheme.recognise(module):
            return name
    raise ValueError(f"{module!r} is no module name")


_BY_NAME = {scheme.name: scheme for scheme in SCHEMES}
