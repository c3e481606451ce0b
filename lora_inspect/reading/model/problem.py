"""What can be wrong with a file: as it is found, and as it is told."""

from lora_inspect.fast_namedtuple import NamedTuple

# An error stops every command that would have to guess around it.
ERROR, WARNING, NOTE = "error", "warning", "note"
# From the least serious to the most.
SEVERITIES = (NOTE, WARNING, ERROR)


class Finding(NamedTuple):
    """Something wrong or doubtful, as the one who looks finds it; `code` is its entry in the registry of problems."""

    code: str
    message: str
    keys: tuple[str, ...] = ()


class Problem(NamedTuple):
    """A finding with how serious it is: an "error", a "warning" or a "note"."""

    code: str
    severity: str
    message: str
    keys: tuple[str, ...] = ()
