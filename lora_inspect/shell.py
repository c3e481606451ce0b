"""Command lines in the form that a shell accepts, so users can copy them whatever a path holds."""

from collections.abc import Iterable

from lora_inspect.files.system import IS_WINDOWS
from lora_inspect.sentences import printable

# What no shell gives a meaning to.
_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./-_")


def command_line(words: Iterable[str]) -> str:
    """Join the words into one line that a shell splits into them again and a terminal can show."""
    return " ".join(map(quoted, words))


def operand(path: str) -> str:
    """Return the path in a form that no command takes for an option."""
    return f"./{path}" if path.startswith("-") else path


def quoted(word: str) -> str:
    """Return one word, in quotes if a shell would change it.

    A name that a terminal cannot show as it is gets escapes, as bash, zsh and ksh read them.
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
