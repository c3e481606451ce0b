"""The problems of a file, from Python.

What programs make of an adapter, from Python.

Adapters into a base, from Python.

Adapters out of a merged model again, from Python.

What a merged model carries of adapters, from Python.

The files of folders, from Python: a short account of each as soon as it is read.
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
    logged,
    path_of,
    request_of,
    takes,
    watched,
    without_multiplier,
)
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.discovery import stored_bytes
from lora_inspect.merging.options import MergeRequest, UnmergeRequest, VerifyRequest, merge_options
from lora_inspect.ops.check import CheckResult
from lora_inspect.ops.check import check as problems_of
from lora_inspect.ops.check import fix as fix_file
from lora_inspect.ops.compat import CompatResult
from lora_inspect.ops.compat import compat as compat_of
from lora_inspect.ops.info import as_json
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
    fix: StrPath | None = None,
    force: bool = False,
    progress: WatchProgress | None = None,
) -> CheckResult:
    """Says what is wrong or doubtful with one file, as `check` does; that it cannot be read is a problem too.

    With `tensors` all numbers are read. `progress(done, total)` is told of the file's bytes. `fix` is where the file is
    written with all mended that needs no guess, which is the command line's `--fix -o`. `fails("warning")` of the
    result says whether a problem is a warning or worse.

    Raises LoraInspectError where there is no such file or it is a folder of several, and with `fix` where nothing can
    be mended; ValueError for `force` without it.
    """
    name, settings = without_multiplier(path)
    told = watched(progress, stored_bytes(name))
    if fix is not None:
        return fix_file(name, path_of(fix), settings, tensors, force, told)
    if force:
        raise ValueError("force speaks of the file that fix names; leave it out, or give fix")
    return problems_of(name, settings, tensors, told)


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
    """What every program that loads adapters will make of one, or the `program` alone, as `compat` says it.

    `program` is the command line's `--for`, which is no name in Python. With a `base` the error that a program makes of
    DoRA is computed, and `progress(done, total)` is told of the modules with a magnitude.

    Raises LoraInspectError where the file is no adapter, or its own meaning is open.
    """
    name, own = without_multiplier(adapter)
    if program is not None:
        chosen("program", program, PROGRAMS)
    settings = own.joined(requested_settings(request_of(ReadingRequest, options)), name)
    if base is None:
        return compat_of(name, program, settings)
    modules = read_adapter(open_checkpoint(name), settings).dora.modules if progress else 0
    return compat_of(name, program, settings, path_of(base), watched(progress, modules))


class VerifyKeywords(ReadingKeywords, total=False):
    """The keywords of what applies adapters to a base."""

    only: str | Iterable[str]
    include: str | Iterable[str]
    exclude: str | Iterable[str]
    weights: StrPath | None
    allow_unmatched: bool
    dora_multiplier: str | None
    architecture: str | None
    transposed: Transposed


class MergeKeywords(VerifyKeywords, total=False):
    """The keywords of a merge that is written."""

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
    """Folds each adapter, with its multiplier, into the base and writes the result to `output`, as `merge` does.

    An adapter is a path, a string with settings as on the command line (`"style.safetensors:0.8"`), or a pair
    (path, multiplier). The other arguments are the options of the command line. `progress(done, total)` is told of
    bytes, from (0, total) on; an exception that it raises ends the merge and leaves nothing behind.

    Raises LoraInspectError, and writes nothing, for whatever stands in the way.
    """
    request = request_of(MergeRequest, options)
    asked = merge_options(request)
    if request.dtype is not None and request.changed_dtype is not None:
        raise ValueError("dtype is for all weights and changed_dtype for those that change; give one of both")
    plan = plan_merge(path_of(base), all_with_settings(adapters), asked)
    done = watched(progress, merge_bytes(plan, path_of(output)))
    return logged(merge_planned(plan, path_of(output), force, done))


class UnmergeKeywords(TypedDict, total=False):
    """The keywords of what takes a merge back."""

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
    """Takes the adapters of the last merge out of `merged` and writes the result to `output`, as `unmerge` does.

    With the `base` all is restored; else numbers that are not proved are written where `allow_ambiguous` says so, and
    the result counts them. `progress(done, total)` is told of bytes.

    Raises LoraInspectError, and writes nothing, for whatever stands in the way.
    """
    asked = request_of(UnmergeRequest, options)
    plan = plan_unmerge(path_of(merged), all_with_settings(adapters), asked.base)
    done = watched(progress, plan.bytes)
    return logged(unmerge_planned(plan, path_of(output), force, asked.allow_ambiguous, done))


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
    """Says how much of each adapter is in `merged`, which was made of `base` by any program, as `verify` does.

    Where anything is missing, doubled or beside, `ok` of the result is false and its `findings` name it: that is no
    error. Adapters stand as for `merge`, in the order in which they were merged. `progress(done, total)` is told of
    bytes of the base.

    Raises LoraInspectError where there is nothing to compare.
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
    """Says what each file of a folder is, or of several paths, in their order, as `info` of a folder does.

    A folder stands for the checkpoints in it, and for those in folders below it where `recursive`. With `records` each
    account has the record of `info --json` as its `record`. `jobs` is the number of processes, None for as many as pay;
    a script that asks for more than one does its work under `if __name__ == "__main__":`, as with all that starts
    processes in Python. `progress(done, total)` is told of files.

    What is wrong with a file is the `error` of its account, and raises nothing. Raises LoraInspectError for a folder
    that cannot be listed.
    """
    several = [paths] if isinstance(paths, (str, os.PathLike, tuple)) else list(paths)
    named = [without_multiplier(one) for one in several]
    listing = [(file, settings) for path, settings in named for file in files_of(path, recursive)]
    return scan_files(listing, jobs, watched(progress, len(listing)), as_json if records else None)
