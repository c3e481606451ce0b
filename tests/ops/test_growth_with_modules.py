"""The effort for a file grows as the number of its modules does, also where the caches of names are smaller than it."""

import sys
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_inspect import caching
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.ops.compat import compat
from lora_inspect.reading import identify

# Both are above the numbers up to which whole files are remembered. The caches have room for the names of the first.
FEW, TIMES, ROOM = 2_100, 5, 8_192


class Effort(NamedTuple):
    """The calls of functions in the verdicts on a file, and those that find what no cache of names has."""

    calls: int
    found: int


def effort(path):
    calls = found = 0

    def note(frame, event, argument):
        nonlocal calls, found
        if event == "call":
            calls += 1
            found += frame.f_code.co_name == "__missing__"

    sys.setprofile(note)
    try:
        compat(str(path))
    finally:
        sys.setprofile(None)
    return Effort(calls, found)


def write_adapter(path, count):
    """Write rank 1 for so many layers of Wan's first leaf, in kohya's names."""
    shapes = {"lora_down.weight": (1, 2), "lora_up.weight": (2, 1), "alpha": ()}
    names = (f"lora_unet_blocks_{count}{number}_self_attn_q" for number in range(count))
    save_file({f"{name}.{end}": np.ones(shape, "f4") for name in names for end, shape in shapes.items()}, path)
    return path


@pytest.fixture(scope="module")
def efforts(tmp_path_factory):
    """The efforts for FEW modules and for TIMES as many, where the caches have room for the first."""
    folder = tmp_path_factory.mktemp("growth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caching, "MOST_NAMES", ROOM)
        patch.setattr(identify, "_MOST_NAMES", ROOM)
        return [effort(write_adapter(folder / f"{count}.safetensors", count)) for count in (1, FEW, FEW * TIMES)]


@pytest.mark.slow
def test_every_name_is_looked_into_as_often_in_a_large_file(efforts):
    _, few, many = efforts
    assert few.found > FEW
    assert many.found < 1.1 * TIMES * few.found


@pytest.mark.slow
def test_every_module_takes_as_many_calls_in_a_large_file(efforts):
    one, few, many = efforts
    assert few.calls - one.calls > 100 * FEW
    # A long header is parsed entry by entry.
    assert many.calls - one.calls < 1.05 * TIMES * (few.calls - one.calls)


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
