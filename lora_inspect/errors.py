"""The one exception that a user is meant to read."""


class LoraInspectError(Exception):
    """A file or a request that is refused: one sentence with the file, the key, what was expected and the way out."""
