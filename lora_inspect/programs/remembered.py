"""The verdicts on an adapter, judged once for all files between which no rule of any program can tell.

A folder holds many of those: the steps of one training, and files of one trainer with the same settings.
"""

from collections.abc import Iterable, Sequence
from itertools import repeat
from os.path import basename
from typing import Any

from lora_inspect.architectures.detection import Detection
from lora_inspect.files.gguf.gguf_format import OF_FORMAT
from lora_inspect.programs.framed_keys import FramedKeys, has_loader_for
from lora_inspect.programs.record import Consumer
from lora_inspect.programs.verdict import Verdict, judge_each
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.keys.groups import alike
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.reading.peft.peft_config import EMBEDDED_KEY

# How the keys begin that rules look at in the metadata; they are shown no others.
_SEEN_METADATA = (EMBEDDED_KEY, *OF_FORMAT)
# A tensor of one number that some programs take for a module's scale: its value counts too.
_SCALE = ".scale"
# So many are remembered, each with the names of its tensors.
_MOST = 32

_remembered: dict[Any, tuple[Verdict, ...]] = {}


def verdicts_on(adapter: Adapter, families: Sequence[Detection], consumers: Iterable[Consumer]) -> tuple[Verdict, ...]:
    """What each program that knows models of the families makes of the adapter, but for single modules.

    A program that has no loader for such files is left out. The verdicts are those of `judge_each`.
    """
    consumers = tuple(consumers)
    adapter = _as_rules_see_it(adapter)
    if any(map(str.endswith, adapter.checkpoint.tensors, repeat(_SCALE))):
        return _judged(adapter, families, consumers)
    key = (tuple(map(id, consumers)), *_appearance(adapter, families))
    found = _remembered.pop(key, None)
    if found is None:
        found = _judged(adapter, families, consumers)
        while len(_remembered) >= _MOST:
            del _remembered[next(iter(_remembered))]
    _remembered[key] = found
    return found


def _judged(adapter: Adapter, families: Sequence[Detection], consumers: Iterable[Consumer]) -> tuple[Verdict, ...]:
    names = [family.architecture.name for family in families] or [""]
    keys = FramedKeys(adapter.checkpoint.tensors)
    asked = [one for one in consumers if any(has_loader_for(one, name, keys) for name in names)]
    return tuple(verdict._replace(reception=None) for verdict in judge_each(adapter, families, asked))


def _as_rules_see_it(adapter: Adapter) -> Adapter:
    """The adapter without what stands in the metadata for people alone: title, tags, times, hashes."""
    checkpoint = adapter.checkpoint
    metadata = {key: value for key, value in checkpoint.metadata.items() if key.startswith(_SEEN_METADATA)}
    checkpoint = checkpoint._replace(metadata=metadata, file_metadata={})
    return adapter._replace(checkpoint=checkpoint, evidence=(), problems=())


def _appearance(adapter: Adapter, families: Sequence[Detection]) -> tuple[Any, ...]:
    """All that a rule can look at."""
    checkpoint = adapter.checkpoint
    return (
        tuple((family.architecture.name, family.layout.name, family.size) for family in families),
        tuple(checkpoint.tensors),
        tuple([info.shape for info in checkpoint.tensors.values()]),
        *_of_changes(adapter),
        adapter.flags,
        adapter.unclaimed,
        adapter.embeddings,
        adapter.settings,
        tuple(checkpoint.metadata.items()),
        # Of a config the file that it belongs to counts as well.
        (repr(checkpoint.config), *map(basename, checkpoint.files)) if checkpoint.config is not None else None,
    )


def _of_changes(adapter: Adapter) -> tuple[Any, ...]:
    """What modules are called, of which kind each of them is, and what each kind is."""
    modules = alike(adapter.modules)
    return (
        tuple([module.name for module in modules.values()]),
        tuple([module.path for module in modules.values()]),
        tuple(modules.likeness.numbers),
        tuple([(first.alpha is not None, *map(_of_change, first.contributions)) for first in modules.firsts]),
    )


def _of_change(one: Contribution) -> tuple[Any, ...]:
    magnitude = one.magnitude
    spelled = magnitude and (magnitude.spelling.suffix, magnitude.spelling.norms, magnitude.axis)
    own = (one.algorithm.name, one.rank, one.alpha, one.scale, one.rslora, one.rows, one.residual)
    return own, one.on_residual, spelled
