"""What the architecture setting says against the families that a file shows."""

from collections.abc import Iterator

from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.model.evidence import Finding
from lora_inspect.reading.problems import CONTRADICTS, REPEATS
from lora_inspect.reading.shown_families import shown_candidates
from lora_inspect.sentences import listed


def architecture_setting(reading: FileReading) -> Iterator[Finding]:
    """That it names none of the families that the file may be of, or the one that is known."""
    named = reading.settings.architecture
    found = shown_candidates(reading.checkpoint, reading.claims.scheme, reading.modules)
    setting = f"architecture={named}"
    if named not in [one.architecture.name for one in found]:
        fits = f"fit {listed([str(one) for one in found], 'or')}" if found else "fit no model family that is known here"
        message = f"the names and shapes of its modules {fits}, so it is not of {named}; leave {setting} out"
        yield Finding(CONTRADICTS, message)
    elif len(found) == 1:
        yield Finding(REPEATS, f"{setting} repeats what the names and shapes of its modules say")
