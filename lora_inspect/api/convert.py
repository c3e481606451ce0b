"""Adapters rewritten, from Python."""

from collections.abc import Iterable

from lora_inspect.api.arguments import (
    PathWithSettings,
    StrPath,
    Transposed,
    WatchProgress,
    answers_of,
    chosen,
    limit_of,
    names_of,
    path_of,
    rank_of,
    reading_settings,
    watched,
    without_strength,
)
from lora_inspect.api.failures import in_a_sentence
from lora_inspect.consumers import CONSUMERS
from lora_inspect.converting.asked_algorithm import ALGORITHMS
from lora_inspect.converting.asked_layout import LAYOUTS
from lora_inspect.converting.asked_scheme import written
from lora_inspect.converting.contradictions import contradiction
from lora_inspect.converting.expert_layouts import EXPERT_LAYOUTS
from lora_inspect.ops.convert import ConvertOptions, ConvertResult, convert_planned, plan_conversion


@in_a_sentence()
def convert(
    adapter: PathWithSettings,
    output: StrPath,
    *,
    to: str | None = None,
    keep_dora: bool = False,
    base: StrPath | None = None,
    rank: int | None = None,
    max_error: float | None = None,
    lossy: bool = False,
    allow_growth: bool = False,
    drop_magnitude: bool = False,
    drop_unclaimed: bool = False,
    drop_biases: bool = False,
    layout: str | None = None,
    model_config: StrPath | None = None,
    only: str | Iterable[str] = (),
    verify: bool = True,
    architecture: str | None = None,
    algorithm: str | None = None,
    transposed: Transposed = None,
    rslora: bool | None = None,
    alpha: float | None = None,
    allow_partial_dora: bool = False,
    expert_packing: str | None = None,
    force: bool = False,
    progress: WatchProgress | None = None,
) -> ConvertResult:
    """Writes one adapter anew to `output`, as `convert` does: standard in its own names, or `to` those of a program.

    The arguments are the options of the command line; `verify=False` is its `--no-verify`. `progress(done, total)` is
    told of modules. Raises LoraInspectError, and writes nothing, for whatever stands in the way, and ValueError for
    arguments that say nothing together.
    """
    name, own = without_strength(adapter)
    if to is not None:
        chosen("to", to, {*written(), *CONSUMERS})
    if layout is not None:
        chosen("layout", layout, (*LAYOUTS, *EXPERT_LAYOUTS))
    if algorithm is not None:
        chosen("algorithm", algorithm, ALGORITHMS)
    options = ConvertOptions(
        keep_dora=keep_dora,
        drop_magnitude=drop_magnitude,
        drop_biases=drop_biases,
        drop_unclaimed=drop_unclaimed,
        base=None if base is None else path_of(base),
        rank=None if rank is None else rank_of(rank),
        max_error=None if max_error is None else limit_of(max_error),
        lossy=lossy,
        allow_growth=allow_growth,
        transposed=answers_of(transposed),
        layout=layout,
        scheme=None if to in CONSUMERS else to,
        consumer=to if to in CONSUMERS else None,
        model_config=None if model_config is None else path_of(model_config),
        only=names_of(only),
        verify=verify,
        architecture=architecture,
        algorithm=algorithm,
        settings=own.joined(reading_settings(rslora, alpha, allow_partial_dora, expert_packing), name),
    )
    if wrong := contradiction(options):
        raise ValueError(wrong)
    plan = plan_conversion(name, path_of(output), options)
    return convert_planned(plan, force, watched(progress, len(plan.destinations)))
