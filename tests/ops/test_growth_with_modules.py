"""The effort for a file grows as the number of its modules does, also where the caches of names are smaller than it."""

import sys

import pytest

from lora_inspect import caching
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.ops.compat import compat

# Both are above the numbers up to which whole files are remembered. The caches have room for the names of the first.
FEW, TIMES, ROOM = 2_100, 5, 8_192


def count_found(path):
    """How many names and keys are looked into because no cache has them, in the verdicts on a file."""
    found = 0

    def note(frame, event, argument):
        nonlocal found
        found += event == "call" and frame.f_code.co_name == "__missing__"

    sys.setprofile(note)
    try:
        compat(str(path))
    finally:
        sys.setprofile(None)
    return found


def adapter(count):
    """Rank 1 for so many layers of Wan's first leaf, in kohya's names."""
    return {
        f"lora_unet_blocks_{count}{number}_self_attn_q.{end}": ("F32", shape, 1.0)
        for number in range(count)
        for end, shape in (("lora_down.weight", [1, 2]), ("lora_up.weight", [2, 1]), ("alpha", []))
    }


@pytest.mark.slow
def test_every_name_is_looked_into_as_often_in_a_large_file(write_safetensors, monkeypatch):
    monkeypatch.setattr(caching, "MOST_NAMES", ROOM)
    few, many = (
        count_found(write_safetensors(adapter(count), {}, f"{count}.safetensors")) for count in (FEW, FEW * TIMES)
    )
    assert few > FEW
    assert many < 1.1 * TIMES * few


def test_the_caches_have_room_for_the_names_of_open_files_alone(write_safetensors, monkeypatch):
    monkeypatch.setattr(caching, "MOST_NAMES", 3)
    monkeypatch.setattr(caching, "_STEP", 1)
    monkeypatch.setattr(caching, "_open_files", caching._OpenFiles())  # other tests may have left files open
    asked = []
    find = caching.remembering_names(asked.append)
    file = write_safetensors({f"{number}.weight": ("F32", [1], 1.0) for number in range(10)}, {}, "a.safetensors")

    checkpoint = open_checkpoint(str(file))
    names = list(checkpoint.tensors)
    for name in names * 2:
        find(name)
    assert asked == names

    del checkpoint
    find("another")
    assert list(find.__self__) == ["another"]
