"""What a file says that is recognised and not computed: algorithms, and settings of PEFT's configs."""

from collections.abc import Iterator

from lora_inspect import algorithms
from lora_inspect.reading.file_reading import FileReading
from lora_inspect.reading.model.problem import Finding
from lora_inspect.reading.peft import peft_config
from lora_inspect.reading.peft.weightless import METHODS

# The way out where this version cannot compute what a file says.
_OWN_PROGRAM = "merge it with the program that trained it"


def unbuilt_configs(reading: FileReading) -> Iterator[Finding]:
    """Algorithms and settings of configs that make the tensors something else than factors that are computed."""
    present = {contribution.algorithm.name for contribution in reading.contributions}
    for found in reading.configs:
        method = found.peft_type
        known = algorithms.of_peft_type(str(method))
        # What the keys name as well is told by them.
        is_told = any(algorithm.formula or algorithm.name in present for algorithm in known)
        if str(method) not in METHODS and not is_told:
            why = next((f": {each.title} {each.why}" for each in known if each.why), "")
            unbuilt = f", an algorithm that is not built yet; {_OWN_PROGRAM}"
            yield Finding("algorithm", f"{found.where} says {method}{why or unbuilt}")
        for says in peft_config.foreign_settings(found.config):
            yield Finding("peft-setting", f"{found.where}: {says}")
        if found.config.get("kasa_config") and (keys := _names(reading, "lora", "down")):
            says = f"it says kasa_config, and {keys[0]} has no lora_diag beside it"
            yield Finding("incomplete", f"{found.where}: {says}; put the config beside the file that it was saved with")
        if method == algorithms.by_name("lokr").peft_type and (keys := _whole_of_conv1d(reading)):
            says = f"PEFT makes another product of w1 and a whole w2 of a Conv1d ({keys[0]})"
            yield Finding("peft-setting", f"{found.where}: {says}, which is not built yet; {_OWN_PROGRAM}", keys[:5])


def _names(reading: FileReading, algorithm: str, role: str) -> tuple[str, ...]:
    """The tensors of one role in the modules of an algorithm."""
    return tuple(c.factors[role].name for c in reading.contributions if c.algorithm.name == algorithm)


def _whole_of_conv1d(reading: FileReading) -> tuple[str, ...]:
    """Factors w2 (o2, i2, kernel) of LoKr, whose last two dimensions PEFT's `make_kron` pairs with those of w1."""
    own = (c for c in reading.contributions if c.algorithm.name == "lokr" and "w2" in c.factors)
    return tuple(c.factors["w2"].name for c in own if len(c.factors["w2"].shape) == 3)


def unbuilt_algorithms(reading: FileReading) -> Iterator[Finding]:
    """Algorithms that the keys name."""
    by_name: dict[str, list[str]] = {}
    for contribution in reading.contributions:
        if contribution.algorithm.formula is None:
            keys = by_name.setdefault(contribution.algorithm.name, [])
            keys.append(next(iter(contribution.factors.values())).name)
    for name, keys in by_name.items():
        algorithm = algorithms.by_name(name)
        why = algorithm.why or f"is not built yet; {_OWN_PROGRAM}"
        message = f"{algorithm.title} ({len(keys)} modules, {keys[0]}) {why}"
        yield Finding("algorithm", message, tuple(keys[:5]))
