"""What stands in for the parts of one system on others: renaming, locks, and what is taken for a leftover."""

import os
from pathlib import Path

import pytest
from platforms import PLATFORMS

PYTHONPATH = os.pathsep.join(map(str, (Path(__file__).parents[2], Path(__file__).parents[1])))

PLAYING = """
import json, os, sys
from platforms import PLATFORMS
PLATFORMS[sys.argv[1]].play()
from lora_inspect.files.temp_files import _LOCKED, claimed, remove_leftovers
from lora_inspect.files.system import rename_new

def make(path, text):
    if text == "folder":
        os.mkdir(path)
        path += "/a"
    with open(path, "w") as handle:
        handle.write(text)

def refused(kind):
    os.mkdir(kind)
    make(f"{kind}/source", kind)
    make(f"{kind}/target", kind)
    try:
        rename_new(f"{kind}/source", f"{kind}/target")
    except FileExistsError:
        return sorted(os.listdir(kind))

def left(name, mark):
    os.mkdir(name)
    make(f"{name}/out.0123456789abcdef.partial", "half")
    make(f"{name}/out.0123456789abcdef.partial.lock", mark)
    return len(remove_leftovers(f"{name}/out")), len(os.listdir(name))

os.mkdir("living")
with claimed("living/out") as partial:
    make(partial, "half")
    living = len(remove_leftovers("living/out")), len(os.listdir("living"))
print(json.dumps({
    "refused": [refused("file"), refused("folder")], "living": living, "ended": os.listdir("living"),
    "dead": left("dead", _LOCKED.decode()), "foreign": left("foreign", "1234"),
}))
"""


@pytest.mark.parametrize("platform", PLATFORMS)
def test_what_is_there_is_not_replaced_and_only_what_is_known_to_be_dead_is_removed(platform, run_process):
    found = run_process("-c", PLAYING, platform, PYTHONPATH=PYTHONPATH).json
    assert found["refused"] == [["source", "target"]] * 2
    locks = PLATFORMS[platform].locks
    # Sentences on what stays, and how many names stay.
    assert found["living"] == ([0, 2] if locks else [1, 2])
    assert found["ended"] == []
    assert found["dead"] == ([0, 0] if locks else [1, 2])
    assert found["foreign"] == [1, 2]
