"""Command lines as a shell takes them: what is shown can be copied, whatever a path holds."""

from collections.abc import Iterable

from lora_inspect.files.system import IS_WINDOWS
from lora_inspect.sentences import printable

# What no shell gives a meaning to.
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./-_")


def command_line(words: Iterable[str]) -> str:
    """The words as one line that a shell splits into them again, without a character that a terminal obeys."""
    return " ".join(map(quoted, words))


def operand(path: str) -> str:
    """The path as no command takes it for an option."""
    return f"./{path}" if path.startswith("-") else path


def quoted(word: str) -> str:
    """One word: as it is where a shell has nothing to do with it, else in quotes.

    A name that is not shown as it is has escapes in it, as bash, zsh and ksh read them.
    """
    if word and _PLAIN.issuperset(word):
        return word
    if IS_WINDOWS:
        return f'"{word}"'  # a quote is in no name there
    if printable(word) == word:
        return "'" + word.replace("'", "'\"'\"'") + "'"
    return "$'" + "".join(map(_escaped, word)) + "'"


def _escaped(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if " " <= character <= "~":
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode(errors="surrogateescape"))
