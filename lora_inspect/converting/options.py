"""What the user of a conversion may choose."""

from dataclasses import dataclass, field

from lora_inspect.matching.orientation import Answers
from lora_inspect.reading.model.settings import Settings


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What the user may choose. For DoRA one of `keep_dora`, `drop_magnitude` or `base` must be given.

    `drop_biases` leaves out what changes biases, `drop_unclaimed` what belongs to no known algorithm.

    With `base`, `rank` or `max_error` says how the true weight change is approximated, and `keep_dora` that magnitudes
    will be over the norms that the programs of the output divide by: `norms`, which the scheme or the program settles.
    `lossy` accepts modules whose relative error is above 5%, `allow_growth` an output that is large and over 16 times
    its input. `transposed` says by globs how the base stores those square weights that the evidence leaves open.
    `layout` is that of the output's modules, None for the adapter's own; `scheme` is the name of the scheme that they
    are spelled in, which has its own layouts, and `consumer` that of a program that it is for. `model_config` is the
    path of the model's `config.json`, or of its folder, for what llama.cpp does by it. `only` are the components that
    are written; without any, all are. `verify` has the output read anew and compared with the input. `algorithm` is
    what all changes of weights become that could, "lora", of which `rank` and `max_error` speak as well, "full", or
    None. `uniform` says that the program takes one rank and one scale for those of all modules, which it settles
    itself.
    """

    keep_dora: bool = False
    drop_magnitude: bool = False
    drop_biases: bool = False
    drop_unclaimed: bool = False
    base: str | None = None
    rank: int | None = None
    max_error: float | None = None
    lossy: bool = False
    allow_growth: bool = False
    transposed: Answers = field(default_factory=dict)
    layout: str | None = None
    scheme: str | None = None
    consumer: str | None = None
    model_config: str | None = None
    only: tuple[str, ...] = ()
    verify: bool = True
    algorithm: str | None = None
    norms: str | None = None
    uniform: bool = False
    settings: Settings = field(default_factory=Settings)
