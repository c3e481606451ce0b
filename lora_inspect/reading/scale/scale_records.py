"""The record of scales that are multiplied into the factors of a file, where its readers know no alpha.

It says to people what the scale was. No computation looks at it: such a file is applied as its tensors stand.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress

from lora_inspect.files.strict_json import json_number, parse_json

FOLDED_KEY = "lora_inspect.folded"


def folded_record(scales: Mapping[str, float]) -> str | None:
    """The metadata value for the scales by module: the commonest once, the others by name; None where all are 1."""
    if all(scale == 1.0 for scale in scales.values()):
        return None
    # Of equally common ones the least, and the modules by name: the order of the tensors is another in the output.
    common = Counter(sorted(scales.values())).most_common(1)[0][0]
    others = {module: scale for module, scale in sorted(scales.items()) if scale != common}
    return json.dumps({"scale": common, "modules": others} if others else {"scale": common})


class FoldedScales:
    """The scales that a file's metadata says to be in its factors; 1 where it has no readable record."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        record: object = None
        with suppress(ValueError):
            record = parse_json(metadata.get(FOLDED_KEY, "{}"))
        record = record if isinstance(record, dict) else {}
        self._common = _or_one(json_number(record.get("scale")))
        modules = record.get("modules")
        self._modules = modules if isinstance(modules, dict) else {}

    @property
    def has_any(self) -> bool:
        """Whether it says of any module that something is in its factors."""
        return self._common != 1.0 or bool(self._modules)

    def at(self, module: str) -> float:
        """The scale in the factors of the module called `module`."""
        return _or_one(json_number(self._modules[module])) if module in self._modules else self._common

    def meant(self, module: str, scale: float | None) -> float | None:
        """What the scale of `module` was before it went into the factors, which readers apply at `scale`.

        A record beside another scale than 1 is not of these tensors.
        """
        return self.at(module) if scale == 1.0 else scale

    def says(self, modules: Iterable[str]) -> str | None:
        """The observation about `modules`, which readers apply at 1; None where nothing is in their factors."""
        numbers = sorted({self.at(module) for module in modules} - {1.0})
        if not numbers:
            return None
        shown = " and ".join(f"{number:.6g}" for number in numbers)
        return f"{shown} is multiplied into the factors, which readers apply at 1"


def _or_one(scale: float | None) -> float:
    return 1.0 if scale is None else scale
