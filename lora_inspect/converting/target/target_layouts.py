"""Where modules go: the layouts that an output can have, and what leads into each of them."""

from collections.abc import Sequence
from typing import Protocol

from lora_inspect.architectures.correspondence import Correspondence, Link
from lora_inspect.architectures.detection import Detection
from lora_inspect.architectures.patterns import pattern_of, patterns_of
from lora_inspect.architectures.record import Layout
from lora_inspect.reading.identify import certain_correspondence


class TargetLayout(Protocol):
    """The layout of an output."""

    def links(self, path: str) -> list[Link]:
        """What leads from the module at `path` into the layout."""

    def has(self, path: str) -> bool:
        """Whether the module at `path` is one of the layout as it is."""


class NamedLayout:
    """A layout with names of its own, of a file that may be of any of the `families`."""

    def __init__(self, families: Sequence[Detection], layout: Layout) -> None:
        self._correspondence = certain_correspondence(families)
        self._patterns = patterns_of(layout.named, ".")
        # What the tables do not list, as buffers, has its name in the layout that the file has already.
        self._is_own = all(family.layout.name == layout.name for family in families)

    def links(self, path: str) -> list[Link]:
        """What is related to the module and is one of the layout."""
        return [link for link in self._correspondence.links(path) if pattern_of(link.path, ".") in self._patterns]

    def has(self, path: str) -> bool:
        """Whether the name is one of the layout's."""
        return self._is_own or pattern_of(path, ".") in self._patterns


class ArrangedLayout:
    """What modules are where a family only fuses some of them and calls the others alike."""

    def __init__(self, families: Sequence[Detection], is_fused: bool) -> None:
        self._correspondence = certain_correspondence(families)
        self._possible = tuple(family.architecture.correspondence for family in families)
        self._is_fused = is_fused

    def links(self, path: str) -> list[Link]:
        """The fused module of a part, or the parts of a fused one."""
        return self._links(self._correspondence, path)

    def has(self, path: str) -> bool:
        """Whether the module is neither fused nor split in any family that it may be of."""
        return not any(self._links(one, path) for one in self._possible)

    def _links(self, correspondence: Correspondence, path: str) -> list[Link]:
        return [
            link
            for link in correspondence.links(path)
            if link.relation.arrangement is not None and link.is_whole == self._is_fused
        ]


class OwnLayout:
    """The layout that the file has already."""

    def links(self, path: str) -> list[Link]:
        """Nothing: every module stays what it is."""
        return []

    def has(self, path: str) -> bool:
        """Every module is there."""
        return True
