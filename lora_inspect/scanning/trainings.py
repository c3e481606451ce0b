"""The epochs of one training: files with equal metadata and modules and names that differ in a number.

Sources of the numbers in names: sd-scripts and musubi-tuner (`-000002`, `-step00000500`), ai-toolkit (`_000000500`),
PEFT and diffusers (folders `checkpoint-500`), diffusion-pipe (folders `epoch10`), and names that people write (`_e10`).
"""

import hashlib
import os
import re
from collections.abc import Sequence

from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.discovery import set_of
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.metadata.provenance import whole

EPOCH, STEP = "epoch", "step"
# The ends of names with a number, and its unit. Six digits are an epoch of sd-scripts, nine a step of ai-toolkit.
_ENDS = (
    (r"-(\d{6})", EPOCH),
    (r"_(\d{9})", STEP),
    (r"[-_. ]steps?[-_]?(\d{1,12})", STEP),
    (r"[-_. ]e(?:p|poch)?[-_]?(\d{1,6})", EPOCH),
)
_FOLDERS = ((r"(?:checkpoint|step)[-_]?(\d{1,12})", STEP), (r"epoch[-_]?(\d{1,6})", EPOCH))
# Keys that tell one training from another, the best first.
_SESSIONS = ("ss_session_id", "ss_training_started_at")


class SeriesPlace(NamedTuple):
    """A path without its number, the same for all files of a series; `unit` is empty for one without a number."""

    series: str
    unit: str = ""
    number: int | None = None


def series_place(path: str) -> SeriesPlace:
    """Return the place of a file in the series that its name, or the name of its folder, may be of."""
    folder, name = os.path.split(path)
    shards = set_of(name)
    stem = shards.stem if shards else os.path.splitext(name)[0]
    for end, unit in _ENDS:
        if found := re.fullmatch(f"(.+){end}", stem, re.IGNORECASE):
            return SeriesPlace(os.path.join(folder, found[1]), unit, int(found[2]))
    above, last = os.path.split(folder)
    for pattern, unit in _FOLDERS:
        if found := re.fullmatch(pattern, last, re.IGNORECASE):
            return SeriesPlace(os.path.join(above, stem), unit, int(found[1]))
    return SeriesPlace(os.path.join(folder, stem))


class TrainingState(NamedTuple):
    """A file as one state of a training: the key of its `group`, and the progress of the training if known.

    Files of one training have the same key.
    """

    group: str
    epoch: int | None = None
    step: int | None = None


def training_state(path: str, adapter: Adapter, ranks: Sequence[int]) -> TrainingState:
    """Return the state by the name, the session and the modules of an adapter."""
    metadata = adapter.checkpoint.metadata
    place = series_place(path)
    session = next((metadata[key] for key in _SESSIONS if metadata.get(key)), "")
    digest = hashlib.sha256("\0".join((session, str(ranks), *sorted(adapter.modules))).encode(errors="replace"))
    return TrainingState(
        f"{place.series}:{digest.hexdigest()[:8]}",
        place.number if place.unit == EPOCH else whole(metadata.get("ss_epoch")),
        place.number if place.unit == STEP else whole(metadata.get("ss_steps")),
    )
