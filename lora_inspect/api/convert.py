"""Adapters rewritten, from Python.

What Python programs ask of a conversion, whether it goes to a file or stays in memory.

An adapter as a program loads it, in memory: converted on the way, and proven as any conversion is.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_inspect.api.arguments import (
    PathWithSettings,
    StrPath,
    Transposed,
    WatchProgress,
    answers_of,
    chosen,
    in_a_sentence,
    in_keywords,
    limit_of,
    logged,
    names_of,
    path_of,
    rank_of,
    reading_settings,
    watched,
    without_multiplier,
)
from lora_inspect.converting.options import ALGORITHMS, EXPERT_LAYOUTS, LAYOUTS, ConvertOptions, contradiction
from lora_inspect.converting.plan import plan_for
from lora_inspect.converting.target.key_names import output_ending
from lora_inspect.converting.target.target_program import scheme_for
from lora_inspect.errors import RefusedError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.outputs import GGUF_ENDING
from lora_inspect.ops.convert import ConvertResult, convert_planned, plan_conversion
from lora_inspect.programs import PROGRAMS
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.schemes import written

if TYPE_CHECKING:
    import torch

__all__ = ["ConvertResult", "StateDict", "convert", "state_dict"]


def asked_conversion(
    adapter: PathWithSettings,
    to: str | None,
    *,
    keep_dora: bool,
    base: StrPath | None,
    rank: int | None,
    max_error: float | None,
    allow_loss: bool,
    allow_growth: bool,
    drop_magnitude: bool,
    allow_unclaimed: bool,
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
    name, own = without_multiplier(adapter)
    if to is not None:
        chosen("the name", to, {*written(), *PROGRAMS})
    if layout is not None:
        chosen("layout", layout, (*LAYOUTS, *EXPERT_LAYOUTS))
    if algorithm is not None:
        chosen("algorithm", algorithm, ALGORITHMS)
    options = ConvertOptions(
        keep_dora=keep_dora,
        drop_magnitude=drop_magnitude,
        drop_biases=drop_biases,
        allow_unclaimed=allow_unclaimed,
        base=None if base is None else path_of(base),
        rank=None if rank is None else rank_of(rank),
        max_error=None if max_error is None else limit_of(max_error),
        allow_loss=allow_loss,
        allow_growth=allow_growth,
        transposed=answers_of(transposed),
        layout=layout,
        scheme=None if to in PROGRAMS else to,
        program=to if to in PROGRAMS else None,
        model_config=None if model_config is None else path_of(model_config),
        only=names_of(only),
        verify=verify,
        algorithm=algorithm,
        settings=own.joined(reading_settings(rslora, alpha, allow_partial_dora, expert_packing, architecture), name),
    )
    if wrong := contradiction(options, architecture):
        raise ValueError(in_keywords(wrong))
    return name, options


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
    allow_loss: bool = False,
    allow_growth: bool = False,
    drop_magnitude: bool = False,
    allow_unclaimed: bool = False,
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
        allow_loss=allow_loss,
        allow_growth=allow_growth,
        drop_magnitude=drop_magnitude,
        allow_unclaimed=allow_unclaimed,
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
    return logged(convert_planned(plan, force, watched(progress, len(plan.destinations))))


class StateDict(dict[str, "torch.Tensor"]):
    """Tensors by the names that were asked for, in the order of the names.

    `metadata` is what stands in the header of a file of them. `config` is the `adapter_config.json` that says the scale
    of PEFT's and mlx-lm's names, None for others, of which the tensors say all. `result` is the account of the
    conversion, of which `output` is empty.
    """

    def __init__(
        self,
        tensors: "Mapping[str, torch.Tensor]",
        metadata: Mapping[str, str],
        config: dict[str, Any] | None,
        result: ConvertResult,
    ) -> None:
        super().__init__(tensors)
        self.metadata = dict(metadata)
        self.config = config
        self.result = result

    def __repr__(self) -> str:
        return f"<StateDict: {len(self)} tensors, {sum(one.nbytes for one in self.values()):,} bytes>"

    def __reduce__(self) -> tuple[Any, ...]:
        return StateDict, (dict(self), self.metadata, self.config, self.result)


@in_a_sentence()
def state_dict(
    adapter: PathWithSettings,
    names: str = "diffusers",
    *,
    keep_dora: bool = False,
    base: StrPath | None = None,
    rank: int | None = None,
    max_error: float | None = None,
    allow_loss: bool = False,
    allow_growth: bool = False,
    drop_magnitude: bool = False,
    allow_unclaimed: bool = False,
    drop_biases: bool = False,
    only: str | Iterable[str] = (),
    verify: bool = True,
    architecture: str | None = None,
    algorithm: str | None = None,
    transposed: Transposed = None,
    rslora: bool | None = None,
    alpha: float | None = None,
    allow_partial_dora: bool = False,
    expert_packing: str | None = None,
    progress: WatchProgress | None = None,
) -> StateDict:
    """The adapter's tensors as the program or the scheme `names` has them: `pipe.load_lora_weights(state_dict(path))`.

    It is what `convert(adapter, to=names)` writes, and the other arguments are those of `convert`. The tensors alone
    say the scale where programs read an alpha of each module (kohya, ComfyUI, ...) and where they know none
    (diffusers), as it is multiplied into the factors then; PEFT and mlx-lm go by a config, which `config` of the result
    is. The conversion is made and proven in the folder for temporary files, and nothing of it is left there.

    Raises LoraInspectError for whatever stands in the way of the conversion, and for GGUF, which is no dict of tensors.
    """
    name, options = asked_conversion(
        adapter,
        names,
        keep_dora=keep_dora,
        base=base,
        rank=rank,
        max_error=max_error,
        allow_loss=allow_loss,
        allow_growth=allow_growth,
        drop_magnitude=drop_magnitude,
        allow_unclaimed=allow_unclaimed,
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
    )
    whole = read_adapter(open_checkpoint(name), options.settings)
    ending = output_ending(whole, scheme_for(whole, options))
    if ending == GGUF_ENDING:
        raise RefusedError(
            name,
            f"{names} reads GGUF, whose header says alpha, so that no dict of tensors is right",
            "write a file with convert",
        )
    with tempfile.TemporaryDirectory(prefix="lora-inspect-") as folder:
        plan = plan_for(whole, os.path.join(folder, f"adapter{ending}"), options)
        return _loaded(logged(convert_planned(plan, progress=watched(progress, len(plan.destinations)))))


def _loaded(result: ConvertResult) -> StateDict:
    """The tensors of what was written, in memory of their own."""
    from lora_inspect.maths.tensors import load_as_it_is

    written = open_checkpoint(result.output)
    tensors = {name: load_as_it_is(written.tensors[name]) for name in sorted(written.tensors)}
    return StateDict(tensors, written.metadata, written.config, replace(result, output=""))
