"""The architecture of an adapter and of a base, by the names and widths of their modules."""

from collections import Counter

from lora_inspect.adapter import Adapter
from lora_inspect.architectures.detection import Detection, detect
from lora_inspect.base_names import BASE_PREFIXES, is_weight
from lora_inspect.checkpoint import Checkpoint
from lora_inspect.schemes.record import MODEL

# A base has embeddings, norms and heads beside the layers that the tables of architectures list.
_BASE_SHARE = 0.5


def identify_adapter(adapter: Adapter) -> Detection | None:
    """What the modules of the main component are named like; None where nothing or too much fits."""
    modules: list[tuple[str, int | None, int | None]] = []
    for module in adapter.modules.values():
        if module.name.component != MODEL:
            continue
        first = module.contributions[0]
        shape = first.shape if first.rank else None
        out_features = None if shape is None or first.rows else shape[0]
        modules.append((module.name.body, out_features, shape[1] if shape else None))
    return detect(modules, adapter.checkpoint.metadata)


def identify_base(checkpoint: Checkpoint) -> Detection | None:
    """What the weights of a base are named like, its most common prefix removed."""
    weights = [info for info in checkpoint.tensors.values() if is_weight(info)]
    prefixes = sorted(BASE_PREFIXES[MODEL], key=len, reverse=True)
    counts = Counter(next(prefix for prefix in prefixes if info.name.startswith(prefix)) for info in weights)
    if not counts:
        return None
    common = counts.most_common(1)[0][0]
    modules = [
        (info.name[len(common) : -len(".weight")], info.shape[0], info.shape[1])
        for info in weights
        if info.name.startswith(common)
    ]
    return detect(modules, checkpoint.metadata, minimum_share=_BASE_SHARE)


def described(detection: Detection) -> str:
    """The family's title with the size, where it is known."""
    return f"{detection.architecture.title}{f' {detection.size}' if detection.size else ''}"
