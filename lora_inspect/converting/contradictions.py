"""Options of a conversion that say nothing together, told before a file is looked at."""

from lora_inspect.converting.choices import LAYOUTS, SINGLE_EXPERTS
from lora_inspect.converting.options import ConvertOptions


def contradiction(options: ConvertOptions, architecture: str | None = None) -> str | None:
    """What is wrong with the options as the user gave them, as a sentence; None where nothing is.

    `architecture` is the option of that name, which stands in the settings as well as what a path says.
    """
    has_base, has_target = options.base is not None, bool(options.scheme or options.consumer)
    is_approximated = has_base and options.layout != SINGLE_EXPERTS
    is_limited = options.rank is not None or options.max_error is not None
    if options.drop_magnitude and (options.keep_dora or has_base):
        return "--drop-magnitude excludes --keep-dora and --base."
    if options.rank is not None and options.max_error is not None:
        return "--rank and --max-error exclude each other."
    if is_limited and not (is_approximated or options.algorithm):
        return "--rank and --max-error speak of what --base or --algorithm approximates."
    if options.keep_dora and is_limited and has_base:
        return "--keep-dora keeps the magnitude, and --rank and --max-error make plain LoRA of it."
    if is_approximated and not (is_limited or options.algorithm or options.keep_dora or has_target):
        return "--base takes one of --rank, --max-error, --keep-dora and --to."
    if has_target and options.layout:
        return "--to has its own layouts; leave --layout out."
    if architecture and not (has_target or options.layout in LAYOUTS):
        return "--architecture says what --to and --layout have to know; leave it out."
    if options.transposed and not has_base:
        return "--transposed speaks of the weights of --base."
    return None
