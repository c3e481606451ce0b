"""Where an output goes, from what the user named and whether a file or a folder is written. Standard library only.

What may be replaced there is for `outputs` to say.
"""

import os
from collections.abc import Collection

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.file_types import PICKLE_ENDINGS
from lora_inspect.files.outputs import is_input
from lora_inspect.files.store_outputs import output_address
from lora_inspect.stores.address import is_remote, join

SAFETENSORS_ENDING, GGUF_ENDING = ".safetensors", ".gguf"
# With which names end that are meant for a file of weights. What follows the last dot of others, as a version number
# does, is a part of the name.
_ENDINGS = (
    SAFETENSORS_ENDING,
    *PICKLE_ENDINGS,
    ".sft",
    GGUF_ENDING,
    ".h5",
    ".json",
    ".msgpack",
    ".npz",
    ".onnx",
    ".zip",
)

_FORMATS = {SAFETENSORS_ENDING: "safetensors", GGUF_ENDING: "GGUF"}

# What programs that write to their standard output call it.
_STREAM = "-"


def file_output(named: str, name: str, inputs: Collection[str], ending: str = SAFETENSORS_ENDING) -> str:
    """The path of an output that is a file: `named`, or `name` with the right `ending` where that is a folder.

    Raises LoraInspectError where it is a folder that does not exist, and for a name with another ending than that of
    what is written. An input, a device and the like stay as they are named, to be refused as what they are.
    """
    _refuse_nothing(named)
    if is_remote(named):
        named = output_address(join(named, _bare(name) + ending) if named.endswith("/") else named)
    if os.path.isdir(named):
        return os.path.join(named, _bare(name) + ending)
    if os.path.basename(named) == ending:
        raise LoraInspectError(f"{named}: it is an ending without a name; put the name of the file before it.")
    if _ends_with_slash(named):
        raise LoraInspectError(f"{named}: there is no such folder; make it first, or name a file.")
    if named.endswith(ending) or is_input(named, inputs) or _is_no_file(named):
        return named
    proper = _bare(named) + ending
    way_out = f"name it {proper}" if not os.path.lexists(proper) else f"choose a name that ends in {ending}"
    raise LoraInspectError(f"{named}: what is written is a {_FORMATS[ending]} file; {way_out}.")


def folder_output(named: str, because: str, inputs: Collection[str]) -> str:
    """The path of an output that is a folder, `because` of what a sentence begins with.

    Raises LoraInspectError for a name that is meant for a file. An input stays as it is named, to be refused as one.
    """
    _refuse_nothing(named)
    if is_remote(named):
        named = output_address(named)
    bare = _bare(named)
    if bare == named or os.path.isdir(named) or is_input(named, inputs):
        return named
    which = f", as in -o {bare}" if not os.path.lexists(bare) else " that does not exist"
    raise LoraInspectError(f"{named}: {because}, so a folder is written; name a folder{which}.")


def _refuse_nothing(named: str) -> None:
    if not named:
        raise LoraInspectError("the empty name: it cannot be an output; name the file or the folder to write.")
    if named == _STREAM:
        raise LoraInspectError(f"{named}: an output is no stream; name the file or the folder to write.")


def _bare(name: str) -> str:
    """The name without the endings of weights."""
    stem, ending = os.path.splitext(name)
    while ending.lower() in _ENDINGS:
        name = stem
        stem, ending = os.path.splitext(name)
    return name


def _ends_with_slash(named: str) -> bool:
    return named.endswith((os.sep, os.altsep or os.sep))


def _is_no_file(named: str) -> bool:
    return os.path.lexists(named) and not os.path.isfile(named)
