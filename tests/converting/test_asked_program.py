"""`--to PROGRAM`: the scheme that the program loads, its rules on the output, and the command that `compat` offers."""

import shlex

import pytest
from adapters import lora

from lora_inspect.converting.options import ConvertOptions
from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.compat import compat
from lora_inspect.ops.convert import convert_to_standard
from lora_inspect.programs import added
from lora_inspect.programs.record import (
    BASE_NORM,
    COMPUTES,
    FAILS,
    LEAVES,
    OTHER_AXIS,
    READ,
    WARNS,
    Loader,
    Program,
    Rule,
    Strangers,
)

FLAG = {"use_rslora_flag": ("F32", (), 1.0)}
MODULES = [f"lora_unet_blocks_{at}_{leaf}" for at in range(2) for leaf in ("self_attn_q", "cross_attn_v", "ffn_0")]
TALKS = Strangers(WARNS, "key not loaded")


def toy_program(*rules, scheme="comfyui", strangers=TALKS, **fields):
    loader = Loader(rules=rules, strangers=strangers, **fields)
    return Program("toy", "Toy", "1.0", (loader,), {"wan": scheme} if scheme else {})


LOADS_COMFYUI = Rule(prefixes=("diffusion_model.",), layouts=("original",), kinds={"lora": COMPUTES})
REST = Rule()


@pytest.fixture
def wan(write_safetensors):
    def write(**extra):
        tensors = {}
        for module in MODULES:
            own = {suffix: tensor for suffix, tensor in extra.items() if suffix != "flags"}
            tensors |= lora(module, out=8, inputs=8, rank=4, alpha=4.0, **own)
        return str(write_safetensors({**tensors, **extra.get("flags", {})}))

    return write


def to_toy(path, output, **options):
    return convert_to_standard(path, str(output), ConvertOptions(program="toy", **options))


def verdict(path):
    (found,) = compat(path, "toy").verdicts
    return found


def test_the_scheme_of_the_program_is_written(wan, tmp_path):
    with added(toy_program(LOADS_COMFYUI, REST)):
        before = verdict(path := wan(flags=FLAG))
        result = to_toy(path, tmp_path / "out.safetensors")
        assert (before.verdict, result.target["scheme"]) == ("nothing loaded", "comfyui")
        assert (result.target["program"], verdict(result.output).verdict) == ("toy", "same meaning")
        assert not any("toy" in remark.lower() for remark in result.remarks)


def test_an_output_that_the_program_would_not_read_is_not_left(wan, tmp_path):
    with added(toy_program(LOADS_COMFYUI._replace(kinds={"lora": LEAVES}), REST)):
        with pytest.raises(LoraInspectError, match=r"Toy 1\.0 would read it wrongly: nothing loaded"):
            to_toy(wan(), tmp_path / "out.safetensors")
        assert list(tmp_path.glob("out*")) == []


def test_what_is_not_known_of_the_output_is_said(wan, tmp_path):
    with added(toy_program(LOADS_COMFYUI._replace(prefixes=("other.",)))):
        result = to_toy(wan(), tmp_path / "out.safetensors")
        assert any("lora-inspect does not know how Toy 1.0 reads it" in remark for remark in result.remarks)


def test_a_rule_that_was_only_read_is_said_to_be(wan, tmp_path):
    with added(toy_program(LOADS_COMFYUI._replace(by=READ))):
        assert any("no run has confirmed" in remark for remark in to_toy(wan(), tmp_path / "out.safetensors").remarks)


