"""The two sshs hashes, against the safetensors library's own serialisation and hashlib."""

import hashlib
import struct

import pytest
import torch
from safetensors.torch import _TYPES, load, save, save_file

from lora_inspect.files.hashes import data_sha256, file_hashes, in_library_order, legacy_hash, sshs_hashes
from lora_inspect.files.safetensors.header import identified_header, read_header
from lora_inspect.files.safetensors.writer import renamed

METADATA = {"ss_network_dim": "4", "ss_é": "ü", "modelspec.title": "x", "sshs_model_hash": "old", "format": "pt"}


def by_sd_scripts(tensors, metadata):
    """`precalculate_safetensors_hashes` of sd-scripts, written down from its source."""
    kept = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    content = save(tensors, kept)
    (length,) = struct.unpack("<Q", content[:8])
    return {
        "sshs_model_hash": hashlib.sha256(content[8 + length :]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(content[0x100000:][:0x10000]).hexdigest()[:8],
    }


def ours(tmp_path, tensors, metadata):
    file = str(tmp_path / "a.safetensors")
    save_file(tensors, file, metadata)
    infos = list(read_header(file)[0].values())
    return sshs_hashes([renamed(info, info.name) for info in reversed(infos)], metadata)


@pytest.mark.parametrize("rows", [1, 500, 1024, 1030, 1060, 1100, 9000])
def test_small_files_and_files_around_and_beyond_a_mebibyte(rows, tmp_path):
    source = torch.Generator().manual_seed(rows)
    tensors = {
        "b.lora_up.weight": torch.randn(rows, 256, generator=source),
        "a.alpha": torch.tensor(4.0, dtype=torch.bfloat16),
        "a.lora_down.weight": torch.randn(4, 8, generator=source).half(),
    }
    assert ours(tmp_path, tensors, METADATA) == by_sd_scripts(tensors, METADATA)
    infos = list(read_header(str(tmp_path / "a.safetensors"))[0].values())
    assert legacy_hash(infos, METADATA) == by_sd_scripts(tensors, METADATA)["sshs_legacy_hash"]


def test_all_element_types_are_ordered_as_the_library_orders_them(tmp_path):
    tensors = {}
    for number, dtype in enumerate(dict.fromkeys(_TYPES.values())):
        tensors[f"t{number % 3}{number}"] = torch.full((2 * dtype.itemsize,), number, dtype=torch.uint8).view(dtype)
    assert ours(tmp_path, tensors, METADATA) == by_sd_scripts(tensors, METADATA)


def test_without_ss_metadata_the_header_has_an_empty_map(tmp_path):
    tensors = {"a": torch.arange(300_000)}
    assert ours(tmp_path, tensors, {"format": "pt"}) == by_sd_scripts(tensors, {"format": "pt"})


def test_bytes_in_memory_count_like_ranges_of_a_file(tmp_path):
    from lora_inspect.files.safetensors.writer import Content, TensorPlan

    tensor = torch.arange(400_000, dtype=torch.float32)
    content = Content(TensorPlan("a", "F32", (400_000,)), tensor.numpy().tobytes())
    assert load(save({"a": tensor}))["a"].equal(tensor)
    assert sshs_hashes([content], {}) == by_sd_scripts({"a": tensor}, {})


def test_the_hash_of_the_data_is_that_of_the_file_behind_its_header(tmp_path):
    file = tmp_path / "a.safetensors"
    save_file({"a": torch.arange(9.0), "b": torch.arange(7).half(), "c": torch.arange(5)}, str(file))
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    contents = [renamed(info, info.name) for info in read_header(str(file))[0].values()]
    assert data_sha256(contents) == hashlib.sha256(content[8 + length :]).hexdigest()
    assert in_library_order(reversed(contents)) == contents


FALCONS = ("smart_falcon_4_lokr", "smart_falcon_8_lokr")


@pytest.mark.parametrize("name", FALCONS)
def test_real_files_have_the_hashes_that_they_state(name, fixtures):
    tensors, metadata, _ = identified_header(str(fixtures / "hashed" / f"{name}.safetensors"))
    infos = list(tensors.values())
    found = sshs_hashes([renamed(info, info.name) for info in infos], metadata)
    assert found["sshs_model_hash"] == metadata["sshs_model_hash"]
    # The library of that time did not pad its headers, which moves what lies behind the first mebibyte.
    assert legacy_hash(infos, metadata, padded=False) == metadata["sshs_legacy_hash"]


def test_the_first_of_them_is_beyond_a_mebibyte_with_padding_and_without(fixtures):
    tensors, metadata, _ = identified_header(str(fixtures / "hashed" / f"{FALCONS[1]}.safetensors"))
    found = {legacy_hash(tensors.values(), metadata, padded) for padded in (True, False)}
    assert len(found) == 2


@pytest.mark.parametrize("name", FALCONS)
def test_those_of_a_whole_file_are_what_hashlib_makes_of_it(name, fixtures):
    file = fixtures / "hashed" / f"{name}.safetensors"
    tensors, _, identity = identified_header(str(file))
    start = min(info.start for info in tensors.values())
    content = file.read_bytes()
    found = file_hashes(str(file), start, identity)
    assert found.whole == hashlib.sha256(content).hexdigest()
    assert found.data == hashlib.sha256(content[start:]).hexdigest()
    assert found.piece == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]


def test_a_file_of_many_pieces_is_hashed_like_a_small_one(tmp_path):
    save_file({"a": torch.arange(1_500_000, dtype=torch.float64)}, tmp_path / "a.safetensors")
    tensors, _, identity = identified_header(str(tmp_path / "a.safetensors"))
    content = (tmp_path / "a.safetensors").read_bytes()
    found = file_hashes(str(tmp_path / "a.safetensors"), tensors["a"].start, identity)
    assert found.whole == hashlib.sha256(content).hexdigest()
    assert found.data == hashlib.sha256(content[tensors["a"].start :]).hexdigest()
    assert found.piece == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]


def test_a_file_is_opened_once_for_all_of_its_tensors(tmp_path, monkeypatch):
    from lora_inspect.files.safetensors import writer as module

    opened = []

    class Counted(module.InputFile):
        def __init__(self, path, identity=None):
            opened.append(path)
            super().__init__(path, identity)

    names = [str(tmp_path / name) for name in ("a.safetensors", "b.safetensors")]
    for name in names:
        save_file({"a": torch.arange(9.0), "b": torch.arange(7.0), "c": torch.arange(5.0)}, name)
    infos = [info for name in names for info in read_header(name)[0].values()]
    monkeypatch.setattr(module, "InputFile", Counted)
    data_sha256(renamed(info, info.name) for info in infos)
    assert opened == names
