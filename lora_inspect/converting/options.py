"""What the user of a conversion may choose.

What the user of a conversion chooses among, by the words of the command line.

Options of a conversion that say nothing together, told before a file is looked at.
"""

from dataclasses import dataclass, field

from lora_inspect.matching.orientation import Answers
from lora_inspect.reading.model.settings import Settings


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What the user may choose. For DoRA one of `keep_dora`, `drop_magnitude` or `base` must be given.

    `drop_biases` leaves out what changes biases, `allow_unclaimed` what belongs to no known algorithm.

    With `base`, `rank` or `max_error` says how the true weight change is approximated, and `keep_dora` that magnitudes
    will be over the norms that the programs of the output divide by: `norms`, which the scheme or the program settles.
    `allow_loss` accepts modules whose relative error is above 5%, `allow_growth` an output that is large and over 16
    times its input. `transposed` says by globs how the base stores those square weights that the evidence leaves open.
    `layout` is that of the output's modules, None for the adapter's own; `scheme` is the name of the scheme that they
    are spelled in, which has its own layouts, and `program` that of a program that it is for. `model_config` is the
    path of the model's `config.json`, or of its folder, for what llama.cpp does by it. `only` are the components that
    are written; without any, all are. `verify` has the output read anew and compared with the input. `algorithm` is
    what all changes of weights become that could, "lora", of which `rank` and `max_error` speak as well, "full", or
    None. `uniform` says that the program takes one rank and one scale for those of all modules, which it settles
    itself.
    """

    keep_dora: bool = False
    drop_magnitude: bool = False
    drop_biases: bool = False
    allow_unclaimed: bool = False
    base: str | None = None
    rank: int | None = None
    max_error: float | None = None
    allow_loss: bool = False
    allow_growth: bool = False
    transposed: Answers = field(default_factory=dict)
    layout: str | None = None
    scheme: str | None = None
    program: str | None = None
    model_config: str | None = None
    only: tuple[str, ...] = ()
    verify: bool = True
    algorithm: str | None = None
    norms: str | None = None
    uniform: bool = False
    settings: Settings = field(default_factory=Settings)


# What `--algorithm` makes of changes.
ALGORITHMS = (LORA, FULL) = ("lora", "full")
# Layouts that have names of their own, and what modules are in a family that only fuses some of them.
NAMED = (ORIGINAL, OF_DIFFUSERS) = ("original", "diffusers")
ARRANGED = (FUSED, SPLIT) = ("fused", "split")
LAYOUTS = (*NAMED, *ARRANGED)
# Where the experts of a layer are: in one module, or each in its own.
EXPERT_LAYOUTS = (ALL_EXPERTS, SINGLE_EXPERTS) = ("all-experts", "single-experts")


def contradiction(options: ConvertOptions, architecture: str | None = None) -> str | None:
    """What is wrong with the options as the user gave them, as a sentence; None where nothing is.

    `architecture` is the option of that name, which stands in the settings as well as what a path says.
    """
    has_base, has_target = options.base is not None, bool(options.scheme or options.program)
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
