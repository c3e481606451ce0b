"""What programs make of an adapter, from Python."""

from lora_inspect.api.arguments import (
    PathWithSettings,
    StrPath,
    WatchProgress,
    chosen,
    path_of,
    reading_settings,
    watched,
    without_strength,
)
from lora_inspect.api.failures import in_a_sentence
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.ops.compat import CompatResult
from lora_inspect.ops.compat import compat as compat_of
from lora_inspect.programs import CONSUMERS
from lora_inspect.reading.adapter import read_adapter

__all__ = ["CompatResult", "compat"]


@in_a_sentence()
def compat(
    adapter: PathWithSettings,
    *,
    program: str | None = None,
    base: StrPath | None = None,
    rslora: bool | None = None,
    alpha: float | None = None,
    allow_partial_dora: bool = False,
    expert_packing: str | None = None,
    progress: WatchProgress | None = None,
) -> CompatResult:
    """What every program that loads adapters will make of one, or the `program` alone, as `compat` says it.

    `program` is the command line's `--for`, which is no name in Python. With a `base` the error that a program makes of
    DoRA is computed, and `progress(done, total)` is told of the modules with a magnitude.

    Raises LoraInspectError where the file is no adapter, or its own meaning is open.
    """
    name, own = without_strength(adapter)
    if program is not None:
        chosen("program", program, CONSUMERS)
    settings = own.joined(reading_settings(rslora, alpha, allow_partial_dora, expert_packing), name)
    if base is None:
        return compat_of(name, program, settings)
    modules = read_adapter(open_checkpoint(name), settings).dora.modules if progress else 0
    return compat_of(name, program, settings, path_of(base), watched(progress, modules))
