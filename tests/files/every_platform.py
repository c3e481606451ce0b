"""Runs merge, convert and check --fix as they run on other systems, kills some runs, and says what came of them.

    python every_platform.py FOLDER FIXTURES PLATFORM...

Prints a JSON object: for "here" and each platform, for each kind of output, the digests of what was written where
nothing was ("new") and by --force ("again"); of the outputs of runs that were killed while they replaced another one
("old") under "killed", and after the next run under "next". "around" are digests of all that lay there then.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import traceback

from killed_calls import kill_at_call
from platforms import PLATFORMS

fork, KILL = os.fork, signal.SIGKILL
MOMENTS = 3

MERGE_FILE = ["merge", "synthetic/base_f32.safetensors"]
MERGE_FOLDER = ["merge", "synthetic/base_sharded"]
# kind: what writes it, and what has written the one that is replaced
KINDS = {
    "merged file": ([*MERGE_FILE, "synthetic/rslora_flag.safetensors"],
                    [*MERGE_FILE, "synthetic/rslora_flag.safetensors:0.5"]),
    "merged folder": ([*MERGE_FOLDER, "synthetic/split.safetensors"],
                      [*MERGE_FOLDER, "synthetic/split.safetensors:0.5"]),
    "converted file": (["convert", "synthetic/rslora_flag.safetensors"],
                       ["convert", "synthetic/i64_alpha.safetensors"]),
    "converted folder": (["convert", "minilm-peft-rslora-r16"], ["convert", "minilm-peft-lora-r8"]),
    "fixed file": (["check", "synthetic/bf16_alpha_and_flags.safetensors", "--fix"],
                   ["convert", "synthetic/split.safetensors"]),
}  # fmt: skip


def output_in(place):
    """The output of the kind that a place is named for."""
    return os.path.join(place, "out.safetensors" if "file" in os.path.basename(place) else "out")


def run(command, place, *options):
    """Runs the command line in this process; raises AssertionError where it refuses."""
    from lora_inspect.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main([*command, "-o", output_in(place), *options])
        except SystemExit as ended:
            status = ended.code
    assert status == 0, said.getvalue()


def digest(path):
    """Of a file, or of a folder with all that is in it; None where there is nothing."""
    if not os.path.lexists(path):
        return None
    summed = hashlib.sha256()
    found = (
        [path] if os.path.isfile(path) else sorted(os.path.join(p, n) for p, _, names in os.walk(path) for n in names)
    )
    for file in found:
        with open(file, "rb") as handle:
            summed.update(f"{os.path.relpath(file, path)}\n".encode() + hashlib.sha256(handle.read()).digest())
    return summed.hexdigest()[:16]


def in_a_child(action):
    """What the action returns, in a process of its own; None where that was killed."""
    reading, writing = os.pipe()
    child = fork()
    if not child:
        try:
            os.write(writing, json.dumps(action()).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writing)
    with open(reading, "rb") as handle:
        said = handle.read()
    status = os.waitpid(child, 0)[1]
    assert status in (0, KILL), said
    return json.loads(said) if said else None


def ended_at(moment, place, command):
    """Runs a command until the call of the system with this number that has to do with the place.

    Returns how many there are where the command came to its end before.
    """
    calls = kill_at_call(moment, place)
    run(command, place, "--force")
    return calls()


def on_platform(platform, root, olds):
    """What came of all kinds on one platform."""
    places = {kind: [os.path.join(root, f"{kind} {moment}") for moment in range(MOMENTS)] for kind in KINDS}
    for kind, old in olds.items():
        os.mkdir(os.path.join(root, kind))
        for place in places[kind]:
            shutil.copytree(old, place)
    platform.play()
    found = {}
    for kind, (command, _) in KINDS.items():
        place = os.path.join(root, kind)
        run(command, place)
        new = digest(output_in(place))
        run(command, place, "--force")
        again = digest(output_in(place))
        found[kind] = {"new": new, "again": again, "killed": [], "next": [], "around": [digest(place)]}
        calls = in_a_child(lambda place=place, command=command: ended_at(0, place, command))
        for number, place in enumerate(places[kind], 1):
            moment = calls * number // MOMENTS
            assert in_a_child(lambda p=place, command=command, moment=moment: ended_at(moment, p, command)) is None
            found[kind]["killed"].append(digest(output_in(place)))
            run(command, place, "--force")
            found[kind]["next"].append(digest(output_in(place)))
            found[kind]["around"].append(digest(place))
    return found


def main(root, fixtures, platforms):
    os.chdir(fixtures)
    os.fsync = lambda descriptor: None  # the death of a process takes nothing from the disk, and waiting takes long
    olds, here = {}, {}
    for kind, (command, before) in KINDS.items():
        olds[kind] = os.path.join(root, f"{kind} before")
        os.mkdir(olds[kind])
        run(before, olds[kind])
        place = os.path.join(root, kind)
        os.mkdir(place)
        run(command, place)
        new, old = (digest(output_in(folder)) for folder in (place, olds[kind]))
        here[kind] = {"new": new, "old": old, "around": digest(place)}
    # All else is imported by now; what depends on the system is imported once more.
    for name in [name for name in sys.modules if name.split(".")[0] == "lora_inspect"]:
        del sys.modules[name]
    found = {"here": here}
    for name in platforms:
        platform = PLATFORMS[name]
        folder = os.path.join(root, name)
        os.mkdir(folder)
        found[name] = in_a_child(lambda platform=platform, folder=folder: on_platform(platform, folder, olds))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*map(os.path.abspath, sys.argv[1:3]), sys.argv[3:])
