"""Runs a case in this process, and says what went against the promises of the command line."""

import contextlib
import importlib
import io
import json
import os
import pkgutil
import re
import resource
import shutil
import signal
import stat
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

from fuzz import hostile, networks_target
from fuzz.case import NETWORKS, Case
from fuzz.contents import Link, write
from fuzz.edited import is_journal, repaired, same_tensors, values_of
from fuzz.effects import JOURNAL, NOTHING, PARTS, Effects, effects_of
from fuzz.watch import Allowed, Forbidden, watched
from lora_inspect.files.system import without_collecting
from lora_inspect.scanning import workers

MEGABYTE = 1 << 20
# Some disks take longer for a folder than a command for its work.
_IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
# Beyond this an allocation fails, before it takes the machine with it.
_ADDRESSES = 3 << 30
# Larger files are known by their size and time alone.
_READ_BYTES = 16 * MEGABYTE
# What the program says of what nobody foresaw, and of memory that it did not get.
_DEFECT, _NO_MEMORY = "internal error", "there is not enough memory"
_LEFTOVER = re.compile(r"(?s).*\.[0-9a-f]{16}\.partial(\.(lock|old|gone))?")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")


KINDS = ("traceback", "hang", "growth", "leftover", "exit", "audit", "input", "output", "printed", "descriptor")


class Limits(NamedTuple):
    """What a case may take. A pipe that is waited for takes no processor time, a busy neighbour much of the clock's."""

    cpu_seconds: float = 5.0
    wall_seconds: float = 60.0
    peak_bytes: int = 100 * MEGABYTE


LIMITS = Limits()


class Violation(NamedTuple):
    """A promise that was not kept: which, and how."""

    kind: str
    says: str


@dataclass
class Examined:
    """What came of a case: its status, None where it did not end by itself, and what it took."""

    status: int | None
    violations: list[Violation]
    cpu_seconds: float
    peak_bytes: int
    stdout: str
    stderr: str


@dataclass
class _Ended:
    status: int | None = None
    raised: str | None = None
    hung: bool = False
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    descriptors: int = 0
    stdout: str = ""
    stderr: str = ""
    seen: list[str] = field(default_factory=list)


class _Hang(BaseException):
    """Raised where a case takes too long."""


def examine(case: Case, limits: Limits = LIMITS, keep: Path | None = None) -> Examined:
    """Writes the case's files into a new folder, runs its command there, and judges.

    With `keep` the files are written there and stay, as the command left them.
    """
    prepare()
    root = os.path.realpath(keep or tempfile.mkdtemp(prefix="fuzz-", dir=_IN_MEMORY))
    try:
        folder = _write(case, root)
        before = _picture(root)
        parsed = case.parsed()
        effects = effects_of(case.target, parsed, folder)
        ended = _run(case, folder, effects, limits)
        after = _picture(root)
        violations = [*_judge_end(case, parsed, ended, limits), *_judge_files(ended, before, after, effects, folder)]
        if ended.status == 0 and not violations and not _speaks_of_itself(ended):
            if effects.outputs and not effects.edited:
                violations += _judge_output(case, folder, before, after, effects.outputs)
            if case.target.startswith("metadata "):
                violations += _judge_metadata(parsed, ended, folder, before, after, effects)
    finally:
        if keep is None:
            shutil.rmtree(root)
    return Examined(ended.status, violations, ended.cpu_seconds, ended.peak_bytes, ended.stdout, ended.stderr)


@cache
def prepare() -> None:
    """Imports whatever a command imports when it comes to that, so that nothing may be imported afterwards."""
    import lora_inspect
    import networks

    for package in (lora_inspect, networks):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(("__main__", ".train_example")):
                importlib.import_module(module.name)
    for name in _IMPORTED_LATER:
        importlib.import_module(name)
    for case in _first_cases():
        root = tempfile.mkdtemp(prefix="fuzz-", dir=_IN_MEMORY)
        try:
            _run(case, _write(case, root), NOTHING, LIMITS, is_watched=False)
        finally:
            shutil.rmtree(root)


