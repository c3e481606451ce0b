"""What the modules of the output have in common, written once."""

from collections.abc import Iterable

from lora_inspect.converting.steps.part import Part
from lora_inspect.converting.steps.scaled_factors import check_finite
from lora_inspect.files.safetensors.writer import Content, renamed
from lora_inspect.reading.keys.special_claims import shared_tensors


def shared_contents(parts: Iterable[Part]) -> list[Content]:
    """The tensors that the parts share, as they are in the input; raises LoraInspectError where one is not finite."""
    found = {}
    for part in (part for part in parts if part.algorithm.name == part.origin.algorithm.name):
        for role, info in shared_tensors(part.origin).items():
            if info.name not in found and role not in part.algorithm.positions:
                check_finite(info)
            found[info.name] = info
    return [renamed(info, name) for name, info in found.items()]
