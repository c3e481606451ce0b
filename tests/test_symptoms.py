"""docs/symptoms.md promises nothing that does not hold: its commands are run, its messages are those of the rules."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from adapters import lora

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "docs"))

from program_files.folders import FOLDERS  # noqa: E402

PAGE = (ROOT / "docs" / "symptoms.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
COPIED = {
    "base": "base_f32",
    "rslora": "rslora_flag",
    "dora": "dora_without_flag",
    "diffusers": "diffusers_without_alpha",
}
SAVED = {
    "llm-rslora": "`use_rslora`",
    "llm-dora": "`use_dora`",
    "llm-rank64": "rank 64",
    "llm-bare": "no `base_model.model.` before the names",
    "llm-infix": "`.lora_A.default.weight`",
    "llm-alone": "no config",
}
WAN = ("lora_unet_blocks_0_self_attn_q", "lora_unet_blocks_0_self_attn_k")


@pytest.fixture
def folder(tmp_path, fixtures, write_safetensors, run, monkeypatch):
    """The files that the page names, made by what makes them go wrong."""
    monkeypatch.chdir(tmp_path)
    for name, fixture in COPIED.items():
        shutil.copy(fixtures / "synthetic" / f"{fixture}.safetensors", tmp_path / f"{name}.safetensors")
    for name, title in SAVED.items():
        FOLDERS[title].write(tmp_path / name)
    plain = {key: tensor for name in WAN for key, tensor in lora(name, rank=4, out=24, inputs=24).items()}
    biases = {f"{name}.lora_up.bias": ("F32", (24,), 1.0) for name in WAN}
    write_safetensors(plain | biases, name="bias.safetensors")
    write_safetensors(plain | {f"{WAN[0]}.lora_up.weight": ("F32", (24, 4), float("nan"))}, name="nan.safetensors")
    wide = {key: tensor for name in WAN for key, tensor in lora(name, rank=4, out=48, inputs=48).items()}
    write_safetensors(wide, name="other-size.safetensors")
    for command in (
        "convert dora.safetensors --keep-dora -o dora_scale.safetensors",
        "convert dora.safetensors --drop-magnitude -o plain.safetensors",
        "merge base.safetensors plain.safetensors -o without-dora.safetensors",
        "merge base.safetensors rslora.safetensors:0.5 -o half.safetensors",
        "merge base.safetensors rslora.safetensors -o once.safetensors",
        "merge once.safetensors rslora.safetensors -o twice.safetensors",
    ):
        assert run(*command.split()).status == 0, command


@pytest.mark.numeric
def test_every_command_prints_what_the_page_says(folder, run):
    assert len(BLOCKS) >= 10
    for block in BLOCKS:
        for said in block.removeprefix("$ ").split("\n$ "):
            command, *lines = said.splitlines()
            program, *arguments = command.split()
            assert program == "lora-inspect"
            ended = run(*arguments)
            printed = " ".join((ended.stdout + ended.stderr).split())
            assert "Usage:" not in printed, command
            for line in lines:
                assert " ".join(line.removesuffix("…").split()) in printed, (command, printed)
            assert lines or ended.status == 0, (command, printed)


def test_every_message_is_one_of_the_rules():
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", PAGE, re.MULTILINE)
    assert len(rows) >= 10
    messages = (ROOT / "docs" / "programs_messages.md").read_text(encoding="utf-8")
    told = {
        title: " ".join(own.split())
        for title, own in re.findall(r"- \*\*(.*?)\*\*:(.*?)(?=\n- |\Z)", messages, re.DOTALL)
    }
    for message, program in rows:
        own = [text for title, text in told.items() if title.startswith(program) or program.startswith("all")]
        assert any(message in text for text in own), (message, program)
