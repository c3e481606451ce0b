"""The problems of a file, from its reading and the lints, and a copy with those fixed that can be."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lora_inspect.algebra.measures.sizes_by_part import SizesByPart, by_part
from lora_inspect.checking.fix import Fixing, check_fixed, fixing, open_fixed, write_fixed
from lora_inspect.checking.hash_lints import readings
from lora_inspect.checking.rules import UNREADABLE, find_problems
from lora_inspect.checking.subject import Subject
from lora_inspect.checking.tensor_lints import modules_with_zeros
from lora_inspect.errors import LoraInspectError, RefusedError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.discovery import file_of, files_of_several, is_collection, stored_bytes
from lora_inspect.files.locations import exists
from lora_inspect.files.outputs import check_output, file_output
from lora_inspect.files.temp_files import remove_leftovers
from lora_inspect.progress import PartialProgress, Progress, silent
from lora_inspect.reading.model.evidence import ERROR, SEVERITIES, Problem, RawProblem
from lora_inspect.reading.model.settings import Settings
from lora_inspect.sentences import Result
from lora_inspect.stores.address import is_remote


@dataclass(frozen=True, slots=True, repr=False)
class CheckResult(Result):
    """The problems of the file at `path`, and the codes that `--fix` can fix.

    `numbers_read` is True if the numbers of all tensors were read for the problems, False if only the header was.
    After a fix, `output` is the path of the fixed copy, `fixed` describes each change in a sentence, and `left` are the
    problems of the output. `way_out` ends the message on a file that cannot be read; it is empty for others. `sizes`
    are those of the changes, None if their numbers were not read. `notes` are sentences on leftovers of killed runs
    next to the output that could not be removed.
    """

    path: str
    problems: tuple[Problem, ...]
    numbers_read: bool = field(default=False, kw_only=True)
    fixable: frozenset[str] = frozenset()
    output: str | None = None
    fixed: tuple[str, ...] = ()
    left: tuple[Problem, ...] = ()
    way_out: str = ""
    sizes: SizesByPart | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_unreadable(self) -> bool:
        """True if the file cannot be read, so that its only problem is the reason."""
        return any(problem.code == UNREADABLE for problem in self.problems)

    def fails(self, severity: str) -> bool:
        """Return True if a problem is as serious as `severity`, or more; of the output, if the file was fixed.

        Raises ValueError for an unknown severity.
        """
        if severity not in SEVERITIES:
            raise ValueError(f"a severity is one of {', '.join(SEVERITIES)}, not {severity!r}")
        limit = SEVERITIES.index(severity)
        judged = self.left if self.output else self.problems
        return any(SEVERITIES.index(one.severity) >= limit for one in judged)

    def to_dict(self) -> dict[str, Any]:
        """Return the record of this file in the output of `check --json`."""
        record: dict[str, Any] = {
            "schema": "lora-inspect/check/1",
            "path": self.path,
            "numbers_read": self.numbers_read,
            "problems": _reported(self.problems, self.fixable),
        }
        if self.output:
            record |= {
                "output": self.output,
                "fixed": list(self.fixed),
                "left": _reported(self.left, frozenset()),
                "notes": list(self.notes),
            }
        return record | ({"norms": self.sizes.to_dict()} if self.sizes else {})


def found_in(path: str) -> list[str]:
    """Return all files of a folder of several that may hold weights, or the path itself."""
    files = files_of_several(path)
    return list(files.weights) if files else [path]


def check(
    path: str,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    tensors: bool = False,
    progress: Progress = silent,
    skip_hashes: bool = False,
) -> CheckResult:
    """Return the problems of one checkpoint; a file that cannot be read is a problem too.

    With `tensors` all numbers are read. With `skip_hashes` no hash of the metadata is compared with the tensors.
    `progress` gets the bytes of the file, once. Raises LoraInspectError if there is no file.
    """
    share = PartialProgress(progress, stored_bytes(path))
    try:
        look = _SizeLook()
        subject = Subject(open_checkpoint(path), settings, share.done, look, not skip_hashes)
        share.work *= _readings(subject, tensors)
        problems = _problems_of(subject, tensors)
        fixable = fixing(subject, problems).codes
        return CheckResult(path, problems, fixable, sizes=look.sizes, numbers_read=tensors)
    except LoraInspectError as error:
        if not exists(path) or is_collection(path):
            raise
        message = str(error).removeprefix(f"{path}: ").removesuffix(".")
        return CheckResult(path, (Problem(UNREADABLE, ERROR, message),), way_out=error.fix)
    finally:
        share.finish()


def fix(
    path: str,
    output: str,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    tensors: bool = False,
    force: bool = False,
    progress: Progress = silent,
) -> CheckResult:
    """Write a copy of the file with every fix that needs no guess; no other byte of a tensor changes.

    Raises LoraInspectError if there is nothing to fix, or if the output would have another meaning.
    """
    share = PartialProgress(progress, stored_bytes(path))
    subject = Subject(open_checkpoint(path), settings, share.done, _SizeLook())
    # Looked at, hashed anew, written, proved, looked at again.
    share.work *= 2 * _readings(subject, tensors) + readings(subject) + 3
    problems = _problems_of(subject, tensors)
    inputs = subject.checkpoint.inputs
    fixed = _needed(fixing(subject, problems), subject, problems, tensors)
    output = file_output(output, subject.checkpoint.name, inputs)
    leftovers = remove_leftovers(output)
    check_output(output, inputs, force)
    _keep_config(subject, output)
    prove = partial(_prove, subject, fixed, output)
    told = write_fixed(subject, fixed, output, force, prove, share.done)
    left = _problems_of(open_fixed(output, subject), tensors)
    share.finish()
    return CheckResult(path, problems, fixed.codes, output, told, left, notes=leftovers, numbers_read=tensors)


def as_sarif(results: Sequence[CheckResult], folder: str) -> dict[str, Any]:
    """Return all results as one log of SARIF 2.1.0, with paths of files relative to `folder`.

    Code hosts show a problem in a file, so the weights stand for the folder of one adapter.
    """
    from lora_inspect.checking.sarif import sarif

    reported = [(one.output, one.left) if one.output else (one.path, one.problems) for one in results]
    readable = [one for one in results if not one.is_unreadable]
    numbers_read = bool(readable) and all(one.numbers_read for one in readable)
    return sarif([(file_of(path), problems) for path, problems in reported], folder, numbers_read)


def _readings(subject: Subject, tensors: bool) -> int:
    """Return how many times the check reads the file at most; the numbers are measured, and then the changes."""
    return readings(subject) + 2 * tensors


class _SizeLook:
    """The sizes of an adapter's changes, as far as numpy computes them without a base.

    The changes of a file with an open meaning are unknown.
    """

    def __init__(self) -> None:
        self.sizes: SizesByPart | None = None

    def __call__(self, subject: Subject) -> Iterator[RawProblem]:
        """Yield the problems of the sizes."""
        if not subject.is_adapter or any(problem.severity == ERROR for problem in subject.adapter.problems):
            return
        from lora_inspect.algebra.measures.change_sizes import measured_changes
        from lora_inspect.algebra.measures.unusual_sizes import size_problems

        found = measured_changes(subject.adapter, progress=subject.progress, with_torch=False)
        self.sizes = SizesByPart(**by_part(found, subject.adapter, subject.families))
        with_zeros = modules_with_zeros(subject)
        yield from size_problems(found.sizes, with_zeros)


def _problems_of(subject: Subject, tensors: bool) -> tuple[Problem, ...]:
    """Return all problems, the most serious first."""
    return tuple(sorted(find_problems(subject, tensors), key=lambda problem: -SEVERITIES.index(problem.severity)))


def _reported(problems: Sequence[Problem], fixable: frozenset[str]) -> list[dict[str, Any]]:
    return [
        {
            "code": one.code,
            "severity": one.severity,
            "message": one.message,
            "keys": list(one.keys),
            "fixable": one.code in fixable,
        }
        for one in problems
    ]


def _needed(fixed: Fixing, subject: Subject, problems: Sequence[Problem], tensors: bool) -> Fixing:
    path = subject.checkpoint.path
    if fixed.codes:
        return fixed
    if not problems and not tensors:
        raise RefusedError(
            path, "its header has no problem, so there is nothing to fix", "give --tensors to look at the numbers too"
        )
    if not problems:
        raise RefusedError(path, "it has no problems, so there is nothing to fix", "use it as it is")
    if len(subject.checkpoint.files) != 1 or len(subject.headers) != 1:
        raise RefusedError(path, "check fixes only single safetensors files", "convert it first")
    codes = ", ".join(dict.fromkeys(problem.code for problem in problems))
    raise RefusedError(
        path, f"no problem of it can be fixed without a guess ({codes})", "read about each in docs/checking.md"
    )


def _keep_config(subject: Subject, output: str) -> None:
    """Raise RefusedError if the file's configuration would not be next to the output, which needs it."""
    config = subject.checkpoint.config_path
    beside = os.path.dirname(output) or os.curdir
    if config and (is_remote(config) or not os.path.samefile(os.path.dirname(config) or os.curdir, beside)):
        raise RefusedError(
            output, f"{config} would not be next to it", "name an output in the same folder, or copy the folder first"
        )


def _prove(subject: Subject, fixed: Fixing, output: str, written: str) -> None:
    check_fixed(subject, fixed.codes, open_fixed(written, subject), output)
