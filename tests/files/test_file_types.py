"""Files that are no safetensors files: what their first bytes say, however they are called, and the way out."""

import bz2
import collections
import gzip
import io
import json
import lzma
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import gguf_files
import numpy as np
import pytest
from adapters import base, loras
from hypothesis import given
from hypothesis import strategies as st
from make_synthetic import encode
from PIL import Image

from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.files.discovery import find_checkpoints, is_checkpoint_folder
from lora_inspect.files.file_types import PICKLE_ENDINGS, START_BYTES, is_safetensors
from lora_inspect.files.input_file import InputFile
from lora_inspect.files.safetensors.header import read_header

NAMES = ["a.safetensors", "a.bin", "a.ckpt", "a.json", "a", "A.PT", "a.gguf"]


def written(write):
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def saved(zipped, tensors=None):
    import torch

    tensors = {"x.lora_down.weight": torch.zeros(2, 3)} if tensors is None else tensors
    return written(lambda file: torch.save(tensors, file, _use_new_zipfile_serialization=zipped))


def zipped(name):
    def write(file):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, b"content" * 9)

    return written(write)


def tarred(file):
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))


def picture(form):
    return written(lambda file: Image.new("RGB", (4, 4)).save(file, form))


PICKLE, PAGE, SERVER = ["a pickle", "never read", "torch.load"], ["a saved web page", "download"], ["download the file"]
UNPACK, OTHER = ["unpack it"], [".safetensors version"]
# content, words of the refusal
FOREIGN = {
    "Git-LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n", ["`git lfs pull`"]),
    **{f"pickled dict {n}": (pickle.dumps({"x.alpha": 4.0}, n), PICKLE) for n in range(6)},
    **{f"pickled OrderedDict {n}": (pickle.dumps(collections.OrderedDict(a=1), n), PICKLE) for n in range(6)},
    **{f"pickled list {n}": (pickle.dumps([1, 2], n), PICKLE) for n in range(6)},
    "GGUF": (gguf_files.header([gguf_files.string("general.type", "model")]), ["GGUF", *OTHER]),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(40), ["HDF5", *OTHER]),
    # ir_version 8, producer_name "pytorch"; and ir_version 10 with no more than a graph
    "ONNX": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", ["ONNX", *OTHER]),
    "bare ONNX": (b"\x08\x0a:\x10" + bytes(40), ["ONNX", *OTHER]),
    "TensorFlow Lite": (b"\x1c\x00\x00\x00TFL3" + bytes(40), ["TensorFlow Lite", *OTHER]),
    "npy": (written(lambda file: np.save(file, np.zeros(3))), [".npy", *OTHER]),
    "npz": (written(lambda file: np.savez(file, down=np.zeros(3))), [".npz", *OTHER]),
    "TorchScript": (zipped("model/data/0"), ["TorchScript", *OTHER]),
    "zip": (zipped("folder/model.safetensors"), ["a zip archive", *UNPACK]),
    "zip of nothing": (written(lambda file: zipfile.ZipFile(file, "w").close()), ["a zip archive"]),
    "gzip": (gzip.compress(b"content"), ["gzip", *UNPACK]),
    "bzip2": (bz2.compress(b"content"), ["bzip2", *UNPACK]),
    "xz": (lzma.compress(b"content"), ["xz", *UNPACK]),
    "Zstandard": (b"\x28\xb5\x2f\xfd" + bytes(20), ["Zstandard", *UNPACK]),
    "7z": (b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(24), ["7z", *UNPACK]),
    "RAR": (b"Rar!\x1a\x07\x01\x00" + bytes(24), ["RAR", *UNPACK]),
    "tar": (written(tarred), ["tar archive", *UNPACK]),
    **{form: (picture(form), ["a picture", "name the weights"]) for form in ("PNG", "JPEG", "GIF", "WEBP")},
    "mp4": (b"\x00\x00\x00\x20ftypisom" + bytes(20), ["a video", "name the weights"]),
    "page": (b"<!DOCTYPE html>\n<html></html>", PAGE),
    "page in small letters": (b"<!doctype html><head>", PAGE),
    "page after white space": (b"\n\r\n \t<HTML lang=en>", PAGE),
    "page after a byte order mark": (b"\xef\xbb\xbf<html><body>", PAGE),
    "page in UTF-16": ("<html><body>".encode("utf-16"), PAGE),
    "page in UTF-16 of the other order": (b"\xfe\xff" + "<html><body>".encode("utf-16-be"), PAGE),
    "page that begins with a comment": (b"<!-- served by x -->\n<html>", PAGE),
    "XML": (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>', ["XML", *SERVER]),
    "text": (b"404\r\n\tEntry not found\n", ["text", *SERVER]),
    "text with a brace at the place of a header": (b"function{ return 1 }", ["text", *SERVER]),
    "text of other letters": ("Zugriff verweigert: prüfen Sie Ihre Rechte ".encode() * 40, ["text", *SERVER]),
    "text that is cut in a letter": (b"a" * (START_BYTES - 1) + "ü".encode(), ["text", *SERVER]),
    "empty": (b"", ["0 bytes", "fetch it again"]),
    "short": (b"\x00" * 7, ["7 bytes", "fetch it again"]),
    "zeros": (bytes(600), ["not a safetensors file"]),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), FOREIGN.values(), ids=FOREIGN)
