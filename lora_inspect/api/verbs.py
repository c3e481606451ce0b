"""The verbs for Python programs: check, compat, merge, unmerge, verify and scan.

`convert` and `open_adapter` are in files of their own.
"""

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypedDict

from lora_inspect.api.arguments import (
    PathWithSettings,
    ReadingKeywords,
    StrPath,
    Transposed,
    WatchProgress,
    all_with_settings,
    chosen,
    in_a_sentence,
    in_keywords,
    logged,
    path_of,
    request_of,
    takes,
    watched,
    without_multiplier,
)
from lora_inspect.converting.options import titles_of_programs
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.discovery import stored_bytes
from lora_inspect.merging.options import MergeRequest, UnmergeRequest, VerifyRequest, contradiction, merge_options
from lora_inspect.ops.check import CheckResult
from lora_inspect.ops.check import check as problems_of
from lora_inspect.ops.check import fix as fix_file
from lora_inspect.ops.compat import CompatResult
from lora_inspect.ops.compat import compat as compat_of
from lora_inspect.ops.merge import MergeResult, merge_bytes, plan_merge
from lora_inspect.ops.merge import merge as merge_planned
from lora_inspect.ops.scan import files_of, scan_files
from lora_inspect.ops.unmerge import UnmergeResult, plan_unmerge
from lora_inspect.ops.unmerge import unmerge as unmerge_planned
from lora_inspect.ops.verify import VerifyResult, plan_verify
from lora_inspect.ops.verify import verify as verify_planned
from lora_inspect.option import ReadingRequest
from lora_inspect.programs import PROGRAMS
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.model.settings import requested_settings
from lora_inspect.reporting.file_record import as_json
from lora_inspect.scanning.scan_file import ScannedFile

if TYPE_CHECKING:
    import torch
    from typing_extensions import Unpack

__all__ = [
    "CheckResult",
    "CompatResult",
    "MergeResult",
    "ScannedFile",
    "UnmergeResult",
    "VerifyResult",
    "check",
    "compat",
    "merge",
    "scan",
    "unmerge",
    "verify",
]


@in_a_sentence()
def check(
    path: PathWithSettings,
    *,
    tensors: bool = False,
    skip_hashes: bool = False,
    fix: StrPath | None = None,
    force: bool = False,
    progress: WatchProgress | None = None,
) -> CheckResult:
    """Report the problems of one file, as `check` does; a file that cannot be read is a problem too.

    `tensors` reads all numbers, not only the header; `numbers_read` of the result tells which. With `skip_hashes` the
    hashes in the metadata are not compared with the tensors, for which the whole file is read. `fix` is the path of a
    fixed copy, in which every problem with one safe fix is fixed: the command line's `--fix -o`.
    `progress(done, total)` counts bytes of the file. `fails("warning")` of the result is true if a problem is a warning
    or worse.

    Raises LoraInspectError if the path does not exist or is a folder of several files, and with `fix` if nothing can be
    fixed. Raises ValueError for `force` without `fix`, and for `skip_hashes` with it.
    """
    name, settings = without_multiplier(path)
    told = watched(progress, stored_bytes(name))
    if fix is not None:
        if skip_hashes:
            raise ValueError("fix keeps the hashes right; leave skip_hashes out")
        return fix_file(name, path_of(fix), settings, tensors, force, told)
    if force:
        raise ValueError("force only affects the output of fix; leave it out, or give fix")
    return problems_of(name, settings, tensors, told, skip_hashes)


@in_a_sentence()
@takes(ReadingRequest, ReadingKeywords)
def compat(
    adapter: PathWithSettings,
    *,
    program: str | None = None,
    base: StrPath | None = None,
    progress: WatchProgress | None = None,
    **options: "Unpack[ReadingKeywords]",
) -> CompatResult:
    """Judge how every program that loads adapters applies one, or only the `program`, as `compat` does.

    `program` is the command line's `--for`, which is no name in Python. With a `base` the error of DoRA in each program
    is computed, and `progress(done, total)` counts the modules with a magnitude.

    Raises LoraInspectError if the file is no adapter, or its own meaning is open.
    """
    name, own = without_multiplier(adapter)
    if program is not None:
        program = chosen("program", program, PROGRAMS, titles_of_programs())
    settings = own.joined(requested_settings(request_of(ReadingRequest, options)), name)
    if base is None:
        return compat_of(name, program, settings)
    modules = read_adapter(open_checkpoint(name), settings).dora.modules if progress else 0
    return compat_of(name, program, settings, path_of(base), watched(progress, modules))


class VerifyKeywords(ReadingKeywords, total=False):
    """The keywords of a function that applies adapters to a base."""

    only: str | Iterable[str]
    include: str | Iterable[str]
    exclude: str | Iterable[str]
    weights: StrPath | None
    allow_unmatched: bool
    dora_multiplier: str | None
    transposed: Transposed


