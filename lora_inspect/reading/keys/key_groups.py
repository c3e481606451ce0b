"""The tensors of one module while the keys of a file come in, before it is known what they amount to."""

from typing import Any

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.keys.suffixes import ParsedKey

# What a group of tensors is like.
Form = tuple[tuple[Any, ...], ...]


class GroupTensor(NamedTuple):
    """A tensor of a module whose algorithm is not known yet, and what its suffix can mean."""

    info: TensorInfo
    parsed: ParsedKey

    def role_in(self, algorithm: str) -> str | None:
        """What it would be to this algorithm; None for nothing."""
        return next((role for name, role in self.parsed.meanings if name == algorithm), None)


class KeyGroup:
    """The tensors of one module while its keys come in: factors by slice, shared ones by role with their suffix."""

    __slots__ = ("parts", "shared")

    def __init__(self) -> None:
        self.parts: dict[int | None, list[GroupTensor]] = {}
        self.shared: dict[str, tuple[TensorInfo, str]] = {}

    @property
    def infos(self) -> list[TensorInfo]:
        """All of the tensors, in the order in which `form` speaks of them."""
        factors = [tensor.info for tensors in self.parts.values() for tensor in tensors]
        return factors + [info for info, _ in self.shared.values()]

    @property
    def form(self) -> Form:
        """All that decides what they amount to, but for the module's name."""
        factors = [
            (part, tensor.parsed.suffix, tensor.parsed.meanings, tensor.info.shape)
            for part, tensors in self.parts.items()
            for tensor in tensors
        ]
        return *factors, *[(role, suffix, info.shape) for role, (info, suffix) in self.shared.items()]

    @property
    def suffixes(self) -> list[str]:
        """Those of the factors' keys."""
        return [tensor.parsed.suffix for tensors in self.parts.values() for tensor in tensors]
