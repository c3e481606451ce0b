"""Ends a process at each of the system calls with which an output is written, and says what that left behind.

    python every_moment.py FOLDER (killed|interrupted) PLATFORM

Prints a JSON object: for each kind of output how many moments there are, how often which state was left, how often
which one the next run made of it, and how many different notes it gave.
"""

import json
import os
import shutil
import signal
import sys
from collections import Counter
from contextlib import suppress

from platforms import PLATFORMS

fork, KILL = os.fork, signal.SIGKILL
MODULES = ("os.", "open", "fcntl.", "ctypes.", "shutil.")
OLD, NEW = "old", "new"


def write_file(output, force, text=NEW):
    from lora_inspect.files.outputs import new_file
    from lora_inspect.files.temp_files import remove_leftovers

    notes = remove_leftovers(output)
    with new_file(output, force=force) as descriptor:
        for letter in text:
            os.write(descriptor, letter.encode())
    return notes


def write_folder(output, force, text=NEW):
    from lora_inspect.files.outputs import new_folder
    from lora_inspect.files.temp_files import remove_leftovers

    notes = remove_leftovers(output)
    with new_folder(output, force=force) as folder:
        os.mkdir(os.path.join(folder, "sub"))
        for name in ("a", "sub/b"):
            write_file(os.path.join(folder, name), False, text)
    return notes


# kind: how it is written, whether there is one already, what it is when it is complete
KINDS = {"a file": (write_file, False), "a file again": (write_file, True),
         "a folder": (write_folder, False), "a folder again": (write_folder, True)}  # fmt: skip


def text_of(path):
    with open(path) as handle:
        return handle.read()


def state(place):
    """What is under the output's name, and the other names beside it with their random parts taken out."""
    output = os.path.join(place, "out")
    if os.path.isdir(output):
        texts = {text_of(os.path.join(output, name)) for name in ("a", "sub/b")}
        names = sorted(os.path.relpath(os.path.join(p, n), output) for p, d, f in os.walk(output) for n in (*d, *f))
        shown = texts.pop() if len(texts) == 1 and names == ["a", "sub", "sub/b"] else f"parts {names}"
    else:
        shown = text_of(output) if os.path.exists(output) else "none"
    others = sorted("." + name.split(".", 2)[2] for name in os.listdir(place) if name != "out")
    return " ".join([shown, *others])


class Moment:
    """Ends the process, or interrupts it, at the call with a number."""

    def __init__(self, how):
        self.how, self.left = how, 0
        for name in ("write", "fsync"):
            setattr(os, name, self.announced(f"os.{name}", getattr(os, name)))
        sys.addaudithook(self.call)

    def announced(self, event, real):
        def announce(*arguments):
            self.call(event, arguments)
            return real(*arguments)

        return announce

    def call(self, event, arguments):
        if self.left and event.startswith(MODULES):
            self.left -= 1
            if not self.left:
                if self.how == "killed":
                    os.kill(os.getpid(), KILL)
                raise KeyboardInterrupt

    def reached(self, number, action):
        """Whether the action gets as far as the call with this number."""
        if self.how == "killed":
            return in_a_child(lambda: self.reached_here(number, action))
        return self.reached_here(number, action)

    def reached_here(self, number, action):
        self.left = number
        try:
            action()
        except KeyboardInterrupt:
            return True
        self.left = 0
        return False


def in_a_child(action):
    """Whether the action is true, or was killed, in a process of its own."""
    child = fork()
    if child:
        return os.waitpid(child, 0)[1] != 0
    with suppress(BaseException):
        os._exit(1 if action() else 0)
    os._exit(1)


def main(root, how, platform):
    os.fsync = lambda descriptor: None  # the death of a process takes nothing from the disk, and waiting takes long
    PLATFORMS[platform].play()
    until = Moment(how)
    found = {}
    for kind, (write, is_there) in KINDS.items():
        left, mended, moment, notes = Counter(), Counter(), 1, set()
        while True:
            place = os.path.join(root, f"{kind} {moment}")
            os.mkdir(place)
            output = os.path.join(place, "out")
            if is_there:
                write(output, False, OLD)
            if not until.reached(moment, lambda output=output, write=write, force=is_there: write(output, force)):
                break
            left[state(place)] += 1
            notes |= {note.replace(place, "") for note in write(output, True)}
            mended[state(place)] += 1
            shutil.rmtree(place)
            moment += 1
        found[kind] = {"moments": moment - 1, "left": left, "next": mended, "notes": len(notes)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
