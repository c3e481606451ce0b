"""The last look at an output that was made for a program: what its rules make of it."""

from dataclasses import dataclass, field

from lora_inspect.converting.options import ConvertOptions
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.programs.record import READ, Consumer
from lora_inspect.programs.verdict import LOST, UNKNOWN, WRONG, judge, needs_mending
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.identify import adapter_candidates, with_paths
from lora_inspect.reading.model.settings import Settings


@dataclass(slots=True)
class Received:
    """Judges an output by the rules of the `consumer` when it is called with its path; `output` is its name.

    `remarks` say what is not known of it, and what is wrong there of magnitudes that the user kept.
    """

    consumer: Consumer
    output: str
    options: ConvertOptions
    remarks: list[str] = field(default_factory=list)

    def __call__(self, path: str) -> None:
        """Raises LoraInspectError where the program would make something else of it for certain."""
        told = Settings(allow_partial_dora=self.options.settings.allow_partial_dora)
        adapter = read_adapter(open_checkpoint(path), told)
        families = adapter_candidates(adapter)
        found = judge(with_paths(adapter, families), families, self.consumer)
        program = f"{self.consumer.title} {self.consumer.version}"
        says = f" ({found.says})" if found.says else ""
        if self.options.keep_dora and found.verdict in (LOST, WRONG):
            self.remarks.append(f"{program} does not apply its magnitudes as they were trained: {found.verdict}{says}")
        elif needs_mending(found):
            raise LoraInspectError(
                f"{self.output}: {program} would not read it as it is meant: {found.verdict}{says}; nothing is "
                "written. Choose --algorithm lora where it is of another algorithm, or another program."
            )
        elif found.by == READ:
            self.remarks.append(f"that {program} reads it as it is meant was read in its code, and not run")
        elif found.verdict == UNKNOWN:
            self.remarks.append(f"what {program} makes of it is not known here: {found.says}")
