"""What `--algorithm full` asks for: which changes become differences of whole weights, and what stands in the way."""

from lora_inspect import schemes
from lora_inspect.algorithms import full, norm
from lora_inspect.algorithms.record import WEIGHT, Algorithm
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.errors import LoraInspectError
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Module

# The difference by the parameter that it is of.
DIFFERENCES = {algorithm.parameter: algorithm for algorithm in full.ALGORITHMS}
_ARE_DIFFERENCES = {algorithm.name for algorithm in (*full.ALGORITHMS, *norm.ALGORITHMS)}


def becomes_full(algorithm: Algorithm) -> bool:
    """Whether it changes a parameter otherwise than by a difference that is stored as it is."""
    return algorithm.formula is not None and algorithm.name not in _ARE_DIFFERENCES


def changes_otherwise(module: Module) -> bool:
    """Whether all that the module changes will be differences, because some of it is none."""
    return any(becomes_full(contribution.algorithm) for contribution in module.contributions)


def check_full(adapter: Adapter, options: ConvertOptions) -> list[str]:
    """Raises LoraInspectError where differences cannot be had or nobody would read them; a note where all are some."""
    file = adapter.checkpoint.path
    if options.rank is not None or options.max_error is not None:
        raise LoraInspectError(f"{file}: a full difference has no rank and no error; leave --rank and --max-error out.")
    made = [module for module in adapter.modules.values() if changes_otherwise(module)]
    if not made:
        return [f"{file}: it holds nothing that --algorithm full changes."]
    if options.base is None:
        raise LoraInspectError(
            f"{file}: the difference of a whole weight is that of a base; name the one that it was trained on as "
            "--base BASE."
        )
    if options.keep_dora:
        raise LoraInspectError(f"{file}: a full difference has the magnitudes in it; leave --keep-dora out.")
    for module in made:
        for contribution in module.contributions:
            if contribution.algorithm.experts or contribution.algorithm.transposed:
                what = "all experts of a layer" if contribution.algorithm.experts else "a weight stored as (in, out)"
                raise LoraInspectError(
                    f"{file}: {module.name.key} changes {what}, of which no program reads a full difference; merge it, "
                    "or leave --algorithm out."
                )
        if not _is_read(options.scheme or module.name.scheme):
            raise LoraInspectError(
                f"{file}: no program reads full differences under names as {module.name.key}; choose names under which "
                "some do with --to, for instance --to kohya."
            )
    return []


def _is_read(scheme: str) -> bool:
    """Whether programs of the names read differences; of names that are in no program's files nothing is known."""
    own = schemes.by_name(scheme)
    if own.writing is None:
        return own.absent_alpha == "one"
    difference, known = DIFFERENCES[WEIGHT], own.writing.algorithms
    return any(one in difference.dialects for one in own.writing.dialects) and (not known or difference.name in known)
