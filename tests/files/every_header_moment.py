"""Ends a process at each of the system calls with which a metadata is written, and says what that left behind.

    python every_header_moment.py FOLDER (killed|interrupted) PLATFORM

No call writes more than a piece, so that the process also ends within a header. Prints a JSON object: in
place and anew, how many moments there are, how often which state was left and which one the next run made of it, and
how many different data sections there were.
"""

import json
import os
import shutil
import sys
import time
from collections import Counter

from every_moment import Moment
from platforms import PLATFORMS

OLD, NEW = {"title": "old", "more": "x" * 400}, {"title": "new", "more": "y" * 400}
NAME, PIECE = "a.safetensors", 64


def set_up(place):
    from lora_inspect.files.safetensors.writer import TensorPlan, encode_header

    os.mkdir(place)
    with open(os.path.join(place, NAME), "wb") as handle:
        handle.write(encode_header([TensorPlan("a", "U8", (3,))], OLD) + b"yes")


def rewrite(place, in_place):
    from lora_inspect.files.safetensors.edit_in_place import editing, read_headed, write_anew, write_in_place

    file = os.path.join(place, NAME)
    with editing(file) as own:
        if in_place:
            write_in_place(read_headed(file), NEW, own)
        else:
            write_anew(read_headed(file), NEW, file)


def put_all_right(place):
    from lora_inspect.files.safetensors.edit_in_place import repair
    from lora_inspect.files.temp_files import remove_leftovers

    for name in os.listdir(place):
        os.utime(os.path.join(place, name), (time.time() - 100,) * 2)
    repair(place)
    return remove_leftovers(os.path.join(place, NAME))


def state(place):
    from lora_inspect.errors import LoraInspectError
    from lora_inspect.files.safetensors.header import read_header

    try:
        about = read_header(os.path.join(place, NAME))[1]
    except LoraInspectError as error:
        shown = "torn" if "to repair it" in str(error) else str(error)
    else:
        shown = {str(OLD): "old", str(NEW): "new"}[str(about)]
    left = {name.removeprefix(NAME).split(".")[-1] for name in os.listdir(place)} - {""}
    return " ".join([shown, *sorted(left)])


def data(place):
    with open(os.path.join(place, NAME), "rb") as handle:
        content = handle.read()
    return content[8 + int.from_bytes(content[:8], "little") :]


def main(root, how, platform):
    os.fsync = lambda descriptor: None  # the death of a process takes nothing from the disk, and waiting takes long
    PLATFORMS[platform].play()
    until, real = Moment(how), os.write
    os.write = lambda descriptor, view: real(descriptor, view[:PIECE])
    found = {}
    for in_place in (True, False):
        left, mended, datas, notes, moment = Counter(), Counter(), set(), 0, 1
        while True:
            place = os.path.join(root, f"{in_place} {moment}")
            set_up(place)
            if not until.reached(moment, lambda place=place, in_place=in_place: rewrite(place, in_place)):
                break
            left[state(place)] += 1
            notes += len(put_all_right(place))
            mended[state(place)] += 1
            datas.add(data(place))
            shutil.rmtree(place)
            moment += 1
        kind = "in place" if in_place else "anew"
        found[kind] = {"moments": moment - 1, "left": left, "next": mended, "data": len(datas), "notes": notes}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