# What Python imports when it first does something: the codecs of JSON that is no UTF-8 among them.
_IMPORTED_LATER = (
    "numpy.random", "torch._dynamo", "torch.fx.experimental.symbolic_shapes",
    "unicodedata", "hashlib", "ctypes", "fnmatch", "difflib", "encodings.unicode_escape", "encodings.utf_8_sig",
    "encodings.utf_16", "encodings.utf_16_be", "encodings.utf_16_le", "encodings.utf_32", "encodings.utf_32_be",
    "encodings.utf_32_le", "tabulate", "jinja2",
)  # fmt: skip


def _first_cases() -> Iterator[Case]:
    from fuzz.seeds import seed

    for name in ("kohya", "DoRA as dora_layer.weight", "Tucker", "peft, in its folder"):
        files = seed(name)
        adapter = files.adapters[0]
        for base in ("base.safetensors", "shards"):
            yield Case(files.contents, ("merge", base, f"{adapter}:0.5", "-o", "out.safetensors"))
        yield Case(files.contents, ("info", adapter, "--modules", "--metadata"))
        yield Case(files.contents, ("report", adapter, "-o", "out.html"))
        yield Case(files.contents, ("convert", adapter, "-o", "out", "--base", "base.safetensors", "--rank", "2"))
        yield Case(files.contents, ("convert", adapter, "-o", "out.safetensors", "--keep-dora"))
        yield Case(files.contents, ("merge", "--no-such-option"))
        yield Case(files.contents, ("merge", "--help"))
        yield Case(files.contents, ("metadata", "set", adapter, "title=x", "--hashes"))
    for module in networks_target.MODULES:
        yield Case(seed("kohya").contents, (NETWORKS, module, "a.safetensors"))
    for file in ("zip.pt", "old.pt"):
        yield Case(seed(f"torch.save, {file}").contents, (NETWORKS, "lora", file))


def _write(case: Case, root: str) -> str:
    """The case's own folder below `root`, beside one that no command has anything to do with."""
    outside, folder = Path(root, "outside"), Path(root, "case")
    for made in (outside, folder):
        made.mkdir()
    (outside / "secret.txt").write_bytes(hostile.SECRET)
    write(case.contents, folder)
    return str(folder)


# What others have left open may be closed as garbage at any moment; what a case leaves open may not count on it.
@without_collecting()
def _run(case: Case, folder: str, effects: Effects, limits: Limits, is_watched: bool = True) -> _Ended:
    ended = _Ended()
    links = [os.path.join(folder, name) for name, content in case.contents.items() if isinstance(content, Link)]
    words = {part for word in case.command for part in (word, word.rpartition(":")[0], *_values(word))}
    named = {os.path.realpath(path) for path in (*links, *(os.path.join(folder, word) for word in words))}
    # Whoever names the folder above means all that is in it.
    folders = [path for path in named if path == os.path.dirname(folder)]
    # The nearest names are looked for beside a path that is not there.
    allowed = Allowed(
        (folder, *folders),
        frozenset(named),
        frozenset(map(os.path.dirname, named)),
        effects.outputs,
        trees=effects.outputs if effects.below else (),
        rewritten=effects.rewritten,
        journals=effects.journals,
    )
    printed = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    descriptors, resident, started = _descriptors(), _reset_peak(), time.process_time()
    with _in_folder(folder), _signals_kept(), _in_one_process(), contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(printed[0]))
        stack.enter_context(contextlib.redirect_stderr(printed[1]))
        try:
            with _limited(limits), watched(allowed) if is_watched else contextlib.nullcontext():
                ended.status = _call(case)
        except _Hang:
            ended.hung = True
        except Forbidden:
            pass  # it is among what was seen
        except BaseException:
            ended.raised = traceback.format_exc()
    ended.cpu_seconds = time.process_time() - started
    ended.peak_bytes = _peak() - resident
    ended.descriptors = _descriptors() - descriptors
    ended.stdout, ended.stderr = (stream.buffer.getvalue().decode("utf-8", "surrogateescape") for stream in printed)
    ended.seen = allowed.seen
    return ended


def _call(case: Case) -> int:
    if case.target == NETWORKS:
        return networks_target.load(*case.command[1:])
    from lora_inspect import cli

    try:
        cli.main(list(case.command))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    raise AssertionError("the command did not end the process")


