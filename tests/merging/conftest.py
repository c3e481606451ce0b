"""A merge of tensors in memory by the command."""

import pytest
from safetensors.torch import load_file, save_file


@pytest.fixture
def merged(tmp_path, run):
    """`merged(base, adapter, multiplier)`: the base with the adapter in it, or the refusal."""

    def merge(base, adapter, multiplier=1.0, refused=False, options=()):
        save_file({name: value.contiguous() for name, value in base.items()}, tmp_path / "base.safetensors")
        save_file({name: value.contiguous() for name, value in adapter.items()}, tmp_path / "adapter.safetensors")
        out = tmp_path / "out.safetensors"
        ended = run(
            "merge", tmp_path / "base.safetensors", f"{tmp_path / 'adapter.safetensors'}:{multiplier}", "-o", out,
            "--force", *options,
        )  # fmt: skip
        if refused:
            return ended.refusal
        assert ended.status == 0, ended.stderr
        return load_file(out)

    return merge
