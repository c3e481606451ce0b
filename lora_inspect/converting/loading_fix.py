"""The conversion that makes a file right in one program: planned in the ways that are soon tried, and in no others.

`mending` tries every way for every program, which takes longer than a look at a file may.
"""

from lora_inspect.converting.fixes import OF_ITS_FACTORS, mending
from lora_inspect.fast_namedtuple import NamedTuple
from lora_inspect.programs.verdict import Verdict
from lora_inspect.reading.adapter import Adapter
from lora_inspect.reading.model.settings import spell_argument
from lora_inspect.shell import operand


class LoadingFix(NamedTuple):
    """A command line, and the title of the program that it is for."""

    title: str
    command: str


def loading_fix(adapter: Adapter, verdict: Verdict) -> LoadingFix | None:
    """The command for the program of a `verdict`; None where neither other names nor a base mend the file for it."""
    given = spell_argument(operand(adapter.checkpoint.path), adapter.settings)
    command = mending(adapter, given, verdict.consumer, None, OF_ITS_FACTORS)
    return LoadingFix(verdict.consumer.title, command) if command else None
