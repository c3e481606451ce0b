"""Conversion of adapters from Python: to a file, or in memory as a state dict that a program can load.

Every conversion is proved: the output is re-read and compared with the input.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_inspect.api.arguments import (
    PathWithSettings,
    ReadingKeywords,
    StrPath,
    Transposed,
    WatchProgress,
    chosen,
    in_a_sentence,
    in_keywords,
    logged,
    path_of,
    request_of,
    takes,
    watched,
    without_multiplier,
)
from lora_inspect.converting.options import (
    ConvertOptions,
    ConvertRequest,
    contradiction,
    convert_options,
    known_targets,
    titles_of_programs,
)
from lora_inspect.converting.plan import plan_settled, settle
from lora_inspect.converting.standard_fix import output_ending
from lora_inspect.errors import RefusedError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.outputs import GGUF_ENDING
from lora_inspect.ops.convert import ConvertResult, convert_planned, plan_conversion
from lora_inspect.reading.adapter import read_adapter

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

__all__ = ["ConvertResult", "StateDict", "convert", "state_dict"]


class StateDictKeywords(ReadingKeywords, total=False):
    """The keywords of every conversion, to a file or in memory."""

    keep_dora: bool
    base: StrPath | None
    rank: int | None
    max_error: float | None
    allow_loss: bool
    allow_growth: bool
    drop_magnitude: bool
    allow_unclaimed: bool
    drop_biases: bool
    only: str | Iterable[str]
    verify: bool
    hashes: bool
    algorithm: str | None
    transposed: Transposed


class ConvertKeywords(StateDictKeywords, total=False):
    """The keywords of a conversion to a file."""

    layout: str | None
    model_config: StrPath | None


def requested_conversion(
    adapter: PathWithSettings, to: str | None, given: Mapping[str, Any]
) -> tuple[str, ConvertOptions]:
    """Return the path of the adapter and the options of the conversion.

    Raises ValueError and TypeError for invalid arguments, and for arguments that exclude each other.
    """
    name, own = without_multiplier(adapter)
    if to is not None:
        to = chosen("the name", to, known_targets(), titles_of_programs())
    request = request_of(ConvertRequest, {**given, "to": to})
    options = convert_options(request, own, name)
    if wrong := contradiction(request):
        raise ValueError(in_keywords(wrong))
    return name, options


@in_a_sentence()
@takes(ConvertRequest, ConvertKeywords)
def convert(
    adapter: PathWithSettings,
    output: StrPath,
    *,
    to: str | None = None,
    force: bool = False,
    progress: WatchProgress | None = None,
    **options: "Unpack[ConvertKeywords]",
) -> ConvertResult:
    """Write one adapter to `output`, as `convert` does: standard, or for a program or scheme (`to`).

    The arguments are the options of the command line; `verify=False` is its `--no-verify`. `progress(done, total)`
    counts modules.

    Raises LoraInspectError, and writes nothing, if the conversion is refused. Raises ValueError for arguments that
    exclude each other.
    """
    name, asked = requested_conversion(adapter, to, options)
    plan = plan_conversion(name, path_of(output), asked)
    return logged(convert_planned(plan, force, watched(progress, len(plan.destinations))))


class StateDict(dict[str, "torch.Tensor"]):
    """Tensors under the names of a program, in the order of the names.

    `metadata` is the header's metadata of a file of them. `config` is the `adapter_config.json` that states the scale
    for PEFT's and mlx-lm's names; it is None for other names, where the tensors state everything. `result` is the
    account of the conversion; its `output` is empty.
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
@takes(ConvertRequest, StateDictKeywords)
def state_dict(
    adapter: PathWithSettings,
    names: str = "diffusers",
    *,
    progress: WatchProgress | None = None,
    **options: "Unpack[StateDictKeywords]",
) -> StateDict:
    """Return the adapter's tensors as a program or scheme has them: `pipe.load_lora_weights(state_dict(path))`.

    `names` is the program or the scheme. The tensors are those that `convert(adapter, to=names)` writes, and the other
    arguments are those of `convert`. The tensors include the scale if programs read an alpha of each module (kohya,
    ComfyUI, ...) or know none (diffusers: it is multiplied into the factors). PEFT and mlx-lm read it from a config:
    use `config` of the result. The conversion is made and proved in a temporary folder, which is removed.

    Raises LoraInspectError if the conversion is refused, and for GGUF, which is no dict of tensors.
    """
    name, asked = requested_conversion(adapter, names, options)
    whole = read_adapter(open_checkpoint(name), asked.settings)
    settled = settle(whole, asked)
    ending = output_ending(whole, settled.options.scheme)
    if ending == GGUF_ENDING:
        raise RefusedError(
            name,
            f"{names} reads GGUF, which keeps alpha in its header, so a dict of tensors is not enough",
            "write a file with convert",
        )
    with tempfile.TemporaryDirectory(prefix="lora-inspect-") as folder:
        plan = plan_settled(settled, os.path.join(folder, f"adapter{ending}"))
        return _loaded(logged(convert_planned(plan, progress=watched(progress, len(plan.destinations)))))


def _loaded(result: ConvertResult) -> StateDict:
    """Load the written tensors into memory of their own."""
    from lora_inspect.maths.tensors import load_as_it_is

    written = open_checkpoint(result.output)
    tensors = {name: load_as_it_is(written.tensors[name]) for name in sorted(written.tensors)}
    return StateDict(tensors, written.metadata, written.config, replace(result, output=""))
