"""Rewrites an adapter so that alpha/rank, which every loader reads, is its scale."""

import struct
from dataclasses import dataclass, field
from typing import Any

from lora_inspect.adapter import Adapter, read_adapter
from lora_inspect.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.contents import Content, renamed, write_contents
from lora_inspect.contribution import Contribution, Magnitude, Module
from lora_inspect.dora import INPUT
from lora_inspect.errors import LoraInspectError
from lora_inspect.hashes import sshs_hashes
from lora_inspect.header import TensorInfo
from lora_inspect.matching import match
from lora_inspect.metadata import HASHES, describe_file, standard_metadata
from lora_inspect.naming import Namer, standard_namer
from lora_inspect.ops.info import FileInfo, inspect_adapter
from lora_inspect.outputs import check_output
from lora_inspect.progress import Progress, silent
from lora_inspect.scaling import standard_alpha
from lora_inspect.settings import Settings
from lora_inspect.writer import TensorPlan

# What rounding alpha to float32 may cost, and nothing else: half a unit in its last place.
_EXACT = 2.0**-22
_LOSSY = 0.05


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What the user may choose. For DoRA one of `keep_dora`, `drop_magnitude` or `base` must be given.

    With `base`, `rank` or `max_error` says how the true weight change is approximated; `lossy` accepts modules
    whose relative error is above 5%.
    """

    keep_dora: bool = False
    drop_magnitude: bool = False
    base: str | None = None
    rank: int | None = None
    max_error: float | None = None
    lossy: bool = False
    settings: Settings = field(default_factory=Settings)


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """What a conversion did. `relative_errors` are per module, None where a magnitude was dropped without a base."""

    output: str
    source: dict[str, Any]
    target: dict[str, Any]
    modules: int
    exact: bool
    relative_errors: dict[str, float | None]
    dropped: tuple[str, ...]
    passed_through: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Converted:
    """One module of the output."""

    contents: list[Content]
    rank: int
    alpha: float
    relative_error: float | None
    dropped: tuple[str, ...] = ()


def convert_to_standard(
    path: str, output: str, options: ConvertOptions, force: bool = False, progress: Progress = silent
) -> ConvertResult:
    """Writes `path` to `output` with alpha/rank as the scale of every module and without flags.

    `progress` is told of every module that is done. Raises LoraInspectError, and writes nothing, where the
    meaning of the file is unknown, where DoRA has no agreed way out, or where the loss is above 5%.
    """
    info = inspect_adapter(open_checkpoint(path), options.settings)
    adapter = info.adapter
    adapter.refuse()
    base = _open_base(adapter, options)
    inputs = adapter.checkpoint.inputs | (base.inputs if base else {})
    check_output(output, inputs, force)
    targets = _targets(adapter, base) if base else {}

    converted: dict[str, _Converted] = {}
    for key, module in adapter.modules.items():
        namer = standard_namer(module, adapter, info.detection)
        converted[key] = _convert_module(module, namer, targets.get(key), options)
        progress(1)
    if base:
        _refuse_lossy(path, converted, options)
    passed = [renamed(adapter.checkpoint.tensors[key], key) for key in adapter.unclaimed]
    contents = [content for module in converted.values() for content in module.contents] + passed
    keeps_dora = bool(adapter.dora.value and options.keep_dora)
    metadata = standard_metadata(
        adapter.checkpoint.metadata,
        _provenance(info, options, converted),
        ranks={module.rank for module in converted.values()},
        alphas={module.alpha for module in converted.values()},
        keeps_dora=keeps_dora,
    )
    if any(key in adapter.checkpoint.metadata for key in HASHES):
        metadata |= sshs_hashes(contents, metadata)
    write_contents(output, contents, metadata, inputs)
    errors = {key: module.relative_error for key, module in converted.items()}
    flags = [module.rslora_flag.name for module in adapter.modules.values() if module.rslora_flag]
    magnitudes = [key for module in converted.values() for key in module.dropped]
    return ConvertResult(
        output=output,
        source=_reading(adapter),
        target={"scheme": _target_scheme(info), "algorithm": "lora", "rslora": False, "dora": keeps_dora},
        modules=len(converted),
        exact=all(error is not None and error <= _EXACT for error in errors.values()),
        relative_errors=errors,
        dropped=(*adapter.flags, *flags, *magnitudes),
        passed_through=adapter.unclaimed,
        notes=tuple(adapter.notes),
    )


def _open_base(adapter: Adapter, options: ConvertOptions) -> Checkpoint | None:
    """The base for DoRA's true weight change; raises LoraInspectError where the options do not settle the magnitude."""
    path = adapter.checkpoint.path
    if not adapter.dora.value:
        if options.base:
            raise LoraInspectError(f"{path}: it has no DoRA magnitude, so --base has nothing to do; leave it out.")
        return None
    if not (options.base or options.keep_dora or options.drop_magnitude):
        raise LoraInspectError(
            f"{path}: it is DoRA ({adapter.dora.modules} magnitudes), which alpha/rank alone cannot express; "
            "choose --keep-dora (exact for readers of dora_scale), --base BASE with --rank N or --max-error E "
            "(a plain LoRA of the true change), or --drop-magnitude (loses the magnitude)."
        )
    if not options.base:
        return None
    base = open_checkpoint(options.base)
    if read_adapter(base).modules:
        raise LoraInspectError(f"{base.path}: it is an adapter itself, not a base; name the model's own weights.")
    return base


