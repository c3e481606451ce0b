"""A progress bar on stderr, where a person looks at it; nothing anywhere else."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from lora_inspect.progress import Progress, silent


@contextmanager
def progress_bar(label: str, length: int) -> Iterator[Progress]:
    """Yields what to call with each amount that is done."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield silent
        return
    with click.progressbar(length=length, label=label, file=sys.stderr, show_eta=True) as bar:
        yield lambda amount: bar.update(amount)
