"""A record of what some 780 commands do, to compare a tree with another that ought to do the same.

    python benchmarks/commands.py record DIR [--root CHECKOUT] [--renamed] [--jobs 2]
    python benchmarks/commands.py compare DIR1 DIR2 [--facts]

`record` runs the program of a checkout, this one by default, and writes DIR/record.json: of each command the exit
status, what it prints, and every file that it writes or removes. The inputs are this checkout's fixtures and small
files made here, the same bytes each time. Each command has a process of its own, forked from one that has loaded the
libraries and nothing of the program. `compare` prints what differs, and exits with 1 where anything does. With --facts
printed text may have other words, but keeps its options, numbers, paths, keys and quoted names.

RENAMED_OPTIONS is for trees in which options have other names: `compare` says DIR1's texts in the new names, and
`record --renamed` gives the new names to the commands, which are recorded under their old ones.
"""

import argparse
import difflib
import hashlib
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from command_list import parsed, scripts, write_inputs

# Old name of an option -> new name, as "--touched-dtype": "--changed-dtype".
RENAMED_OPTIONS = {
    "merge --undo": "unmerge",
    "--lossy": "--allow-loss",
    "--accept-loss": "--allow-loss",
    "--accept-unproved": "--allow-ambiguous",
    "--allow-other-meaning": "--allow-meaning-change",
    "--touched-dtype": "--changed-dtype",
    "--drop-unclaimed": "--allow-unclaimed",
    "--except": "--exclude",
    '"consumers":': '"programs":',
    '"consumer":': '"program":',
    '"mended":': '"fixed":',
    "mended:": "fixed:",
    '"beside":': '"unexpected":',
}
# Codes of problems and findings; "twice" is one of each verb.
RENAMED_CODES = {
    **{"shape": "shape-mismatch", "scheme": "scheme-unknown", "experts": "experts-ambiguous"},
    **{"algorithm": "algorithm-unsupported", "pattern": "pattern-unsupported"},
    **{"peft-setting": "peft-setting-unsupported", "no-weight": "no-weight-change"},
    **{"beside": "unexpected-change", "turned": "transposed", "there-at-0": "present-at-zero"},
    **{"cannot-tell": "undetermined"},
}
# What a sentence may not lose when it is written in other words: options, numbers, paths, keys and quoted names.
FACTS = re.compile(r"--[a-z][a-z-]*|\d[\d,.]*|[\w*%-]+(?:[./_][\w*%-]+)+|\"[^\"\s]+\"")
# Of `metadata copy` alone; in other verbs the option names components.
ONLY_OF_COPY = re.compile(r"(?<=metadata copy )(.*?)--only\b", re.DOTALL)

ROOT = Path(__file__).resolve().parents[1]
# What a command sees beside its own folder: links of these names.
INPUTS = ("fixtures", "made")
LIBRARIES = ("torch", "numpy", "safetensors.torch", "click", "tabulate", "gguf")
# What differs between two runs of the same command.
NOISE = (
    (re.compile(r"\bin \d[\d,]*\.\d s\b"), "in SECONDS s"),
    (re.compile(r'("seconds": )[\d.e-]+'), r"\1SECONDS"),
)
LONGEST, MOST_LINES = 120, 30
THEN = " && "

Record = dict[str, Any]
# A way to compare two texts: a name of them, the old and the new one; empty where they agree.
Difference = Callable[[str, str, str], str]


# Running them.


def renamed(text: str) -> str:
    for old, new in RENAMED_OPTIONS.items():
        text = re.sub(rf"(?<![\w-]){re.escape(old)}(?![\w-])", new, text)
    for old, new in RENAMED_CODES.items():
        text = re.sub(rf'(?<="code": )"{old}"|(?<="ruleId": )"{old}"', f'"{new}"', text)
        text = re.sub(rf"\b(error|warning|note) {old}:", rf"\1 {new}:", text)
    return ONLY_OF_COPY.sub(r"\1--include", text)


