"""The families that an adapter and a base may both be of, and how the layouts of their names are related."""

from collections.abc import Sequence

from lora_inspect.architectures.correspondence import Correspondence
from lora_inspect.architectures.detection import Detection
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.model_config import gguf_correspondence, has_header
from lora_inspect.reading.identify import (
    adapter_candidates,
    base_candidates,
    common_correspondence,
    common_families,
    described,
)
from lora_inspect.reading.model.contribution import Module
from lora_inspect.schemes.gguf import GGUF


def layouts_of(
    adapter: Adapter, base: Checkpoint, modules: Sequence[Module]
) -> tuple[tuple[Detection, ...], Correspondence]:
    """The families, in the base's layout where it shows one, and the relations that hold for some `modules`."""
    families = families_of(adapter, base)
    return families, correspondence_of(adapter, base, modules, families)


def families_of(adapter: Adapter, base: Checkpoint) -> tuple[Detection, ...]:
    """The families, in the base's layout where it shows one.

    Raises LoraInspectError where the settings name another than those that the adapter and the base have in common.
    """
    ours, theirs = adapter_candidates(adapter), base_candidates(base)
    # A base may have the names of the family that this one descends from.
    descends = any(layout.borrowed for one in ours for layout in one.architecture.layouts)
    if (named := adapter.settings.architecture) and not descends:
        unsettled = adapter._replace(settings=adapter.settings._replace(architecture=None))
        known = common_families(adapter_candidates(unsettled), theirs)
        if known and named not in [family.architecture.name for family in known]:
            raise LoraInspectError(
                f"{adapter.checkpoint.path}: {base.path} is of {described(known)}, so the adapter is not of {named}; "
                f"leave architecture={named} out."
            )
    return common_families(ours, theirs)


def correspondence_of(
    adapter: Adapter, base: Checkpoint, modules: Sequence[Module], families: Sequence[Detection]
) -> Correspondence:
    """The relations that hold for some `modules`, whichever of the `families` it is."""
    if adapter.scheme == GGUF.name and has_header(adapter.checkpoint):
        return gguf_correspondence(adapter.checkpoint, modules, base)
    return common_correspondence(families)
