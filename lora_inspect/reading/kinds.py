"""What a file is: an adapter, a base, or neither."""

from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_names import is_weight
from lora_inspect.reading.scale_problems import CONTRADICTS

ADAPTER, BASE, OTHER = "adapter", "base", "other"

# What is said of modules that a base may have by chance.
_OF_CHANCE = ("algorithm", "unclaimed", "mixed-schemes", "embeddings")


def kind_of(adapter: Adapter) -> tuple[str, Adapter]:
    """The kind of the file, and its reading, which is empty where a base has a few names like those of an adapter.

    Factors of a built algorithm with names of its own, and what is wrong with them, make an adapter. The names of the
    others are common words (`X.b1.weight`, `X.diff`): they make one where at least half of the tensors have them.
    """
    tensors = adapter.checkpoint.tensors
    built = any(c.algorithm.formula and not c.is_common for c in adapter.contributions)
    # What the user says can be wrong of a base too.
    said = tuple(problem for problem in adapter.problems if problem.code == CONTRADICTS)
    found = (problem for problem in adapter.problems if problem not in said)
    wrong = any(problem.code not in _OF_CHANCE or not problem.keys for problem in found)
    if built or wrong or _has_half(adapter):
        return ADAPTER, adapter
    kind = BASE if any(map(is_weight, tensors.values())) else OTHER
    if not adapter.modules:
        return kind, adapter
    known = {*adapter.flags, *(key for embedding in adapter.embeddings for key in embedding.keys)}
    unclaimed = tuple(key for key in tensors if key not in known)
    return kind, adapter._replace(modules={}, scheme=None, unclaimed=unclaimed, problems=said)


def _has_half(adapter: Adapter) -> bool:
    """Whether there are modules, and at least half of the tensors are theirs."""
    claimed = {tensor.name for module in adapter.modules.values() for tensor in module.tensors}
    return bool(claimed) and 2 * len(claimed) >= len(adapter.checkpoint.tensors)
