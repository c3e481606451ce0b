"""Lists within a sentence."""

from collections.abc import Sequence


def listed(parts: Sequence[str], word: str = "and") -> str:
    """The parts as a sentence lists them: `A`, `A and B`, `A, B and C`; empty without any."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} {word} {parts[-1]}"
