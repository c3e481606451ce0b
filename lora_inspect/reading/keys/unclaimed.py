"""Keys that no module claims: names in no known scheme, and tensors of no known algorithm."""

import re
from collections.abc import Iterator

from lora_inspect.reading.keys.suffixes import ROOT, parse_key
from lora_inspect.reading.model.evidence import RawProblem
from lora_inspect.reading.peft.saved_tensors import copies_below
from lora_inspect.reading.state import Reading
from lora_inspect.schemes.peft import PEFT
from lora_inspect.sentences import some

# Names in which at least half of a file's tensors are, as expressions that few files need, and what is said of them.
_FOREIGN = (
    (
        "w_[ab]_[0-9]{3}",
        "have names of Sam_LoRA, which counts the queries and values of SAM that it adapted but does not say their "
        "blocks; merge it with the program that trained it",
    ),
    (
        "(?is).*lora.*",
        "mention LoRA in no known naming scheme; write the file again with the program that trained it, in the names "
        "of kohya, PEFT, diffusers or ComfyUI",
    ),
)


def foreign_schemes(reading: Reading) -> Iterator[RawProblem]:
    """Yield a problem for adapter names in no known naming scheme, in a file with little else."""
    keys = reading.claims.unclaimed
    if reading.claims.modules or not keys:
        return
    for names, says in _FOREIGN:
        own = tuple(key for key in keys if re.fullmatch(names, key) and not parse_key(key) and not _is_shared(key))
        if 2 * len(own) >= len(reading.checkpoint.tensors):
            message = f"{len(own)} tensors ({some(own, 2)}) {says}"
            yield RawProblem("scheme-unknown", message, own[:5])
            return


def _is_shared(key: str) -> bool:
    """Return True if PEFT keeps the tensor at the root of its model; other looks report such a tensor."""
    return key.startswith(f"{ROOT}.") and not key.startswith(tuple(PEFT.prefixes))


def unclaimed_tensors(reading: Reading) -> Iterator[RawProblem]:
    """Yield a problem for unclaimed tensors next to the modules."""
    if not reading.claims.unclaimed or not reading.claims.modules:
        return
    copies = copies_below(reading.claims.unclaimed, reading.claims.modules)
    if keys := [key for key in reading.claims.unclaimed if key not in copies]:
        count = f"{len(keys)} tensors belong" if len(keys) > 1 else "1 tensor belongs"
        message = f"{count} to no known algorithm ({keys[0]}{', …' if len(keys) > 1 else ''})"
        yield RawProblem("unclaimed", message, tuple(keys[:5]))
