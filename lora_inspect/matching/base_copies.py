"""Copies of base tensors that PEFT saves in an adapter: of the layer below a target, and of embeddings.

PEFT writes `X.base_layer.weight` where an embedding or a head is a target, and `X.weight` where it was resized
(`save_embedding_layers`), whether it was trained or not: what was trained its config tells, so that reading has taken
it. Equal to the base's tensor the others say nothing new; else they are a part of the model that the merge would lose.
"""

from collections.abc import Iterator, Mapping

from lora_inspect import schemes
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.safetensors.dtypes import PLAIN_FLOATS
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.matching.match import Matching
from lora_inspect.maths.torch_threads import load_torch
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_names import NameTable
from lora_inspect.reading.peft.saved_tensors import BELOW, COPIED, BaseTensor
from lora_inspect.schemes.peft import PEFT

_COMPARED_ELEMENTS = 1 << 20


def equal_copies(adapter: Adapter, base: Checkpoint, matching: Matching, tied: Mapping[str, str]) -> set[str]:
    """The unclaimed keys of the adapter whose tensors are those of the base, by value.

    `tied` are the weights of the base by the modules of heads that share them with an embedding.
    Raises LoraInspectError for one that stands for a tensor of the base and has other numbers.
    """
    equal: set[str] = set()
    for key, original in _copies(adapter, base, matching, tied):
        if not _equal(adapter.checkpoint.tensors[key], original):
            raise LoraInspectError(
                f"{adapter.checkpoint.path}: {key} differs from {original.name} of {base.path}, so the adapter was "
                "trained on another version of it; use that version as the base, or leave the tensor out with "
                "--allow-unmatched."
            )
        equal.add(key)
    return equal


def _copies(
    adapter: Adapter, base: Checkpoint, matching: Matching, tied: Mapping[str, str]
) -> Iterator[tuple[str, TensorInfo]]:
    """Each unclaimed key that stands for a tensor of the base, with that tensor."""
    targets = dict(tied) | {
        placed.contribution.module.key: name
        for name, found in matching.targets.items()
        for placed in found
        if placed.place.runs is None
    }
    table: NameTable | None = None
    for key in adapter.unclaimed:
        module, parameter, wrapper = BaseTensor.of(key)
        if not module or parameter not in COPIED:
            continue
        if wrapper == BELOW:
            target = targets.get(module)
            name = target and f"{target.rpartition('.')[0]}.{parameter}"
            if name in base.tensors:
                yield key, base.tensors[name]
        elif (
            not wrapper
            and parameter == "weight"
            and adapter.scheme == PEFT.name
            and (recognised := schemes.recognise(module)).scheme == PEFT.name
        ):
            table = table or NameTable(base, PEFT.name, recognised.component, recognised.prefix)
            found = table.find(recognised)
            if len(found) == 1:
                yield key, base.tensors[found[0].tensor(parameter)]


def _equal(copy: TensorInfo, original: TensorInfo) -> bool:
    """Whether two tensors have the same shape and the same numbers, in whatever floating element type."""
    load_torch()
    import torch

    from lora_inspect.maths.tensors import RowBlocks

    if copy.shape != original.shape or not {copy.dtype, original.dtype} <= PLAIN_FLOATS:
        return False
    ours, theirs = RowBlocks(_COMPARED_ELEMENTS), RowBlocks(_COMPARED_ELEMENTS)
    pairs = zip(ours.read(copy), theirs.read(original), strict=True)
    return all(torch.equal(first.double(), second.double()) for (_, first), (_, second) in pairs)
