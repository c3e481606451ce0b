"""The options of a conversion, for Python and for `convert`.

Each option is declared here once. The command line and the API make a `ConvertRequest`, and the steps of a conversion
see the `ConvertOptions` of that.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from lora_inspect import option

if TYPE_CHECKING:
    from lora_inspect.matching.orientation import Answers
    from lora_inspect.reading.model.settings import Settings

# What `--algorithm` makes of changes.
ALGORITHMS = (LORA, FULL) = ("lora", "full")
# Layouts that have names of their own, and what modules are in a family that only fuses some of them.
NAMED = (ORIGINAL, OF_DIFFUSERS) = ("original", "diffusers")
ARRANGED = (FUSED, SPLIT) = ("fused", "split")
LAYOUTS = (*NAMED, *ARRANGED)
# Where the experts of a layer are: in one module, or each in its own.
EXPERT_LAYOUTS = (ALL_EXPERTS, SINGLE_EXPERTS) = ("all-experts", "single-experts")


def known_targets() -> list[str]:
    """Return the names that `to` may have: programs, and schemes with names of their own."""
    from lora_inspect.programs import PROGRAMS
    from lora_inspect.schemes import written

    return sorted({*written(), *PROGRAMS})


def titles_of_programs() -> dict[str, str]:
    """Return the titles of programs by name."""
    from lora_inspect.programs import PROGRAMS

    return {program.name: program.title for program in PROGRAMS.values()}


def _about_targets() -> str:
    from lora_inspect.programs import PROGRAMS

    schemes = [name for name in known_targets() if name not in PROGRAMS]
    return (
        "Write a file for a program, which keeps names that the program reads, or for the programs of a naming scheme. "
        f"Programs: {', '.join(sorted(PROGRAMS))}; schemes: {', '.join(schemes)}."
    )


@dataclass(frozen=True, slots=True)
class ConvertRequest(option.ReadingRequest):
    """The options of a conversion as given.

    DoRA needs `keep_dora`, `drop_magnitude` or `base`.
    """

    keep_dora: bool = option.flag("DoRA: keep the magnitude, spelled as programs that read the file's names expect it.")
    base: str | None = option.path(
        "BASE",
        "DoRA: approximate the true change of BASE's weights by plain LoRA. Without --rank and --max-error, write "
        "magnitudes that give this change in programs that divide by BASE's norms (--to comfyui).",
    )
    rank: int | None = option.whole("Rank of the approximation, with --base or --algorithm.", least=1)
    max_error: float | None = option.share(
        "Use the lowest rank with at most this relative error in each module, with --base or --algorithm."
    )
    allow_loss: bool = option.flag("Accept modules that lose more than 5% of their change.")
    allow_growth: bool = option.flag("Accept an output that is above 64 MB and above 16 times the input's tensors.")
    drop_magnitude: bool = option.flag("DoRA: leave out the magnitude; each row keeps the length of W + delta.")
    allow_unclaimed: bool = option.flag("Leave out tensors that belong to no known algorithm, and list them.")
    drop_biases: bool = option.flag("Leave out changes of biases; the loss is not measured.")
    layout: str | None = option.choice(
        (*LAYOUTS, *EXPERT_LAYOUTS),
        "original, diffusers: arrange and name modules as the model's original repository or diffusers does. "
        "fused, split: only fuse or split layers, as for Phi-3. all-experts: put the experts of a mixture into one "
        "module. single-experts: take them apart (with --base).",
    )
    to: str | None = option.choice(known_targets, _about_targets, "NAME", titles=titles_of_programs)
    model_config: str | None = option.path(
        "CONFIG",
        "GGUF: the model's config.json, or its folder; gives llama.cpp's name of the model and the number of heads.",
    )
    only: tuple[str, ...] = option.names(
        "COMPONENT", "Write only this component of the adapter: model, text_encoder, …. Repeatable."
    )
    verify: bool = option.flag("Do not re-read the output to compare every module with ADAPTER.", default=True)
    hashes: bool = option.flag("Write the hashes by which A1111's images name the LoRA, even if ADAPTER has none.")
    algorithm: str | None = option.choice(
        ALGORITHMS,
        "lora: turn LoHa, LoKr, OFT and the like into plain LoRA, exactly where possible, else with --rank or "
        "--max-error. full: write the difference of every weight of --base; exact for any algorithm, and large.",
    )
    transposed: "Answers" = option.transposed("BASE")


def _no_settings() -> "Settings":
    from lora_inspect.reading.model.settings import Settings

    return Settings()


@dataclass(frozen=True, slots=True)
class ConvertOptions(ConvertRequest):
    """The options of a conversion, and the facts that follow from them.

    `scheme` is the naming scheme of the output, which has its own layouts. `program` is the program that the output is
    for. `norms` are those that the programs of the output divide magnitudes by. `uniform` is true if they take one rank
    and one scale for all modules; the scheme or the program settles both. `ranks` are the ranks that they take then, or
    empty for all, and with `by_leaf` a config names layers by the ends of their paths. With `unit_scale`, scales
    of a uniform output are in its factors. `settings` are the options and the settings on the adapter's path that
    settle facts which its evidence leaves open.
    """

    scheme: str | None = None
    program: str | None = None
    norms: str | None = None
    uniform: bool = False
    ranks: tuple[int, ...] = ()
    by_leaf: bool = False
    unit_scale: bool = False
    settings: "Settings" = field(default_factory=_no_settings)

    def rank_of_all(self, ranks: Iterable[int | None]) -> int:
        """Return the one rank of a uniform output: the first that programs take and no module's rank is above."""
        largest = max((rank or 0 for rank in ranks), default=0)
        return next((one for one in self.ranks if one >= largest), largest)


def convert_options(request: ConvertRequest, own: "Settings", adapter: str) -> ConvertOptions:
    """Return the options of a conversion of the `adapter`; its path gives its `own` settings.

    Raises LoraInspectError if an option contradicts the path.
    """
    from lora_inspect.programs import PROGRAMS
    from lora_inspect.reading.model.settings import requested_settings

    given = {one.name: getattr(request, one.name) for one in fields(request)}
    is_program = request.to in PROGRAMS
    return ConvertOptions(
        **given,
        scheme=None if is_program else request.to,
        program=request.to if is_program else None,
        settings=own.joined(requested_settings(request), adapter),
    )


def contradiction(request: ConvertRequest) -> str | None:
    """Return a sentence on options that exclude each other, or None."""
    has_base, has_target = request.base is not None, request.to is not None
    is_approximated = has_base and request.layout != SINGLE_EXPERTS
    is_limited = request.rank is not None or request.max_error is not None
    if request.drop_magnitude and (request.keep_dora or has_base):
        return "--drop-magnitude cannot be combined with --keep-dora or --base."
    if request.rank is not None and request.max_error is not None:
        return "give --rank or --max-error, not both."
    if is_limited and not (is_approximated or request.algorithm):
        return "--rank and --max-error limit an approximation; give --base or --algorithm, too."
    if request.keep_dora and is_limited and has_base:
        return "--keep-dora keeps the magnitude, but --rank and --max-error turn it into plain LoRA; leave one out."
    if is_approximated and not (is_limited or request.algorithm or request.keep_dora or has_target):
        return "--base needs one of --rank, --max-error, --keep-dora and --to."
    if has_target and request.layout:
        return "--to chooses the layout; leave --layout out."
    if request.architecture and not (has_target or request.layout in LAYOUTS):
        return "--architecture only serves --to and --layout; leave it out."
    if request.transposed and not has_base:
        return "--transposed describes the weights of --base; give both or leave it out."
    return None
