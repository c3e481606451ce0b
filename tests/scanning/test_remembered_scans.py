"""A file is told the same after many others as alone, whatever is remembered of files that are like it."""

import json
import os
import struct
from dataclasses import replace

import pytest
from real_headers import FIXTURES

from lora_inspect.architectures import detection
from lora_inspect.caching import Remembered
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.discovery import find_checkpoints
from lora_inspect.files.safetensors import header
from lora_inspect.files.safetensors.header import read_header
from lora_inspect.programs import adapter_view, evaluate, verdict
from lora_inspect.reading import identify
from lora_inspect.reading.file_info import ADAPTER, inspect
from lora_inspect.reading.keys import claims, groups, suffixes
from lora_inspect.scanning.scan_file import scan_file


def adapters():
    """The fixtures that are adapters in one file of this format."""
    for path in find_checkpoints(str(FIXTURES)):
        try:
            info = inspect(path)
        except LoraInspectError:
            continue
        if (
            info.kind == ADAPTER
            and len(info.checkpoint.files) == 1
            and info.checkpoint.files[0].endswith("safetensors")
        ):
            yield path, info


def alone(path, monkeypatch):
    """The account of a file that is read while nothing is remembered of any other."""
    with monkeypatch.context() as patch:
        remembered = (
            (detection, "_found"),
            (header, "_tables"),
            (identify, "_paths"),
            (groups, "_remembered"),
            (verdict, "_remembered"),
        )
        for module, name in remembered:
            patch.setattr(module, name, Remembered(16))
        patch.setattr(evaluate, "_READERS", {})
        patch.setattr(adapter_view, "_kinds", {})
        patch.setattr(claims, "_plans", ((0, 0), {}))
        patch.setattr(suffixes, "_known", suffixes._KnownKeys())
        return told(path)


def told(path):
    found = scan_file(path)
    return replace(found, error=str(found.error or ""))


def written(target, source, tensors):
    """The file `source` with other `tensors`, by name as (dtype, shape, bytes)."""
    _, metadata = read_header(source)
    entries, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, (dtype, shape, content) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(entries).encode()
    target.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return str(target)


def tensors_of(path):
    infos, _ = read_header(path)
    with open(path, "rb") as file:
        content = file.read()
    return {name: (one.dtype, list(one.shape), content[one.start : one.stop]) for name, one in infos.items()}


def without_one_module(tensors, module):
    gone = {info.name for info in module.tensors}
    return {name: tensor for name, tensor in tensors.items() if name not in gone}


def with_another_rank(tensors, module):
    """The tensors with one more direction in all dimensions of a module's factors that are as long as its rank."""
    rank, changed = module.contributions[0].rank, dict(tensors)
    for info in module.contributions[0].factors.values():
        dtype, shape, content = tensors[info.name]
        longer = [size + 1 if size == rank else size for size in shape]
        size = len(content) // max(1, info.numel)
        count = 1
        for length in longer:
            count *= length
        changed[info.name] = dtype, longer, bytes(count * size)
    return changed


@pytest.mark.slow
def test_every_fixture_is_told_as_alone_and_so_it_is_without_a_module_and_with_another_rank(tmp_path, monkeypatch):
    paths = []
    for number, (path, info) in enumerate(adapters()):
        file = info.checkpoint.files[0]
        paths.append(path)
        modules = [module for module in info.adapter.modules.values() if module.contributions]
        if not modules or os.path.getsize(file) > 1 << 22:
            continue
        tensors, middle = tensors_of(file), modules[len(modules) // 2]
        paths.append(written(tmp_path / f"{number}-less.safetensors", file, without_one_module(tensors, middle)))
        if middle.contributions[0].rank:
            paths.append(written(tmp_path / f"{number}-rank.safetensors", file, with_another_rank(tensors, middle)))
    expected = {path: alone(path, monkeypatch) for path in paths}
    assert len(paths) > 150
    for order in (paths, paths[::-1]):
        differing = [path for path in order if told(path) != expected[path]]
        assert differing == []
    assert sum(one.state != "" for one in expected.values()) > 100
