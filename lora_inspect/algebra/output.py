"""The file or the folder of an adapter that was made of others: its names, its tensors as they come, and its config.

Every module is plain LoRA whose alpha is its rank, so programs that read an alpha, a config or neither apply the
factors as they stand. Nothing but the modules at work is held in memory.
"""

import json
import os
import struct
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy
from numpy.typing import NDArray

from lora_inspect.algebra.alignment import OutputModule
from lora_inspect.algebra.combination import MadeModule
from lora_inspect.algorithms.lora import ALGORITHM as LORA
from lora_inspect.algorithms.record import Algorithm
from lora_inspect.converting.output.configs import BARE, lora_config, standard_config
from lora_inspect.converting.target.key_names import ALPHA, CONFIG, alpha_key, carrier_of, factor_key
from lora_inspect.errors import CouldNotWorkError, RefusedError
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.files.delivery import delivered
from lora_inspect.files.discovery import ADAPTER_CONFIG, PEFT_WEIGHTS
from lora_inspect.files.input_file import Identity, InputFile
from lora_inspect.files.outputs import check_output, check_replaceable, file_output, folder_output, new_file, new_folder
from lora_inspect.files.safetensors.header import LENGTH_BYTES, read_header
from lora_inspect.files.safetensors.writer import ALIGNMENT, ROOM, TensorPlan, encode_header, header_text, write_all_at
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


class WrittenTensor(NamedTuple):
    """A tensor beside the factors, as it is written."""

    plan: TensorPlan
    values: NDArray[numpy.generic]


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
            up, down = (factor_key(module, module.contributions[0], _algorithm(one), role) for role in (UP, DOWN))
        return SpelledFactors(up, down, alpha_key(module) if carrier_of(module) == ALPHA else None)

    def plans(self, shapes: Sequence[tuple[int, ...]], ranks: Sequence[int], dtype: str) -> list[TensorPlan]:
        """The tensors of the modules of these weights at their ranks, none of rank 0, in the order of the file."""
        alphas, factors = list[TensorPlan](), list[TensorPlan]()
        for one, shape, rank in zip(self._modules, shapes, ranks, strict=True):
            if rank:
                keys = self.spelled(one)
                factors += _factor_plans(keys, shape, rank, dtype)
                alphas += [_alpha_plan(keys.alpha)] if keys.alpha else []
        return [*alphas, *factors]

    def size(self, plans: Sequence[TensorPlan], metadata: Mapping[str, str]) -> int:
        """The bytes of the file with these tensors."""
        return _room(plans, metadata) + _room_of_alphas(plans) + sum(plan.nbytes for plan in plans if plan.shape)

    def write(
        self,
        plans: Sequence[TensorPlan],
        made: Iterable[MadeModule | WrittenTensor],
        metadata: Callable[[], Mapping[str, str]],
        inputs: Mapping[str, Identity],
        force: bool,
        dtype: str,
    ) -> None:
        """Write the modules as they are made, in `dtype`; `metadata` is asked again once all of them are there.

        `plans` are their tensors at the largest ranks that they may have. The file is read back before it appears:
        every tensor has to be the one that was made. Raises LoraInspectError where the disk refuses, and where it holds
        something else.
        """
        with delivered(self.path, inputs, force) as place:
            if not self.is_folder:
                self._write(place.path, plans, made, metadata, inputs, force, dtype)
                return
            with new_folder(place.path, inputs, force) as folder:
                weights = os.path.join(folder, _WEIGHTS)
                ranks = self._write(weights, plans, made, metadata, None, False, dtype)
                with open(os.path.join(folder, ADAPTER_CONFIG), "x", encoding="utf-8") as handle:
                    json.dump(self._config(ranks), handle, indent=2, sort_keys=True)
                    handle.write("\n")

    def _write(
        self,
        path: str,
        plans: Sequence[TensorPlan],
        made: Iterable[MadeModule | WrittenTensor],
        metadata: Callable[[], Mapping[str, str]],
        inputs: Mapping[str, Identity] | None,
        force: bool,
        dtype: str,
    ) -> dict[str, int]:
        """Write the file; return the ranks of its modules by their dotted paths."""
        sums: dict[str, int] = {}
        ranks: dict[str, int] = {}
        with new_file(path, inputs, force, lambda complete: _check_written(complete, path, sums)) as descriptor:
            file = _GrowingFile(descriptor, _room(plans, metadata()) + _room_of_alphas(plans))
            for one in made:
                if isinstance(one, WrittenTensor):
                    data = _bytes_of(one.values)
                    file.append(one.plan, data)
                    sums[one.plan.name] = crc32(data)
                    continue
                if one.up is None or one.down is None:
                    continue
                ranks[one.module.module.name.body] = one.rank
                keys = self.spelled(one.module)
                for plan, tensor in zip(
                    _factor_plans(keys, one.shape, one.rank, dtype), (one.up, one.down), strict=True
                ):
                    data = _bytes_of(tensor)
                    file.append(plan, data)
                    sums[plan.name] = crc32(data)
                if keys.alpha:
                    sums[keys.alpha] = crc32(file.set_alpha(keys.alpha, float(one.rank)))
            file.finish(metadata())
        return ranks

    def _config(self, ranks: Mapping[str, int]) -> dict[str, object]:
        checkpoint = self._first.checkpoint
        config = checkpoint.config if checkpoint.config and peft_config.is_peft_config(checkpoint.config) else None
        alphas = {path: float(rank) for path, rank in ranks.items()}
        return standard_config(lora_config(config or BARE), ranks, alphas, use_dora=False)


