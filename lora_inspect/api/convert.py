"""Adapters rewritten, from Python."""

from collections.abc import Iterable

from lora_inspect.api.arguments import PathWithSettings, StrPath, Transposed, WatchProgress, path_of, watched
from lora_inspect.api.conversion import asked_conversion
from lora_inspect.api.failures import in_a_sentence
from lora_inspect.ops.convert import ConvertResult, convert_planned, plan_conversion

__all__ = ["ConvertResult", "convert"]


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
    name, options = asked_conversion(
        adapter,
        to,
        keep_dora=keep_dora,
        base=base,
        rank=rank,
        max_error=max_error,
        lossy=lossy,
        allow_growth=allow_growth,
        drop_magnitude=drop_magnitude,
        drop_unclaimed=drop_unclaimed,
        drop_biases=drop_biases,
        only=only,
        verify=verify,
        architecture=architecture,
        algorithm=algorithm,
        transposed=transposed,
        rslora=rslora,
        alpha=alpha,
        allow_partial_dora=allow_partial_dora,
        expert_packing=expert_packing,
        layout=layout,
        model_config=model_config,
    )
    plan = plan_conversion(name, path_of(output), options)
    return convert_planned(plan, force, watched(progress, len(plan.destinations)))
