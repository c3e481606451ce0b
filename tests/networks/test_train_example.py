"""The example trains, saves what it should, and diffusers loads it."""

import re
from pathlib import Path

import pytest

from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter
from networks import train_example


@pytest.mark.parametrize("kind", train_example.KINDS)
@pytest.mark.slow
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


# Runs a module as `python -m` does, where one program cannot be imported.
WITHOUT = """
import runpy, sys
sys.modules[sys.argv[1]] = None
sys.argv[1:2], module = [], sys.argv[2]
del sys.argv[1]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    ("module", "program"), [("networks.train_example", "peft"), ("lora_inspect.networks.train_example", "diffusers")]
)
@pytest.mark.slow
def test_without_a_program_it_is_one_sentence_with_the_name_of_the_extra(module, program, run_process, tmp_path):
    sentence = run_process("-c", WITHOUT, program, module).refusal
    assert f"{program} cannot be imported" in sentence
    assert "`example`" in sentence
    assert list(tmp_path.iterdir()) == []


def test_the_extra_has_what_the_example_needs():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    (extra,) = re.findall(r"^example = \[\n(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    assert re.findall(r'"(\w+)>=', extra) == list(train_example._PROGRAMS)
