"""The headers of weights: with room for more, with what decides nothing, and in parts, as a killed run leaves them."""

import random

from fuzz.contents import Files, Weights
from fuzz.effects import JOURNAL
from lora_inspect.files.safetensors.header_recovery import Journal

_ROOM = 800
_WORDS = {"title": "Ink", "ss_tag_frequency": '{"a": {"ink": 3}}', "modelspec.title": "Ink", "sshs_legacy_hash": ""}


def with_room(content: bytes) -> bytes:
    """A safetensors file whose header ends in spaces."""
    length = int.from_bytes(content[:8], "little")
    return (length + _ROOM).to_bytes(8, "little") + content[8 : 8 + length] + b" " * _ROOM + content[8 + length :]


def give_room(files: Files) -> None:
    """To all weights."""
    for name, content in files.contents.items():
        if isinstance(content, Weights):
            files.contents[name] = RoomyWeights(content.tensors, content.metadata)


def give_words(files: Files) -> None:
    """Has all weights say what people want to know of them."""
    for content in files.contents.values():
        if isinstance(content, Weights):
            content.metadata = {**_WORDS, **(content.metadata or {})}


class RoomyWeights(Weights):
    """Weights whose header has room for more."""

    def encoded(self) -> bytes:
        return with_room(super().encoded())


def tear(source: random.Random, files: Files) -> None:
    """Leaves one of the files in parts, with its journal, which may be damaged as well."""
    whole = [name for name, content in files.contents.items() if isinstance(content, Weights)]
    if not whole:
        return
    name = source.choice(whole)
    held = files.contents[name]
    assert isinstance(held, Weights)
    content = held.encoded()
    other = Weights(held.tensors, {**(held.metadata or {}), "title": "another"}).encoded()
    old, new = (one[: 8 + int.from_bytes(one[:8], "little")] for one in (content, other))
    room = max(len(old), len(new))
    old, new = ((room - 8).to_bytes(8, "little") + one[8:].ljust(room - 8) for one in (old, new))
    done = source.choice((0, room, source.randrange(room)))
    data = content[8 + int.from_bytes(content[:8], "little") :]
    journal = Journal(old, new).encoded()
    kept = source.choice((len(journal), len(journal), len(journal), source.randrange(len(journal))))
    files.contents[name] = new[:done] + old[done:] + data
    files.contents[name + JOURNAL] = journal[:kept]
