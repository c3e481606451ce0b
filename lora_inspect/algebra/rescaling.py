"""One adapter with its multipliers in its factors: algorithm, names, ranks, alphas and flags stay as they are.

A multiplier goes into one factor that the change is linear in; a power of two changes no mantissa. All other tensors
are copied by their bytes.
"""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy
from numpy.typing import NDArray

from lora_inspect.algebra.changes import written_in
from lora_inspect.algebra.inputs import Inputs
from lora_inspect.algebra.linear.ranks import RankRule
from lora_inspect.algebra.numpy_tensors import check_finite, load_floats
from lora_inspect.algebra.output.made_metadata import input_records, kept_metadata, made_record
from lora_inspect.algebra.output.numbered_names import check_numbered_layers, numbered_layers
from lora_inspect.algebra.output.output_modules import FileError
from lora_inspect.algebra.output.streamed_file import bytes_of, hash_keys, streamed_bytes, streamed_file
from lora_inspect.algebra.output.sum_metadata import dropped_keys
from lora_inspect.algebra.results import SumResult
from lora_inspect.errors import RefusedError
from lora_inspect.files.delivery import delivered
from lora_inspect.files.discovery import ADAPTER_CONFIG
from lora_inspect.files.input_file import Identity
from lora_inspect.files.outputs import check_output, check_replaceable, file_output, folder_output, new_folder
from lora_inspect.files.safetensors.header import TensorInfo
from lora_inspect.files.safetensors.writer import TensorPlan, in_file_order, renamed
from lora_inspect.files.temp_files import remove_leftovers
from lora_inspect.maths.dora import INSIDE
from lora_inspect.maths.stored_numbers import FLOATS, WRITTEN
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.model.contribution import Contribution
from lora_inspect.schemes.gguf import GGUF


def is_rescalable(inputs: Inputs, dora_rule: str | None) -> bool:
    """Return True if the multipliers of one adapter fit into its own factors."""
    if len(inputs.adapters) > 1 or inputs.first.scheme == GGUF.name:
        return False
    (one,) = inputs.adapters
    return all(
        one.multipliers.get(c.module.key, 1.0) in (0.0, 1.0) or _factor_to_scale(c, dora_rule) is not None
        for c in one.adapter.contributions
    )


def _factor_to_scale(contribution: Contribution, dora_rule: str | None) -> TensorInfo | None:
    """Return the factor that takes a multiplier; None if none does, as under a magnitude with another rule."""
    magnitude, algorithm = contribution.magnitude, contribution.algorithm
    if algorithm.multiplies or algorithm.replaces:
        return None
    if magnitude and (dora_rule or magnitude.spelling.multiplier) != INSIDE:
        return None
    role = next((role for role in algorithm.scaled if role in contribution.factors), None)
    return contribution.factors[role] if role else None


# The metadata of an output: of the first input's metadata and the record of the making.
MakeMetadata = Callable[[Mapping[str, str], str], dict[str, str]]


@dataclass(frozen=True, slots=True)
class RescalingPlan:
    """The planned copy of one adapter: the multipliers by tensor, and the keys that are left out with the reasons.

    `make_metadata(metadata, record)` gives the metadata of the output.
    """

    inputs: Inputs
    path: str
    is_folder: bool
    multipliers: dict[str, float]
    left_out: dict[str, str]
    dtype: str | None = None
    notes: tuple[str, ...] = ()
    recorded: Mapping[str, Any] = field(default_factory=dict)
    make_metadata: MakeMetadata = kept_metadata

    @property
    def steps(self) -> int:
        """The number of tensors that the making reports to its progress."""
        return len(self.tensors)

    @property
    def tensors(self) -> dict[str, TensorPlan]:
        """The plan of each tensor that is kept, by its key: those with the largest elements first."""
        adapter = self.inputs.first
        owners = {info.name: key for key, module in adapter.modules.items() for info in module.tensors}
        # Modules may share a tensor, which stays as long as one of them does.
        shared = {info.name for key, one in adapter.modules.items() if key not in self.left_out for info in one.tensors}
        factors = {info.name for one in adapter.contributions for info in one.operands.values()}
        plans = [
            TensorPlan(key, self._type_of(info, key in factors), info.shape)
            for key, info in adapter.checkpoint.tensors.items()
            if key in shared or key not in owners
        ]
        return {plan.name: plan for plan in in_file_order(plans)}

    def _type_of(self, info: TensorInfo, is_factor: bool) -> str:
        if self.dtype and is_factor and info.dtype in FLOATS and info.numel > 1:
            return self.dtype
        # Eight bits have no room for what is multiplied.
        return "BF16" if info.name in self.multipliers and info.dtype not in WRITTEN else info.dtype

    @property
    def dtypes(self) -> str:
        """The element types of the factors."""
        factors = {info.name for one in self.inputs.first.contributions for info in one.operands.values()}
        return " and ".join(sorted({plan.dtype for key, plan in self.tensors.items() if key in factors}))


