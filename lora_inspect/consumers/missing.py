"""Which module a program looks for in vain, of those that every block of a file has to have."""

import re
from collections.abc import Callable
from functools import lru_cache

from lora_inspect.reading.adapter import Adapter


@lru_cache(maxsize=64)
def missing_of(complete: tuple[str, ...]) -> Callable[[Adapter], str | None]:
    """The question after the first of the paths `complete`, with `{i}` for the number of a block, that is not there.

    As many blocks are looked for as there are numbers of blocks, from 0 on.
    """
    spelled = {way: None for path in complete for way in (path, path.replace(".", "_"))}
    known = re.compile("|".join(re.escape(way).replace(r"\{i\}", "([0-9]+)") for way in spelled))

    def missing(adapter: Adapter) -> str | None:
        names = {module.name.body for module in adapter.modules.values()}
        found = filter(None, map(known.fullmatch, names))
        blocks = {number for one in found for number in one.groups() if number is not None}
        wanted = (path.replace("{i}", str(at)) for at in range(len(blocks)) for path in complete)
        first = next((path for path in wanted if names.isdisjoint({path, path.replace(".", "_")})), None)
        return f"it has nothing for {first}" if first else None

    return missing
