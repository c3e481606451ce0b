"""Whether a program that is asked for has a use for what a file has: its rules say what it passes over or fails on."""

from collections.abc import Iterable

from lora_inspect import programs, schemes
from lora_inspect.algorithms.record import BIAS, Algorithm
from lora_inspect.converting.choices import FULL
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.target.asked_full import becomes_full
from lora_inspect.converting.target.own_parameters import is_own_parameter
from lora_inspect.converting.target.target_algorithm import becomes_lora, is_made_lora, is_saved_weight
from lora_inspect.errors import LoraInspectError
from lora_inspect.programs.record import FAILS, LEAVES, Consumer, Loader
from lora_inspect.reading.adapter import Adapter
from lora_inspect.schemes.record import Scheme

_DOES = {LEAVES: "passes over", FAILS: "refuses"}


def check_kinds(adapter: Adapter, families: Iterable[str], options: ConvertOptions) -> None:
    """Raises LoraInspectError for what the program of the options has no use for, and no option makes LoRA.

    Of what its rules do not speak of, nothing is known.
    """
    if options.consumer is None or options.scheme is None:
        return
    consumer, scheme = programs.by_name(options.consumer), schemes.by_name(options.scheme)
    names = list(families) or [""]
    for loader in filter(None, (_loader(consumer, name) for name in names)):
        if why := loader.never(adapter):
            raise LoraInspectError(
                f"{adapter.checkpoint.path}: {consumer.title} {why}, whatever its config says; merge it, or choose "
                "another program."
            )
    for contribution in adapter.contributions:
        algorithm = contribution.algorithm
        # Under other names it may become something else, of which the scheme itself knows.
        becomes = is_made_lora(contribution, options) or (options.algorithm == FULL and becomes_full(algorithm))
        is_named = bool(scheme.writing and scheme.writing.parameters) and is_own_parameter(
            adapter.modules[contribution.module.key]
        )
        if becomes or is_named or contribution.module.scheme != scheme.name:
            continue
        does = {_does(algorithm, consumer, name, scheme) for name in names}
        if len(does) == 1 and (word := _DOES.get(does.pop())):
            shapes = contribution.shapes
            can_be_lora = becomes_lora(algorithm, shapes) or is_saved_weight(algorithm, shapes)
            way = "make LoRA of it with --algorithm lora (and --base BASE), " if can_be_lora else ""
            if algorithm.parameter == BIAS:
                way = "leave the biases out with --drop-biases (loses them), "
            raise LoraInspectError(
                f"{adapter.checkpoint.path}: {contribution.module.key} is {algorithm.title}, which {consumer.title} "
                f"{word}; {way}merge it, or choose another program."
            )


def _loader(consumer: Consumer, family: str) -> Loader | None:
    return next((one for one in consumer.loaders if not one.families or family in one.families), None)


def _does(algorithm: Algorithm, consumer: Consumer, family: str, scheme: Scheme) -> str:
    """Whether all rules that speak of it for files of the scheme have no use for it; empty where some do, or none."""
    loader = _loader(consumer, family)
    prefix = scheme.writing.prefix if scheme.writing else ""
    found = {
        does
        for rule in (loader.rules_for(family) if loader else ())
        if not rule.prefixes or prefix in rule.prefixes
        if (does := rule.kinds.get(algorithm.name, rule.kinds.get("")))
    }
    if not found or not found <= _DOES.keys():
        return ""
    return LEAVES if LEAVES in found else FAILS
