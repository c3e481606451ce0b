"""What Python programs ask of a conversion, whether it goes to a file or stays in memory."""

from collections.abc import Iterable

from lora_inspect.api.arguments import (
    PathWithSettings,
    StrPath,
    Transposed,
    answers_of,
    chosen,
    limit_of,
    names_of,
    path_of,
    rank_of,
    reading_settings,
    without_strength,
)
from lora_inspect.converting.options import ALGORITHMS, EXPERT_LAYOUTS, LAYOUTS, ConvertOptions, contradiction
from lora_inspect.programs import CONSUMERS
from lora_inspect.schemes import written


def asked_conversion(
    adapter: PathWithSettings,
    to: str | None,
    *,
    keep_dora: bool,
    base: StrPath | None,
    rank: int | None,
    max_error: float | None,
    lossy: bool,
    allow_growth: bool,
    drop_magnitude: bool,
    drop_unclaimed: bool,
    drop_biases: bool,
    only: str | Iterable[str],
    verify: bool,
    architecture: str | None,
    algorithm: str | None,
    transposed: Transposed,
    rslora: bool | None,
    alpha: float | None,
    allow_partial_dora: bool,
    expert_packing: str | None,
    layout: str | None = None,
    model_config: StrPath | None = None,
) -> tuple[str, ConvertOptions]:
    """The path of the adapter, and the options as the command line has them.

    Raises ValueError and TypeError for arguments that are none, or say nothing together.
    """
    name, own = without_strength(adapter)
    if to is not None:
        chosen("the name", to, {*written(), *CONSUMERS})
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
        algorithm=algorithm,
        settings=own.joined(reading_settings(rslora, alpha, allow_partial_dora, expert_packing, architecture), name),
    )
    if wrong := contradiction(options, architecture):
        raise ValueError(wrong)
    return name, options
