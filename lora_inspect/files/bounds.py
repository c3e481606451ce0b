"""How much of a file is read at most. What is beyond is refused, with the number in the sentence.

Each bound is far above what files of real models have, and low enough that a hostile one costs little before it is
refused.
"""

from lora_inspect.errors import LoraInspectError

# The safetensors library refuses larger headers.
HEADER_BYTES = 100_000_000
# In all shards together; the largest models have some ten thousand.
TENSORS = 1_000_000
# A name of a tensor or of a metadata entry, in UTF-8. The longest of real models have some two hundred bytes.
KEY_BYTES = 64 << 10
# What a header says of one tensor, in characters.
ENTRY_CHARACTERS = 64 << 10
# The metadata of one file. The tags of a large dataset, and a thumbnail, take two or three million characters.
METADATA_CHARACTERS, METADATA_KEYS = 8_000_000, 100_000
# A configuration or an index beside the weights. The index of the largest models has a few million bytes.
JSON_BYTES = 64 << 20
# Lists, objects and what stands in them, in any JSON: an index has an item for each tensor.
JSON_ITEMS = TENSORS + 1_000


def too_many_tensors(file: str, count: int) -> LoraInspectError:
    """The error for a file or a set of files with `count` tensors."""
    return LoraInspectError(
        f"{file}: {count:,} tensors are more than the {TENSORS:,} that are read; name another file."
    )
