"""What people set by name, and the keys that programs look for it under.

ModelSpec's keys are those that ComfyUI's and SwarmUI's model lists read; SwarmUI and ComfyUI take the bare names too,
and `ssmd_*` are what the Additional Networks extension of the web UI wrote and showed. What the web UI itself calls
activation text stands in a file of its own beside the weights.
"""

from collections.abc import Iterable, Mapping

from lora_inspect.fast_namedtuple import NamedTuple


class Named(NamedTuple):
    """What a value is called, the key that it is written under, and others that programs read in its place."""

    name: str
    key: str
    others: tuple[str, ...] = ()


NAMED = {
    one.name: one
    for one in (
        Named("trigger_words", "modelspec.trigger_phrase", ("trigger_phrase", "ssmd_keywords")),
        Named("title", "modelspec.title", ("title", "ssmd_display_name")),
        Named("author", "modelspec.author", ("author", "ssmd_author")),
        Named("description", "modelspec.description", ("description", "ssmd_description")),
        Named("thumbnail", "modelspec.thumbnail", ("thumbnail",)),
    )
}


def named_values(named: Mapping[str, str | None], present: Iterable[str]) -> dict[str, str]:
    """The metadata that gives each name its value, None standing for nothing to set.

    Another key for the same thing is written as well where it is `present`, so that no program shows an old value.
    """
    there = set(present)
    return {
        key: value
        for name, value in named.items()
        if value is not None
        for key in (NAMED[name].key, *(other for other in NAMED[name].others if other in there))
    }
