"""Adapters matched with bases, both written to files first."""

import pytest

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.matching.match import match
from lora_inspect.matching.unmatched import accept_unmatched
from lora_inspect.reading.adapter import read_adapter


@pytest.fixture
def places_of(write_safetensors):
    """`places_of(adapter, base)`: every target's name with what is placed there, nothing left over; or the refusal."""

    def match_tensors(adapter, base, refused=False):
        read = read_adapter(open_checkpoint(str(write_safetensors(adapter, name="adapter.safetensors"))))
        opened = open_checkpoint(str(write_safetensors(base, name="base.safetensors")))
        if refused:
            with pytest.raises(LoraInspectError) as error:
                accept_unmatched(read, opened, match(read, opened), False)
            return str(error.value)
        matching = match(read, opened)
        assert accept_unmatched(read, opened, matching, False) == []
        return [(name, placed) for name, found in matching.targets.items() for placed in found]

    return match_tensors
