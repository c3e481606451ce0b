"""Files with the same tensors are found whatever their metadata say, and of others next to nothing is read."""

import os
import shutil

import pytest
from adapters import lora, loras

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.input_file import InputFile
from lora_inspect.scanning.duplicates import Duplicates, data_section


@pytest.fixture
def bytes_read(monkeypatch):
    """How many bytes are read from now on, by file name."""
    counts = {}
    into, few = InputFile.read_into, InputFile.read_few

    def count(self, size):
        name = os.path.basename(self.path)
        counts[name] = counts.get(name, 0) + size

    def counting_into(self, start, buffer):
        count(self, len(buffer))
        return into(self, start, buffer)

    def counting_few(self, start, size):
        count(self, size)
        return few(self, start, size)

    monkeypatch.setattr(InputFile, "read_into", counting_into)
    monkeypatch.setattr(InputFile, "read_few", counting_few)
    return counts


def earlier(paths):
    """What each file is told to be a copy of, by their names."""
    duplicates = Duplicates()
    sections = [(str(path), data_section(open_checkpoint(str(path)))) for path in paths]
    found = [duplicates.earlier(path, section) for path, section in sections]
    return [None if one is None else os.path.basename(one).partition(".")[0] for one in found]


WIDE = {"out": 1000, "inputs": 1000, "rank": 16}


def test_the_first_of_several_copies_is_named(write_safetensors):
    files = [write_safetensors(loras(), {"n": str(n)}, f"{n}.safetensors") for n in range(3)]
    assert earlier(files) == [None, "0", "0"]