class MergeKeywords(VerifyKeywords, total=False):
    """The keywords of a merge that writes an output."""

    dtype: "str | torch.dtype | None"
    changed_dtype: "str | torch.dtype | None"
    rounding: str
    seed: int | None
    allow_loss: bool
    hash_base: bool


@in_a_sentence()
@takes(MergeRequest, MergeKeywords)
def merge(
    base: StrPath,
    adapters: PathWithSettings | Iterable[PathWithSettings],
    output: StrPath,
    *,
    force: bool = False,
    progress: WatchProgress | None = None,
    **options: "Unpack[MergeKeywords]",
) -> MergeResult:
    """Fold each adapter into the base and write the result to `output`, as `merge` does.

    An adapter is a path, a string with settings as on the command line (`"style.safetensors:0.8"`), or a pair (path,
    multiplier). The other arguments are the options of the command line. `progress(done, total)` counts bytes, from (0,
    total) on; an exception that it raises ends the merge and leaves nothing behind.

    Raises LoraInspectError, and writes nothing, if the merge is refused.
    """
    request = request_of(MergeRequest, options)
    if wrong := contradiction(request):
        raise ValueError(in_keywords(wrong))
    asked = merge_options(request)
    plan = plan_merge(path_of(base), all_with_settings(adapters), asked)
    done = watched(progress, merge_bytes(plan, path_of(output)))
    return logged(merge_planned(plan, path_of(output), force, done))


class UnmergeKeywords(TypedDict, total=False):
    """The keywords of `unmerge`."""

    base: StrPath | None
    allow_ambiguous: bool


@in_a_sentence()
@takes(UnmergeRequest, UnmergeKeywords)
def unmerge(
    merged: StrPath,
    adapters: PathWithSettings | Iterable[PathWithSettings],
    output: StrPath,
    *,
    force: bool = False,
    progress: WatchProgress | None = None,
    **options: "Unpack[UnmergeKeywords]",
) -> UnmergeResult:
    """Remove the adapters of the last merge from `merged`, as `unmerge` does.

    The result goes to `output`. With the `base`, everything is restored. Without it, `allow_ambiguous` writes the
    nearest number where the original one is ambiguous, and the result counts these. `progress(done, total)` counts
    bytes.

    Raises LoraInspectError, and writes nothing, if the removal is refused.
    """
    asked = request_of(UnmergeRequest, options)
    plan = plan_unmerge(path_of(merged), all_with_settings(adapters), asked)
    done = watched(progress, plan.bytes)
    return logged(unmerge_planned(plan, path_of(output), force, done))


@in_a_sentence()
@takes(VerifyRequest, VerifyKeywords)
def verify(
    merged: StrPath,
    base: StrPath,
    adapters: PathWithSettings | Iterable[PathWithSettings],
    *,
    progress: WatchProgress | None = None,
    **options: "Unpack[VerifyKeywords]",
) -> VerifyResult:
    """Measure how much of each adapter is in `merged`, as `verify` does.

    Any program may have made `merged` from `base`. If a change is missing, applied twice or unexpected, `ok` of the
    result is false and its `findings` name it; that raises nothing. Give the adapters as for `merge`, in the order of
    the merge. `progress(done, total)` counts bytes of the base.

    Raises LoraInspectError if there is nothing to compare.
    """
    asked = merge_options(request_of(VerifyRequest, options))
    plan = plan_verify(path_of(merged), path_of(base), all_with_settings(adapters), asked)
    return logged(verify_planned(plan, watched(progress, plan.bytes)))


@in_a_sentence()
def scan(
    paths: PathWithSettings | Iterable[PathWithSettings],
    *,
    recursive: bool = True,
    records: bool = False,
    jobs: int | None = 1,
    progress: WatchProgress | None = None,
) -> Iterator[ScannedFile]:
    """Describe each file of a folder, or of several paths, in their order, as `info` of a folder does.

    A folder stands for the checkpoints in it, and with `recursive` for those in folders below it. `records` adds the
    record of `info --json` to each account as its `record`. `jobs` is the number of processes, None for as many as make
    it faster. A script that asks for more than one must work under `if __name__ == "__main__":`, as with all processes
    in Python. `progress(done, total)` counts files.

    An unreadable file raises nothing: its account has an `error`. Raises LoraInspectError for a folder that cannot be
    listed.
    """
    several = [paths] if isinstance(paths, (str, os.PathLike, tuple)) else list(paths)
    named = [without_multiplier(one) for one in several]
    listing = [(file, settings) for path, settings in named for file in files_of(path, recursive)]
    return scan_files(listing, jobs, watched(progress, len(listing)), as_json if records else None)