def plan_rescaling(
    inputs: Inputs,
    output: str | None,
    dtype: str | None,
    dora_rule: str | None,
    recorded: Mapping[str, Any] = MappingProxyType({}),
    make_metadata: MakeMetadata = kept_metadata,
) -> RescalingPlan:
    """Return the plan of a copy of the first input; `recorded` are options that its record has.

    Raises LoraInspectError for a name of the other kind, where no module is left, and where names are numbers and some
    layers are left out.
    """
    one, excluded = inputs.adapters[0], inputs.excluded[0]
    adapter = one.adapter
    gone = dict.fromkeys(excluded, "left out by --include or --exclude")
    gone |= {key: "its multiplier is 0" for key, multiplier in one.multipliers.items() if not multiplier}
    if gone.keys() >= adapter.modules.keys():
        raise RefusedError(adapter.checkpoint.path, "no module is left", "give a multiplier other than 0")
    layers = numbered_layers(adapter)
    check_numbered_layers([adapter], [layer for key, layer in layers.items() if key not in gone])
    multipliers: dict[str, float] = {}
    for contribution in adapter.contributions:
        multiplier = one.multipliers.get(contribution.module.key, 0.0)
        factor = _factor_to_scale(contribution, dora_rule)
        if multiplier not in (0.0, 1.0) and factor is not None:
            multipliers[factor.name] = multiplier
    checkpoint = adapter.checkpoint
    is_folder = checkpoint.config_path is not None
    path = "" if output is None else _path(output, checkpoint.name, is_folder, list(inputs.files))
    notes = tuple(inputs.notes)
    return RescalingPlan(inputs, path, is_folder, multipliers, gone, dtype, notes, recorded, make_metadata)


def _path(named: str, name: str, is_folder: bool, inputs: Sequence[str]) -> str:
    if is_folder:
        return folder_output(named, f"the input has an {ADAPTER_CONFIG} beside it, which the output keeps", inputs)
    if os.path.isdir(named):
        raise RefusedError(
            named, "it is a folder, and the output is a new file", f"name the file: {os.path.join(named, name)}"
        )
    return file_output(named, name, inputs)


@dataclass(slots=True)
class Rounding:
    """The norms of the numbers that were computed, and of their rounding errors."""

    meant: float = 0.0
    lost: float = 0.0

    @property
    def error(self) -> float:
        """The relative error of all of them together."""
        return self.lost / self.meant if self.meant else 0.0

    def add(self, meant: NDArray[numpy.float64], written: NDArray[numpy.floating[Any]]) -> None:
        """Take the numbers of a tensor; their squares may be beyond the range of numbers."""
        largest = float(numpy.abs(meant).max(initial=0.0))
        if largest:
            self.meant = math.hypot(self.meant, largest * float(numpy.linalg.norm(meant / largest)))
            self.lost = math.hypot(self.lost, largest * float(numpy.linalg.norm((written - meant) / largest)))


# The bytes of a tensor of the output in an element type.
MakeBytes = Callable[[TensorInfo, str, Rounding], memoryview | bytes]


def rescaled(plan: RescalingPlan, verb: str, force: bool = False, progress: Progress = silent) -> SumResult:
    """Write the planned copy; `progress` counts tensors.

    The output is read back before it appears. Raises LoraInspectError, and leaves nothing, for numbers beyond the
    element type, and where it cannot be written.
    """

    factors = {
        info.name
        for one in plan.inputs.first.contributions
        for role, info in one.operands.items()
        if role not in one.algorithm.positions
    }

    def make(info: TensorInfo, dtype: str, rounding: Rounding) -> memoryview | bytes:
        multiplier = plan.multipliers.get(info.name, 1.0)
        if multiplier == 1.0 and dtype == info.dtype:
            if info.name in factors:
                check_finite(info, load_floats(info))
            return b"".join(renamed(info, info.name).chunks())
        return bytes_of_numbers(info, load_floats(info).astype(numpy.float64) * multiplier, dtype, rounding)

    return write_alike(plan, verb, make, force, progress)