def _values(word: str) -> tuple[str, str]:
    """What an option or a key is given, and the file that it may name."""
    value = word.partition("=")[2] or word
    return value, value.removeprefix("@")


def _in_one_process() -> contextlib.AbstractContextManager[Any]:
    """Has the files of a folder read here, where all is seen: to start a process never pays."""
    return mock.patch.multiple(workers, _COPY=float("inf"), _NEW=float("inf"))


@contextlib.contextmanager
def _in_folder(folder: str) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _limited(limits: Limits) -> Iterator[None]:
    """Ends what takes too long by _Hang, and what takes too much by MemoryError; warnings are errors."""

    def end(number: int, frame: FrameType | None) -> None:
        raise _Hang

    handlers = {number: signal.signal(number, end) for number in (signal.SIGPROF, signal.SIGALRM)}
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    # Once more after a while: what is raised in a finaliser is lost.
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds, 1.0)
    signal.setitimer(signal.ITIMER_REAL, limits.wall_seconds, 5.0)
    resource.setrlimit(resource.RLIMIT_AS, (_memory("VmSize") + _ADDRESSES, hard))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def _reset_peak() -> int:
    """Has the kernel forget the largest size of this process, and returns the present one."""
    with open("/proc/self/clear_refs", "w") as handle:
        handle.write("5")
    return _memory("VmRSS")


def resident() -> int:
    """Bytes of this process in memory."""
    return _memory("VmRSS")


def _peak() -> int:
    return _memory("VmHWM")


def _memory(name: str) -> int:
    with open("/proc/self/status") as handle:
        return next(int(line.split()[1]) << 10 for line in handle if line.startswith(f"{name}:"))


Picture = dict[str, tuple[Any, ...]]


def _picture(root: str) -> Picture:
    """All that is below a folder, with what would tell that it was touched."""
    found: Picture = {}
    for parent, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(parent, name)
            status = os.lstat(path)
            content: bytes | str = b""
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(status.st_mode) and status.st_size > _READ_BYTES:
                content = f"{status.st_size} bytes"
            elif stat.S_ISREG(status.st_mode):
                with open(path, "rb") as handle:
                    content = handle.read()
            touched = 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns
            found[path] = (status.st_mode, touched, status.st_ino, content)
    return found


def _judge_end(case: Case, parsed: dict[str, Any], ended: _Ended, limits: Limits) -> Iterator[Violation]:
    yield from (Violation("audit", says) for says in ended.seen)
    if ended.hung or ended.cpu_seconds > limits.cpu_seconds:
        yield Violation("hang", f"{ended.cpu_seconds:.1f} s of the processor")
    if ended.peak_bytes > limits.peak_bytes:
        yield Violation("growth", f"{ended.peak_bytes / MEGABYTE:.0f} MB")
    if ended.descriptors:
        yield Violation("descriptor", f"{ended.descriptors} more are open than before")
    if ended.raised:
        yield Violation("traceback", ended.raised)
    if ended.hung or ended.seen or ended.raised:
        return
    if "Traceback (most recent call last)" in ended.stderr + ended.stdout or "Logging error" in ended.stderr:
        yield Violation("traceback", ended.stderr)
    if case.target != NETWORKS:
        yield from _judge_words(case, parsed, ended)