def _algorithm(one: OutputModule) -> Algorithm:
    """Plain LoRA, but of an embedding that is no sum its own."""
    own = one.module.contributions[0].algorithm
    return own if own.transposed and not one.terms else LORA


def _suffixes(first: Adapter) -> dict[str, str]:
    """The suffixes of the factors of plain LoRA in a file, of its first module that has them; none without any."""
    for contribution in first.contributions:
        if contribution.algorithm.name == LORA.name and contribution.rows is None:
            keys = {role: contribution.factors[role].name for role in (UP, DOWN)}
            if all(key.startswith(contribution.module.key) for key in keys.values()):
                return {role: key.removeprefix(contribution.module.key) for role, key in keys.items()}
    return {}


def _factor_plans(keys: SpelledFactors, shape: tuple[int, ...], rank: int, dtype: str) -> list[TensorPlan]:
    """The plans of up (out, rank, 1, …) and down (rank, in, *kernel) for a weight of a shape."""
    rows, *columns = shape
    up = TensorPlan(keys.up, dtype, (rows, rank, *[1] * len(columns[1:])))
    return [up, TensorPlan(keys.down, dtype, (rank, *columns))]


def _alpha_plan(key: str) -> TensorPlan:
    return TensorPlan(key, "F32", ())


def _room(plans: Sequence[TensorPlan], metadata: Mapping[str, str]) -> int:
    """The bytes of a header of the tensors, with room for the numbers that are known at the end."""
    return len(encode_header(plans, metadata, ROOM))


def _room_of_alphas(plans: Sequence[TensorPlan]) -> int:
    """The bytes in front of the factors for the alphas, such that factors of eight bytes are aligned as well."""
    return (sum(plan.nbytes for plan in plans if not plan.shape) + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


class _GrowingFile:
    """A file whose header comes first, and whose tensors are known one after the other.

    In front of the factors is `room` for the header and, right before the factors, for the alphas. A module of rank 0
    has none, and leaves its room to the header.
    """

    def __init__(self, descriptor: int, room: int) -> None:
        self._descriptor = descriptor
        self._begin = self._end = room
        self._plans: list[TensorPlan] = []
        self._alphas: dict[str, bytes] = {}

    def append(self, plan: TensorPlan, data: memoryview) -> None:
        """Write the whole of the next tensor."""
        self._plans.append(plan)
        self._end = write_all_at(self._descriptor, data, self._end)

    def set_alpha(self, key: str, alpha: float) -> bytes:
        """Take a number that is written at the end; return its bytes."""
        self._alphas[key] = struct.pack("<f", alpha)
        return self._alphas[key]

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the alphas and the header."""
        begin = self._begin - 4 * len(self._alphas)
        write_all_at(self._descriptor, b"".join(self._alphas.values()), begin)
        text = header_text([*map(_alpha_plan, self._alphas), *self._plans], metadata)
        if LENGTH_BYTES + len(text) > begin:
            raise AssertionError(f"a header of {len(text)} bytes does not fit the {begin} before the tensors")
        header = (begin - LENGTH_BYTES).to_bytes(LENGTH_BYTES, "little") + text.ljust(begin - LENGTH_BYTES)
        write_all_at(self._descriptor, header, 0)


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