def _targets(adapter: Adapter, base: Checkpoint) -> dict[str, TensorInfo]:
    """The base weight of each module; every one is needed, as its change cannot be known without."""
    matching = match(adapter, base)
    needed = [module for module in matching.unmatched if any(c.magnitude for c in module.contributions)]
    if needed:
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: {len(needed)} modules have no weight in {base.path} ({needed[0].name.key}); "
            "name the base that the adapter was trained on."
        )
    return {
        contribution.module.key: base.tensors[name]
        for name, contributions in matching.targets.items()
        for contribution in contributions
    }


def _convert_module(module: Module, namer: Namer, target: TensorInfo | None, options: ConvertOptions) -> _Converted:
    if module.contributions[0].rows is not None:
        return _convert_slices(module, namer)
    (contribution,) = module.contributions
    rank = contribution.formula.rank(contribution.factors)
    magnitude = contribution.magnitude
    if magnitude and target:
        return _convert_change(contribution, magnitude, namer, target, options)
    alpha, error = _alpha(contribution, rank)
    contents = [renamed(info, namer.key(role, info.name)) for role, info in contribution.factors.items()]
    contents.append(_alpha_content(namer, alpha))
    if magnitude is None:
        return _Converted(contents, rank, alpha, error)
    if options.drop_magnitude:
        return _Converted(contents, rank, alpha, None, (magnitude.info.name,))
    contents.append(renamed(magnitude.info, namer.key("magnitude"), _dora_scale_shape(contribution)))
    return _Converted(contents, rank, alpha, error)


def _convert_slices(module: Module, namer: Namer) -> _Converted:
    """The slices of a fused layer as one module: down stacked, up block-diagonal, alpha grown with the rank."""
    import torch

    from lora_inspect.tensor_reader import load, to_bytes

    parts = module.contributions
    first = parts[0]
    ups, downs = [load(part.factors["up"]) for part in parts], [load(part.factors["down"]) for part in parts]
    rank = sum(down.shape[0] for down in downs)
    if any(part.scale != first.scale for part in parts):
        ups = [up * (part.known_scale / first.known_scale) for up, part in zip(ups, parts, strict=True)]
    alpha, error = _alpha(first, rank)
    contents = []
    block_diagonal: torch.Tensor = torch.block_diag(*ups)  # type: ignore[no-untyped-call]
    for role, tensor in (("down", torch.cat(downs)), ("up", block_diagonal)):
        dtype = first.factors[role].dtype
        contents.append(Content(TensorPlan(namer.key(role), dtype, tuple(tensor.shape)), to_bytes(tensor, dtype)))
    contents.append(_alpha_content(namer, alpha))
    return _Converted(contents, rank, alpha, error)


