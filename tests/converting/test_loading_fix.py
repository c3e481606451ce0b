"""The command of a screen for a file that is wrong in a program: one that `compat` has too, or none."""

import pytest
from adapters import lora
from screens import EVERY

from lora_inspect.converting.fixes import find_fix, find_fixes, loading_fix
from lora_inspect.programs import PROGRAMS, by_name
from lora_inspect.programs.verdict import LOST, NOTHING, REFUSED, judge
from lora_inspect.reading.file_info import inspect
from lora_inspect.reporting.file_record import outlook_of, verdicts_of


def read(path, program="comfyui"):
    info = inspect(str(path))
    return info.adapter, judge(info.adapter, info.candidates, by_name(program))


def test_names_that_nobody_reads_become_those_of_the_program(tmp_path):
    adapter, verdict = read(EVERY["sd15-diffusers-pokemon"](tmp_path))
    assert verdict.verdict == NOTHING
    found = loading_fix(adapter, verdict)
    assert found.title == "ComfyUI"
    assert found.command == find_fix(adapter, adapter.checkpoint.path, by_name("comfyui"), None)


def test_dora_that_is_lost_needs_a_base_and_no_name_becomes_an_option(write_safetensors, monkeypatch):
    tensors = lora("lora_unet_blocks_0_self_attn_q", rank=4)
    tensors["lora_unet_blocks_0_self_attn_q.dora_layer.weight"] = ("F32", (6,), 1.0)
    monkeypatch.chdir(write_safetensors(tensors, name="-d.safetensors").parent)
    adapter, verdict = read("-d.safetensors")
    assert verdict.verdict == LOST
    command = loading_fix(adapter, verdict).command
    assert command.startswith("lora-inspect convert ./-d.safetensors --to comfyui --base BASE -o ")


def test_other_factors_are_for_compat_to_find(write_safetensors):
    shapes = {"hada_w1_a": (6, 2), "hada_w1_b": (2, 5), "hada_w2_a": (6, 2), "hada_w2_b": (2, 5)}
    path = "lora_unet_blocks_0_self_attn_"
    tensors = {f"{path}{leaf}.{role}": ("F32", shape, 0.5) for leaf in "qkvo" for role, shape in shapes.items()}
    adapter, verdict = read(write_safetensors(tensors), "diffusers")
    assert verdict.verdict == REFUSED
    assert "--algorithm lora" in find_fix(adapter, adapter.checkpoint.path, by_name("diffusers"), None)
    assert loading_fix(adapter, verdict) is None


@pytest.mark.parametrize("name", EVERY)
def test_programs_that_share_a_prediction_get_the_fix_of_each(name, tmp_path):
    adapter = inspect(str(EVERY[name](tmp_path))).adapter
    given = adapter.checkpoint.path
    of_each = {program.name: find_fix(adapter, given, program, None) for program in PROGRAMS.values()}
    assert find_fixes(adapter, given, PROGRAMS.values(), None) == {one: fix for one, fix in of_each.items() if fix}


@pytest.mark.parametrize("name", ["krea2-lora-kohya", "wan-rslora-flag", "gguf-llama", "alpha-of-0"])
def test_nothing_is_planned_for_what_is_right_is_mended_or_waits_for_an_answer(name, tmp_path, monkeypatch):
    def planned(*arguments):
        raise AssertionError("it is not asked for")

    monkeypatch.setattr("lora_inspect.converting.fixes.find_fix", planned)
    info = inspect(str(EVERY[name](tmp_path)))
    outlook = outlook_of(info, verdicts_of(info), "a command" if name == "wan-rslora-flag" else None)
    assert outlook.fix is None
    assert outlook.verdicts