def become(words: Sequence[str], entry: Sequence[str], folder: Path, streams: Sequence[Path]) -> None:
    """Runs the program in this process, a child, and ends it."""
    status: object = 70
    try:
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number_, path in enumerate(streams, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number_)
        signal.alarm(LONGEST)
        sys.argv = ["lora-inspect", *words]
        getattr(importlib.import_module(entry[0]), entry[1])()
        status = 0
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:
        traceback.print_exc()
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


def content_of(path: Path) -> Record:
    """The SHA-256, and what can be read: JSON, or of safetensors the metadata, with that of all else beside it."""
    data = path.read_bytes()
    told: Record = {"sha256": hashlib.sha256(data).hexdigest()}
    if path.suffix == ".json":
        told["text"] = data.decode(errors="backslashreplace")
    elif path.suffix == ".safetensors":
        header, tensors = parsed(data)
        metadata = header.pop("__metadata__", None) or {}
        told["text"] = "".join(f"{key}: {value}\n" for key, value in metadata.items()).replace(", ", ",\n  ")
        told["tensors"] = hashlib.sha256(json.dumps(header).encode() + tensors).hexdigest()
    return told


def work(root: str, scratch: Path, own: int, of: int, is_renamed: bool) -> None:
    """Runs every `of`-th command line, and writes what came of it."""
    sys.path.insert(0, root)
    for library in LIBRARIES:
        importlib.import_module(library)
    found = re.search(r'^lora-inspect = "([\w.]+):(\w+)"', Path(root, "pyproject.toml").read_text(), re.MULTILINE)
    assert found, "the program's entry stands in pyproject.toml"
    records: dict[str, Record] = {}
    streams = [scratch / f"{name}-{own}" for name in ("stdout", "stderr")]
    for script in scripts(scratch)[own::of]:
        folder = scratch / hashlib.sha256(script.encode()).hexdigest()[:12]
        folder.mkdir()
        for name in INPUTS:
            (folder / name).symlink_to(scratch / name)
        before: dict[str, Record] = {}
        steps = script.split(THEN)
        for at, step in enumerate(steps, 1):
            child = os.fork()
            if not child:
                become(shlex.split(renamed(step) if is_renamed else step), found.groups(), folder, streams)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
            after = {str(path.relative_to(folder)): content_of(path) for path in paths}
            files = {path: told for path, told in after.items() if before.get(path) != told}
            record: Record = {"status": status, "files": files | dict.fromkeys(sorted(before.keys() - after.keys()))}
            for name, stream in zip(("stdout", "stderr"), streams, strict=True):
                text = stream.read_bytes().decode(errors="backslashreplace")
                for place, said in ((folder, "FOLDER"), (scratch, "INPUTS"), (root, "CHECKOUT")):
                    text = text.replace(str(place), said)
                for noise, said in NOISE:
                    text = noise.sub(said, text)
                record[name] = text
            records.setdefault(THEN.join(steps[:at]), record)
            before = after
        shutil.rmtree(folder)
    (scratch / f"record-{own}.json").write_text(json.dumps(records))


def record(folder: Path, root: Path, is_renamed: bool, jobs: int) -> None:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="commands-") as temporary:
        scratch = Path(temporary).resolve()
        write_inputs(scratch)
        before = digests(scratch)
        # Nothing of the caller's environment but where programs are.
        environment = dict.fromkeys(("OMP_NUM_THREADS", "NO_COLOR", "HF_HUB_OFFLINE", "PYTHONUTF8"), "1")
        environment |= {"PATH": os.environ["PATH"], "HOME": str(scratch), "PYTHONPATH": str(root), "COLUMNS": "100"}
        environment |= {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
        words = [sys.executable, __file__, "work", str(root), str(scratch), str(int(is_renamed)), str(jobs)]
        workers = [subprocess.Popen([*words, str(own)], env=environment, cwd=scratch) for own in range(jobs)]
        if sum(worker.wait() for worker in workers):
            sys.exit("a worker failed")
        if digests(scratch) != before:
            sys.exit("a command changed its inputs")
        parts = [json.loads((scratch / f"record-{own}.json").read_text()) for own in range(jobs)]
    records = {name: part[name] for part in parts for name in part}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(dict(sorted(records.items())), indent=1) + "\n")
    ended = Counter(told["status"] for told in records.values())
    counts = ", ".join(f"{count} with {status}" for status, count in sorted(ended.items()))
    print(f"{len(records)} commands in {time.perf_counter() - began:.0f} s: {counts}")


