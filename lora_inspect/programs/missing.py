"""Which module a program looks for in vain, of those that every block of a file has to have."""

from collections.abc import Callable
from functools import lru_cache

from lora_inspect.reading.adapter import Adapter


@lru_cache(maxsize=64)
def missing_of(complete: tuple[str, ...]) -> Callable[[Adapter], str | None]:
    """The question after the first of the paths `complete`, with `{i}` for the number of a block, that is not there.

    As many blocks are looked for as there are numbers of blocks, from 0 on.
    """
    spelled = {way for path in complete for way in (path, path.replace(".", "_"))}
    ends: dict[str, set[str]] = {}
    for way in spelled:
        start, _, end = way.partition("{i}")
        ends.setdefault(start, set()).add(end)

    def missing(adapter: Adapter) -> str | None:
        names = {module.name.body for module in adapter.modules.values()}
        blocks = {
            number
            for start, known in ends.items()
            for name in names
            if name.startswith(start)
            for number, end in (_numbered(name[len(start) :]),)
            if number and end in known
        }
        wanted = (path.replace("{i}", str(at)) for at in range(len(blocks)) for path in complete)
        first = next((path for path in wanted if path not in names and path.replace(".", "_") not in names), None)
        return f"it has nothing for {first}" if first else None

    return missing


def _numbered(text: str) -> tuple[str, str]:
    """The digits that a text begins with, and what is behind them."""
    behind = text.lstrip("0123456789")
    return text[: len(text) - len(behind)], behind