def _convert_change(
    contribution: Contribution, magnitude: Magnitude, namer: Namer, target: TensorInfo, options: ConvertOptions
) -> _Converted:
    """The low-rank approximation of W' - W, the change that the DoRA module makes to its base weight."""
    from lora_inspect.fold import Fold
    from lora_inspect.lowrank import approximate
    from lora_inspect.tensor_reader import first_non_finite, load, to_bytes

    tensors = {role: load(info) for role, info in contribution.factors.items()}
    tensors["magnitude"] = load(magnitude.info)
    weight = load(target)
    matrix = weight.reshape(weight.shape[0], -1)
    changed = matrix.clone()
    fold = Fold.of(contribution, {role: tensor.to(matrix.dtype) for role, tensor in tensors.items()}, 1.0)
    if fold.needs_norm_pass:
        fold.observe(matrix, 0)
    fold.apply(changed, 0)
    change = changed.sub_(matrix)
    if first_non_finite(change) is not None:
        raise LoraInspectError(
            f"{contribution.factors['down'].file}: the change that {contribution.module.key} makes to {target.name} is "
            "not finite; repair the file that holds non-finite numbers."
        )
    if contribution.transposed:
        change = change.transpose(0, 1).contiguous()
    found = approximate(change, options.rank, options.max_error)
    kernel = (1,) * (len(contribution.factors["up"].shape) - 2)
    shape = contribution.shape
    contents = [
        Content(TensorPlan(namer.key("down"), "F32", (found.rank, *shape[1:])), to_bytes(found.down, "F32")),
        Content(TensorPlan(namer.key("up"), "F32", (shape[0], found.rank, *kernel)), to_bytes(found.up, "F32")),
        _alpha_content(namer, float(found.rank)),
    ]
    dropped = (magnitude.info.name,)
    return _Converted(contents, found.rank, float(found.rank), found.relative_error, dropped)


def _alpha(contribution: Contribution, rank: int) -> tuple[float, float]:
    """The float32 alpha whose quotient by `rank` is the scale, and the relative error of that quotient."""
    scale = contribution.known_scale
    try:
        if contribution.alpha is not None and rank == contribution.rank:
            alpha = standard_alpha(contribution.alpha, rank, contribution.rslora is True)
        else:
            alpha = standard_alpha(scale * rank, rank, rslora=False)
    except OverflowError:
        raise LoraInspectError(
            f"{contribution.factors['down'].file}: the alpha of {contribution.module.key} is beyond float32; "
            "scale its factors instead."
        ) from None
    return alpha, abs(alpha / rank - scale) / abs(scale) if scale else 0.0


def _alpha_content(namer: Namer, alpha: float) -> Content:
    return Content(TensorPlan(namer.key("alpha"), "F32", ()), struct.pack("<f", alpha))


def _dora_scale_shape(contribution: Contribution) -> tuple[int, ...]:
    """How readers of dora_scale broadcast it: (out, 1, …) for output rows, (1, in, …) for input columns."""
    shape = contribution.shape
    ones = (1,) * (len(shape) - 2)
    is_input = contribution.magnitude is not None and contribution.magnitude.axis == INPUT
    return (1, shape[1], *ones) if is_input else (shape[0], 1, *ones)


def _refuse_lossy(path: str, converted: dict[str, _Converted], options: ConvertOptions) -> None:
    errors = {key: module.relative_error for key, module in converted.items() if module.relative_error is not None}
    lossy = [key for key, error in errors.items() if error > _LOSSY]
    if lossy and not options.lossy:
        worst = max(lossy, key=lambda key: errors[key])
        lost = f"{worst} {errors[worst]:.1%}"
        raise LoraInspectError(
            f"{path}: {len(lossy)} of {len(converted)} modules would lose over {_LOSSY:.0%} of their change, {lost}; "
            "raise --rank, lower --max-error, or accept the loss with --lossy."
        )


def _reading(adapter: Adapter) -> dict[str, Any]:
    names = sorted({contribution.algorithm.name for contribution in adapter.contributions})
    return {
        "scheme": adapter.scheme,
        "algorithm": "+".join(names),
        "rslora": adapter.rslora.value,
        "dora": adapter.dora.value,
    }


def _target_scheme(info: FileInfo) -> str:
    names = {
        standard_namer(module, info.adapter, info.detection).scheme.name for module in info.adapter.modules.values()
    }
    return names.pop() if len(names) == 1 else "mixed"


def _provenance(info: FileInfo, options: ConvertOptions, converted: dict[str, _Converted]) -> dict[str, Any]:
    source = {"file": describe_file(info.checkpoint.path), **_reading(info.adapter)}
    if info.adapter.dora.value:
        if options.base:
            errors = [module.relative_error or 0.0 for module in converted.values()]
            source |= {"base": describe_file(options.base), "max_relative_error": max(errors)}
        else:
            source["magnitude"] = "kept" if options.keep_dora else "dropped"
    return source
