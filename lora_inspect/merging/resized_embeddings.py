"""Embeddings and heads with other numbers of rows in an adapter than in the base, as after added tokens.

PEFT saves the whole embedding and the head if the model's vocabulary was resized for the training, even if
`modules_to_save` does not list them (`save_embedding_layers`). PEFT's own merged model has those tensors in the place
of the base's, and their rows as `vocab_size` in its config.json. A merge does the same: it plans with a base that has
such a tensor in the adapter's size, and writes the adapter's numbers. Source: PEFT's `get_peft_model_state_dict`,
transformers' `resize_token_embeddings`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from lora_inspect import schemes
from lora_inspect.algorithms.record import WEIGHT
from lora_inspect.algorithms.saved import NAME, SAVED
from lora_inspect.errors import RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.base_folder import SideFiles
from lora_inspect.files.checkpoint import Checkpoint
from lora_inspect.files.safetensors.dtypes import PLAIN_FLOATS
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.matching.unmatched import EMBEDDINGS, HEADS
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.base.base_names import NameTable
from lora_inspect.reading.peft.saved_tensors import BELOW, BaseTensor
from lora_inspect.schemes.peft import PEFT
from lora_inspect.schemes.record import ModuleName
from lora_inspect.sentences import listed

# What a config of transformers calls the number of rows, at its top or in that of a part.
VOCABULARY = "vocab_size"


class ResizedTensor(NamedTuple):
    """A tensor of the base in the size of an adapter: `info` is the adapter's tensor, under the base's name.

    `path` is the adapter, `rows` are those of the base.
    """

    info: TensorInfo
    path: str
    rows: int

    @property
    def says(self) -> str:
        """Return the difference of the rows in words."""
        count = self.info.shape[0] - self.rows
        if count < 0:
            return f"{-count} rows fewer than the base ({self.rows})"
        first, last = self.rows, self.info.shape[0] - 1
        return f"{count} more rows than the base ({first} to {last}), as after tokens were added"


def resized_tensors(
    adapters: Iterable[tuple[Adapter, Callable[[str], float]]], base: Checkpoint, leaves_copies: bool
) -> dict[str, ResizedTensor]:
    """Return the tensors that adapters saved with other numbers of rows than the base has, by the base's names.

    Each adapter comes with a function that returns the multiplier of a module by its key, 0 for one that is left out.
    With `leaves_copies` only tensors count that a config names as trained. Of several adapters one that trained the
    tensor counts before those that only hold a copy, and then the first; the match refuses a copy that differs.
    """
    trained: list[tuple[Adapter, ModuleName, TensorInfo]] = []
    copied: list[tuple[Adapter, ModuleName, TensorInfo]] = []
    for adapter, multiplier_of in adapters:
        trained += [(adapter, name, info) for name, info in _saved(adapter) if multiplier_of(name.key)]
        if not leaves_copies and any(multiplier_of(key) for key in adapter.modules):
            copied += [(adapter, name, info) for name, info in _copies(adapter)]
    found: dict[str, ResizedTensor] = {}
    for adapter, name, info in (*trained, *copied):
        if name.body.rpartition(".")[2] not in (*EMBEDDINGS, *HEADS) or len(info.shape) != 2:
            continue
        own = NameTable(base, PEFT.name, name.component, name.prefix).find(name)
        target = base.tensors.get(own[0].tensor(WEIGHT)) if len(own) == 1 else None
        if target and _differs_in_rows(target, info):
            resized = ResizedTensor(info._replace(name=target.name), adapter.checkpoint.path, target.shape[0])
            found.setdefault(target.name, resized)
    return found


def idle_tensors(
    adapter: Adapter, multiplier_of: Callable[[str], float], base: Checkpoint, leaves_copies: bool
) -> dict[str, ResizedTensor]:
    """Return the tensors that an adapter saved with other rows than the base has, and that the merge leaves out."""
    held, used = (
        resized_tensors([(adapter, multiplier)], base, leaves_copies) for multiplier in (lambda _: 1.0, multiplier_of)
    )
    return {name: one for name, one in held.items() if name not in used}


def _saved(adapter: Adapter) -> Iterator[tuple[ModuleName, TensorInfo]]:
    """Yield the weights that a config says were trained whole."""
    for contribution in adapter.contributions:
        if contribution.algorithm.name == NAME and contribution.algorithm.parameter == WEIGHT:
            yield contribution.module, contribution.factors[SAVED]


def _copies(adapter: Adapter) -> Iterator[tuple[ModuleName, TensorInfo]]:
    """Yield the weights that PEFT saved next to the factors; in an adapted layer with as many rows as the change."""
    for key in adapter.unclaimed:
        module, parameter, wrapper = BaseTensor.of(key)
        if module and parameter == WEIGHT and wrapper in ("", BELOW) and adapter.scheme == PEFT.name:
            name, info = schemes.recognise(module), adapter.checkpoint.tensors[key]
            changes = adapter.modules[module].contributions if module in adapter.modules else ()
            if name.scheme == PEFT.name and info.shape and all(info.shape[0] in one.shape for one in changes):
                yield name, info


def _differs_in_rows(target: TensorInfo, info: TensorInfo) -> bool:
    is_plain = {target.dtype, info.dtype} <= PLAIN_FLOATS
    return is_plain and target.shape[1:] == info.shape[1:] and target.shape[0] != info.shape[0]


def with_rows(base: Checkpoint, resized: Mapping[str, ResizedTensor]) -> Checkpoint:
    """Return the base with the adapter's tensors in the place of its own."""
    if not resized:
        return base
    return base._replace(tensors={**base.tensors, **{name: one.info for name, one in resized.items()}})


