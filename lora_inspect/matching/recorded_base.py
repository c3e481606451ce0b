"""Whether a base is the one that a file's magnitudes are recorded to be for."""

from collections.abc import Iterable

from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.hashes import sha256
from lora_inspect.maths.dora import OF_BASE
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.scale.dora_evidence import norms_record


def other_base_notes(adapters: Iterable[Adapter], base: Checkpoint) -> list[str]:
    """A sentence for each adapter whose recorded base has other numbers in the weight that the record is of."""
    notes = []
    for adapter in adapters:
        record = norms_record(adapter.checkpoint.metadata)
        weight = base.tensors.get(record.weight) if record and adapter.dora.norms == OF_BASE else None
        if record and weight and record.sha256 != sha256(weight):
            notes.append(
                f"{adapter.checkpoint.path}: its magnitudes are over the norms of {record.base or 'another base'}, "
                f"whose {record.weight} has other bytes than that of {base.path}; of another model its DoRA is not the "
                "trained one"
            )
    return notes
