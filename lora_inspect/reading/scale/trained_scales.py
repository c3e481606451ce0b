"""Scales that a trainer computed with and that no program reads from its file."""

from collections.abc import Iterator

from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.model.evidence import is_lycoris, network_args
from lora_inspect.reading.model.problem import Finding

TRAINED_SCALE = "trained-scale"
# What LyCORIS takes where no size is asked.
_BLOCK = 4


def dylora_scale(reading: FileReading) -> Iterator[Finding]:
    """LyCORIS's DyLoRA, which trains all of its blocks at alpha over their number and saves a plain LoRA.

    Source: the `DyLoraModule` of lycoris-lora.
    """
    metadata = reading.checkpoint.metadata
    args = network_args(metadata)
    if not is_lycoris(metadata) or str(args.get("algo", "")).lower() != "dylora":
        return
    size = _whole(args.get("block_size")) or _BLOCK
    keys = [c.module.key for c in reading.contributions if c.algorithm.name == "lora"]
    if size > 1 and keys:
        yield Finding(
            TRAINED_SCALE,
            f"LyCORIS trained its DyLoRA at {size} · alpha/rank in blocks of {size} ranks, and every program reads "
            f"alpha/rank from its file; a multiplier of {size} is what was trained",
            tuple(keys[:5]),
        )


def _whole(value: object) -> int:
    """A number as trainers spell it; 0 for none."""
    text = str(value).strip()
    return int(text) if text.isdecimal() and len(text) < 10 else 0