def test_a_file_is_called_what_it_is_under_any_name(content, words, tmp_path):
    for number, name in enumerate(NAMES):
        file = tmp_path / str(number) / name
        file.parent.mkdir()
        file.write_bytes(content)
        with pytest.raises(LoraInspectError) as refused:
            open_checkpoint(str(file))
        sentence = str(refused.value)
        assert sentence.startswith(f"{file}: ")
        assert [word for word in words if word not in sentence] == [], sentence


TORCH = {"zip": lambda: saved(True), "before 1.6": lambda: saved(False), "a list": lambda: saved(True, [])}


@pytest.mark.parametrize("write", TORCH.values(), ids=TORCH)
def test_what_torch_saves_is_a_pickle(write, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(write())
    with pytest.raises(LoraInspectError, match=r"it is a pickle.*a\.converted\.safetensors`\.$"):
        read_header(str(tmp_path / "a.safetensors"))


def test_a_long_name_inside_a_zip_archive_hides_no_pickle(tmp_path):
    (tmp_path / "a.bin").write_bytes(zipped(f"{'n' * 250}/data.pkl"))
    with pytest.raises(LoraInspectError, match="it is a pickle"):
        read_header(str(tmp_path / "a.bin"))


@pytest.mark.parametrize("name", ["a.bin", "a.safetensors", "a.json"])
def test_no_more_than_the_first_bytes_are_read(name, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(saved(True) + bytes(1 << 20))
    real, reads = InputFile.read_into, []

    def read_into(self, start, buffer):
        reads.append(start + len(buffer))
        real(self, start, buffer)

    monkeypatch.setattr(InputFile, "read_into", read_into)
    with pytest.raises(LoraInspectError, match="it is a pickle"):
        open_checkpoint(str(tmp_path / name))
    assert reads
    assert max(reads) <= START_BYTES


@pytest.mark.parametrize("name", [*NAMES, *(f"a{ending}" for ending in PICKLE_ENDINGS)])
def test_a_safetensors_file_is_read_under_any_name(name, run, write_safetensors, tmp_path):
    adapter = write_safetensors(loras(), name=f"adapter/{name}")
    weights = write_safetensors(base(), name=f"base/{name}")
    assert run("info", adapter, "--json").json["modules"] == len(loras()) // 3
    assert run("merge", weights, adapter, "-o", tmp_path / "merged.safetensors", "--json").json["modules_merged"] == 3
    assert run("convert", adapter, "-o", tmp_path / "converted.safetensors").status == 0


@given(tensors=st.integers(0, 40), padding=st.integers(0, 300), key=st.text("abcdefghijklmnopqrstuvwxyz", max_size=300))
def test_every_safetensors_file_begins_like_one(tensors, padding, key):
    content = encode({f"{key}{number}": ("F32", (1,), bytes(4)) for number in range(tensors)}, {"pad": "x" * padding})
    assert is_safetensors(content[:START_BYTES])


def test_no_format_in_the_table_begins_like_a_safetensors_file():
    assert not any(is_safetensors(content) for content, _ in FOREIGN.values())


def test_no_length_of_a_header_makes_another_format_of_it(tmp_path):
    file = tmp_path / "a.safetensors"
    for length in range(9, 1200):
        file.write_bytes(struct.pack("<Q", length) + b"{}".ljust(length))
        assert read_header(str(file)) == ({}, {})


# What lies beside the JSON file, and what its refusal says to name.
BESIDE = {
    "one": (["a.safetensors"], "name the weights next to it, {0}/a.safetensors, or their folder, {0}."),
    "several": (["b.safetensors", "a.safetensors"], "name the weights that belong to it, such as {0}/a.safetensors."),
    "none": (["adapter_model.bin"], "fetch the weights that belong to it and name them."),
}  # fmt: skip
JSON = [b'{"peft_type": "LORA"}', b'\xef\xbb\xbf\n{\n  "a": 1}', b"{}", b"[]", b'[{"a": 1}]', b"{\n}\n", b'["a"]']


@pytest.mark.parametrize("name", ["adapter_config.json", "config.json", "A.JSON"])
@pytest.mark.parametrize(("files", "way_out"), BESIDE.values(), ids=BESIDE)
def test_a_json_file_is_answered_with_the_weights_beside_it(files, way_out, name, tmp_path):
    for file in files:
        (tmp_path / file).write_bytes(b"")
    for content in JSON:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LoraInspectError) as refused:
            open_checkpoint(str(tmp_path / name))
        is_json = f"{tmp_path / name}: it is a JSON file, not weights; "
        assert str(refused.value) == is_json + way_out.format(tmp_path)


def test_a_json_file_is_found_beside_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(LoraInspectError, match=r"next to it, adapter_model\.safetensors, or their folder, \.\.$"):
        open_checkpoint("adapter_config.json")


@pytest.mark.parametrize("content", [b'{"error": "Unauthorized"}', b'[{"error": 401}]'])
def test_json_in_place_of_weights_is_a_servers_answer(content, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(LoraInspectError, match=r"it is JSON, as servers send to refuse .* download the file itself"):
        open_checkpoint(str(tmp_path / "a.safetensors"))


SHARDS = {f"m-0000{number}-of-00002.bin": encode({f"t{number}": ("F32", (1,), bytes(4))}) for number in (1, 2)}
MAP = json.dumps({"weight_map": {"t1": "m-00001-of-00002.bin", "t2": "m-00002-of-00002.bin"}}).encode()
ONE = encode({"a": ("F32", (1,), bytes(4))})
PICKLED = pickle.dumps({"a": 1})
# files, how many checkpoints `info` lists (None: the folder is one), tensors of the folder as one
FOLDERS = {
    "one under a pickle's name": ({"pytorch_lora_weights.bin": ONE}, None, ["a"]),
    "beside pickles": ({"adapter_model.bin": ONE, "optimizer.bin": PICKLED, "x.pt": PICKLED}, None, ["a"]),
    "beside a pickle of the same": ({"model.safetensors": ONE, "pytorch_model.bin": PICKLED}, None, ["a"]),
    "one of each": ({"a.safetensors": ONE, "b.ckpt": ONE, "c.ckpt": PICKLED}, 2, "2 .safetensors files"),
    "shards": (SHARDS, None, ["t1", "t2"]),
    "shards and their index": (SHARDS | {"m.bin.index.json": MAP}, None, ["t1", "t2"]),
    "a shard that is a pickle": (SHARDS | {"m-00001-of-00002.bin": PICKLED}, None, "00002.bin: it is a pickle"),
    "no ending": ({"weights": ONE}, 0, "no .safetensors file"),
    "pickles": ({"optimizer.bin": PICKLED, "pytorch_lora_weights.bin": PICKLED}, 0, "weights.bin: it is a pickle"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "listed", "tensors"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_shows_safetensors_files_under_a_pickles_name(files, listed, tensors, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert is_checkpoint_folder(str(tmp_path)) == (listed is None)
    if listed is not None:
        assert len(list(find_checkpoints(str(tmp_path)))) == listed
    if isinstance(tensors, str):
        with pytest.raises(LoraInspectError, match=re.escape(tensors)):
            open_checkpoint(str(tmp_path))
    else:
        assert list(open_checkpoint(str(tmp_path)).tensors) == tensors


def test_a_pickled_shard_is_a_pickle_before_it_is_one_of_a_set(tmp_path):
    (tmp_path / "m-00001-of-00002.bin").write_bytes(PICKLED)
    with pytest.raises(LoraInspectError, match="it is a pickle"):
        open_checkpoint(str(tmp_path / "m-00001-of-00002.bin"))


@pytest.mark.parametrize("name", ["m-00001-of-00002.bin", "m-00002-of-00002.bin", "m.bin.index.json"])
def test_a_shard_under_a_pickles_name_stands_for_its_set(name, tmp_path):
    for file, content in (SHARDS | {"m.bin.index.json": MAP}).items():
        (tmp_path / file).write_bytes(content)
    checkpoint = open_checkpoint(str(tmp_path / name))
    assert list(checkpoint.tensors) == ["t1", "t2"]
    assert checkpoint.index_path == str(tmp_path / "m.bin.index.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_in_a_folder_is_no_weights_and_not_waited_for(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(ONE)
    os.mkfifo(tmp_path / "b.bin")
    (tmp_path / "c.bin").mkdir()
    assert list(open_checkpoint(str(tmp_path)).tensors) == ["a"]


def test_a_base_folder_under_a_pickles_names_is_merged_under_them(run, fixtures, tmp_path):
    (tmp_path / "base").mkdir()
    for file in (fixtures / "synthetic" / "base_sharded").iterdir():
        content = file.read_bytes()
        if file.suffix == ".json":
            content = content.replace(b".safetensors", b".bin")
        (tmp_path / "base" / file.name.replace(".safetensors", ".bin")).write_bytes(content)
    (tmp_path / "base" / "optimizer.bin").write_bytes(PICKLED)
    adapter = fixtures / "synthetic" / "split.safetensors"
    merged = run("merge", tmp_path / "base", adapter, "-o", tmp_path / "out", "--json").json
    assert merged["left_behind"] == ["optimizer.bin"]
    assert {path.name for path in (tmp_path / "base").iterdir()} - {"optimizer.bin"} == set(
        os.listdir(tmp_path / "out")
    )
    run("merge", fixtures / "synthetic" / "base_sharded", adapter, "-o", tmp_path / "plain")
    ours, plain = (open_checkpoint(str(tmp_path / name)) for name in ("out", "plain"))
    assert ours.tensors.keys() == plain.tensors.keys()
    assert list(map(data_of, ours.files)) == list(map(data_of, plain.files))


def data_of(file):
    content = Path(file).read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


def command_of(sentence):
    return re.search(r"`(python .*)`\.$", sentence)[1]


def test_the_command_of_a_refusal_converts_a_pickle_without_running_it(tmp_path):
    import torch
    from safetensors.torch import load_file

    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "x.lora_up.weight": whole.t(),
        "x.lora_down.weight": whole[1:],
        "x.alpha": torch.tensor(4, dtype=torch.bfloat16),
        "y.lora_up.weight": whole.t(),
    }
    torch.save({"state_dict": tensors}, tmp_path / "nested.ckpt")
    torch.save(collections.OrderedDict(tensors), tmp_path / "lora.bin", _use_new_zipfile_serialization=False)
    for name, expected in (("lora.bin", "lora.safetensors"), ("nested.ckpt", "nested.safetensors")):
        with pytest.raises(LoraInspectError) as refused:
            read_header(str(tmp_path / name))
        command = command_of(str(refused.value)).replace("python", f'"{sys.executable}"', 1)
        subprocess.run(command, shell=True, check=True)
        converted = load_file(tmp_path / expected)
        assert converted.keys() == tensors.keys()
        assert all(torch.equal(converted[key], tensor) for key, tensor in tensors.items())


class Marker:
    def __reduce__(self):
        return open, ("unpickled", "w")


def test_the_command_runs_nothing_of_the_pickle(tmp_path):
    (tmp_path / "lora.bin").write_bytes(pickle.dumps({"x": Marker()}, 2))
    with pytest.raises(LoraInspectError) as refused:
        read_header(str(tmp_path / "lora.bin"))
    command = command_of(str(refused.value)).replace("python", f'"{sys.executable}"', 1)
    ended = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert "Weights only load failed" in ended.stderr
    assert os.listdir(tmp_path) == ["lora.bin"]


@pytest.mark.parametrize("name", ["$(touch x).bin", "a b.bin", "`id`.pt", "a'b.ckpt", 'a"b.ckpt', "a;b.bin", "ä.bin"])
def test_a_name_that_a_shell_would_read_is_not_in_the_command(name, tmp_path):
    (tmp_path / name).write_bytes(PICKLED)
    with pytest.raises(LoraInspectError) as refused:
        read_header(str(tmp_path / name))
    assert command_of(str(refused.value)).endswith('" FILE NEW.safetensors')


def test_a_pickle_beside_its_weights_is_answered_with_those(tmp_path):
    (tmp_path / "lora.bin").write_bytes(PICKLED)
    (tmp_path / "lora.safetensors").write_bytes(ONE)
    with pytest.raises(LoraInspectError, match=r"; name .*/lora\.safetensors, which is next to it\.$"):
        read_header(str(tmp_path / "lora.bin"))


def test_the_documentation_shows_the_command_of_the_refusal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora.bin").write_bytes(PICKLED)
    with pytest.raises(LoraInspectError) as refused:
        read_header("lora.bin")
    page = Path(__file__).parents[2] / "docs" / "files.md"
    assert f"\n{command_of(str(refused.value))}\n" in page.read_text(encoding="utf-8")