def write_alike(
    plan: RescalingPlan,
    verb: str,
    make: MakeBytes,
    force: bool,
    progress: Progress,
    error: float | None = 0.0,
) -> SumResult:
    """Write a file with the tensors of the first input, each of the bytes that `make` makes.

    `error` is the relative error of it all. Raises LoraInspectError as `rescaled` does.
    """
    started, checkpoint = time.perf_counter(), plan.inputs.first.checkpoint
    leftovers, name = remove_leftovers(plan.path), checkpoint.name
    check_output(plan.path, list(plan.inputs.files), force, folder=plan.is_folder)
    if plan.is_folder:
        check_replaceable(plan.path, (name, ADAPTER_CONFIG))
    records, rounding = input_records(plan.inputs), Rounding()

    def metadata() -> dict[str, str]:
        made = FileError(error, rounding.error)
        record = made_record(verb, records, RankRule(), plan.dtypes, made, plan.recorded)
        return plan.make_metadata(checkpoint.metadata, record)

    def write(path: str, inputs: Mapping[str, Identity] | None, own_force: bool) -> int:
        plans = list(plan.tensors.values())
        with streamed_file(path, plans, metadata, inputs, own_force, checkpoint.metadata) as file:
            progress(0)
            for own in plans:
                file.append(own, make(checkpoint.tensors[own.name], own.dtype, rounding))
                progress(1)
        return os.path.getsize(path)

    with delivered(plan.path, plan.inputs.files, force) as place:
        if plan.is_folder:
            with new_folder(place.path, plan.inputs.files, force) as folder:
                size = write(os.path.join(folder, name), None, False)
                with open(os.path.join(folder, ADAPTER_CONFIG), "x", encoding="utf-8") as handle:
                    json.dump(checkpoint.config, handle, indent=2, sort_keys=True)
                    handle.write("\n")
        else:
            size = write(place.path, plan.inputs.files, force)
    found = planned_copy(plan, verb)
    return replace(
        found,
        is_made=True,
        error=error,
        energy=FileError(error).energy,
        bytes=size,
        rounding=rounding.error,
        seconds=time.perf_counter() - started,
        notes=(*found.notes, *leftovers),
    )


def bytes_of_numbers(info: TensorInfo, meant: NDArray[numpy.float64], dtype: str, rounding: Rounding) -> memoryview:
    """Return the bytes of numbers that were computed for a tensor, rounded to a type.

    Raises LoraInspectError for numbers that are not finite, or beyond the type.
    """
    check_finite(info, meant)
    codes, written = written_in(dtype, meant, info.name, info.file)
    rounding.add(meant, written)
    return bytes_of(codes)


def planned_copy(plan: RescalingPlan, verb: str) -> SumResult:
    """Return the account of the copy that a plan would give."""
    adapter = plan.inputs.first
    kept = [module for key, module in adapter.modules.items() if key not in plan.left_out]
    ranks = Counter(c.rank for module in kept for c in module.contributions if c.rank)
    tensors = list(plan.tensors.values())
    records = input_records(plan.inputs)
    record = made_record(verb, records, RankRule(), plan.dtypes, FileError(), plan.recorded)
    metadata = plan.make_metadata(adapter.checkpoint.metadata, record)
    adapters = [one.adapter for one in plan.inputs.adapters]
    return SumResult(
        verb=verb,
        output=plan.path or None,
        is_made=False,
        inputs=tuple(
            {"path": one.adapter.checkpoint.path, "bytes": one.adapter.checkpoint.bytes, **record}
            for one, record in zip(plan.inputs.adapters, records, strict=True)
        ),
        modules=len(kept),
        left_out=plan.left_out,
        ranks=dict(sorted(ranks.items())),
        dtype=plan.dtypes,
        bytes=streamed_bytes(tensors, metadata),
        energy=1.0,
        error=0.0,
        rounding=None,
        worst=None,
        order_matters=(),
        seconds=0.0,
        dropped_metadata=dropped_keys(adapters, {*metadata, *hash_keys(adapter.checkpoint.metadata)}),
        notes=plan.notes,
    )
