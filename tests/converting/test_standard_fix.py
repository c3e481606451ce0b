"""The command that `info` knows without a search is the one that the search of `compat` finds, or there is none."""

import shlex

import pytest
from adapters import lora

from lora_inspect.converting.fixes import find_fix
from lora_inspect.converting.standard_fix import standard_fix
from lora_inspect.programs.record import COMPUTES, SILENT, Loader, Program, Rule, Strangers
from lora_inspect.programs.record import one as one_for_all
from lora_inspect.programs.verdict import STRENGTH, concerned, judge
from lora_inspect.reading.file_info import inspect
from lora_inspect.reading.model.settings import Settings
from lora_inspect.reporting.file_record import verdicts_of

FLAG = {"use_rslora_flag": ("BOOL", (), True)}


def modules(**options):
    return {
        key: tensor
        for block in range(2)
        for key, tensor in lora(f"lora_unet_blocks_{block}_self_attn_q", rank=4, alpha=3.0, **options).items()
    }


def magnitudes(suffix, shape):
    return {f"lora_unet_blocks_{block}_self_attn_q.{suffix}": ("F32", shape, 1.0) for block in range(2)}


FOUND = {
    "all RS-LoRA": {**modules(), **FLAG},
    "of another dtype": {**modules(dtype="BF16"), **FLAG},
    "one module of it": {**modules(), "lora_unet_blocks_0_self_attn_q.use_rslora_flag": ("BOOL", (), True),
                         "lora_unet_blocks_1_self_attn_q.use_rslora_flag": ("BOOL", (), False)},
    "under ComfyUI's names": {
        key.replace("lora_unet_blocks_", "diffusion_model.blocks.").replace("_self_attn_q", ".self_attn.q"): tensor
        for key, tensor in modules().items()
    } | FLAG,
}  # fmt: skip
NOT_FOUND = {
    "plain": modules(),
    "DoRA that is lost": {**modules(), **magnitudes("dora_layer.weight", (6,)), **FLAG},
    "DoRA that is read": {**modules(), **magnitudes("dora_scale", (1, 5)), **FLAG},
    "a tensor of nobody": {**modules(), **FLAG, "stray": ("F32", (1,), 0)},
    "no alpha": {key: tensor for key, tensor in modules().items() if not key.endswith(".alpha")} | FLAG,
    "another algorithm beside it": {**modules(), **FLAG, "lora_unet_blocks_0_self_attn_k.diff": ("F32", (6, 5), 1)},
}


def read(file, settings=Settings()):  # noqa: B008 (frozen)
    info = inspect(str(file), settings)
    return info.adapter, concerned(verdicts_of(info), info.candidates)


@pytest.mark.parametrize("tensors", FOUND.values(), ids=FOUND)
def test_it_is_what_the_search_finds_for_every_program_of_another_strength(tensors, write_safetensors):
    file = write_safetensors(tensors)
    adapter, verdicts = read(file)
    wrong = [one.program for one in verdicts if one.verdict == STRENGTH]
    assert wrong
    fix = standard_fix(adapter, verdicts)
    assert [find_fix(adapter, str(file), program, None) for program in wrong] == [fix] * len(wrong)


def test_a_trainer_that_reads_no_alpha_does_not_hide_it(write_safetensors, run):
    file = write_safetensors(FOUND["under ComfyUI's names"])
    assert run("info", file, "--json").json["fix"].endswith("-standard.safetensors")


@pytest.mark.parametrize("tensors", NOT_FOUND.values(), ids=NOT_FOUND)
def test_where_more_is_wrong_or_nothing_there_is_none(tensors, write_safetensors):
    adapter, verdicts = read(write_safetensors(tensors))
    assert standard_fix(adapter, verdicts) is None


def test_dora_that_is_read_is_of_another_strength_all_the_same(write_safetensors):
    _, verdicts = read(write_safetensors(NOT_FOUND["DoRA that is read"]))
    assert any(one.verdict == STRENGTH for one in verdicts)


def test_a_program_that_has_no_use_for_alpha_is_not_mended_by_another_one(write_safetensors):
    adapter, verdicts = read(write_safetensors(FOUND["all RS-LoRA"]))
    reader = next(one for one in verdicts if one.verdict == STRENGTH)
    rule = Rule(kinds={"lora": COMPUTES}, scale=one_for_all)
    other = judge(adapter, (), Program("other", "Other", "1", (Loader((rule,), Strangers(SILENT)),), {}))
    assert (other.verdict, other.factor) == (STRENGTH, pytest.approx(1 / 1.5, rel=1e-3))
    assert standard_fix(adapter, [reader])
    assert standard_fix(adapter, [other]) is None
    assert standard_fix(adapter, [reader, other]) is None


def test_what_settled_the_rule_stands_in_the_command(write_safetensors):
    file = write_safetensors(modules())
    adapter, verdicts = read(file, Settings(rslora=True))
    program, verb, given, option, output = shlex.split(standard_fix(adapter, verdicts))
    assert (program, verb, given, option) == ("lora-inspect", "convert", f"{file}:rslora=yes", "-o")
    assert output == str(file).replace(".safetensors", "-standard.safetensors")
