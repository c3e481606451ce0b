"""The example trains, saves what it should, and diffusers loads it."""

import pytest

from lora_inspect.adapter import read_adapter
from lora_inspect.checkpoint import open_checkpoint
from networks import train_example


@pytest.mark.parametrize("kind", train_example.KINDS)
def test_each_kind_learns_and_loads(kind, tmp_path):
    file = str(tmp_path / "adapter.safetensors")
    first, last = train_example.train(kind, file, steps=40)
    assert last < 0.7 * first
    adapter = read_adapter(open_checkpoint(file))
    assert not adapter.problems
    assert adapter.dora.value == (kind == "dora")


def test_what_diffusers_reads_otherwise_is_an_error(tmp_path):
    file = str(tmp_path / "adapter.safetensors")
    train_example.train("lora", file, steps=5)
    with pytest.raises(RuntimeError, match="diffusers' output differs"):
        train_example._compare_with_diffusers(train_example.teacher_of(train_example.tiny_flux()), file)