def digests(scratch: Path) -> dict[str, tuple[int, int]]:
    paths = [path for name in INPUTS for path in (scratch / name).rglob("*")]
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


# Comparing.


def difference(what: str, old: str, new: str) -> str:
    """In which lines two texts differ; where a rename changes the old one, line breaks and blanks do not count."""
    wanted = renamed(old)
    if wanted == new or (wanted != old and wanted.split() == new.split()):
        return ""
    lines = list(difflib.unified_diff(wanted.splitlines(), new.splitlines(), "old", "new", "", "", 1))[2:]
    more = f"    … {len(lines) - MOST_LINES} lines more\n" if len(lines) > MOST_LINES else ""
    return f"  {what}\n" + "".join(f"    {line}\n" for line in lines[:MOST_LINES] or ["ends of lines"]) + more


def lost(what: str, old: str, new: str) -> str:
    """The facts of the old text that the new one does not state, with both, whatever else they say."""
    stated = Counter(one.rstrip(".,") for one in FACTS.findall(new))
    missing = Counter(one.rstrip(".,") for one in FACTS.findall(renamed(old))) - stated
    both = "".join(f"    {sign} {line}\n" for sign, text in (("-", old), ("+", new)) for line in text.splitlines())
    return f"  {what} no longer states {', '.join(sorted(missing))}\n{both}" if missing else ""


def what_became(file: Record | None) -> str:
    return "removed" if file is None else ("written" if file else "left alone")


def differences(old: Record | None, new: Record | None, told: Difference = difference) -> Iterable[str]:
    if old is None or new is None:
        yield f"  only in the {'new' if old is None else 'old'} record\n"
        return
    if old["status"] != new["status"]:
        yield f"  status: {old['status']} -> {new['status']}\n"
    for stream in ("stdout", "stderr"):
        yield told(stream, old[stream], new[stream])
    for path in sorted(old["files"].keys() | new["files"].keys()):
        was, is_now = (record["files"].get(path, {}) for record in (old, new))
        if not was or not is_now:
            if was != is_now:
                yield f"  file {path}: {what_became(was)} -> {what_became(is_now)}\n"
        elif was != is_now:
            yield (text := difference(f"what {path} says", was.get("text", ""), is_now.get("text", "")))
            is_same = was.get("tensors") == is_now.get("tensors")
            # Of a file that only says a new name, nothing else may differ.
            if text or not is_same or was.get("text") == is_now.get("text"):
                yield f"  file {path}: other bytes{', the same tensors' if is_same and 'tensors' in was else ''}\n"


def compare(old_folder: Path, new_folder: Path, told: Difference) -> int:
    old, new = (json.loads((folder / "record.json").read_text()) for folder in (old_folder, new_folder))
    names, differ = sorted(old.keys() | new.keys()), 0
    for name in names:
        if found := "".join(differences(old.get(name), new.get(name), told)):
            differ += 1
            print(f"lora-inspect {name}\n{found}")
    print(f"{len(names)} commands, {differ} differ")
    return differ


def main() -> None:
    if sys.argv[1:2] == ["work"]:
        root, scratch, is_renamed, jobs, own = sys.argv[2:]
        return work(root, Path(scratch), int(own), int(jobs), is_renamed == "1")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    recording = verbs.add_parser("record")
    recording.add_argument("folder", type=Path)
    recording.add_argument("--root", type=Path, default=ROOT, help="the checkout whose program runs")
    recording.add_argument("--renamed", action="store_true", help="give options their new names")
    recording.add_argument("--jobs", type=int, default=2)
    comparing = verbs.add_parser("compare")
    comparing.add_argument("folders", type=Path, nargs=2)
    comparing.add_argument("--facts", action="store_true", help="of printed text, only facts that are lost")
    arguments = parser.parse_args()
    if arguments.verb == "record":
        record(arguments.folder, arguments.root.resolve(), arguments.renamed, arguments.jobs)
    else:
        sys.exit(compare(*arguments.folders, lost if arguments.facts else difference) > 0)


if __name__ == "__main__":
    main()
