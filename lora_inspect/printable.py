"""Text from files as a terminal may show it."""


def printable(text: str, keep: str = "") -> str:
    """The text with escapes for what is no printable character, save those of `keep`.

    Names and metadata come from files and may hold anything, control sequences of terminals included.
    """
    return "".join(
        character if character.isprintable() or character in keep else character.encode("unicode_escape").decode()
        for character in text
    )
