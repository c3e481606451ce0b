"""What `--to` asks for where it names a program: the names that it loads best, and what becomes of magnitudes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lora_inspect import programs, schemes
from lora_inspect.architectures.detection import Detection
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.target.asked_magnitudes import DROPPED, PLAIN
from lora_inspect.errors import LoraInspectError
from lora_inspect.maths.dora import OF_BASE, OF_SUM, OUTPUT
from lora_inspect.programs.adapter_view import FramedKeys, loader_for
from lora_inspect.programs.record import BASE_NORM, COMPUTES, OTHER_AXIS, SUM_NORM, Consumer, Rule, treatment
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.identify import adapter_candidates, described
from lora_inspect.schemes.record import Scheme

# What says how the true change of the base is written, by what a program does with the magnitudes of its names: by
# corrected magnitudes, as differences, or else as a plain LoRA that comes so near.
_NEAR = 0.01
_WAYS: Mapping[str, Mapping[str, Any]] = {
    BASE_NORM: {},
    SUM_NORM: {"keep_dora": True},
    OTHER_AXIS: {"algorithm": "full"},
}
# What is offered for DoRA, by what a program does with the magnitudes of its names.
_OFFERS = {
    BASE_NORM: (
        "divides magnitudes by the norms of the base's weights",
        f"--base BASE (magnitudes corrected for that, right in programs that do so alone), {PLAIN}, or {DROPPED}",
    ),
    OTHER_AXIS: (
        "divides magnitudes by norms along the other axis",
        f"--base BASE with --algorithm full (the exact difference of every weight), {PLAIN}, or {DROPPED}",
    ),
    SUM_NORM: (
        "divides magnitudes by the norms of the changed weights, where these are over those of the base's",
        f"--keep-dora with --base BASE (the trainer's magnitudes again), {PLAIN}, or {DROPPED}",
    ),
}
_OVER = {BASE_NORM: OF_BASE, COMPUTES: OF_SUM}
_LOST = ("applies none", f"{PLAIN}, or {DROPPED}")


def for_consumer(adapter: Adapter, whole: Adapter, options: ConvertOptions) -> ConvertOptions:
    """The options with the scheme that the program loads best, and with magnitudes kept where it applies them right.

    Raises LoraInspectError where no names are known that it loads for the family of the `whole` file, and for DoRA that
    it does not apply as it was trained where no other option settles it.
    """
    if options.consumer is None:
        return options
    consumer, families = programs.by_name(options.consumer), adapter_candidates(whole)
    scheme = _scheme(adapter, consumer, families)
    norms = _norms(consumer, families, schemes.by_name(scheme))
    options = replace(options, scheme=scheme, norms=norms, uniform=consumer.uniform)
    is_settled = options.keep_dora or options.drop_magnitude or options.base is not None
    if not adapter.dora.value or is_settled:
        return options
    does = _treatments(adapter, consumer, families, schemes.by_name(scheme))
    if does == {COMPUTES}:
        return replace(options, keep_dora=True)
    if "" in does:
        # What nobody knows of the program, its names decide.
        return options
    what, offers = next((_OFFERS[one] for one in _OFFERS if one in does), _LOST)
    raise LoraInspectError(
        f"{adapter.checkpoint.path}: it is DoRA ({adapter.dora.modules} magnitudes), and {consumer.title} {what}; "
        f"choose {offers}."
    )


def with_base(adapter: Adapter, base: str, options: ConvertOptions) -> ConvertOptions:
    """The options for DoRA whose true change `base` tells, as the program of the options can have it."""
    consumer, families = programs.by_name(options.consumer or ""), adapter_candidates(adapter)
    scheme = schemes.by_name(_scheme(adapter, consumer, families))
    does = _treatments(adapter, consumer, families, scheme)
    return replace(options, base=base, **next((way for one, way in _WAYS.items() if one in does), {"max_error": _NEAR}))


def scheme_for(adapter: Adapter, options: ConvertOptions) -> str | None:
    """The scheme that the output is to have, None for the adapter's own."""
    if options.consumer is None:
        return options.scheme
    return _scheme(adapter, programs.by_name(options.consumer), adapter_candidates(adapter))


def _scheme(adapter: Adapter, consumer: Consumer, families: Sequence[Detection]) -> str:
    names = [family.architecture.name for family in families] or [""]
    found = {consumer.schemes.get(name, consumer.schemes.get("", "")) for name in names}
    if len(found) > 1:
        raise LoraInspectError(
            f"{adapter.checkpoint.path}: it is of {described(families)}, which have other names each in "
            f"{consumer.title}; say which with --architecture {names[0]}."
        )
    if scheme := found.pop():
        return scheme
    raise LoraInspectError(
        f"{adapter.checkpoint.path}: it is of {described(families) or 'a model of no known family'}, and no names are "
        f"known by which {consumer.title} loads adapters of that; choose a naming scheme for --to."
    )


def _treatments(adapter: Adapter, consumer: Consumer, families: Sequence[Detection], scheme: Scheme) -> set[str]:
    """What the program does with magnitudes as the scheme spells them, of every axis that the file has."""
    own = {(c.magnitude.axis, c.magnitude.spelling.norms) for c in adapter.contributions if c.magnitude}
    suffix = scheme.suffixes.get("magnitude", "")
    rules = _rules(consumer, families, scheme)
    return {treatment(rule, f"{suffix} {axis}", norms) if rule else "" for rule in rules for axis, norms in own}


def _norms(consumer: Consumer, families: Sequence[Detection], scheme: Scheme) -> str | None:
    """Whose norms the program divides magnitudes of outputs by; None where it does something else, or nobody knows."""
    spelled = f"{scheme.suffixes.get('magnitude', '')} {OUTPUT}"
    does = {treatment(rule, spelled, OF_SUM) if rule else "" for rule in _rules(consumer, families, scheme)}
    return _OVER.get(does.pop()) if len(does) == 1 else None


def _rules(consumer: Consumer, families: Sequence[Detection], scheme: Scheme) -> list[Rule | None]:
    """By family the rule that speaks of magnitudes as the scheme has them; None where there is none."""
    found: list[Rule | None] = []
    for family in (one.architecture for one in families):
        prefix = scheme.writing.prefix.format(pipeline=family.pipeline_name) if scheme.writing else ""
        found.append(_of_magnitudes(consumer, family.name, prefix, scheme))
    return found or [_of_magnitudes(consumer, "", "", scheme)]


def _of_magnitudes(consumer: Consumer, family: str, prefix: str, scheme: Scheme) -> Rule | None:
    """The rule of the loader that reads files with keys that begin so."""
    loader = loader_for(consumer, family, FramedKeys([prefix]))
    rules = loader.rules_for(family) if loader else []
    return next((one for one in rules if one.magnitudes and _is_of(scheme, one)), None)


def _is_of(scheme: Scheme, rule: Rule) -> bool:
    """Whether a rule speaks of the names and of the dialect of a scheme."""
    is_named = not rule.prefixes or any(prefix in rule.prefixes for prefix in scheme.prefixes)
    return is_named and (not rule.dialects or scheme.dialect in rule.dialects)
