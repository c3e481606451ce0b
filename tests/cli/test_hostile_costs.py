"""Files made to take time or memory: each is refused, or read, for little more than an empty one costs."""

import json
import os
import socket
import struct
import sys

import pytest
from adapters import IN, OUT, base, lora, loras
from measured_commands import MeasuredCommands

from lora_inspect.files.strict_json import (
    HEADER_BYTES,
    JSON_BYTES,
    JSON_ITEMS,
    KEY_BYTES,
    METADATA_CHARACTERS,
    METADATA_KEYS,
    TENSORS,
)

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the peak of a forked process is measured on Linux"),
    pytest.mark.slow,
]

# Beyond a command of the same verb that has nothing to do.
SECONDS, KILOBYTES = 2, 100_000
VERBS = ("info", "merge", "merge into", "convert")
ENTRY = '"":{"dtype":"U8","shape":[],"data_offsets":[0,1]},'
Q = "lora_unet_blocks_0_attn_q"


@pytest.fixture(scope="module")
def commands():
    with MeasuredCommands() as measured:
        yield measured


@pytest.fixture(scope="module")
def computing_commands():
    """Commands that have torch already: its import is a second."""
    with MeasuredCommands("torch", "lora_inspect.ops.merge", "lora_inspect.ops.convert") as measured:
        yield measured


@pytest.fixture
def good(write_safetensors):
    return write_safetensors(base(), name="good/base.safetensors"), write_safetensors(
        loras(), name="good/adapter.safetensors"
    )


@pytest.fixture
def measure(commands, good, tmp_path):
    """Runs a verb on a path, and on none; what the first takes beyond the second is within the bounds."""

    def command_of(verb, path):
        model, adapter = good
        out = tmp_path / "out" / (path.name if path.is_dir() else "out.safetensors")
        return {
            "info": ("info", path),
            "merge": ("merge", model, path, "-o", out),
            "merge into": ("merge", path, adapter, "-o", out),
            "convert": ("convert", path, "-o", out),
        }[verb]

    def run(verb, path, commands=commands):
        (tmp_path / "out").mkdir(exist_ok=True)
        if verb not in commands.least:
            # What is refused for its name alone is the least that a verb can cost.
            commands.least[verb] = commands(*command_of(verb, tmp_path / "missing.safetensors"))
        least = commands.least[verb]
        assert least.status == 3, least
        done = commands(*command_of(verb, path))
        assert done.seconds - least.seconds <= SECONDS, done
        assert done.peak - least.peak <= KILOBYTES, done
        return done

    return run


@pytest.fixture
def refused(measure, tmp_path):
    """Runs a verb on a path: it is refused in one sentence with the words, and nothing is written."""

    def run(verb, path, *words):
        done = measure(verb, path)
        expected = 3 if "it cannot be read (" in done.stderr else 1  # what cannot be opened is no file to refuse
        assert (done.status, done.stdout) == (expected, ""), done
        (line,) = done.stderr.splitlines()
        assert line.startswith("Error: ")
        assert line.endswith(".")
        assert [word for word in words if word not in line] == [], line
        assert os.listdir(tmp_path / "out") == []

    return run


def with_header(path, header, zeros=0):
    """A file with this header and so many zeros after it, which take no room on the disk."""
    header = header.encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + zeros)


def padded(path, length, start=b""):
    """A file with a header of so many NULs after its `start`."""
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", length) + start)
        file.truncate(8 + length)


