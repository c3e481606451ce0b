"""Keys that do not fit together, within a module and between naming schemes, and keys that are of no module."""

from collections.abc import Iterable, Iterator

from lora_inspect.reading.embeddings import in_words
from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.problem import Finding


def unfit_tensors(reading: FileReading) -> Iterable[Finding]:
    """Tensors that do not make a module, found as they were claimed."""
    return reading.claims.findings


def several_schemes(reading: FileReading) -> Iterator[Finding]:
    """Keys that follow several naming schemes."""
    names = sorted({module.name.scheme for module in reading.claims.modules.values()})
    if len(names) > 1:
        yield Finding("mixed-schemes", f"the keys follow {len(names)} naming schemes: {', '.join(names)}")


def unclaimed_tensors(reading: FileReading) -> Iterator[Finding]:
    """Tensors beside the modules that nobody claims."""
    keys = reading.claims.unclaimed
    if keys and reading.claims.modules:
        message = f"{len(keys)} tensors belong to no known algorithm ({keys[0]}{', …' if len(keys) > 1 else ''})"
        yield Finding("unclaimed", message, tuple(keys[:5]))


def embeddings(reading: FileReading) -> Iterator[Finding]:
    """Embeddings of tokens, beside the modules or alone."""
    if reading.embeddings:
        message = f"{in_words(reading.embeddings)} change no weight: merge leaves them out, and convert passes them on"
        yield Finding("embeddings", message, tuple(key for one in reading.embeddings for key in one.keys)[:5])


def magnitudes(reading: FileReading) -> Iterable[Finding]:
    """Magnitudes against what is said of DoRA, found as the evidence was read, without what the user allows."""
    allowed = "dora-partial" if reading.settings.allow_partial_dora else None
    return (finding for finding in reading.about_magnitudes if finding.code != allowed)
