"""Rewrites an adapter so that alpha/rank, which every loader reads, is its scale."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_inspect import schemes
from lora_inspect.converting import account
from lora_inspect.converting.asked_algorithm import check_algorithm, check_biases, needs_base, shapes_in_base
from lora_inspect.converting.asked_scheme import writing_of
from lora_inspect.converting.expert_layouts import SINGLE_EXPERTS
from lora_inspect.converting.gguf_layouts import architecture_of
from lora_inspect.converting.growth import Growth
from lora_inspect.converting.landed import Landed, find_landed
from lora_inspect.converting.naming import ONE_SCALE, carrier_of
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.relayout import Destination
from lora_inspect.converting.standard_output import StandardOutput
from lora_inspect.converting.targets import instead, targets, with_magnitudes, with_scheme
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import Checkpoint, open_checkpoint
from lora_inspect.files.contents import renamed
from lora_inspect.files.hashes import sshs_hashes
from lora_inspect.files.partial import remove_leftovers
from lora_inspect.matching.match import match
from lora_inspect.matching.orientation import Orientation, check_answers
from lora_inspect.maths.torch_threads import load_torch
from lora_inspect.progress import Progress, silent
from lora_inspect.reading.adapter import Adapter, read_adapter
from lora_inspect.reading.components import chosen
from lora_inspect.reading.contribution import Module
from lora_inspect.reading.kinds import ADAPTER, kind_of
from lora_inspect.reading.metadata import HASHES, describe_file, standard_metadata
from lora_inspect.schemes.gguf import GGUF

if TYPE_CHECKING:
    from lora_inspect.converting.part import Part
    from lora_inspect.converting.spelling import SpelledModule

__all__ = ["ConvertOptions", "ConvertResult", "convert_to_standard"]

_LOSSY = 0.05


class Verified(NamedTuple):
    """How many modules were compared, and the largest relative error that was found."""

    modules: int
    max_relative_error: float


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """What a conversion did. `was` and `becomes` are titles of algorithms.

    `relative_errors` are per module, None where a magnitude was dropped without a base.
    `orientations` say by base weight how it is stored, where a base was looked at.
    `exact` says that no module lost more than the rounding of a float32. `dropped` are keys whose meaning is in no
    tensor of the output, `remarks` are sentences on what its readers do differently.
    `verified` says of how many modules the output, read anew, was compared, and by how much they differ at most.
    """

    output: str
    source: dict[str, Any]
    target: dict[str, Any]
    was: tuple[str, ...]
    becomes: tuple[str, ...]
    modules: int
    exact: bool
    relative_errors: dict[str, float | None]
    dropped: tuple[str, ...]
    passed_through: tuple[str, ...]
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    orientations: dict[str, Orientation] = field(default_factory=dict)
    verified: Verified | None = None


def convert_to_standard(
    path: str, output: str, options: ConvertOptions, force: bool = False, progress: Progress = silent
) -> ConvertResult:
    """Writes `path` to `output` with alpha/rank as the scale of every module and without flags.

    Where `output` is a folder, a file goes into it under the name of the input. `progress` is told of every module
    that is done. Raises LoraInspectError, and writes nothing, where the meaning of the file is unknown, where DoRA has
    no agreed way out, or where the loss is above 5%.
    """
    adapter = read_adapter(open_checkpoint(path), options.settings)
    adapter.refuse()
    modules_asked, left_out = chosen(adapter, options.only)
    # Embeddings are of no component.
    embeddings = () if options.only else adapter.embeddings
    left_keys = (*_keys(left_out), *(key for one in adapter.embeddings for key in one.keys if not embeddings))
    adapter = adapter._replace(modules={module.name.key: module for module in modules_asked}, embeddings=embeddings)
    _refuse_residual(adapter)
    options = with_magnitudes(adapter, with_scheme(adapter, options))
    already = check_algorithm(adapter, options)
    base = _open_base(adapter, options)
    inputs = adapter.checkpoint.inputs | (base.inputs if base else {})
    matching = match(adapter, base, transposed=options.transposed) if base else None
    check_biases(adapter, matching, options)
    destinations = targets(adapter, base, matching, options)
    architecture = architecture_of(adapter, options) if GGUF.name == (options.scheme or adapter.scheme) else None
    place = StandardOutput(adapter, destinations, output, inputs, options.scheme, architecture)
    leftovers = remove_leftovers(place.path)
    place.check(inputs, force)
    if options.keep_dora:
        place.check_magnitudes()
    repeats = check_answers([matching.orientations], options.transposed) if matching else []
    wanted = partial(needs_base, options=options)
    landed = find_landed(adapter, base, matching, wanted) if base and matching else {}
    load_torch()
    from lora_inspect.converting.proof import Proof
    from lora_inspect.converting.shared_contents import shared_contents

    modules = _convert(adapter, destinations, landed, shapes_in_base(matching), options, progress)
    _refuse_lossy(path, modules, options)
    passed = [renamed(adapter.checkpoint.tensors[key], key) for key in adapter.beside]
    own = [content for module in modules.values() for content in module.contents]
    contents = own + shared_contents(part for module in modules.values() for part in module.parts) + passed
    magnitudes = sum(module.magnitude is not None for module in modules.values())
    source = account.reading(adapter)
    algorithms = sorted({part.algorithm.name for module in modules.values() for part in module.parts})
    embedded = place.embedded(modules)
    metadata = standard_metadata(
        adapter.checkpoint.metadata,
        _provenance(adapter, options, source, modules),
        ranks={module.rank for module in modules.values() if module.rank is not None},
        alphas={module.alpha for module in modules.values() if module.alpha is not None},
        magnitudes=magnitudes,
        algorithms=algorithms,
        embedded=embedded,
        folded=place.folded(modules),
    )
    if any(key in adapter.checkpoint.metadata for key in HASHES):
        metadata |= sshs_hashes(contents, metadata)
    errors = {key: module.relative_error for key, module in modules.items()}
    proof = (
        Proof(adapter, destinations, landed, errors, not options.drop_magnitude, place.path) if options.verify else None
    )
    written = place.write(contents, metadata, modules, inputs, force, proof)
    target = {
        "scheme": place.scheme,
        "layout": options.layout,
        "algorithm": "+".join(algorithms),
        "rslora": False,
        "dora": magnitudes > 0,
        "multiplier": account.rules(module.magnitude for module in modules.values()),
        "ranks": account.counted(module.rank for module in modules.values() if module.rank is not None),
        "bytes": written,
    }
    return ConvertResult(
        output=place.path,
        source=source,
        target=target,
        was=account.titles(contribution.algorithm for contribution in adapter.contributions),
        becomes=account.titles(part.algorithm for module in modules.values() for part in module.parts),
        modules=len(modules),
        exact=account.is_exact(errors),
        relative_errors=errors,
        dropped=(*account.dropped(adapter, modules), *left_keys),
        passed_through=adapter.beside,
        notes=(*adapter.notes, *already, *repeats, *leftovers),
        orientations=matching.orientations if matching else {},
        verified=Verified(proof.modules, proof.max_relative_error) if proof else None,
        remarks=(
            *account.strength(source, target),
            *account.trained_otherwise(adapter),
            *account.configs(adapter, metadata, has_config=os.path.isdir(place.path)),
            *place.orientation(has_config=embedded is not None),
        ),
    )


def _keys(left_out: Sequence[Module]) -> list[str]:
    """The tensors of components that were not asked for."""
    return [info.name for module in left_out for info in module.tensors]


def _refuse_residual(adapter: Adapter) -> None:
    """Raises LoraInspectError where no alpha says what the factors change."""
    if one := next((c for c in adapter.contributions if c.residual), None):
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: {one.module.key} changes what the {one.residual} initialisation left of the "
            "base, which no standard file says; merge it, or convert it to plain LoRA with the program that trained it."
        )


def _open_base(adapter: Adapter, options: ConvertOptions) -> Checkpoint | None:
    """The base for DoRA's true weight change, or for the layers of single experts.

    Raises LoraInspectError where the options do not settle the magnitude, and where there is nothing to do for a base.
    """
    path, is_for_experts = adapter.checkpoint.path, options.layout == SINGLE_EXPERTS
    if adapter.dora.value and not (options.base or options.keep_dora or options.drop_magnitude):
        raise LoraInspectError(
            f"{path}: it is DoRA ({adapter.dora.modules} magnitudes), which alpha/rank alone cannot express; "
            "choose --keep-dora (exact for readers of its magnitude), --base BASE with --rank N or --max-error E "
            "(a plain LoRA of the true change), or --drop-magnitude (loses the magnitude)."
        )
    if not options.base:
        return None
    if not adapter.dora.value and not is_for_experts and options.algorithm is None:
        raise LoraInspectError(f"{path}: it has no DoRA magnitude, so --base has nothing to do; leave it out.")
    if adapter.dora.value and is_for_experts:
        raise LoraInspectError(
            f"{path}: it is DoRA ({adapter.dora.modules} magnitudes), which is settled first; make it plain without "
            "--layout, then give that to the output."
        )
    base = open_checkpoint(options.base)
    if kind_of(read_adapter(base))[0] == ADAPTER:
        raise LoraInspectError(f"{base.path}: it is an adapter itself, not a base; name the model's own weights.")
    return base


def _convert(
    adapter: Adapter,
    targets: Sequence[Destination],
    landed: Mapping[str, Landed],
    inner: dict[str, tuple[int, ...]],
    options: ConvertOptions,
    progress: Progress,
) -> "dict[str, SpelledModule]":
    """Every module of the output, by its name there."""
    from lora_inspect.converting import settled_magnitude
    from lora_inspect.converting.arranged_experts import ExpertArranger
    from lora_inspect.converting.arranged_rows import arrange
    from lora_inspect.converting.carried_scale import alpha_of_all, carry_scales
    from lora_inspect.converting.fused_slices import fuse_slices
    from lora_inspect.converting.mlx_factors import as_lora, as_mlx, of_one_config
    from lora_inspect.converting.packed_experts import repack
    from lora_inspect.converting.part import read_parts
    from lora_inspect.converting.plain_lora import LoraMaker
    from lora_inspect.converting.spelling import spell
    from lora_inspect.converting.turned_embeddings import turn_embeddings
    from lora_inspect.converting.written_instead import write_instead

    tensors = adapter.checkpoint.tensors.values()
    growth = Growth(adapter.checkpoint.path, sum(info.nbytes for info in tensors), options.allow_growth)
    experts = ExpertArranger()
    common = alpha_of_all(adapter.contributions)
    dialects = writing_of(schemes.by_name(options.scheme)).dialects if options.scheme else ()
    maker = LoraMaker(options.rank, options.max_error, inner, growth) if options.algorithm else None
    converted = {}
    of_one: list[tuple[Module, Sequence[Part]]] = []
    progress(0)
    for target in targets:
        carrier = carrier_of(target.module)
        found: list[Sequence[Part]] = []
        for source in target.sources:
            parts: Sequence[Part] = as_lora(write_instead(repack(read_parts(source.module)), instead(options)))
            parts = fuse_slices(parts, carrier, growth)
            if own := landed.get(source.module.name.key):
                parts = settled_magnitude.approximate(parts, own, options.rank, options.max_error)
            elif options.drop_magnitude:
                parts = settled_magnitude.drop(parts)
            else:
                parts = settled_magnitude.keep(parts)
            found.append(turn_embeddings(maker.made(parts) if maker else parts, dialects))
        parts = experts.arrange(target, found, growth) if target.experts else arrange(target, found, carrier, growth)
        parts = carry_scales(parts, carrier, common)
        if carrier == ONE_SCALE:
            of_one.append((target.module, as_mlx(parts)))
        else:
            converted[target.module.name.key] = spell(target.module, parts, growth)
        progress(1)
    for (module, _), parts in zip(of_one, of_one_config(parts for _, parts in of_one), strict=True):
        converted[module.name.key] = spell(module, parts, growth)
    return converted


def _refuse_lossy(path: str, modules: "Mapping[str, SpelledModule]", options: ConvertOptions) -> None:
    errors = {key: module.relative_error for key, module in modules.items() if module.relative_error is not None}
    lossy = [key for key, error in errors.items() if error > _LOSSY]
    if lossy and not options.lossy:
        worst = max(lossy, key=lambda key: errors[key])
        is_limited = options.rank is not None or options.max_error is not None
        way = "raise --rank, lower --max-error, or accept the loss" if is_limited else "accept the loss"
        raise LoraInspectError(
            f"{path}: {len(lossy)} of {len(modules)} modules would lose over {_LOSSY:.0%} of their change, "
            f"{worst} {errors[worst]:.1%}; {way} with --lossy."
        )


def _provenance(
    adapter: Adapter, options: ConvertOptions, source: Mapping[str, Any], modules: "Mapping[str, SpelledModule]"
) -> dict[str, Any]:
    said = {key: source[key] for key in ("scheme", "algorithm", "rslora", "dora")}
    said = {"file": describe_file(adapter.checkpoint.path), **said}
    if options.layout:
        said["layout"] = options.layout
    if adapter.dora.value:
        if options.base:
            errors = [module.relative_error or 0.0 for module in modules.values()]
            said |= {"base": describe_file(options.base), "max_relative_error": max(errors)}
        else:
            said["magnitude"] = "kept" if options.keep_dora else "dropped"
    return said
