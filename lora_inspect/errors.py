"""The one exception that a user is meant to read."""


class LoraInspectError(Exception):
    """A file or a request that is refused: one sentence with the file, the key, what was expected and the way out.

    Names come from files and may hold anything: what is no printable character is spelled as an escape, so that
    the sentence stays one line.
    """

    def __str__(self) -> str:
        return "".join(
            character if character.isprintable() else character.encode("unicode_escape").decode()
            for character in super().__str__()
        )
