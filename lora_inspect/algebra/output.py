"""The file or the folder of an adapter that was made of others: its names, its tensors as they come, and its config.

Every module is plain LoRA whose alpha is its rank, so programs that read an alpha, a config or neither apply the
factors as they stand. Nothing but the modules at work is held in memory.
"""

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy
from numpy.typing import NDArray

from lora_inspect.algebra.alignment import OutputModule
from lora_inspect.algebra.combination import MadeModule
from lora_inspect.algorithms.lora import ALGORITHM as LORA
from lora_inspect.converting.output.configs import BARE, lora_config, standard_config
from lora_inspect.converting.target.key_names import ALPHA, CONFIG, alpha_key, carrier_of, factor_key
from lora_inspect.errors import CouldNotWorkError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.delivery import delivered
from lora_inspect.files.discovery import ADAPTER_CONFIG, PEFT_WEIGHTS
from lora_inspect.files.input_file import Identity, InputFile
from lora_inspect.files.outputs import check_output, check_replaceable, file_output, folder_output, new_folder
from lora_inspect.files.safetensors.header import read_header
from lora_inspect.files.safetensors.writer import (
    ROOM,
    TensorPlan,
    Writer,
    encode_header,
    in_file_order,
    rewrite_header,
)
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.peft import peft_config

UP, DOWN = "up", "down"
_WEIGHTS = f"{PEFT_WEIGHTS}.safetensors"
# So many bytes of an output are read back at a time.
_PIECE = 1 << 22


class SpelledFactors(NamedTuple):
    """The keys of a module's factors, and of its alpha where programs look for one."""

    up: str
    down: str
    alpha: str | None


