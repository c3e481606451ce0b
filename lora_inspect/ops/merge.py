"""Folds adapters into a base, one weight after the other, streamed from disk to disk."""

import json
import math
import os
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_inspect import dora
from lora_inspect.adapter import Adapter, Overrides, read_adapter
from lora_inspect.checkpoint import Checkpoint, open_checkpoint, read_json
from lora_inspect.contribution import Contribution
from lora_inspect.dtypes import PLAIN_FLOATS
from lora_inspect.errors import LoraInspectError
from lora_inspect.header import TensorInfo
from lora_inspect.matching import accept_unmatched, match
from lora_inspect.metadata import describe_file, merged_metadata
from lora_inspect.outputs import check_output, check_replaceable, new_folder
from lora_inspect.progress import Progress, silent
from lora_inspect.writer import TensorPlan, Writer, in_file_order

# A block of rows that stays in the second-level cache while it is folded: 4 MB in float32.
BLOCK_ELEMENTS = 1 << 20
# What a base folder may hold beside the merged set that would still be the unmerged weights.
_OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx")


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """What the user may choose. `dtype` is a safetensors name; None keeps the base's. `only` is a component."""

    dtype: str | None = None
    only: str | None = None
    allow_unmatched: bool = False
    dora_rule: str | None = None
    overrides: Overrides = field(default_factory=Overrides)


@dataclass(frozen=True, slots=True)
class Change:
    """One contribution with the strength and the source that it comes with."""

    contribution: Contribution
    multiplier: float
    adapter: Adapter