def _judge_words(case: Case, parsed: dict[str, Any], ended: _Ended) -> Iterator[Violation]:
    lines = ended.stderr.split("\n")
    errors = [line for line in lines if line.startswith("Error: ")]
    if ended.status not in (0, 1, 2, 3):
        yield Violation("exit", f"status {ended.status}")
    if any(_DEFECT in line for line in errors):
        yield Violation("traceback", ended.stderr)
    if any(_NO_MEMORY in line for line in errors):
        yield Violation("growth", ended.stderr)
    if ended.status in (1, 3):
        most = _checkpoints(case, parsed) if case.target in ("info", "check", "convert", "no verb") else 1
        # An answer that is no is printed, and no error.
        answers = ("check", "compare", "compat", "info", "no verb", "verify")
        least = 0 if ended.status == 1 and case.target in answers and ended.stdout else 1
        if not least <= len(errors) <= most or not all(line.endswith(".") for line in errors):
            yield Violation("exit", f"status {ended.status} with {len(errors)} sentences: {ended.stderr}")
        if others := [line for line in lines if line and line not in errors and not line.startswith("Note: ")]:
            yield Violation("exit", f"status {ended.status} and more than a sentence: {others}")
    wants_error = ended.status == 2 and len(case.command) > 1
    if (ended.status == 0 and errors) or (wants_error and len(errors) != 1):
        yield Violation("exit", f"status {ended.status} with {len(errors)} sentences: {ended.stderr}")
    # A single value goes into a pipe as it is.
    shown = ended.stderr if case.target == "metadata get" else ended.stdout + ended.stderr
    if odd := {letter for letter in shown if not letter.isprintable() and letter != "\n"}:
        yield Violation("printed", repr(odd))
    if ended.status == 0 and not _speaks_of_itself(ended):
        try:
            for text in _documents(parsed, ended.stdout):
                json.loads(text, parse_constant=_refuse_constant)
        except ValueError as error:
            yield Violation("printed", f"no JSON: {error}")


def _documents(parsed: dict[str, Any], stdout: str) -> list[str]:
    """The JSON that was asked for: one a line, or one in all."""
    if parsed.get("jsonl"):
        return stdout.splitlines()
    is_one = any(map(parsed.get, ("as_json", "as_json_", "json"))) or parsed.get("format_") in ("json", "sarif")
    return [stdout] if is_one else []


def _speaks_of_itself(ended: _Ended) -> bool:
    """Whether it was asked for help or for its version."""
    return ended.stdout.startswith(("Usage:", "lora-inspect, version"))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def _checkpoints(case: Case, parsed: dict[str, Any]) -> int:
    """How many sentences a verb may need at most: one for each path, and for each file in one that is a folder."""
    paths = parsed.get("paths") or (parsed.get("adapter") or "",)
    folders = ["." if path in (".", "..") else path.rstrip("/") for path in paths]
    is_link = any(isinstance(case.contents.get(path), Link) for path in folders)
    below = [
        name
        for name in case.contents
        if "." in folders or is_link or any(name.startswith(f"{path}/") for path in folders)
    ]
    return max(1, len(folders) + len(below))


def _judge_files(ended: _Ended, before: Picture, after: Picture, effects: Effects, folder: str) -> Iterator[Violation]:
    results = _results(folder, effects.outputs)
    # Of many files those that can be are converted, whatever becomes of the others.
    is_done = ended.status == 0 or (effects.below and ended.status == 1)
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) == after.get(path):
            continue
        name = os.path.relpath(path, folder)
        is_result = any(path == result or path.startswith(result + os.sep) for result in results)
        if is_done and is_result and not effects.edited and not _LEFTOVER.fullmatch(path):
            continue
        is_edited = ended.status == 0 and path in effects.edited
        if (is_edited or path in effects.repaired) and path in before and path in after:
            yield from _judge_header(name, _repaired(before, path), after[path], is_edited)
            continue
        if path not in before:
            yield Violation("leftover", f"{name!r} is new, with status {ended.status}")
        elif path not in after:
            # What a dead run left beside the same output is swept up.
            is_swept = _LEFTOVER.fullmatch(path) and any(path.startswith(f"{result}.") for result in results)
            if not is_swept and not (path in effects.journals and is_journal(before[path][3])):
                yield Violation("input", f"{name!r} is gone")
        elif before[path][0] != after[path][0] or not stat.S_ISDIR(after[path][0]):
            yield Violation("input", f"{name!r} is changed")


def _results(folder: str, outputs: tuple[str, ...]) -> list[str]:
    """Where the outputs lie. A folder of theirs may be a link, which the user has named; their last name is none."""
    paths = [os.path.normpath(os.path.join(folder, output)) for output in outputs]
    return [os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)) for path in paths]


