"""What programs make of an adapter, from Python."""

from lora_inspect.api.arguments import PathWithSettings, StrPath, chosen, path_of, reading_settings, without_strength
from lora_inspect.api.failures import in_a_sentence
from lora_inspect.consumers import CONSUMERS
from lora_inspect.ops.compat import CompatResult
from lora_inspect.ops.compat import compat as compat_of

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
) -> CompatResult:
    """What every program that loads adapters will make of one, or the `program` alone, as `compat` says it.

    `program` is the command line's `--for`, which is no name in Python. With a `base` the error that a program makes of
    DoRA is computed. Raises LoraInspectError where the file is no adapter, or its own meaning is open.
    """
    name, own = without_strength(adapter)
    if program is not None:
        chosen("program", program, CONSUMERS)
    settings = own.joined(reading_settings(rslora, alpha, allow_partial_dora, expert_packing), name)
    return compat_of(name, program, settings, None if base is None else path_of(base))
