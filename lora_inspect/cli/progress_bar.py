"""A progress bar on stderr, where a person looks at it; nothing anywhere else."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import click

from lora_inspect.progress import Progress, silent


@contextmanager
def progress_bar(label: str, length: int) -> Iterator[Progress]:
    """Yields what to call with each amount that is done; the first call draws the bar, a refusal draws none."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield silent
        return
    bar = click.progressbar(length=length, label=label, file=sys.stderr, show_eta=True)
    with ExitStack() as drawn:

        def advance(amount: int) -> None:
            if not bar.entered:
                drawn.enter_context(bar)
            bar.update(amount)

        yield advance
