"""The steps of a conversion: a module's way from the tensors of the input to those of the output.

Each step takes a module and the context and returns the next module. A step that few files need has an address, below
this folder, and is imported only for a module with its sign. To add a step, add its row to STEPS.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

from lora_inspect import schemes
from lora_inspect.algorithms import lora, mlx
from lora_inspect.algorithms.attention_lora import IN_PROJ, OUT_PROJ
from lora_inspect.algorithms.lora_embedding import spelled_in
from lora_inspect.converting.growth import Growth
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.output.output_tensors import SpelledModule, spell
from lora_inspect.converting.steps.carried_scale import alpha_of_all, carry_scale, of_one_scale
from lora_inspect.converting.steps.part import Context, ModuleParts, Part, read_parts
from lora_inspect.converting.target.key_names import ONE_SCALE, carrier_of
from lora_inspect.converting.target.target_layout import Destination
from lora_inspect.converting.target.target_program import writing_of
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.progress import Progress
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Module

if TYPE_CHECKING:
    from lora_inspect.converting.steps.base_change import BaseDependentChange
    from lora_inspect.converting.steps.full_delta import WholeChanges

_StepFunction = Callable[[ModuleParts, Context], ModuleParts]


class ConversionStep(NamedTuple):
    """One step of a conversion, and the sign of the modules that need it.

    `run` is a function, or its address as `file:function`.
    """

    run: "_StepFunction | str"
    sign: Callable[[ModuleParts, Context], bool] = lambda module, context: True

    def __call__(self, module: ModuleParts, context: Context) -> ModuleParts:
        """Return the module after the step, or the same one without the sign."""
        if not self.sign(module, context):
            return module
        if not isinstance(self.run, str):
            return self.run(module, context)
        file, _, name = self.run.partition(":")
        found: _StepFunction = getattr(import_module(f"lora_inspect.converting.steps.{file}"), name)
        return found(module, context)


def _any(module: ModuleParts, sign: Callable[[Part], bool]) -> bool:
    return any(sign(part) for parts in module.found for part in parts)


def _is_of_attention(module: ModuleParts, context: Context) -> bool:
    return _any(module, lambda part: part.algorithm in (IN_PROJ, OUT_PROJ))


def _is_packed(module: ModuleParts, context: Context) -> bool:
    return _any(module, lambda part: part.algorithm.packed)


def _is_written_otherwise(module: ModuleParts, context: Context) -> bool:
    return _any(module, lambda part: part.algorithm.name in context.instead)


def _is_of_mlx(module: ModuleParts, context: Context) -> bool:
    return _any(module, lambda part: part.algorithm.name == mlx.NAME)


def _has_slices(module: ModuleParts, context: Context) -> bool:
    return _any(module, lambda part: part.origin.rows is not None)


def _depends_on_the_base(module: ModuleParts, context: Context) -> bool:
    keys = {source.module.name.key for source in module.target.sources}
    is_told = not keys.isdisjoint(context.base_changes) or not keys.isdisjoint(context.remeasured)
    return is_told or _any(module, lambda part: part.magnitude is not None)


def _becomes_lora(module: ModuleParts, context: Context) -> bool:
    return context.options.algorithm == lora.ALGORITHM.name


def _is_turned_embedding(module: ModuleParts, context: Context) -> bool:
    return _any(module, lambda part: spelled_in(part.algorithm, context.dialects) is not part.algorithm)


def _has_moved_rows(module: ModuleParts, context: Context) -> bool:
    return module.target.rows is not None and module.target.experts is None


def _has_experts(module: ModuleParts, context: Context) -> bool:
    return module.target.experts is not None


def join_sources(module: ModuleParts, context: Context) -> ModuleParts:
    """Take the parts of the only source; the steps on rows and experts join several sources."""
    return replace(module, parts=module.found[0])


STEPS = (
    # The parts of each source.
    ConversionStep("respell:count_once", _is_of_attention),
    ConversionStep("expert_split:repack", _is_packed),
    ConversionStep("respell:substitute_algorithms", _is_written_otherwise),
    ConversionStep("respell:turn_mlx", _is_of_mlx),
    ConversionStep("split_fuse:fuse_slices", _has_slices),
    ConversionStep("renormalise:settle_magnitudes", _depends_on_the_base),
    ConversionStep("low_rank_lora:make_lora", _becomes_lora),
    ConversionStep("respell:turn_embeddings", _is_turned_embedding),
    # The parts of the module of the output.
    ConversionStep(join_sources),
    ConversionStep("split_fuse:arrange_rows", _has_moved_rows),
    ConversionStep("expert_split:arrange_experts", _has_experts),
    ConversionStep(carry_scale),
)


def convert_modules(
    adapter: Adapter,
    targets: Sequence[Destination],
    base_changes: "Mapping[str, BaseDependentChange]",
    remeasured: "Mapping[str, BaseDependentChange]",
    changes: "WholeChanges",
    inner: dict[str, tuple[int, ...]],
    options: ConvertOptions,
    progress: Progress,
) -> dict[str, SpelledModule]:
    """Convert every module; return those of the output by their names there.

    A tensor that was saved whole and equals the base's gives no module. `base_changes` are the true changes of modules
    that depend on a base. `remeasured` are the modules with magnitudes that will refer to other norms. `changes` are
    those that become differences of whole parameters. `inner` gives the (in, *kernel) of the base's weights.
    """
    tensors = adapter.checkpoint.tensors.values()
    growth = Growth(adapter.checkpoint.path, sum(info.nbytes for info in tensors), options.allow_growth)
    writing = writing_of(schemes.by_name(options.scheme)) if options.scheme else None
    dialects, instead = (writing.dialects, writing.instead) if writing else ((), {})
    common = alpha_of_all(adapter.contributions)
    context = Context(options, growth, base_changes, remeasured, inner, common, dialects, instead)
    converted = {}
    of_one: list[tuple[Module, Sequence[Part]]] = []
    progress(0)
    for target in targets:
        if all(source.module.name.key in changes for source in target.sources):
            from lora_inspect.converting.steps.dora_delta import remembered_deltas
            from lora_inspect.converting.steps.full_delta import spell_differences

            converted[target.module.name.key] = spell_differences(target, changes, remembered_deltas(context), growth)
            progress(1)
            continue
        found = tuple(read_parts(source.module) for source in target.sources)
        module = ModuleParts(target, carrier_of(target.module), found)
        for step in STEPS:
            module = step(module, context)
            if not any(module.found):
                break
        else:
            if module.carrier == ONE_SCALE or options.uniform:
                of_one.append((target.module, _of_one(module)))
            else:
                converted[target.module.name.key] = spell(target.module, module.parts, growth)
        progress(1)
    for (own, _), parts in zip(of_one, of_one_scale((parts for _, parts in of_one), options), strict=True):
        converted[own.name.key] = spell(own, parts, growth)
    return converted


def _of_one(module: ModuleParts) -> Sequence[Part]:
    """Return the parts for a program with a config that states one scale for all modules."""
    if module.carrier != ONE_SCALE:
        return module.parts
    from lora_inspect.converting.steps.respell import as_mlx

    return as_mlx(module.parts)
