"""Extraction of an adapter: the difference of two models, streamed in blocks of rows."""

from typing import TYPE_CHECKING

from lora_inspect.algebra.options import ExtractRequest, contradiction
from lora_inspect.algebra.results import ExtractResult
from lora_inspect.progress import Progress, silent

if TYPE_CHECKING:
    from lora_inspect.algebra.extracting.making import ExtractPlan

# An extraction is planned and then made: its callers find both here.
__all__ = ["ExtractRequest", "ExtractResult", "contradiction", "extract", "plan_extract"]


def plan_extract(tuned: str, base: str, request: ExtractRequest, output: str | None) -> "ExtractPlan":
    """Read the headers of both models, and name the modules of their difference.

    `output` is the path that the user named, None if nothing is written. Raises LoraInspectError if anything prevents
    it.
    """
    from lora_inspect.algebra.extracting.making import plan_extract as planned

    return planned(tuned, base, request, output)


def extract(
    plan: "ExtractPlan", force: bool = False, dry_run: bool = False, progress: Progress = silent
) -> ExtractResult:
    """Write the difference as an adapter; with `dry_run` compute the same and write nothing.

    It calls `progress` for each module. Raises LoraInspectError, and leaves nothing, if it cannot be written.
    """
    from lora_inspect.algebra.extracting.making import write_extract

    return write_extract(plan, force, dry_run, progress)
