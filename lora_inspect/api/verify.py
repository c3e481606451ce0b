"""What a merged model carries of adapters, from Python."""

from collections.abc import Iterable

from lora_inspect.api.arguments import (
    PathWithSettings,
    StrPath,
    Transposed,
    WatchProgress,
    all_with_settings,
    answers_of,
    chosen,
    names_of,
    path_of,
    reading_settings,
    watched,
)
from lora_inspect.api.failures import in_a_sentence
from lora_inspect.maths.dora import MULTIPLIER_RULES
from lora_inspect.merging.plan import MergeOptions
from lora_inspect.ops.verify import VerifyResult, plan_verify
from lora_inspect.ops.verify import verify as verify_planned
from lora_inspect.reading.chosen_modules import Choice
from lora_inspect.reading.weights_toml import read_weights

__all__ = ["VerifyResult", "verify"]


@in_a_sentence()
def verify(
    merged: StrPath,
    base: StrPath,
    adapters: PathWithSettings | Iterable[PathWithSettings],
    *,
    only: str | Iterable[str] = (),
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    weights: StrPath | None = None,
    allow_unmatched: bool = False,
    dora_multiplier: str | None = None,
    architecture: str | None = None,
    transposed: Transposed = None,
    rslora: bool | None = None,
    alpha: float | None = None,
    allow_partial_dora: bool = False,
    expert_packing: str | None = None,
    progress: WatchProgress | None = None,
) -> VerifyResult:
    """Says how much of each adapter is in `merged`, which was made of `base` by any program, as `verify` does.

    Where anything is missing, doubled or beside, `ok` of the result is false and its `findings` name it: that is no
    error. Adapters stand as for `merge`, in the order in which they were merged. `progress(done, total)` is told of
    bytes of the base.

    Raises LoraInspectError where there is nothing to compare.
    """
    options = MergeOptions(
        only=names_of(only),
        transposed=answers_of(transposed),
        allow_unmatched=allow_unmatched,
        dora_rule=dora_multiplier and chosen("dora_multiplier", dora_multiplier, MULTIPLIER_RULES),
        settings=reading_settings(rslora, alpha, allow_partial_dora, expert_packing, architecture),
        choice=Choice(names_of(include), names_of(exclude)),
        weights=None if weights is None else read_weights(path_of(weights)),
    )
    plan = plan_verify(path_of(merged), path_of(base), all_with_settings(adapters), options)
    return verify_planned(plan, watched(progress, plan.bytes))