# name -> (what makes the file, words of the sentence)
HEADERS = {
    "a header beyond 100 MB": (lambda path: padded(path, HEADER_BYTES + 1, b"{"), [f"at most {HEADER_BYTES}"]),
    "a header that is announced alone": (lambda path: padded(path, 2**32 - 1, b"{"), [f"at most {HEADER_BYTES}"]),
    "NULs": (lambda path: padded(path, HEADER_BYTES, b"{"), ["not JSON"]),
    "blanks": (lambda path: with_header(path, "{" + " " * 10_000_000), ["not JSON"]),
    "too many tensors": (
        lambda path: with_header(path, "{" + ENTRY * (TENSORS + 1)), [f"{TENSORS + 1:,} tensors", f"{TENSORS:,}"]),
    "a long key": (lambda path: with_header(path, '{"' + "." * 300_000 + '":{}}'), [f"{KEY_BYTES:,} bytes"]),
    "a key without an end": (lambda path: with_header(path, '{"' + "." * 4_000_000), [f"{KEY_BYTES:,} bytes"]),
    "a key of escapes": (lambda path: with_header(path, '{"' + "\\u0061" * 500_000), [f"{KEY_BYTES:,} bytes"]),
    "a long key in the metadata": (
        lambda path: with_header(path, '{"__metadata__":{"' + "k" * 66_000 + '":""}}'), [f"{KEY_BYTES:,} bytes"]),
    "long metadata": (
        lambda path: with_header(path, '{"__metadata__":{"a":"' + "v" * 12_000_000 + '"}}'),
        [f"{METADATA_CHARACTERS:,} characters"]),
    "long metadata of wide letters": (
        lambda path: with_header(path, '{"__metadata__":{"a":"\U0001f3a8' + "v" * 12_000_000 + '"}}'),
        [f"{METADATA_CHARACTERS:,} characters"]),
    "much metadata": (
        lambda path: with_header(
            path, '{"__metadata__":{' + ",".join(f'"{n}":"{"v" * 400}"' for n in range(25_000)) + "}}"),
        [f"{METADATA_CHARACTERS:,} characters"]),
    "many metadata": (
        lambda path: with_header(path, '{"__metadata__":{' + ",".join(f'"{n}":""' for n in range(300_000)) + "}}"),
        [f"{METADATA_KEYS:,} entries"]),
    "lists in an entry": (lambda path: with_header(path, '{"a":{"x":[' + "[]," * 3_000_000), ["not JSON at a"]),
    "lists in the metadata": (lambda path: with_header(path, '{"__metadata__":[' + "[]," * 3_000_000), ["map"]),
    "lists for a header": (lambda path: with_header(path, "[" + "[]," * 3_000_000), ["safetensors file"]),
    "a shape of many numbers": (
        lambda path: with_header(
            path, '{"a":{"dtype":"F32","shape":[' + f"{2**62}," * 3_000 + '1],"data_offsets":[0,8]}}', 8),
        ["a has 8 bytes"]),
    "a number of many digits": (
        lambda path: with_header(
            path, '{"a":{"dtype":"F32","shape":[' + "9" * 60_000 + '],"data_offsets":[0,8]}}', 8),
        ["not JSON at a"]),
    "a dtype that is a list": (
        lambda path: with_header(path, '{"a":{"dtype":[],"shape":[],"data_offsets":[0,4]}}', 4), ["unknown dtype []"]),
}  # fmt: skip


@pytest.mark.parametrize(("make", "words"), HEADERS.values(), ids=HEADERS)
def test_a_header_costs_no_more_than_its_bound(make, words, refused, tmp_path):
    path = tmp_path / "hostile.safetensors"
    make(path)
    for verb in VERBS:
        refused(verb, path, str(path), *words)
    path.unlink()  # pytest keeps the folders of three sessions


def sparse(path):
    path.touch()
    os.truncate(path, JSON_BYTES + 1)


def bind(path):
    here = os.getcwd()
    os.chdir(path.parent)  # the names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


