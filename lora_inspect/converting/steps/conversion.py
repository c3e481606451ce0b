"""A module's way through a conversion, from the tensors that were read to those that are written."""

from collections.abc import Mapping, Sequence

from lora_inspect import schemes
from lora_inspect.algorithms import lora
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.output.output_tensors import SpelledModule, spell
from lora_inspect.converting.steps import renormalise
from lora_inspect.converting.steps.base_change import Landed
from lora_inspect.converting.steps.carried_scale import alpha_of_all, carry_scales, of_one_scale
from lora_inspect.converting.steps.dora_delta import Told
from lora_inspect.converting.steps.expert_split import ExpertArranger, repack
from lora_inspect.converting.steps.full_delta import WholeChanges, spell_differences
from lora_inspect.converting.steps.low_rank_lora import LoraMaker
from lora_inspect.converting.steps.part import Growth, Part, read_parts
from lora_inspect.converting.steps.respell import (
    as_lora,
    as_mlx,
    counted_once,
    turn_embeddings,
    without_unchanged,
    write_instead,
)
from lora_inspect.converting.steps.split_fuse import arrange, fuse_slices
from lora_inspect.converting.target.key_names import ONE_SCALE, carrier_of
from lora_inspect.converting.target.target_layout import Destination
from lora_inspect.converting.target.target_program import writing_of
from lora_inspect.progress import Progress
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Module


def convert_modules(
    adapter: Adapter,
    targets: Sequence[Destination],
    landed: Mapping[str, Landed],
    remeasured: Mapping[str, Landed],
    changes: WholeChanges,
    inner: dict[str, tuple[int, ...]],
    options: ConvertOptions,
    progress: Progress,
) -> dict[str, SpelledModule]:
    """Every module of the output, by its name there; none for what was saved whole as the base has it.

    `landed` are the true changes of modules that a base tells, `remeasured` the modules whose magnitudes will be over
    other norms, `changes` those that become differences of whole parameters, and `inner` the (in, *kernel) of its
    weights.
    """
    tensors = adapter.checkpoint.tensors.values()
    growth = Growth(adapter.checkpoint.path, sum(info.nbytes for info in tensors), options.allow_growth)
    experts, told = ExpertArranger(), Told(1)
    common = alpha_of_all(adapter.contributions)
    writing = writing_of(schemes.by_name(options.scheme)) if options.scheme else None
    dialects = writing.dialects if writing else ()
    instead = writing.instead if writing else {}
    is_lora = options.algorithm == lora.ALGORITHM.name
    maker = LoraMaker(options.rank, options.max_error, inner, growth) if is_lora else None
    converted = {}
    of_one: list[tuple[Module, Sequence[Part]]] = []
    progress(0)
    for target in targets:
        if all(source.module.name.key in changes for source in target.sources):
            converted[target.module.name.key] = spell_differences(target, changes, told, growth)
            progress(1)
            continue
        carrier = carrier_of(target.module)
        found: list[Sequence[Part]] = []
        for source in target.sources:
            read = counted_once(read_parts(source.module), source.module, target.module)
            parts: Sequence[Part] = as_lora(write_instead(repack(read), instead))
            parts = fuse_slices(parts, carrier, growth)
            if own := landed.get(source.module.name.key):
                parts = renormalise.approximate(parts, own, options.rank, options.max_error, told, source.runs)
                parts = without_unchanged(parts, own)
            elif own := remeasured.get(source.module.name.key):
                parts = renormalise.remeasure(parts, own, target.module, options)
            elif options.drop_magnitude:
                parts = renormalise.drop(parts)
            else:
                parts = renormalise.keep(parts)
            found.append(turn_embeddings(maker.made(parts, source.runs) if maker else parts, dialects))
        if not any(found):
            progress(1)
            continue
        parts = experts.arrange(target, found, growth) if target.experts else arrange(target, found, carrier, growth)
        parts = carry_scales(parts, carrier, common)
        if carrier == ONE_SCALE:
            of_one.append((target.module, as_mlx(parts)))
        elif options.uniform:
            of_one.append((target.module, parts))
        else:
            converted[target.module.name.key] = spell(target.module, parts, growth)
        progress(1)
    for (module, _), parts in zip(of_one, of_one_scale(parts for _, parts in of_one), strict=True):
        converted[module.name.key] = spell(module, parts, growth)
    return converted
