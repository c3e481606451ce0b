"""The problems of a file, from Python."""

from lora_inspect.api.arguments import PathWithSettings, StrPath, WatchProgress, path_of, watched, without_strength
from lora_inspect.api.failures import in_a_sentence
from lora_inspect.files.discovery import stored_bytes
from lora_inspect.ops.check import CheckResult
from lora_inspect.ops.check import check as problems_of
from lora_inspect.ops.check import fix as mend

__all__ = ["CheckResult", "check"]


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
    name, settings = without_strength(path)
    told = watched(progress, stored_bytes(name))
    if fix is not None:
        return mend(name, path_of(fix), settings, tensors, force, told)
    if force:
        raise ValueError("force speaks of the file that fix names; leave it out, or give fix")
    return problems_of(name, settings, tensors, told)
