"""The command that makes a file right for a program, found by planning conversions until one can be made."""

import os
import shlex
from collections.abc import Iterator
from dataclasses import replace

from lora_inspect import consumers, schemes
from lora_inspect.consumers.record import Consumer
from lora_inspect.consumers.verdict import SAME, judge
from lora_inspect.converting.asked_consumer import for_consumer, scheme_for, with_base
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.converting.output_endings import output_ending
from lora_inspect.converting.plan import plan_for
from lora_inspect.converting.targets import targets
from lora_inspect.errors import LoraInspectError
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.contribution import Module
from lora_inspect.reading.identify import adapter_candidates

# What stands in a command for the base that only the user knows.
BASE = "BASE"
# How near a LoRA is to come of what has no exact place in the program's files.
_NEAR = 0.01


def mending(adapter: Adapter, given: str, consumer: Consumer, base: str | None) -> str | None:
    """The command line that converts the adapter, which the user called `given`, for the program; None for none.

    Where only a base tells what is to be written and none was given, the command has BASE in its place.
    """
    asked = ConvertOptions(consumer=consumer.name, settings=adapter.settings)
    for make in (_standard, _exact, _with_base, _as_lora, _near):
        try:
            options = make(adapter, asked, base)
            if options is None:
                continue
            output = _output(adapter, options)
            _check(adapter, output, options)
        except LoraInspectError:
            continue
        return shlex.join(["lora-inspect", "convert", given, *_words(options), "-o", output])
    return None


def _standard(adapter: Adapter, asked: ConvertOptions, base: str | None) -> ConvertOptions | None:
    """The file under its own names, for all programs that read those, where alpha/rank is all that it lacks."""
    if adapter.dora.value or not all(schemes.by_name(c.module.scheme).carries_alpha for c in adapter.contributions):
        return None
    modules = {key: _with_alpha(module) for key, module in adapter.modules.items()}
    written = adapter._replace(modules=modules, flags=())
    found = judge(written, adapter_candidates(adapter), consumers.by_name(asked.consumer or ""))
    return replace(asked, consumer=None) if found.verdict == SAME else None


def _with_alpha(module: Module) -> Module:
    """The module as a standard file has it."""
    contributions = tuple(
        c._replace(alpha=c.scale * c.rank, rslora=False) if c.rank and c.scale is not None else c
        for c in module.contributions
    )
    return module._replace(contributions=contributions, rslora_flag=None)


def _exact(adapter: Adapter, asked: ConvertOptions, base: str | None) -> ConvertOptions | None:
    return asked


def _with_base(adapter: Adapter, asked: ConvertOptions, base: str | None) -> ConvertOptions | None:
    return with_base(adapter, base or BASE, asked) if adapter.dora.value else None


def _as_lora(adapter: Adapter, asked: ConvertOptions, base: str | None) -> ConvertOptions | None:
    return replace(asked, algorithm="lora")


def _near(adapter: Adapter, asked: ConvertOptions, base: str | None) -> ConvertOptions | None:
    return replace(asked, algorithm="lora", base=base or BASE, max_error=_NEAR)


def _check(adapter: Adapter, output: str, options: ConvertOptions) -> None:
    """Raises LoraInspectError where the conversion cannot be; what a base tells that is not given is taken for told."""
    if options.base != BASE:
        plan_for(adapter, output, options)
        return
    told = for_consumer(adapter, adapter, options)
    targets(adapter, adapter, None, None, replace(told, base=None))


def _words(options: ConvertOptions) -> Iterator[str]:
    if options.consumer:
        yield from ("--to", options.consumer)
    if options.base:
        yield from ("--base", options.base)
    if options.keep_dora:
        yield "--keep-dora"
    if options.algorithm:
        yield from ("--algorithm", options.algorithm)
    if options.max_error is not None:
        yield from ("--max-error", f"{options.max_error:g}")
    if options.settings.allow_partial_dora:
        yield "--allow-partial-dora"


def _output(adapter: Adapter, options: ConvertOptions) -> str:
    """A name beside the input that says what it is for."""
    path = os.path.normpath(adapter.checkpoint.path)
    stem = path if os.path.isdir(path) else os.path.splitext(path)[0]
    return f"{stem}-{options.consumer or 'standard'}{output_ending(adapter, scheme_for(adapter, options))}"
