"""What becomes of DoRA's magnitudes: kept where the programs that load the output apply them, or over other norms."""

from collections.abc import Sequence
from dataclasses import replace

from lora_inspect import programs, schemes
from lora_inspect.converting.choices import FULL, SINGLE_EXPERTS
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.target.target_program import writing_of
from lora_inspect.errors import LoraInspectError
from lora_inspect.maths.dora import INPUT, OF_BASE, OF_SUM, OUTPUT
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.contribution import Contribution, Magnitude
from lora_inspect.schemes.record import EXACT, LOST

PLAIN = "--base BASE with --rank N or --max-error E (a plain LoRA of the true change)"
DROPPED = "--drop-magnitude (loses the magnitude)"


def due_norms(options: ConvertOptions) -> str | None:
    """Whose norms magnitudes of outputs will be over, as a base tells it; None for those that they are over already."""
    return (options.norms or OF_SUM) if options.base and options.keep_dora else None


def is_remeasured(contribution: Contribution, options: ConvertOptions) -> bool:
    """Whether its magnitude will be over other norms than it is."""
    due, magnitude = due_norms(options), contribution.magnitude
    return due is not None and magnitude is not None and magnitude.axis == OUTPUT and magnitude.spelling.norms != due


def with_magnitudes(adapter: Adapter, options: ConvertOptions) -> ConvertOptions:
    """The options with magnitudes kept where all programs that load the output apply them as they were trained.

    They then say whose norms these programs divide by, where all of them do alike. Raises LoraInspectError where they
    apply none such as it has and nothing else settles them.
    """
    if not adapter.dora.value or options.algorithm == FULL:
        return options
    path, is_limited = adapter.checkpoint.path, options.rank is not None or options.max_error is not None
    magnitudes = [c.magnitude for c in adapter.contributions if c.magnitude]
    if options.scheme is not None:
        writing = writing_of(schemes.by_name(options.scheme))
        if options.consumer is None:
            over = {True: OF_BASE, False: OF_SUM, None: None}
            options = replace(options, norms=over[writing.over_base])
        if writing.magnitudes == LOST and not (options.drop_magnitude or (options.base and is_limited)):
            raise LoraInspectError(
                f"{path}: it is DoRA ({adapter.dora.modules} magnitudes), and {writing.title} applies none; choose "
                f"{PLAIN}, or {DROPPED}."
            )
        inputs = [magnitude for magnitude in magnitudes if magnitude.axis == INPUT]
        if inputs and options.keep_dora and not writing.input_magnitudes:
            raise LoraInspectError(
                f"{path}: {inputs[0].info.name} is a magnitude of inputs, and {writing.title} takes it for one of "
                "outputs, which fails; choose --base BASE with --rank N or --max-error E, or --drop-magnitude."
            )
        is_open = not (options.keep_dora or options.drop_magnitude or is_limited)
        if is_open and _is_applied(magnitudes, writing.magnitudes, options):
            options = replace(options, keep_dora=True)
    _check_norms(adapter, options)
    return options


def _is_applied(magnitudes: Sequence[Magnitude], said: str, options: ConvertOptions) -> bool:
    """Whether the programs of the names apply such magnitudes as trained, which a base may have made sure of."""
    if options.base or said == EXACT:
        return said == EXACT or options.norms == OF_BASE
    outputs = {magnitude.spelling.norms for magnitude in magnitudes if magnitude.axis == OUTPUT}
    return options.norms == OF_BASE and outputs <= {OF_BASE}


def _check_norms(adapter: Adapter, options: ConvertOptions) -> None:
    """Raises LoraInspectError where a base is needed for norms, where it is not, and where it is not said for what."""
    path = adapter.checkpoint.path
    if not options.keep_dora:
        is_limited = options.rank is not None or options.max_error is not None
        is_of_experts = options.layout == SINGLE_EXPERTS
        if options.base and not (is_limited or options.drop_magnitude or is_of_experts):
            raise LoraInspectError(
                f"{path}: it is DoRA ({adapter.dora.modules} magnitudes), of which --base makes plain LoRA near the "
                "true change; say how close it is to come, with --rank N or --max-error E."
            )
    elif options.base is None:
        if adapter.dora.norms == OF_BASE and options.norms == OF_SUM and options.scheme:
            program = options.consumer and programs.by_name(options.consumer).title
            title = program or writing_of(schemes.by_name(options.scheme)).title
            raise LoraInspectError(
                f"{path}: its magnitudes are over the norms of the base, and {title} divides them by those of the "
                f"changed weight; choose --keep-dora with --base BASE (exact), {PLAIN}, or {DROPPED}."
            )
    elif not any(is_remeasured(contribution, options) for contribution in adapter.contributions):
        raise LoraInspectError(
            f"{path}: its magnitudes stay as they are in the output, so --base has nothing to do; leave it out."
        )


def norms_remarks(adapter: Adapter, options: ConvertOptions, norms: str | None) -> tuple[str, ...]:
    """What is to be known of the `norms` that magnitudes of outputs are over in the output."""
    was = adapter.dora.norms
    if norms == OF_BASE:
        return (
            "magnitudes of outputs are over the norms of the base's rows, as ComfyUI and Forge divide them: what was "
            "trained, in these programs alone and on this base; at a strength m they apply m times that change",
        )
    # What a program that is asked for makes of it, its own rules say.
    if norms == OF_SUM and options.norms == OF_BASE and not options.consumer:
        return (
            "ComfyUI divides magnitudes of outputs by the norms of the base's rows and not of the changed ones, so its "
            "change is not the trained one; --base BASE makes magnitudes of which it is",
        )
    return ("magnitudes of outputs are over the norms of the changed weight again",) if was == OF_BASE and norms else ()
