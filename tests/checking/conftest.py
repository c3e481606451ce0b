"""What the tests of `check` share: a file of a toy, and what is found in it."""

import json
import os

import pytest

from lora_inspect.ops.check import check
from lora_inspect.reading.model.settings import Settings


@pytest.fixture
def write_toy(write_safetensors, tmp_path):
    """`write_toy(toy)`: the path of the toy, and the settings that come with it."""

    def write(toy):
        toy = dict(toy)
        tensors, metadata, config = (toy.pop(key, None) for key in ("tensors", "metadata", "config"))
        name, beside, content = (toy.pop(key, None) for key in ("name", "beside", "content"))
        path = tmp_path / (name or "file.safetensors")
        if beside:
            write_safetensors(*beside)
        if content is not None:
            path.write_bytes(content)
        elif tensors is None:
            path = tmp_path
        else:
            path = write_safetensors(tensors, metadata, name or "file.safetensors")
        if config is not None:
            (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        return os.fspath(path), Settings(**toy)

    return write


@pytest.fixture
def codes(write_toy):
    """`codes(toy)`: those of all problems of the toy, its numbers read."""

    def found(toy):
        path, settings = write_toy(toy)
        return [problem.code for problem in check(path, settings, tensors=True).problems]

    return found
