"""What a file says that is recognised and not computed: algorithms, and settings of PEFT's configs."""

from collections.abc import Iterator

from lora_inspect import algorithms
from lora_inspect.reading import peft_config
from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.problem import Finding
from lora_inspect.reading.trainers import NETWORK_KEY

# The way out where this version cannot compute what a file says.
_OWN_PROGRAM = "merge it with the program that trained it"
_OWN_NETWORK = "merge it in Python with `merge_to` of lora_inspect.networks.{}, which trained it"


def unbuilt_configs(reading: FileReading) -> Iterator[Finding]:
    """Algorithms and settings of configs that make the tensors something else than factors that are computed."""
    for found in reading.configs:
        method = found.peft_type
        if not any(known.formula and known.peft_type == method for known in algorithms.ALGORITHMS.values()):
            message = f"{found.where} says {method}, an algorithm that is not built yet; {_OWN_PROGRAM}"
            yield Finding("algorithm", message)
        for says in peft_config.foreign_settings(found.config):
            yield Finding("peft-setting", f"{found.where}: {says}, which is not built yet; {_OWN_PROGRAM}")


def unbuilt_algorithms(reading: FileReading) -> Iterator[Finding]:
    """Algorithms that the keys name; files of our own network are merged by it."""
    by_name: dict[str, list[str]] = {}
    for contribution in reading.contributions:
        if contribution.algorithm.formula is None:
            keys = by_name.setdefault(contribution.algorithm.name, [])
            keys.append(next(iter(contribution.factors.values())).name)
    own = NETWORK_KEY in reading.checkpoint.metadata
    for name, keys in by_name.items():
        message = f"{algorithms.by_name(name).title} is not built yet ({len(keys)} modules, {keys[0]}); "
        yield Finding("algorithm", message + (_OWN_NETWORK.format(name) if own else _OWN_PROGRAM), tuple(keys[:5]))
