"""Another metadata in a file: the tensors' bytes stay, the library reads what was set, and nothing is lost."""

import hashlib
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from strategies import metadata

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.safetensors import writer
from lora_inspect.files.safetensors.edit_in_place import editing, read_headed, write_anew, write_in_place
from lora_inspect.files.safetensors.writer import ROOM

FALCON = "hashed/smart_falcon_4_lokr.safetensors"


def data_of(path):
    headed = read_headed(str(path))
    with open(path, "rb") as handle:
        handle.seek(headed.data_start)
        return hashlib.sha256(handle.read()).hexdigest()


def by_library(path):
    with safe_open(path, "np") as file:
        return file.metadata(), set(file.keys())


def in_place(path, about):
    with editing(str(path)) as own:
        write_in_place(read_headed(str(path)), about, own)


@pytest.fixture
def falcon(fixtures, tmp_path):
    return str(shutil.copy(fixtures / FALCON, tmp_path / "a.safetensors"))


TEXTS = st.dictionaries(st.text(max_size=20), st.text(max_size=200), max_size=20)


@given(about=metadata | TEXTS)
def test_any_map_of_strings_is_read_back_by_the_library(about, fixtures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewrite")
    source = shutil.copy(fixtures / "synthetic" / "split.safetensors", folder / "a.safetensors")
    before, (_, names) = data_of(source), by_library(source)
    write_anew(read_headed(str(source)), about, str(folder / "b.safetensors"))
    write_anew(read_headed(str(source)), about, str(source))
    # Our writer left room, so that one of its files bears what is not much longer.
    shorter = dict(list(about.items())[: len(about) // 2])
    in_place(folder / "b.safetensors", shorter)
    for path, expected in ((source, about), (folder / "b.safetensors", shorter)):
        assert by_library(path) == (expected, names)
        assert data_of(path) == before
    assert sorted(os.listdir(folder)) == ["a.safetensors", "b.safetensors"]


def test_a_file_of_ours_has_room_for_4096_bytes_more_and_for_no_more_than_that(falcon):
    write_anew(read_headed(falcon), {}, falcon)
    headed = read_headed(falcon)
    assert ROOM == 4096
    assert ROOM <= headed.room < 2 * ROOM
    before = os.stat(falcon)
    longest = {"k": "v" * (headed.room - len('"k":""'))}
    in_place(falcon, longest)
    assert by_library(falcon)[0] == longest
    assert read_headed(falcon).room == 0
    after = os.stat(falcon)
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    with pytest.raises(
        LoraInspectError, match=r"room for [\d,]+ bytes, but the new one needs .*; leave out --in-place"
    ):
        in_place(falcon, {"k": longest["k"] + "v"})
    assert by_library(falcon)[0] == longest


@pytest.fixture
def aligned(fixtures, tmp_path):
    return str(
        shutil.copy(fixtures / "minilm-lycoris-lora-dora-r8" / "lycoris.safetensors", tmp_path / "a.safetensors")
    )


def test_data_keeps_its_distance_from_blocks_which_then_can_be_shared(aligned, tmp_path):
    first = read_headed(aligned)
    write_anew(first, {"k": "v" * 5000}, str(tmp_path / "b.safetensors"))
    second = read_headed(str(tmp_path / "b.safetensors"))
    assert first.data_start % 8 == 0
    assert second.data_start != first.data_start
    assert (second.data_start - first.data_start) % 4096 == 0


def test_the_system_is_asked_for_whole_blocks_from_the_second_on(aligned, tmp_path, monkeypatch):
    asked = []
    real = writer.copy_in_system

    def copy(source, target, count, position, at):
        asked.append((at % 4096, position % 4096))
        return real(source, target, count, position, at)

    monkeypatch.setattr(writer, "copy_in_system", copy)
    write_anew(read_headed(aligned), {}, str(tmp_path / "b.safetensors"))
    assert len(asked) == 2
    assert asked[1] == (0, 0)
    assert data_of(tmp_path / "b.safetensors") == data_of(aligned)


def test_tensors_that_begin_at_an_odd_byte_begin_at_a_multiple_of_eight_afterwards(write_safetensors, tmp_path):
    header = b'{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}'
    path = write_safetensors({"a": ("U8", (3,), b"yes")}, header=header)
    assert read_headed(str(path)).data_start % 8
    write_anew(read_headed(str(path)), {}, str(path))
    assert read_headed(str(path)).data_start % 8 == 0
    assert path.read_bytes().endswith(b"yes")


def test_a_file_keeps_its_mode_and_a_copy_has_that_of_a_new_file(falcon, tmp_path):
    os.chmod(falcon, 0o640)
    write_anew(read_headed(falcon), {}, falcon)
    write_anew(read_headed(falcon), {}, str(tmp_path / "b.safetensors"))
    (tmp_path / "c").touch()
    assert stat.S_IMODE(os.stat(falcon).st_mode) == 0o640
    assert os.stat(tmp_path / "b.safetensors").st_mode == os.stat(tmp_path / "c").st_mode


def test_a_private_file_is_never_readable_by_others_while_it_is_written(falcon, monkeypatch):
    os.chmod(falcon, 0o600)
    modes = []
    real = writer.write_all

    def write(descriptor, buffer):
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        real(descriptor, buffer)

    monkeypatch.setattr("lora_inspect.files.safetensors.edit_in_place.write_all", write)
    write_anew(read_headed(falcon), {}, falcon)
    assert modes == [0o600]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only the superuser gives files away")
def test_a_file_keeps_its_owner(falcon):
    os.chown(falcon, 1234, 1235)
    write_anew(read_headed(falcon), {}, falcon)
    assert (os.stat(falcon).st_uid, os.stat(falcon).st_gid) == (1234, 1235)


@pytest.mark.parametrize("write", [lambda headed: write_anew(headed, {}, headed.file),
                                   lambda headed: write_anew(headed, {}, headed.file + ".b")])  # fmt: skip
def test_a_file_that_changed_after_it_was_read_is_left_alone(write, falcon):
    headed = read_headed(falcon)
    with open(falcon, "ab") as handle:
        handle.write(b"x")
    before = hashlib.sha256(Path(falcon).read_bytes()).digest()
    with pytest.raises(LoraInspectError, match="it changed while it was read"):
        write(headed)
    assert hashlib.sha256(Path(falcon).read_bytes()).digest() == before
    assert os.listdir(os.path.dirname(falcon)) == ["a.safetensors"]


def test_a_file_that_is_replaced_while_it_is_copied_keeps_its_new_content(falcon, monkeypatch):
    real = writer.copy_bytes

    def copy(source, *more):
        real(source, *more)
        Path(falcon + ".new").write_bytes(b"of another program")
        os.replace(falcon + ".new", falcon)

    monkeypatch.setattr("lora_inspect.files.safetensors.edit_in_place.copy_bytes", copy)
    with pytest.raises(LoraInspectError, match="it changed while it was read"):
        write_anew(read_headed(falcon), {}, falcon)
    assert Path(falcon).read_bytes() == b"of another program"
    assert os.listdir(os.path.dirname(falcon)) == ["a.safetensors"]


def test_metadata_beyond_what_is_read_is_refused_before_it_is_there(falcon):
    before = by_library(falcon)
    with pytest.raises(LoraInspectError, match=r"a\.safetensors: __metadata__ has more than 8,000,000 characters"):
        write_anew(read_headed(falcon), {"k": "v" * 8_000_001}, falcon)
    assert by_library(falcon) == before


def test_a_header_that_is_longer_than_it_need_be_takes_more_where_it_stands(write_safetensors):
    header = json.dumps({"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}}, indent=40).encode()
    path = write_safetensors({"a": ("U8", (3,), b"yes")}, header=header)
    in_place(path, {"title": "t" * 40})
    assert by_library(path) == ({"title": "t" * 40}, {"a"})
    assert path.stat().st_size == 8 + len(header) + 3
