"""The families that an adapter and a base may both be of, and how the layouts of their names are related."""

from collections.abc import Sequence

from lora_inspect.architectures.correspondence import Correspondence
from lora_inspect.architectures.detection import Detection
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.contribution import Module
from lora_inspect.reading.gguf_layout import gguf_correspondence, has_header
from lora_inspect.reading.identify import adapter_candidates, base_candidates, common_correspondence, common_families
from lora_inspect.schemes.gguf import GGUF


def layouts_of(
    adapter: Adapter, base: Checkpoint, modules: Sequence[Module]
) -> tuple[tuple[Detection, ...], Correspondence]:
    """The families, in the base's layout where it shows one, and the relations that hold for some `modules`."""
    families = common_families(adapter_candidates(adapter), base_candidates(base))
    if adapter.scheme == GGUF.name and has_header(adapter.checkpoint):
        return families, gguf_correspondence(adapter.checkpoint, modules, base)
    return families, common_correspondence(families)
