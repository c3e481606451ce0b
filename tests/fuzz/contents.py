"""What a case holds in its folder, and how that is written: bytes, links, pipes, sockets and folders."""

import base64
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from make_synthetic import encode

from fuzz.odd_json import spell

Tensor = tuple[str, tuple[int, ...], bytes]


@dataclass
class Weights:
    """A safetensors file that is still well formed: tensors by name, (dtype, shape, bytes)."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str] | None = None

    def encoded(self) -> bytes:
        return encode(self.tensors, self.metadata)


@dataclass
class Json:
    """A JSON file; its value may hold what `odd_json` spells."""

    value: Any

    def encoded(self) -> bytes:
        return spell(self.value).encode("utf-8", "surrogatepass")


@dataclass
class Link:
    """A symbolic link."""

    target: str


@dataclass
class Pipe:
    """A FIFO that nobody writes to."""


@dataclass
class Socket:
    """A Unix socket that nobody listens on."""


@dataclass
class Folder:
    """An empty folder."""


@dataclass
class Zeros:
    """A file of zeros, which takes no place on most disks."""

    size: int


Content = bytes | Zeros | Weights | Json | Link | Pipe | Socket | Folder


@dataclass
class Files:
    """What a case holds, by path relative to its folder, and which paths a command may take for what.

    `merged` are those that the adapters were merged into, of which the first of the `bases` was the base.
    """

    contents: dict[str, Content]
    bases: list[str] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)


def write(contents: Mapping[str, Content], folder: Path) -> None:
    for name, content in contents.items():
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if isinstance(content, Link):
            os.symlink(os.fsencode(content.target), path)
        elif isinstance(content, Pipe):
            os.mkfifo(path)
        elif isinstance(content, Socket):
            os.mknod(path, stat.S_IFSOCK | 0o600)
        elif isinstance(content, Zeros):
            with open(path, "xb") as handle:
                handle.truncate(content.size)
        elif isinstance(content, Folder):
            os.makedirs(path, exist_ok=True)
        else:
            with open(path, "xb") as handle:
                handle.write(as_bytes(content))


def as_bytes(content: bytes | Weights | Json) -> bytes:
    return content if isinstance(content, bytes) else content.encoded()


def described(contents: Mapping[str, Content]) -> list[str]:
    """A line for each file."""
    return [f"{name!r}: {_described(content)}" for name, content in contents.items()]


def _described(content: Content) -> str:
    if isinstance(content, bytes | Weights | Json):
        data = as_bytes(content)
        return f"{len(data)} bytes, {data[:60]!r}{'…' if len(data) > 60 else ''}"
    if isinstance(content, Zeros):
        return f"{content.size} zeros"
    return f"link to {content.target!r}" if isinstance(content, Link) else type(content).__name__.lower()


def to_json(contents: Mapping[str, Content]) -> dict[str, Any]:
    """As the corpus keeps them."""
    return {name: _to_json(content) for name, content in contents.items()}


def _to_json(content: Content) -> Any:
    if isinstance(content, Link):
        return {"link": content.target}
    if isinstance(content, Zeros):
        return {"zeros": content.size}
    if isinstance(content, bytes | Weights | Json):
        data = as_bytes(content)
        # Text as it is, so that a reader of the corpus sees what is wrong with it.
        if data.isascii() and b"\x00" not in data:
            return {"text": data.decode()}
        return {"base64": base64.b64encode(data).decode()}
    return {type(content).__name__.lower(): True}


def from_json(kept: Mapping[str, Any]) -> dict[str, Content]:
    return {name: _from_json(content) for name, content in kept.items()}


def _from_json(kept: Mapping[str, Any]) -> Content:
    ((kind, value),) = kept.items()
    if kind in ("text", "base64", "link", "zeros"):
        return {"text": str.encode, "base64": base64.b64decode, "link": Link, "zeros": Zeros}[kind](value)
    return {"pipe": Pipe, "socket": Socket, "folder": Folder}[kind]()


def metadata_at(path: str, contents: Mapping[str, Content]) -> list[str]:
    """The keys that the metadata of the file has, or of the files in the folder."""
    found = [content for name, content in contents.items() if name == path or name.startswith(f"{path}/")]
    return [key for content in found if isinstance(content, Weights) for key in content.metadata or {}]


def names_of(contents: Iterable[str]) -> list[str]:
    """The paths with the folders above them."""
    found: dict[str, None] = {}
    for name in contents:
        parts = name.split("/")
        found.update(dict.fromkeys("/".join(parts[:end]) for end in range(1, len(parts) + 1)))
    return list(found)