def _judge_output(
    case: Case, folder: str, before: Picture, after: Picture, outputs: tuple[str, ...]
) -> Iterator[Violation]:
    results = [path for path in _results(folder, outputs) if path in after]
    written = [path for path in after if after[path] != before.get(path) and stat.S_ISREG(after[path][0])]
    if not written:
        yield Violation("output", "status 0, but nothing was written")
        return
    for path in written:
        is_named = any("secret" in word for word in case.command)
        if isinstance(content := after[path][3], bytes) and hostile.SECRET in content and not is_named:
            yield Violation("output", f"{path} holds what lay outside of the folder")
        if path.endswith(".safetensors") and os.path.dirname(path) in (*results, *map(os.path.dirname, results)):
            yield from _judge_weights(path)
    if case.target.startswith("metadata "):
        source = os.path.join(folder, case.parsed()["path"])
        # One of a set is read by itself nowhere, and what was refused before may be so in its new place.
        if any(_SHARD.search(path) for path in written) or any(_judge_reading(source)):
            return
    # What jobs leave for each other is no output yet.
    whole = [result for result in results if not result.endswith(PARTS)]
    for result in [result for result in whole if result in written] or whole[:1]:
        if case.target != "report":
            yield from _judge_reading(result)
        elif not (isinstance(page := after[result][3], bytes) and page.rstrip().endswith(b"</html>")):
            yield Violation("output", f"{result} is no whole page")


def _repaired(before: Picture, path: str) -> tuple[Any, ...]:
    """A file as the next run has to see it, whatever a dead one has left of its header."""
    *rest, content = before[path]
    journal = before.get(path + JOURNAL, (b"",))[-1]
    return (*rest, repaired(content, journal) if isinstance(content, bytes) and isinstance(journal, bytes) else content)


def _judge_header(name: str, was: tuple[Any, ...], now: tuple[Any, ...], is_edited: bool) -> Iterator[Violation]:
    """A file that was changed: by an edit in its metadata alone, else only put right."""
    if was[0] != now[0]:
        yield Violation("input", f"{name!r} has other rights")
    if not isinstance(now[3], bytes) or not isinstance(was[3], bytes):
        return
    if is_edited and not same_tensors(was[3], now[3]):
        yield Violation("input", f"the tensors of {name!r} are changed")
    elif not is_edited and was[3] != now[3]:
        yield Violation("input", f"{name!r} is changed")


def _judge_metadata(
    parsed: dict[str, Any], ended: _Ended, folder: str, before: Picture, after: Picture, effects: Effects
) -> Iterator[Violation]:
    """What has been written holds the tensors of PATH and can be read; what was asked for is what stands there."""
    named = os.path.realpath(os.path.join(folder, parsed["path"]))
    place = os.path.dirname(named) if named.endswith(".json") else named
    sources = [_repaired(before, path)[3] for path in before if path == named or path.startswith(place + os.sep)]
    contents = [content for content in sources if isinstance(content, bytes)]
    if "key" in parsed:
        values = [value.encode() for content in contents for value in values_of(content, parsed["key"])]
        if values and ended.stdout.encode("utf-8", "surrogateescape") not in values:
            yield Violation("printed", f"not the value of {parsed['key']!r}")
        return
    mended = {*effects.repaired} - {*effects.edited}
    written = [path for path in after if after[path] != before.get(path) and path not in mended]
    for path in written if "in_place" in parsed else ():
        if isinstance(content := after[path][3], bytes) and stat.S_ISREG(after[path][0]):
            yield from _judge_weights(path)
            if not any(same_tensors(one, content) for one in contents):
                yield Violation("output", f"{path} has not the tensors of {parsed['path']!r}")


def _judge_weights(path: str) -> Iterator[Violation]:
    """Opens a file with the real library, to its last tensor."""
    from safetensors import SafetensorError, deserialize

    try:
        deserialize(Path(path).read_bytes())
    except SafetensorError as error:
        yield Violation("output", f"the safetensors library refuses {path}: {error}")


def _judge_reading(path: str) -> Iterator[Violation]:
    from lora_inspect.errors import LoraInspectError
    from lora_inspect.reading.file_info import inspect
    from lora_inspect.reporting.file_record import as_json

    try:
        as_json(inspect(path), modules=True)
    except LoraInspectError as error:
        yield Violation("output", f"info refuses the output: {error}")
