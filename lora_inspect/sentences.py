"""Lists within a sentence."""

from collections.abc import Sequence

from lora_inspect.escape import shortened


def listed(parts: Sequence[str], word: str = "and") -> str:
    """The parts as a sentence lists them: `A`, `A and B`, `A, B and C`; empty without any."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def counted(number: int, noun: str) -> str:
    """A number and what it counts: `1 file`, `1,200 files`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def some(names: Sequence[str], count: int) -> str:
    """The first names, each shortened, and whether there are more: `a, b, …`."""
    return ", ".join(map(shortened, names[:count])) + (", …" if len(names) > count else "")
