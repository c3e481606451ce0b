"""What a command may change, told from its arguments alone."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lora_inspect.files.discovery import is_checkpoint_folder

JOURNAL = ".header-journal"
# The folder beside an output in which jobs leave their shards for each other.
PARTS = ".parts"
_METADATA = "metadata "


@dataclass(frozen=True)
class Effects:
    """Where a command may leave something else than it found; paths as they were typed, or real ones of files.

    A complete file or folder may take the place of each of the `outputs`; `below` says that they are folders in which
    anything may be made, and which may be made in parts. One of the files `edited` gets another metadata: it is
    replaced where it is among the `outputs`, too, and else has its header rewritten where it stands. Those that are
    `repaired`
    have a journal that a dead run may have left.
    """

    outputs: tuple[str, ...] = ()
    below: bool = False
    edited: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()

    @property
    def rewritten(self) -> frozenset[str]:
        """The files that may be changed where they stand."""
        return frozenset({*self.repaired, *(file for file in self.edited if file not in self.outputs)})

    @property
    def journals(self) -> frozenset[str]:
        """What may be made, and has to be gone at the end."""
        return frozenset(file + JOURNAL for file in (*self.edited, *self.repaired))


NOTHING = Effects()
# The name that `report` gives a page.
PAGE = "report.html"


def effects_of(target: str, parsed: dict[str, Any], folder: str) -> Effects:
    """Of a verb with its arguments in a folder, before it runs there."""
    if target.startswith(_METADATA):
        return _of_metadata(parsed, folder)
    inputs = [path for name in ("base", "adapter") if isinstance(path := parsed.get(name), str)]
    adapter = os.path.join(folder, inputs[-1].partition(":")[0]) if target == "convert" and inputs else ""
    if target == "report":
        output = str(parsed.get("output") or PAGE)
        return Effects((output, os.path.join(output, PAGE)))
    outputs = _outputs(parsed, inputs)
    if outputs and parsed.get("share"):
        return Effects((*outputs, f"{outputs[0].rstrip('/')}{PARTS}"), below=True)
    if outputs and "\0" not in adapter and os.path.isdir(adapter) and not is_checkpoint_folder(adapter):
        return Effects(outputs[:1], below=True)
    return Effects(outputs)


def _outputs(parsed: dict[str, Any], inputs: Iterable[str]) -> tuple[str, ...]:
    output = parsed.get("output")
    if not isinstance(output, str) or parsed.get("dry_run"):
        return ()
    names = [os.path.basename(path.partition(":")[0]) for path in inputs]
    # A folder takes the result under the name of an input, which may have had another ending.
    names += [f"{name[:dot]}.safetensors" for name in names for dot, letter in enumerate(name) if letter == "."]
    return output, *(os.path.join(output, name) for name in names)


def _of_metadata(parsed: dict[str, Any], folder: str) -> Effects:
    """Any verb of metadata puts right what a dead run has left of headers that it reads, and removes the journals."""
    path, source = parsed.get("path"), parsed.get("source")
    if not isinstance(path, str):
        return NOTHING
    files = _files_of(path, folder)
    read = (*files, *(_files_of(source, folder) if isinstance(source, str) else ()))
    left = tuple(file for file in read if os.path.lexists(file + JOURNAL))
    if parsed.get("output") is not None or parsed.get("dry_run") or "in_place" not in parsed:
        return Effects(_outputs(parsed, [path, *map(os.path.basename, files)]), repaired=left)
    return Effects(() if parsed["in_place"] else files, edited=files, repaired=left)


def _files_of(path: str, folder: str) -> tuple[str, ...]:
    """The files that a path may stand for: itself, and where it is a folder or an index what lies there."""
    named = os.path.join(folder, path)
    if "\0" in named:
        return ()
    beside = named if os.path.isdir(named) else os.path.dirname(named) if named.endswith(".json") else ""
    found = [named, *(os.path.join(beside, name) for name in (os.listdir(beside) if os.path.isdir(beside) else ()))]
    return tuple(
        dict.fromkeys(
            os.path.join(os.path.realpath(os.path.dirname(file)), os.path.basename(file))
            for file in (file.removesuffix(JOURNAL) for file in found)
            if os.path.realpath(file).startswith(folder + os.sep) and not os.path.isdir(file)
        )
    )