def test_a_program_without_names_for_the_family_is_refused(wan, tmp_path):
    with (
        added(toy_program(REST, scheme="")),
        pytest.raises(LoraInspectError, match="lora-inspect knows no names under which Toy"),
    ):
        to_toy(wan(), tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("does", "offers"),
    [
        (BASE_NORM, "magnitudes corrected for that"),
        (OTHER_AXIS, "--algorithm full"),
        (LEAVES, "Toy applies none, so the result would differ; choose --base BASE with --rank N"),
        (FAILS, "Toy stops with an error at them; choose --base BASE with --rank N"),
    ],
)
def test_dora_is_refused_with_what_the_program_can_have(wan, tmp_path, does, offers):
    rule = LOADS_COMFYUI._replace(magnitudes={".dora_scale output": does})
    with added(toy_program(rule, REST)), pytest.raises(LoraInspectError, match=offers):
        to_toy(wan(dora_scale=("F32", (8, 1), 1.0)), tmp_path / "out.safetensors")


def test_what_a_program_makes_of_magnitudes_under_other_names_decides_nothing(wan, tmp_path):
    rule = LOADS_COMFYUI._replace(magnitudes={".dora_scale output": OTHER_AXIS})
    others = [
        rule._replace(dialects=("peft",), magnitudes={".dora_scale output": COMPUTES}),
        rule._replace(prefixes=("lora_unet_",), magnitudes={".dora_scale output": LEAVES}),
    ]
    with added(toy_program(*others, rule, REST)), pytest.raises(LoraInspectError, match="--algorithm full"):
        to_toy(wan(dora_scale=("F32", (8, 1), 1.0)), tmp_path / "out.safetensors")


def test_dora_is_kept_where_the_program_computes_it(wan, tmp_path):
    rule = LOADS_COMFYUI._replace(magnitudes={".dora_scale output": COMPUTES})
    with added(toy_program(rule, REST)):
        result = to_toy(wan(dora_scale=("F32", (8, 1), 1.0)), tmp_path / "out.safetensors")
        assert (result.target["dora"], result.exact, verdict(result.output).verdict) == (True, True, "same meaning")


def test_magnitudes_that_the_user_keeps_are_said_to_be_wrong_there(wan, tmp_path):
    rule = LOADS_COMFYUI._replace(magnitudes={".dora_scale output": BASE_NORM})
    with added(toy_program(rule, REST)):
        result = to_toy(wan(dora_scale=("F32", (8, 1), 1.0)), tmp_path / "out.safetensors", keep_dora=True)
        assert any("Toy 1.0 does not apply its magnitudes" in remark for remark in result.remarks)


def test_the_fix_of_a_wrong_strength_is_a_standard_file(wan, tmp_path, run):
    kohya = LOADS_COMFYUI._replace(prefixes=("lora_unet_",))
    with added(toy_program(kohya, REST)):
        found = verdict(wan(flags=FLAG))
        assert (found.verdict, "--to" in found.fix) == ("wrong strength", False)
        assert run(*shlex.split(found.fix)[1:]).status == 0
        assert verdict(str(tmp_path / "file-standard.safetensors")).verdict == "same meaning"


def test_the_fix_of_names_is_for_the_program(wan, tmp_path, run):
    with added(toy_program(LOADS_COMFYUI, REST)):
        found = verdict(wan())
        assert "--to toy" in found.fix
        # The command line has been read before the program was known.
        to_toy(str(tmp_path / "file.safetensors"), shlex.split(found.fix)[-1])
        assert verdict(str(tmp_path / "file-toy.safetensors")).verdict == "same meaning"


@pytest.mark.parametrize(
    ("does", "words"),
    [(BASE_NORM, "--base BASE -o"), (OTHER_AXIS, "--algorithm full -o"), (LEAVES, "--base BASE --max-error 0.01 -o")],
)
def test_the_fix_of_dora_names_the_base(wan, does, words):
    kinds = {"lora": COMPUTES, "full": COMPUTES}
    rule = LOADS_COMFYUI._replace(prefixes=(), kinds=kinds, magnitudes={".dora_scale output": does})
    with added(toy_program(rule, REST)):
        assert words in verdict(wan(dora_scale=("F32", (8, 1), 1.0))).fix


def test_there_is_no_fix_for_what_the_program_cannot_have(wan):
    with added(toy_program(REST, scheme="")):
        assert verdict(wan()).fix is None