class AdapterOutput:
    """The output of some modules where the user `named` it, in the names that `first` has or a target gave.

    Raises LoraInspectError for names that no one output can have, and for a name that is meant for the other kind.
    """

    def __init__(self, first: Adapter, modules: Sequence[OutputModule], named: str, inputs: Collection[str]) -> None:
        self._first = first
        self._modules = modules
        carriers = {carrier_of(one.module) for one in modules}
        self.is_folder = CONFIG in carriers
        source = first.checkpoint
        if self.is_folder and len(carriers) > 1:
            raise RefusedError(
                source.path,
                "the output would mix PEFT's names, which keep their scale in a config, with other names",
                "choose names with --to",
            )
        if self.is_folder:
            because = f"PEFT's names keep their scale in an {ADAPTER_CONFIG} next to the tensors"
            self.path = folder_output(named, because, inputs)
        else:
            self.path = file_output(named, source.name, inputs)
        self._suffixes = _suffixes(first)

    def check(self, inputs: Collection[str], force: bool) -> None:
        """Raises LoraInspectError where the output cannot be written to its path."""
        check_output(self.path, inputs, force, folder=self.is_folder)
        if self.is_folder:
            check_replaceable(self.path, (_WEIGHTS, ADAPTER_CONFIG))

    def spelled(self, one: OutputModule) -> SpelledFactors:
        """The keys of a module: with the suffixes of the first adapter, or those of the scheme that was asked for."""
        module = one.module
        if self._suffixes and not module.respelled:
            up, down = (module.name.key + self._suffixes[role] for role in (UP, DOWN))
        else:
            up, down = (factor_key(module, one.terms[0].contribution, LORA, role) for role in (UP, DOWN))
        return SpelledFactors(up, down, alpha_key(module) if carrier_of(module) == ALPHA else None)

    def plans(self, shapes: Sequence[tuple[int, ...]], ranks: Sequence[int], dtype: str) -> list[TensorPlan]:
        """The tensors of the modules of these weights at their ranks, none of rank 0, in the order of the file."""
        found: list[TensorPlan] = []
        for one, (rows, columns, *kernel), rank in zip(self._modules, shapes, ranks, strict=True):
            if rank:
                keys = self.spelled(one)
                found.append(TensorPlan(keys.up, dtype, (rows, rank, *[1] * len(kernel))))
                found.append(TensorPlan(keys.down, dtype, (rank, columns, *kernel)))
                found += [TensorPlan(keys.alpha, "F32", ())] if keys.alpha else []
        return in_file_order(found)

    def size(self, plans: Sequence[TensorPlan], metadata: Mapping[str, str]) -> int:
        """The bytes of the file with these tensors."""
        return len(encode_header(plans, metadata, ROOM)) + sum(plan.nbytes for plan in plans)

    def write(
        self,
        plans: Sequence[TensorPlan],
        made: Iterable[MadeModule],
        metadata: Callable[[], Mapping[str, str]],
        inputs: Mapping[str, Identity],
        force: bool,
    ) -> None:
        """Write the modules as they are made; `metadata` is asked again once all of them are there.

        The file is read back before it appears: every tensor has to be the one that was made. Raises LoraInspectError
        where the disk refuses, and where it holds something else.
        """
        with delivered(self.path, inputs, force) as place:
            if not self.is_folder:
                self._write(place.path, plans, made, metadata, inputs, force)
                return
            with new_folder(place.path, inputs, force) as folder:
                ranks = self._write(os.path.join(folder, _WEIGHTS), plans, made, metadata, None, False)
                with open(os.path.join(folder, ADAPTER_CONFIG), "x", encoding="utf-8") as handle:
                    json.dump(self._config(ranks), handle, indent=2, sort_keys=True)
                    handle.write("\n")

    def _write(
        self,
        path: str,
        plans: Sequence[TensorPlan],
        made: Iterable[MadeModule],
        metadata: Callable[[], Mapping[str, str]],
        inputs: Mapping[str, Identity] | None,
        force: bool,
    ) -> dict[str, int]:
        """Write the file; return the ranks of its modules by their dotted paths."""
        sums: dict[str, int] = {}
        ranks: dict[str, int] = {}
        before = metadata()

        def prove(complete: str) -> None:
            rewrite_header(complete, encode_header(plans, metadata()), len(encode_header(plans, before, ROOM)))
            _check_written(complete, path, sums)

        with Writer(path, plans, before, inputs, force, prove) as writer:
            for one in made:
                keys = self.spelled(one.measured.module)
                rank = one.down.shape[0]
                ranks[one.measured.module.module.name.body] = rank
                alpha = numpy.array(rank, dtype="<f4")
                for key, tensor in ((keys.up, one.up), (keys.down, one.down), (keys.alpha, alpha)):
                    if key:
                        data = _bytes_of(tensor)
                        writer.write(key, [data])
                        sums[key] = crc32(data)
        return ranks

    def _config(self, ranks: Mapping[str, int]) -> dict[str, object]:
        checkpoint = self._first.checkpoint
        config = checkpoint.config if checkpoint.config and peft_config.is_peft_config(checkpoint.config) else None
        alphas = {path: float(rank) for path, rank in ranks.items()}
        return standard_config(lora_config(config or BARE), ranks, alphas, use_dora=False)


def _suffixes(first: Adapter) -> dict[str, str]:
    """The suffixes of the factors of plain LoRA in a file, of its first module that has them; none without any."""
    for contribution in first.contributions:
        if contribution.algorithm.name == LORA.name and contribution.rows is None:
            keys = {role: contribution.factors[role].name for role in (UP, DOWN)}
            if all(key.startswith(contribution.module.key) for key in keys.values()):
                return {role: key.removeprefix(contribution.module.key) for role, key in keys.items()}
    return {}


def _bytes_of(tensor: NDArray[numpy.generic]) -> memoryview:
    data: Any = tensor.reshape(-1).view(numpy.uint8)  # numpy's types know of buffers from Python 3.12 on
    return memoryview(data)


def _check_written(complete: str, path: str, sums: Mapping[str, int]) -> None:
    """Raises LoraInspectError where the complete file of the output at `path` has other bytes than were made."""
    tensors, _ = read_header(complete)
    with InputFile(complete) as source:
        for key, expected in sums.items():
            found = 0
            for piece in source.pieces(tensors[key].start, tensors[key].stop, _PIECE):
                found = crc32(piece, found)
            if found != expected:
                raise CouldNotWorkError(
                    path, f"{key} was read back with other bytes than were written", "check the disk, and try again"
                )
