"""Keys that do not fit together, within a module and between naming schemes, and keys that are of no module."""

import re
from collections.abc import Iterable, Iterator

from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.keys.claims import MIXED
from lora_inspect.reading.keys.suffixes import ROOT, parse_key
from lora_inspect.reading.model.problem import Finding
from lora_inspect.schemes.peft import PEFT
from lora_inspect.sentences import listed, some

# Names in which at least half of a file's tensors are, as expressions that few files need, and what is said of them.
_FOREIGN = (
    (
        "w_[ab]_[0-9]{3}",
        "are named as Sam_LoRA names them, which counts the queries and values of SAM's blocks that it adapted and "
        "does not say which blocks those are; merge it with the program that trained it",
    ),
    (
        "(?is).*lora.*",
        "speak of LoRA in no naming scheme that is known here; write the file anew with the program that trained it, "
        "in the names of kohya, PEFT, diffusers or ComfyUI",
    ),
)


def unfit_tensors(reading: FileReading) -> Iterable[Finding]:
    """Tensors that do not make a module, found as they were claimed."""
    return reading.claims.findings


def several_schemes(reading: FileReading) -> Iterator[Finding]:
    """Keys that follow several naming schemes, with the modules of each."""
    if reading.claims.scheme != MIXED:
        return
    modules: dict[str, list[str]] = {}
    for module in reading.claims.modules.values():
        modules.setdefault(module.name.scheme, []).append(module.name.key)
    told = [f"{name} ({len(keys)}: {some(keys, 1)})" for name, keys in sorted(modules.items())]
    firsts = tuple(keys[0] for _, keys in sorted(modules.items()))
    yield Finding("mixed-schemes", f"the modules follow {len(told)} naming schemes: {listed(told)}", firsts)


def foreign_schemes(reading: FileReading) -> Iterator[Finding]:
    """Names of an adapter in no naming scheme that is known, in a file of little else."""
    keys = reading.claims.unclaimed
    if reading.claims.modules or not keys:
        return
    for names, says in _FOREIGN:
        own = tuple(key for key in keys if re.fullmatch(names, key) and not parse_key(key) and not _is_shared(key))
        if 2 * len(own) >= len(reading.checkpoint.tensors):
            message = f"{len(own)} tensors ({some(own, 2)}) {says}"
            yield Finding("scheme", message, own[:5])
            return


def _is_shared(key: str) -> bool:
    """Whether PEFT keeps the tensor beside its model, of which others say what it is."""
    return key.startswith(f"{ROOT}.") and not key.startswith(tuple(PEFT.prefixes))


def unclaimed_tensors(reading: FileReading) -> Iterator[Finding]:
    """Tensors beside the modules that nobody claims."""
    if not reading.claims.unclaimed or not reading.claims.modules:
        return
    from lora_inspect.reading.peft.saved_tensors import copies_below  # few files have what nobody claims

    copies = copies_below(reading.claims.unclaimed, reading.claims.modules)
    if keys := [key for key in reading.claims.unclaimed if key not in copies]:
        count = f"{len(keys)} tensors belong" if len(keys) > 1 else "1 tensor belongs"
        message = f"{count} to no known algorithm ({keys[0]}{', …' if len(keys) > 1 else ''})"
        yield Finding("unclaimed", message, tuple(keys[:5]))


def embeddings(reading: FileReading) -> Iterator[Finding]:
    """Embeddings of tokens, beside the modules or alone."""
    if reading.embeddings:
        from lora_inspect.reading.embeddings import in_words

        message = f"{in_words(reading.embeddings)} change no weight: merge leaves them out, and convert passes them on"
        yield Finding("embeddings", message, tuple(key for one in reading.embeddings for key in one.keys)[:5])


def magnitudes(reading: FileReading) -> Iterable[Finding]:
    """Magnitudes against what is said of DoRA, found as the evidence was read, without what the user allows."""
    allowed = "dora-partial" if reading.settings.allow_partial_dora else None
    return (finding for finding in reading.about_magnitudes if finding.code != allowed)
