"""Language models whose head has no weight of its own but that of their embedding, and bases that hold it once.

A change of the one weight is one of both, while the adapter of PEFT is at work in one of them; but with
`ensure_weight_tying` PEFT gives both the same factors, each the other way round. Source: transformers'
`tie_word_embeddings`, the `_add_adapter` and `update_layer` of PEFT's LoRA.
"""

from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.input_file import InputFile
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_names import leaf_of, path_of
from lora_inspect.reading.model.contribution import Contribution, Module

HEADS = ("lm_head", "embed_out")
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "shared")


def has_head(base: Checkpoint) -> bool:
    """Whether the base has a weight of a head."""
    return any(leaf_of(path_of(info)) in HEADS for info in base.tensors.values())


def is_embedding(name: str) -> bool:
    """Whether a tensor of a base of this name is the weight of an embedding that a head may share."""
    return name.endswith(".weight") and name.split(".")[-2] in EMBEDDINGS


def shared_embedding(base: Checkpoint) -> str | None:
    """The weight of the embedding where no head has its own; None where there is a head, or no such embedding."""
    return None if has_head(base) else next(filter(is_embedding, base.tensors), None)


def repeats_embedding(module: Module, adapter: Adapter, base: Checkpoint) -> bool:
    """Whether a module of a head says once more what another one says of the embedding whose weight the head shares."""
    if not module.name.body.endswith(HEADS) or not shared_embedding(base):
        return False
    return any(_says_same(module, other) for other in adapter.modules.values() if other.name.body.endswith(EMBEDDINGS))


def _says_same(module: Module, other: Module) -> bool:
    """Whether both have one change that is the same: of an algorithm that ties heads, or of LoRA, turned round."""
    if len(module.contributions) != 1 or len(other.contributions) != 1:
        return False
    (ours,), (theirs,) = module.contributions, other.contributions
    if (ours.algorithm.name, theirs.algorithm.name) == ("lora", "lora_embedding"):
        return _is_turned(ours, theirs)
    if not ours.algorithm.ties or ours.algorithm is not theirs.algorithm or ours.settings != theirs.settings:
        return False
    pairs = ((info, theirs.factors.get(role)) for role, info in ours.factors.items())
    return all(one is not None and _same_numbers(info, one) for info, one in pairs)


def _is_turned(head: Contribution, embedding: Contribution) -> bool:
    """Whether a LoRA of a head has the factors of the embedding's, as (out, in) is the turned (in, out)."""
    from lora_inspect.maths.tensors import load

    if head.magnitude or embedding.magnitude or head.rows or head.scale is None or head.scale != embedding.scale:
        return False
    pairs = [(head.factors[ours], embedding.factors[theirs]) for ours, theirs in (("down", "up"), ("up", "down"))]
    if any((one.dtype, one.shape) != (other.dtype, other.shape[::-1]) for one, other in pairs):
        return False
    return all(bool((load(one) == load(other).transpose(0, 1)).all()) for one, other in pairs)


def _same_numbers(info: TensorInfo, other: TensorInfo) -> bool:
    return (info.dtype, info.shape) == (other.dtype, other.shape) and _bytes_of(info) == _bytes_of(other)


def _bytes_of(info: TensorInfo) -> bytes:
    with InputFile(info.file, info.identity) as source:
        return bytes(source.read(info.start, info.nbytes))
