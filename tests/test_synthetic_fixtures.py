"""The synthetic fixtures are what their script writes, and the safetensors library reads them."""

import subprocess
import sys

import pytest
from safetensors import safe_open


def test_the_script_writes_the_same_bytes_again(fixtures, tmp_path):
    subprocess.run([sys.executable, fixtures / "make_synthetic.py", tmp_path], check=True)
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    stored = fixtures / "synthetic"
    kept = {path.relative_to(stored): path.read_bytes() for path in stored.rglob("*") if path.is_file()}
    assert sorted(written) == sorted(kept)
    assert all(written[name] == kept[name] for name in kept)
    assert sum(map(len, kept.values())) < 400_000


@pytest.mark.parametrize("name", ["base_bf16", "bf16_alpha_and_flags", "i64_alpha", "dora_and_rslora_flags", "split"])
def test_the_library_reads_them(fixtures, name):
    with safe_open(fixtures / "synthetic" / f"{name}.safetensors", "pt") as file:
        assert all(file.get_tensor(key).numel() for key in file.keys())  # noqa: SIM118 (no dict)
