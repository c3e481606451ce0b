"""Adapters into a base, from Python."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lora_inspect.api.arguments import (
    PathWithSettings,
    StrPath,
    Transposed,
    WatchProgress,
    all_with_settings,
    answers_of,
    chosen,
    dtype_of,
    given_seed,
    names_of,
    path_of,
    reading_settings,
    watched,
)
from lora_inspect.api.failures import in_a_sentence
from lora_inspect.maths.dora import MULTIPLIER_RULES
from lora_inspect.merging.fold_chain import NEAREST, STOCHASTIC, seed_of
from lora_inspect.merging.plan import MergeOptions
from lora_inspect.ops.merge import MergeResult, merge_bytes, plan_merge
from lora_inspect.ops.merge import merge as merge_planned
from lora_inspect.reading.chosen_modules import Choice
from lora_inspect.reading.weights_toml import read_weights

if TYPE_CHECKING:
    import torch

__all__ = ["MergeResult", "merge"]


@in_a_sentence()
def merge(
    base: StrPath,
    adapters: PathWithSettings | Iterable[PathWithSettings],
    output: StrPath,
    *,
    dtype: "str | torch.dtype | None" = None,
    touched_dtype: "str | torch.dtype | None" = None,
    only: str | Iterable[str] = (),
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    weights: StrPath | None = None,
    allow_unmatched: bool = False,
    rounding: str = NEAREST,
    seed: int | None = None,
    accept_loss: bool = False,
    dora_multiplier: str | None = None,
    architecture: str | None = None,
    transposed: Transposed = None,
    rslora: bool | None = None,
    alpha: float | None = None,
    allow_partial_dora: bool = False,
    expert_packing: str | None = None,
    hash_base: bool = False,
    force: bool = False,
    progress: WatchProgress | None = None,
) -> MergeResult:
    """Folds each adapter, with its multiplier, into the base and writes the result to `output`, as `merge` does.

    An adapter is a path, a string with settings as on the command line (`"style.safetensors:0.8"`), or a pair
    (path, multiplier). The other arguments are the options of the command line. `progress(done, total)` is told of
    bytes, from (0, total) on; an exception that it raises ends the merge and leaves nothing behind.

    Raises LoraInspectError, and writes nothing, for whatever stands in the way.
    """
    options = MergeOptions(
        dtype=dtype_of(dtype),
        touched_dtype=dtype_of(touched_dtype),
        only=names_of(only),
        transposed=answers_of(transposed),
        allow_unmatched=allow_unmatched,
        dora_rule=dora_multiplier and chosen("dora_multiplier", dora_multiplier, MULTIPLIER_RULES),
        settings=reading_settings(rslora, alpha, allow_partial_dora, expert_packing, architecture),
        choice=Choice(names_of(include), names_of(exclude)),
        weights=None if weights is None else read_weights(path_of(weights)),
        hash_base=hash_base,
        seed=seed_of(chosen("rounding", rounding, (NEAREST, STOCHASTIC)), given_seed(seed)),
        accept_loss=accept_loss,
    )
    if dtype is not None and touched_dtype is not None:
        raise ValueError("dtype is for all weights and touched_dtype for those that change; give one of both")
    plan = plan_merge(path_of(base), all_with_settings(adapters), options)
    return merge_planned(plan, path_of(output), force, watched(progress, merge_bytes(plan, path_of(output))))
