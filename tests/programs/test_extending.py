"""docs/extending_models.md shows a whole program, and with that one file everything knows it."""

import re
from pathlib import Path

import pytest
from adapters import lora

from lora_inspect import programs
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.ops.compat import compat
from lora_inspect.ops.convert import convert_to_standard
from lora_inspect.programs import added

PAGE = Path(__file__).parents[2] / "docs" / "extending_models.md"
WAN = [f"lora_unet_blocks_0_{leaf}" for leaf in ("self_attn_q", "self_attn_k", "cross_attn_v", "ffn_0")]
FLUX = [f"transformer.transformer_blocks.0.attn.{leaf}" for leaf in ("to_q", "to_k", "add_q_proj", "to_add_out")]
OF_FLUX = {"ss_base_model_version": "flux1"}


@pytest.fixture
def easel():
    _, page = PAGE.read_text(encoding="utf-8").split("# Adding a program\n")
    code, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(compile(code, "easel.py", "exec"), names)
    with added(names["PROGRAM"]):
        yield names["PROGRAM"]
    assert "easel" not in programs.PROGRAMS


def loras(modules, **options):
    return {key: tensor for module in modules for key, tensor in lora(module, out=8, inputs=8, **options).items()}


def beside(modules, suffix, shape):
    return loras(modules) | {module + suffix: ("F32", shape, 1.0) for module in modules}


HADA = {f"{WAN[0]}.hada_w{n}_{side}": ("F32", (8, 8), 1.0) for n in (1, 2) for side in "ab"}


@pytest.mark.parametrize(
    ("tensors", "verdict", "says"),
    [
        (loras(WAN), "same meaning", ""),
        (loras(WAN) | {"use_rslora_flag": ("F32", (), 1.0)}, "wrong strength", "0.25 times"),
        (beside(WAN, ".dora_scale", (8, 1)), "DoRA wrong", "other axis"),
        (beside(WAN, ".dora_layer.weight", (8,)), "DoRA lost", "unused key"),
        (beside(WAN, ".lora_magnitude_vector", (8,)), "not tested", "nobody has tried"),
        (beside(WAN, ".diff_b", (8,)), "partly loaded", "4 of 8 changes"),
        (loras(WAN[1:]) | HADA, "refused", "NotImplementedError"),
        (
            loras([f"diffusion_model.{name}" for name in ("blocks.0.ffn.0", "blocks.0.self_attn.q")]),
            "nothing loaded",
            "unused",
        ),
        (loras(FLUX, spelling="peft"), "wrong strength", "2 times"),
        (loras(FLUX, spelling="peft", alpha=None), "same meaning", ""),
        (loras(FLUX, alpha=None), "not tested", "nobody has tried"),
    ],
)
def test_it_judges_files(easel, write_safetensors, tensors, verdict, says):
    (found,) = compat(
        str(write_safetensors(tensors, OF_FLUX if FLUX[0][:11] in str(tensors) else {})), "easel"
    ).verdicts
    assert (found.verdict, says in found.says) == (verdict, True), found.says
    assert found.by == ("" if verdict == "not tested" else "read" if "transformer." in str(tensors) else "run")


def test_it_is_written_for(easel, write_safetensors, tmp_path):
    path = write_safetensors(loras(FLUX, spelling="peft", alpha=8.0), OF_FLUX)
    (found,) = compat(str(path), "easel").verdicts
    # Under its own names a standard file has the scale in the factors, for every program that reads them.
    assert found.fix.startswith(f"lora-inspect convert {path} -o ")
    convert_to_standard(str(path), str(tmp_path / "o.safetensors"), ConvertOptions(program="easel"))
    (found,) = compat(str(tmp_path / "o.safetensors"), "easel").verdicts
    assert found.verdict == "same meaning"


def test_info_names_it(easel, run, write_safetensors):
    assert "easel" in run("info", write_safetensors(loras(WAN)), "--json").stdout.lower()