def with_vocabulary(
    config: Mapping[str, Any] | None, base: Checkpoint, side_files: SideFiles, resized: Mapping[str, ResizedTensor]
) -> Mapping[str, Any] | None:
    """Return the config of a folder with the rows of the embeddings as the size of its vocabulary.

    Raises LoraInspectError if the tensors have different numbers of rows, if an embedding or a head of the base stays
    as it is, and if no part of the config has the base's rows.
    """
    if not resized:
        return config
    sizes = {(one.rows, one.info.shape[0]) for one in resized.values()}
    first = next(iter(resized.values()))
    if len(sizes) > 1:
        told = ", ".join(f"{name} has {one.info.shape[0]}" for name, one in resized.items())
        raise RefusedError(
            first.path,
            f"its {first.info.name} has {first.says}, but its tensors have different rows ({told})",
            "save the adapter again after resize_token_embeddings of the whole model",
        )
    way_out = f"resize the embeddings of the base first, with resize_token_embeddings({first.info.shape[0]})"
    if left := next((info.name for info in _of_vocabulary(base, first.rows) if info.name not in resized), None):
        raise RefusedError(
            first.path,
            f"its {first.info.name} has {first.says}, but {left} of {base.path} would keep its {first.rows} rows, "
            "so that no program could load the merged model",
            way_out,
        )
    if config is None:
        return None
    changed = _changed(config, *next(iter(sizes)))
    if changed == config:
        raise RefusedError(
            first.path,
            f"its {first.info.name} has {first.says}, and {side_files.root} has no config.json with "
            f"{VOCABULARY} {first.rows} to adapt",
            way_out,
        )
    return changed


def _of_vocabulary(base: Checkpoint, rows: int) -> Iterator[TensorInfo]:
    """Yield the weights of embeddings and heads of a base that have so many rows."""
    for info in base.tensors.values():
        is_weight = info.name.endswith(f".{WEIGHT}") and len(info.shape) == 2 and info.shape[0] == rows
        if is_weight and info.name.split(".")[-2] in (*EMBEDDINGS, *HEADS):
            yield info


def _changed(config: Mapping[str, Any], before: int, after: int) -> dict[str, Any]:
    changed = dict(config)
    for key, value in config.items():
        if key == VOCABULARY and value == before:
            changed[key] = after
        elif isinstance(value, dict) and key.endswith("_config"):
            changed[key] = _changed(value, before, after)
    return changed


def notes_on(resized: Mapping[str, ResizedTensor]) -> Sequence[str]:
    """Return a sentence for each adapter with resized tensors."""
    named: dict[tuple[str, str, int], list[str]] = {}
    for name, one in resized.items():
        named.setdefault((one.path, one.says, one.info.shape[0]), []).append(name)
    return [
        f"{path}: its {listed(names, 'and')} {'has' if len(names) == 1 else 'have'} {says}: the merged model has all "
        f"{rows} rows, and needs the tokenizer that was saved with the adapter."
        for (path, says, rows), names in named.items()
    ]