def test_one_byte_anywhere_makes_another_file(write_safetensors, tmp_path):
    first = write_safetensors(lora("lora_unet_a", **WIDE), name="a.safetensors")
    start, size = data_section(open_checkpoint(str(first))).ranges[0].start, first.stat().st_size
    for position in (start, start + 5000, (start + size) // 2, size - 1):
        other = tmp_path / "b.safetensors"
        shutil.copy(first, other)
        assert earlier([first, other]) == [None, "a"]
        with open(other, "r+b") as file:
            file.seek(position)
            byte = file.read(1)[0]
            file.seek(position)
            file.write(bytes([byte ^ 1]))
        assert earlier([first, other]) == [None, None]


@pytest.mark.parametrize("change", ["name", "dtype", "shape", "order"])
def test_the_same_bytes_under_another_table_are_another_file(change, write_safetensors):
    first = {"a": ("F16", (2, 3), 1.0), "b": ("F16", (2, 3), 1.0)}
    others = {
        "name": {"a": ("F16", (2, 3), 1.0), "c": ("F16", (2, 3), 1.0)},
        "dtype": {"a": ("F16", (2, 3), 1.0), "b": ("BF16", (2, 3), first["b"][2])},
        "shape": {"a": ("F16", (2, 3), 1.0), "b": ("F16", (3, 2), 1.0)},
        "order": {"b": ("F16", (2, 3), 1.0), "a": ("F16", (2, 3), 1.0)},
    }
    content = b"\0<" * 6
    files = [
        write_safetensors(
            {key: (dtype, shape, content) for key, (dtype, shape, _) in one.items()}, name=f"{n}.safetensors"
        )
        for n, one in enumerate((first, others[change]))
    ]
    assert earlier(files) == [None, None]


def test_of_files_of_other_sizes_nothing_is_read(write_safetensors, bytes_read):
    files = [write_safetensors(loras(n + 1), name=f"{n}.safetensors") for n in range(3)]
    sections = [(str(file), data_section(open_checkpoint(str(file)))) for file in files]
    bytes_read.clear()
    duplicates = Duplicates()
    assert [duplicates.earlier(*one) for one in sections] == [None] * 3
    assert bytes_read == {}


def test_of_the_steps_of_one_training_little_is_read(write_safetensors, bytes_read):
    files = [
        write_safetensors(
            {key: (dtype, shape, float(n + 1)) for key, (dtype, shape, _) in lora("lora_unet_a", **WIDE).items()},
            name=f"{n}.safetensors",
        )
        for n in range(4)
    ]
    sections = [(str(file), data_section(open_checkpoint(str(file)))) for file in files]
    bytes_read.clear()
    duplicates = Duplicates()
    assert [duplicates.earlier(*one) for one in sections] == [None] * 4
    assert len(bytes_read) == 4
    assert all(count <= 8 * 4096 for count in bytes_read.values())


def test_copies_are_read_up_to_the_first_difference(write_safetensors, bytes_read):
    data = bytearray(2 << 20)
    first = write_safetensors({"a": ("U8", (len(data),), bytes(data))}, name="a.safetensors")
    data[5_000] = 1  # between two samples
    other = write_safetensors({"a": ("U8", (len(data),), bytes(data))}, name="b.safetensors")
    sections = [(str(file), data_section(open_checkpoint(str(file)))) for file in (first, other)]
    bytes_read.clear()
    duplicates = Duplicates()
    assert [duplicates.earlier(*one) for one in sections] == [None, None]
    assert 0 < max(bytes_read.values()) < 1 << 19


@pytest.mark.parametrize("gone", [0, 1])
def test_a_file_that_is_gone_leaves_the_others_their_copies(gone, write_safetensors):
    files = [str(write_safetensors(loras(), name=f"{n}.safetensors")) for n in range(4)]
    sections = [(file, data_section(open_checkpoint(file))) for file in files]
    os.remove(files[gone])
    duplicates = Duplicates()
    found = [duplicates.earlier(*one) for one in sections]
    assert found[2:] == [files[1 - gone]] * 2


def test_two_names_of_one_file_are_not_read(write_safetensors, tmp_path, bytes_read):
    first = write_safetensors(loras(), name="a.safetensors")
    os.link(first, tmp_path / "b.safetensors")
    sections = [(str(file), data_section(open_checkpoint(str(file)))) for file in (first, tmp_path / "b.safetensors")]
    bytes_read.clear()
    duplicates = Duplicates()
    assert [duplicates.earlier(*one) for one in sections] == [None, str(first)]
    assert bytes_read == {}


def test_another_name_of_a_copy_is_a_copy_of_the_first(write_safetensors, tmp_path):
    files = [write_safetensors(loras(), name=f"{name}.safetensors") for name in "ab"]
    os.link(files[1], tmp_path / "c.safetensors")
    assert earlier([*files, tmp_path / "c.safetensors"]) == [None, "a", "a"]


def test_a_file_that_goes_after_a_look_at_it_leaves_the_others_their_copies(write_safetensors):
    files = [str(write_safetensors(loras(), name=f"{name}.safetensors")) for name in "abc"]
    files.insert(1, str(write_safetensors(loras(alpha=2.0), name="other.safetensors")))
    sections = [(file, data_section(open_checkpoint(file))) for file in files]
    duplicates = Duplicates()
    assert [duplicates.earlier(*one) for one in sections[:2]] == [None, None]
    os.remove(files[0])
    assert [duplicates.earlier(*one) for one in sections[2:]] == [None, files[2]]


def test_a_file_that_changes_or_goes_is_like_no_other(write_safetensors):
    first, second = (write_safetensors(loras(), name=f"{name}.safetensors") for name in "ab")
    sections = [(str(file), data_section(open_checkpoint(str(file)))) for file in (first, second)]
    second.unlink()
    duplicates = Duplicates()
    assert [duplicates.earlier(*one) for one in sections] == [None, None]


def test_shards_are_compared_with_shards(write_safetensors, tmp_path, fixtures):
    for name in ("a", "b"):
        shutil.copytree(fixtures / "synthetic" / "base_sharded", tmp_path / name)
    paths = [str(tmp_path / name) for name in ("a", "b")]
    assert len(data_section(open_checkpoint(paths[0])).ranges) == 2
    duplicates = Duplicates()
    assert [duplicates.earlier(path, data_section(open_checkpoint(path))) for path in paths] == [None, paths[0]]


@pytest.mark.parametrize("tensors", [{}, {"a": ("F32", (0,), 0)}], ids=["no tensors", "no bytes"])
def test_what_holds_nothing_is_no_copy(tensors, write_safetensors):
    assert data_section(open_checkpoint(str(write_safetensors(tensors)))) is None
