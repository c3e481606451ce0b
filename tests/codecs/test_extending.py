"""docs/extending.md shows a file of the package, and one record more is enough for another codec."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lora_inspect.codecs.int8 as shown
from lora_inspect import codecs
from lora_inspect.codecs.record import Codec
from lora_inspect.files.safetensors.dtypes import PLAIN_FLOATS

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"

# All that another codec is: fp8 with a sign for all rows, which has nothing that writes it.
SIGNED = Codec(
    name="signed",
    title="signed fp8",
    stored=frozenset({"F8_E4M3"}),
    settings={"weight_sign": PLAIN_FLOATS},
    formats={"float8_signed": "F8_E4M3"},
    prepared=lambda tensors, layout: tensors["weight_sign"].float(),
    decode=lambda codes, sign, first, into: into.mul_(sign),
)


def test_the_page_shows_the_file_that_it_names():
    _, page = PAGE.read_text(encoding="utf-8").split("# Adding a codec\n")
    code, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert code == Path(shown.__file__).read_text(encoding="utf-8")


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="int8"):
        codecs.add(shown.CODEC)


def test_every_codec_is_called_as_its_file_is():
    for name, codec in codecs.CODECS.items():
        assert (Path(codecs.__file__).parent / f"{name}.py").exists()
        assert codec.name == name
        assert codec.title


@pytest.mark.numeric
def test_one_record_more_is_read_and_refused_where_it_would_be_written(tmp_path, run, monkeypatch):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randn(4, 8, generator=generator).to(torch.float8_e4m3fn)
    save_file({"q.weight": codes, "q.weight_sign": torch.tensor(-1.0)}, tmp_path / "base.safetensors")
    down, up = torch.randn(2, 8, generator=generator), torch.randn(4, 2, generator=generator)
    adapter = {"lora_unet_q.lora_down.weight": down, "lora_unet_q.lora_up.weight": up}
    save_file(adapter, tmp_path / "adapter.safetensors")
    out = tmp_path / "out.safetensors"
    pair = (tmp_path / "base.safetensors", tmp_path / "adapter.safetensors", "-o", out)
    monkeypatch.setitem(codecs.CODECS, SIGNED.name, SIGNED)
    refusal = run("merge", *pair).refusal
    assert "q.weight is stored as signed fp8, which lora-inspect reads but does not write" in refusal
    assert "--dtype bf16" in refusal
    assert "--changed-dtype bf16" in refusal
    for option in ("--dtype", "--changed-dtype"):
        ended = run("merge", *pair, option, "fp32", "--force", "-v")
        assert "1 signed fp8 tensors decoded" in ended.stdout
        found = load_file(out)
        assert found.keys() == {"q.weight"}
        assert torch.allclose(found["q.weight"], -codes.float() + up @ down, atol=1e-6)
