"""The way of a finished output from its temporary place to the requested one. Standard library only."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lora_inspect.files.input_file import Identity
from lora_inspect.files.pending_output import PendingOutput
from lora_inspect.progress import Progress, silent
from lora_inspect.stores.address import is_remote


@contextmanager
def delivered(
    output: str, inputs: Mapping[str, Identity] | None = None, force: bool = False, progress: Progress = silent
) -> Iterator[PendingOutput]:
    """Deliver the output that the block makes at the `path` of the delivery, to a disk or a store.

    On a disk the output is already in place. See `sent_to_store` for the rest.
    """
    if is_remote(output):
        from lora_inspect.files.upload import sent_to_store

        with sent_to_store(output, inputs, force, progress) as sending:
            yield sending
    else:
        yield PendingOutput(output)