# name -> (what makes it, words of the sentence)
SIDE_FILES = {
    "a long JSON file": (sparse, [f"{JSON_BYTES + 1:,} bytes", f"{JSON_BYTES:,}"]),
    "lists in JSON": (lambda path: path.write_text('{"a":[' + "[]," * 3_000_000 + "[]]}"), [f"{JSON_ITEMS:,} items"]),
    "numbers in JSON": (lambda path: path.write_text("[" + "1000," * 5_000_000 + "1]"), [f"{JSON_ITEMS:,} items"]),
    "a number of many digits": (lambda path: path.write_text('{"r":' + "9" * 5_000 + "}"), ["not valid JSON"]),
    "depth": (lambda path: path.write_text("[" * 5_000_000), [f"{JSON_ITEMS:,} items"]),
    "a pipe": (os.mkfifo, ["neither a file nor a folder"]),
    "a socket": (bind, ["cannot be read"]),
    "a device": (lambda path: path.symlink_to("/dev/zero"), ["a link to /dev/zero, which leads outside the folder"]),
    "a folder": (os.mkdir, ["cannot be read"]),
    "a link that leads nowhere": (lambda path: path.symlink_to("nowhere"), ["a link to nowhere, which leads nowhere"]),
}
PLACES = {
    "adapter_config.json": ("info", "merge", "convert"),
    "model.safetensors.index.json": ("info", "merge into"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("make", "words"), SIDE_FILES.values(), ids=SIDE_FILES)
def test_a_file_beside_the_weights_costs_no_more_than_its_bound(
    place, make, words, refused, write_safetensors, tmp_path
):
    weights = "adapter_model.safetensors" if place == "adapter_config.json" else "model.safetensors"
    write_safetensors(loras(), name=f"folder/{weights}")
    path = tmp_path / "folder" / place
    make(path)
    for verb in PLACES[place]:
        refused(verb, path.parent, str(path), *words)
    if path.is_file():
        path.unlink()


# What is no file, under the name of one of the weights.
NO_FILES = {name: SIDE_FILES[name] for name in ("a pipe", "a socket", "a device")}


@pytest.mark.parametrize("form", ["a file", "a shard", "a shard of an index", "alone in a folder"])
@pytest.mark.parametrize("make", [make for make, _ in NO_FILES.values()], ids=NO_FILES)
def test_nothing_waits_for_what_is_no_file(make, form, refused, write_safetensors, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / ("m-00002-of-00002.safetensors" if "shard" in form else "m.safetensors")
    make(path)
    if "shard" in form:
        write_safetensors(loras(), name="folder/m-00001-of-00002.safetensors")
    if "index" in form:
        weight_map = {"a": "m-00001-of-00002.safetensors", "b": path.name}
        (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for verb in VERBS:
        refused(verb, path if form == "a file" else folder, str(path))


def test_in_a_folder_of_adapters_the_others_are_read(measure, write_safetensors, tmp_path):
    folder = tmp_path / "folder"
    for number in range(3):
        write_safetensors(loras(), name=f"folder/good{number}.safetensors")
    for number, (make, _) in enumerate(NO_FILES.values()):
        make(folder / f"none{number}.safetensors")
        make(folder / f"beside{number}.txt")
    with_header(folder / "list.safetensors", '{"a":{"dtype":[],"shape":[],"data_offsets":[0,4]}}', 4)
    done = measure("info", folder)
    assert done.status == 1
    assert [done.stdout.count(f"good{number} ") for number in range(3)] == [1, 1, 1]
    assert done.stderr == ""
    rows = [line for line in done.stdout.splitlines() if line.startswith(("none", "list"))]
    assert [row.split()[1:3] for row in rows] == [["-", "broken"]] * 4


def test_what_is_no_file_in_the_folder_of_a_base_is_left_there_and_named(
    measure, computing_commands, write_safetensors, tmp_path
):
    folder = tmp_path / "folder"
    write_safetensors(base(), name="folder/model.safetensors")
    os.mkfifo(folder / "pipe")
    bind(folder / "socket")
    (folder / "config.json").write_text("{}")
    done = measure("merge into", folder, computing_commands)
    assert done.status == 0, done
    assert "pipe" in done.stderr
    assert "socket" in done.stderr
    assert sorted(os.listdir(tmp_path / "out" / "folder")) == ["config.json", "model.safetensors"]


# What stands in names of 64 KiB over and over, after what begins them.
REPEATED = {
    "dots": ("", "."),
    "underscores": ("", "_"),
    "digits": ("", "1"),
    "kohya": ("lora_unet_", "a_"),
    "kohya numbers": ("lora_unet_", "1_"),
    "kohya roots": ("lora_te1_", "text_model_"),
    "numbers": ("", "1."),
    "blocks": ("diffusion_model.", "blocks.0."),
    "roots": ("transformer.", "model."),
    "PEFT": ("base_model.model.", "model.layers.0."),
    "adapters": ("unet.", ".lora_A.x"),
    "alphas": ("unet.", ".alpha"),
    "slices": ("unet.", ".lora_down.0"),
    "line breaks": ("", "\n."),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("start", "part"), REPEATED.values(), ids=REPEATED)
def test_a_name_as_long_as_its_bound_costs_no_more(
    start, part, verb, measure, computing_commands, write_safetensors, tmp_path
):
    longest = KEY_BYTES - len("10.lora_down.weight")
    names = [f"{(start + part * longest)[:longest]}{number}" for number in range(10)]
    tensors = {key: tensor for name in names for key, tensor in lora(name).items()}
    if verb == "merge into":
        tensors = {**{f"{name}.weight": ("F32", (OUT, IN), 1) for name in names}, **base()}
    measure(verb, write_safetensors({**tensors, **loras()}, name="long.safetensors"), computing_commands)


@pytest.mark.parametrize("count", [1, 5_000, 60_000])
def test_a_slice_with_a_number_of_many_digits_is_refused(count, refused, write_safetensors):
    number = "7" * count
    tensors = {f"{Q}.lora_down.{number}.weight": ("F32", (2, 5), 1), f"{Q}.lora_up.{number}.weight": ("F32", (6, 2), 1)}
    path = write_safetensors(tensors)
    refused("merge", path, str(path))
    refused("convert", path, str(path))
