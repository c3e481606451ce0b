"""What a problem of `check` is: its code, how serious it is, what it means, and who finds and mends it."""

from collections.abc import Callable, Iterable

from lora_inspect.checking.draft import Draft
from lora_inspect.checking.subject import Subject
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.reading.model.evidence import Finding

Look = Callable[[Subject], Iterable[Finding]]
# Changes the draft of the output, and says what it changed, a sentence each; nothing where nothing can be proved.
Mend = Callable[[Subject, Draft], Iterable[str]]


class Rule(NamedTuple):
    """A kind of problem.

    `means`, `matters` and `mend` are sentences for people: what it is, why that matters and the way out. `looks` find
    it, none where the reading of the file does. `of_tensors` says that the tensors have to be read for it. `mends` is
    what --fix does about it; None where it would have to guess. `rewritten` says that any writing of the file anew
    mends it.
    """

    code: str
    severity: str
    means: str
    matters: str
    mend: str
    looks: tuple[Look, ...] = ()
    of_tensors: bool = False
    mends: Mend | None = None
    rewritten: bool = False