@dataclass(frozen=True, slots=True)
class MergePlan:
    """What will be folded where, known before a byte of a weight is read."""

    base: Checkpoint
    adapters: tuple[tuple[Adapter, float], ...]
    changes: dict[str, list[Change]]
    unmatched: tuple[str, ...]
    options: MergeOptions

    @property
    def modules(self) -> int:
        """How many modules have a target."""
        return len({(change.adapter.checkpoint.path, change.contribution.module.key) for change in self._all()})

    @property
    def dora_rules(self) -> set[str]:
        """The multiplier rules of the DoRA modules whose multiplier is neither 0 nor 1."""
        return {
            self.options.dora_rule or change.contribution.magnitude.spelling.multiplier
            for change in self._all()
            if change.contribution.magnitude and change.multiplier not in (0, 1)
        }

    @property
    def bytes(self) -> int:
        """Bytes of all tensors of the base: what `merge` tells its progress of."""
        return sum(info.nbytes for info in self.base.tensors.values())

    def _all(self) -> Iterator[Change]:
        return (change for changes in self.changes.values() for change in changes)


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a merge did. `dtype_counts` are tensors of the output by element type."""

    output: str
    modules_merged: int
    tensors_copied: int
    multipliers: dict[str, float]
    dtype_counts: dict[str, int]
    unmatched: tuple[str, ...]
    seconds: float
    bytes: int


def plan_merge(base_path: str, adapters: Sequence[tuple[str, float]], options: MergeOptions) -> MergePlan:
    """Reads headers and finds every target; raises LoraInspectError for whatever stands in the way."""
    base = open_checkpoint(base_path)
    paths = [path for path, _ in adapters]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise LoraInspectError(f"{twice}: it is named more than once; name it once, with the multipliers added.")
    opened = [(open_checkpoint(path), multiplier) for path, multiplier in adapters]
    read = [(read_adapter(checkpoint, options.overrides), multiplier) for checkpoint, multiplier in opened]
    _check_kinds(base, [adapter for adapter, _ in read])
    changes: dict[str, list[Change]] = defaultdict(list)
    unmatched: list[str] = []
    for adapter, multiplier in read:
        matching = match(adapter, base, options.only)
        unmatched.extend(accept_unmatched(adapter, base, matching, options.allow_unmatched))
        for name, contributions in matching.targets.items():
            changes[name].extend(Change(contribution, multiplier, adapter) for contribution in contributions)
    return MergePlan(base, tuple(read), dict(changes), tuple(unmatched), options)


def merge(plan: MergePlan, output: str, force: bool = False, progress: Progress = silent) -> MergeResult:
    """Writes the merged base: a file for a single-file base, a folder with the same names for any other.

    `progress` is told the bytes of each tensor that is done. Raises LoraInspectError, and leaves nothing,
    when a result is not finite or the output cannot be written.
    """
    started = time.perf_counter()
    check_merge_output(plan, output, force)
    if plan.base.root is not None:
        with new_folder(output) as folder:
            counts = _write_folder(plan, folder, progress)
    else:
        counts = _write_file(plan, plan.base.files[0], output, progress)
    return MergeResult(
        output=output,
        modules_merged=plan.modules,
        tensors_copied=len(plan.base.tensors) - len(plan.changes),
        multipliers={adapter.checkpoint.path: multiplier for adapter, multiplier in plan.adapters},
        dtype_counts=dict(counts),
        unmatched=plan.unmatched,
        seconds=round(time.perf_counter() - started, 3),
        bytes=_size(output),
    )


def check_merge_output(plan: MergePlan, output: str, force: bool) -> None:
    """Raises LoraInspectError where `merge` would refuse to write to `output`."""
    is_folder = plan.base.root is not None
    inputs = [path for adapter, _ in plan.adapters for path in adapter.checkpoint.paths]
    check_output(output, [*plan.base.paths, *inputs], force, folder=is_folder)
    if is_folder:
        check_replaceable(output, [os.path.basename(file) for file in plan.base.files] + _side_files(plan.base))


def _write_file(plan: MergePlan, file: str, output: str, progress: Progress) -> Counter[str]:
    from lora_inspect.tensor_reader import RowBlocks

    blocks = RowBlocks(BLOCK_ELEMENTS)
    infos = {info.name: info for info in plan.base.tensors.values() if info.file == file}
    plans = in_file_order(
        TensorPlan(info.name, _output_dtype(info, plan.options), info.shape) for info in infos.values()
    )
    metadata = merged_metadata(plan.base.file_metadata[file], _sources(plan))
    with Writer(output, plans, metadata) as writer:
        for target in plans:
            info = infos[target.name]
            changes = [change for change in plan.changes.get(info.name, ()) if change.multiplier != 0]
            if not changes and target.dtype == info.dtype:
                writer.copy(info)
            else:
                writer.write(info.name, _folded_rows(info, changes, plan, target.dtype, blocks))
            progress(info.nbytes)
    return Counter(target.dtype for target in plans)


def _folded_rows(
    info: TensorInfo, changes: Sequence[Change], plan: MergePlan, dtype: str, blocks: Any
) -> Iterator[memoryview]:
    """The rows of a weight with every change folded in, rounded once, as bytes in order."""
    from lora_inspect.tensor_reader import working_dtype

    folds = [_load_fold(change, plan.options.dora_rule, working_dtype(info)) for change in changes]
    for position, fold in enumerate(folds):
        if fold.needs_norm_pass:
            for start, block in blocks.read(info):
                for earlier in folds[:position]:
                    earlier.apply(block, start)
                fold.observe(block, start)
    for start, block in blocks.read(info):
        for fold in folds:
            fold.apply(block, start)
        data, rounded = blocks.bytes_of(block, dtype)
        _check_finite(rounded, info, changes, dtype)
        yield data


def _load_fold(change: Change, rule: str | None, dtype: Any) -> Any:
    from lora_inspect.fold import Fold
    from lora_inspect.tensor_reader import load

    contribution = change.contribution
    tensors = {role: load(info).to(dtype) for role, info in contribution.factors.items()}
    if contribution.magnitude:
        tensors["magnitude"] = load(contribution.magnitude.info).to(dtype)
    return Fold.of(contribution, tensors, change.multiplier, rule)


def _check_finite(rounded: Any, info: TensorInfo, changes: Sequence[Change], dtype: str) -> None:
    from lora_inspect.tensor_reader import first_non_finite

    value = first_non_finite(rounded)
    if value is None:
        return
    if not changes:
        raise LoraInspectError(f"{info.file}: {info.name} has {value} as {dtype}; choose another --dtype.")
    module, source = changes[-1].contribution.module.key, changes[-1].adapter.checkpoint.path
    raise LoraInspectError(
        f"{source}: folding {module} into {info.name} gives {value} in {dtype}; lower the multiplier, choose another "
        "--dtype, or repair the file that holds non-finite numbers."
    )


def _write_folder(plan: MergePlan, folder: str, progress: Progress) -> Counter[str]:
    counts: Counter[str] = Counter()
    for file in plan.base.files:
        counts += _write_file(plan, file, os.path.join(folder, os.path.basename(file)), progress)
    for name in _side_files(plan.base):
        shutil.copyfile(os.path.join(plan.base.root or os.curdir, name), os.path.join(folder, name))
    if plan.base.index_path:
        index = read_json(plan.base.index_path)
        total = sum(
            TensorPlan(info.name, _output_dtype(info, plan.options), info.shape).nbytes
            for info in plan.base.tensors.values()
        )
        known = index.get("metadata")
        index["metadata"] = {**(known if isinstance(known, dict) else {}), "total_size": total}
        with open(os.path.join(folder, os.path.basename(plan.base.index_path)), "w", encoding="utf-8") as handle:
            json.dump(index, handle, indent=2)
    return counts


def _side_files(base: Checkpoint) -> list[str]:
    """Names of the files beside the weights: configuration, tokenizer, index."""
    root = base.root or os.curdir
    return [
        name
        for name in sorted(os.listdir(root))
        if os.path.isfile(os.path.join(root, name)) and not name.lower().endswith(_OTHER_WEIGHTS)
    ]


def _output_dtype(info: TensorInfo, options: MergeOptions) -> str:
    return options.dtype if options.dtype and info.dtype in PLAIN_FLOATS else info.dtype


def _check_kinds(base: Checkpoint, adapters: Sequence[Adapter]) -> None:
    as_adapter = read_adapter(base)
    for adapter in adapters:
        path = adapter.checkpoint.path
        if as_adapter.modules and not adapter.modules:
            raise LoraInspectError(
                f"{base.path} is an adapter and {path} is none; name the base first, then the adapters."
            )
        adapter.refuse()
    if as_adapter.modules:
        raise LoraInspectError(f"{base.path}: it is an adapter itself, not a base; name the model's own weights first.")


def _sources(plan: MergePlan) -> list[Mapping[str, Any]]:
    sources: list[Mapping[str, Any]] = []
    for adapter, multiplier in plan.adapters:
        source: dict[str, Any] = {"file": describe_file(adapter.checkpoint.path), "multiplier": multiplier}
        source["scale"] = "alpha/sqrt(rank)" if adapter.rslora.value else "alpha/rank"
        if adapter.dora.value:
            source["dora_multiplier"] = plan.options.dora_rule or _default_rule(adapter)
        sources.append(source)
    return sources


def _default_rule(adapter: Adapter) -> str:
    return next((c.magnitude.spelling.multiplier for c in adapter.contributions if c.magnitude), dora.INSIDE)


def _size(path: str) -> int:
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(path, name)) for name in os.listdir(path))


def parse_adapter_argument(argument: str) -> tuple[str, float]:
    """`PATH` or `PATH:MULTIPLIER`; the colon counts where a finite number follows and the whole is no existing path."""
    path, colon, tail = argument.rpartition(":")
    if colon and path and "_" not in tail and not os.path.exists(argument):
        try:
            multiplier = float(tail)
        except ValueError:
            return argument, 1.0
        if math.isfinite(multiplier):
            return path, multiplier
    return argument, 1.0
