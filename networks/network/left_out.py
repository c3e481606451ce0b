"""The layers within reach of a network that it does not adapt, and how they come in after all.

A file may hold layers that an architecture leaves out by default: other trainers adapt them by default, and a network
that goes on from such a file has to have them. What the user leaves out stays out.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ..files.module_names import module_name
from .targets import Selection, Target


class LeftOut:
    """The skipped layers of a `selection`; `create` makes the modules of targets by name.

    `switches` are the options of the architecture, as they would have to be set, by the pattern that each excludes
    layers with.
    """

    def __init__(self, prefix: str, selection: Selection, create: Callable[[Sequence[Target]], dict[str, Any]]) -> None:
        self.switches: Mapping[str, str] = {}
        self._reasons = {module_name(prefix, path): (path, reason) for path, reason in selection.skipped.items()}
        self._optional = {module_name(prefix, target.path): target for target in selection.optional}
        self._create = create

    @property
    def layers(self) -> list[Any]:
        """The layers of the model that could come in."""
        return [target.module for target in self._optional.values()]

    def modules(self, names: Collection[str]) -> dict[str, Any]:
        """New modules, by name, of those `names` that the user has not left out."""
        return self._create([target for name, target in self._optional.items() if name in names])

    def way_in(self, name: str) -> str | None:
        """The option that takes in the layer of the module called `name`; None where no option reaches it."""
        if name not in self._reasons:
            return None
        path, reason = self._reasons[name]
        for pattern, option in self.switches.items():
            if re.fullmatch(pattern, path):
                return option
        return {"enable_conv2d is False": "enable_conv2d=True", "conv_dim is 0": "conv_dim"}.get(
            reason, "include_patterns"
        )

    def ways_in(self, names: Collection[str]) -> list[str]:
        """The options that take in all that can be of the modules called `names`."""
        return sorted({option for name in names if (option := self.way_in(name))})
