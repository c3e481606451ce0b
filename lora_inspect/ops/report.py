"""The page of `report`: one file of HTML on one adapter, or on several and their stack."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lora_inspect.errors import NeedsLibraryError, RefusedError
from lora_inspect.files.input_file import Identity, check_unchanged
from lora_inspect.files.outputs import PAGE_ENDING, check_output, file_output, new_file
from lora_inspect.files.temp_files import remove_leftovers
from lora_inspect.progress import PartialProgress, Progress, silent, silent_pass
from lora_inspect.reading.file_info import FileInfo, inspect
from lora_inspect.reading.model.settings import Settings, requested_settings
from lora_inspect.sentences import Result

if TYPE_CHECKING:
    from lora_inspect.algebra.measures.compare_plan import ComparePlan
    from lora_inspect.algebra.options import ReportRequest

_NAME = "report"


@dataclass(frozen=True, slots=True)
class FileProblem:
    """A problem of the adapter at `path`; `severity` is "error", "warning" or "note"."""

    path: str
    code: str
    severity: str
    message: str


@dataclass(frozen=True, slots=True, repr=False)
class ReportResult(Result):
    """The page that was written: its path, its bytes, and a line on each adapter.

    `problems` are those of all adapters, in their headers and their numbers. `notes` are on the inputs.
    """

    output: str
    bytes: int
    headlines: tuple[str, ...]
    notes: tuple[str, ...] = ()
    problems: tuple[FileProblem, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `report --json` prints."""
        return {
            "schema": "lora-inspect/report/1",
            "output": self.output,
            "bytes": self.bytes,
            "headlines": list(self.headlines),
            "problems": [asdict(problem) for problem in self.problems],
        }


@dataclass(frozen=True, slots=True)
class ReportPlan:
    """The adapters that were read, the comparison of several, and the output."""

    infos: tuple[FileInfo, ...]
    comparison: "ComparePlan | None"
    request: "ReportRequest"
    output: str

    @property
    def steps(self) -> int:
        """The bytes that are read: of the factors, of all numbers for problems, and of the files for their hashes."""
        return 3 * sum(info.checkpoint.bytes for info in self.infos)

    @property
    def inputs(self) -> dict[str, Identity]:
        """Every input file with its identity when it was opened."""
        found: dict[str, Identity] = {}
        for info in self.infos:
            found |= info.checkpoint.inputs
        return found


def plan_report(
    named: Sequence[tuple[str, Settings]], request: "ReportRequest", output: str | None = None
) -> ReportPlan:
    """Read the headers of the adapters.

    Raises LoraInspectError for a file that is no adapter or has an open meaning, and for several that cannot be
    compared.
    """
    from lora_inspect.algebra.measures.compare_plan import planned

    for path, settings in named:
        if len(named) == 1 and settings.multiplier is not None:
            raise RefusedError(path, "a page of one adapter shows it at multiplier 1", "leave the multiplier out")
    asked = requested_settings(request)
    infos = tuple(inspect(path, own.joined(asked, path)) for path, own in named)
    comparison = planned(named, request.comparison) if len(named) > 1 else None
    return ReportPlan(infos, comparison, request, file_output(output or _NAME + PAGE_ENDING, _NAME, {}, PAGE_ENDING))


def report(plan: ReportPlan, force: bool = False, progress: Progress = silent) -> ReportResult:
    """Measure the adapters and write the page; `progress` gets as many bytes as the `steps` of the plan.

    Raises LoraInspectError, and leaves nothing, if an adapter has no settled meaning, if the output cannot be written,
    or if Jinja is missing.
    """
    from lora_inspect.algebra.measures.compare_plan import compared_by_plan
    from lora_inspect.reporting.adapter_facts import AdapterFacts
    from lora_inspect.reporting.measurement import measure
    from lora_inspect.reporting.page import rendered
    from lora_inspect.reporting.stack_facts import StackFacts

    if find_spec("jinja2") is None:
        raise NeedsLibraryError(
            plan.output, "its page is made with Jinja, which is missing", "install it with pip install jinja2"
        )
    check_output(plan.output, plan.inputs, force)
    leftovers = remove_leftovers(plan.output)
    share = PartialProgress(progress, plan.steps)
    measurements = [
        measure(info, plan.request.base, plan.request.transposed, share.done, with_spectra=True) for info in plan.infos
    ]
    facts = [AdapterFacts(measurement, share.done) for measurement in measurements]
    stack = None
    if plan.comparison:
        stack = StackFacts(plan.comparison, compared_by_plan(plan.comparison, silent, silent_pass), facts)
    hashes = [_hashes(info, share.done) for info in plan.infos]
    page = rendered(facts, stack, hashes).encode()
    check_unchanged(plan.inputs)
    with new_file(plan.output, plan.inputs, force) as descriptor, os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(page)
    share.finish()
    notes = plan.comparison.notes if plan.comparison else [note for info in plan.infos for note in info.adapter.notes]
    problems = tuple(
        FileProblem(one.path, problem.code, problem.severity, problem.message)
        for one in facts
        for problem in one.problems
    )
    headlines = tuple(one.headline for one in facts)
    return ReportResult(plan.output, len(page), headlines, (*notes, *leftovers), problems)


def _hashes(info: FileInfo, progress: Progress) -> Mapping[str, str]:
    """Return the hashes by which sites know a single safetensors file, or none for other inputs."""
    from lora_inspect.editing.editable import is_gguf
    from lora_inspect.files.hashes import file_hashes
    from lora_inspect.files.safetensors.edit_in_place import read_headed

    files = info.checkpoint.files
    if len(files) != 1 or is_gguf(files[0]):
        return {}
    headed = read_headed(files[0])
    found = file_hashes(headed.file, headed.data_start, headed.identity, progress)
    return {"SHA256": found.whole, "AutoV2": found.whole[:10], "AutoV3": found.data[:12]}
