"""Refusals of `combine`, `resize` and `average`: one sentence, the right exit status, and nothing left behind."""

import os
import re
import shutil

import pytest
import torch
from dense_sums import LAYERS, key, kohya, peft
from safetensors.torch import load_file, save_file

from lora_inspect import LoraInspectError, combine

TWO = [*LAYERS.items()][:2]


def flat_norm(place, size, names=("norm",), seed=3):
    numbers = torch.Generator().manual_seed(seed)
    tensors = {f"lora_unet_{name}.w_norm": torch.randn(size, generator=numbers) for name in names}
    save_file(tensors, place)
    return str(place)


def changed(path, name, value):
    tensors = load_file(path)
    tensors[name] = value(tensors[name])
    save_file({key: own.contiguous() for key, own in tensors.items()}, path)
    return path


@pytest.fixture
def files(tmp_path):
    """Two adapters of one model, and those that something is wrong with."""
    first = kohya(tmp_path / "a.safetensors", 1)[0]
    kohya(tmp_path / "b.safetensors", 2, rank=3)
    kohya(tmp_path / "other_shape.safetensors", 3, layers={**LAYERS, TWO[0][0]: (24, 22)})
    kohya(
        tmp_path / "flux.safetensors",
        4,
        layers={"double_blocks.0.img_attn.qkv": (36, 12), "single_blocks.3.linear1": (84, 12)},
    )
    kohya(tmp_path / "sdxl.safetensors", 5, layers={
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q": (20, 20),
        "input_blocks.8.1.transformer_blocks.9.attn2.to_k": (20, 2048),
        "label_emb.0.0": (20, 2816),
    })  # fmt: skip
    up = f"{key(TWO[0][0])}.lora_up.weight"
    for name, bad in (("nan", float("nan")), ("inf", float("inf"))):
        shutil.copy(first, tmp_path / f"{name}.safetensors")
        changed(
            tmp_path / f"{name}.safetensors", up, lambda value, bad=bad: value.index_fill(0, torch.tensor([2]), bad)
        )
    shutil.copy(first, tmp_path / "alpha.safetensors")
    changed(tmp_path / "alpha.safetensors", f"{key(TWO[0][0])}.alpha", lambda value: torch.tensor(float("inf")))
    shutil.copy(first, tmp_path / "whole.safetensors")
    changed(tmp_path / "whole.safetensors", up, lambda value: value.to(torch.int32))
    shutil.copy(first, tmp_path / "dora.safetensors")
    changed(tmp_path / "dora.safetensors", up, lambda value: value)
    tensors = load_file(first)
    for path, (rows, _) in LAYERS.items():
        tensors[f"{key(path)}.dora_scale"] = torch.ones(rows, 1)
    save_file(tensors, tmp_path / "dora.safetensors")
    peft(
        tmp_path / "saved",
        6,
        extra={"base_model.model.head.weight": torch.randn(4, 4)},
        config={"modules_to_save": ["head"]},
    )
    peft(
        tmp_path / "saved_other",
        6,
        extra={"base_model.model.head.weight": torch.randn(4, 4)},
        config={"modules_to_save": ["head"]},
    )
    peft(
        tmp_path / "saved_alone",
        6,
        layers={},
        extra={"base_model.model.head.weight": torch.randn(4, 4)},
        config={"modules_to_save": ["head"], "target_modules": ["none"]},
    )
    numbers = torch.Generator().manual_seed(0)
    save_file(
        {f"{path}.weight": torch.randn(shape, generator=numbers) for path, shape in LAYERS.items()},
        tmp_path / "base.safetensors",
    )
    save_file({"x.weight": torch.ones(3, 3)}, tmp_path / "wrong_base.safetensors")
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-9])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    flat_norm(tmp_path / "norm6.safetensors", 6)
    flat_norm(tmp_path / "norm1.safetensors", 1)
    save_file({**load_file(first), "lora_unet_norm.w_norm": torch.ones(6)}, tmp_path / "a6.safetensors")
    save_file({**load_file(first), "lora_unet_norm.w_norm": torch.ones(1)}, tmp_path / "a1.safetensors")
    return tmp_path


REFUSED = {
    "different families": ("combine flux.safetensors sdxl.safetensors", "it is of .*name adapters of one model"),
    "shapes that disagree": ("combine a.safetensors other_shape.safetensors", "changes a weight of .*of one model"),
    "shapes that disagree, to a size": ("combine a.safetensors other_shape.safetensors --size 9kB", "changes a weight"),
    "norms that disagree": ("combine a6.safetensors a1.safetensors", "changes a weight of"),
    "NaN": ("combine a.safetensors nan.safetensors", "holds nan"),
    "NaN, one": ("combine nan.safetensors:0.5", "not finite|holds nan"),
    "NaN, averaged": ("average a.safetensors nan.safetensors", "holds nan"),
    "NaN, resized": ("resize nan.safetensors --rank 2", "holds nan"),
    "NaN, of factors": ("average a.safetensors nan.safetensors --of factors", "not finite|holds nan"),
    "infinity": ("combine inf.safetensors a.safetensors --rank 2", "holds inf"),
    "an alpha of infinity": ("combine alpha.safetensors a.safetensors", "alpha"),
    "whole numbers": ("combine whole.safetensors a.safetensors", "I32"),
    "no base": ("combine dora.safetensors a.safetensors", "give --base BASE, or leave the module out with --exclude"),
    "no base, resized": ("resize dora.safetensors --rank 3", "give --base BASE"),
    "another base": ("combine dora.safetensors a.safetensors --base wrong_base.safetensors", "no weight of|base"),
    "a base for nothing": ("combine a.safetensors b.safetensors --base base.safetensors", "--base has nothing to do"),
    "an adapter as base": ("combine dora.safetensors a.safetensors --base a.safetensors", "not a base"),
    "a base as adapter": ("combine base.safetensors a.safetensors", "it is no adapter"),
    "other saved modules": ("combine saved saved_other", "is saved whole, and other inputs lack it .*; give --base"),
    "saved modules alone": ("resize saved_alone --rank 2", "it has only weights that are saved whole; merge it"),
    "a size too small": ("combine a.safetensors b.safetensors --size 100", "which is above --size 100; give a larger"),
    "no module left": ("combine a.safetensors:0 b.safetensors:0", "no module is left"),
    "no module left of one": ("combine a.safetensors:0", "no module is left"),
    "nothing fits a pattern": ("combine a.safetensors --include *nowhere*", "nowhere"),
    "opposites": ("combine a.safetensors a.safetensors:-1", "no module is left, as the changes cancel each other"),
    "a step": ("combine a.safetensors:step=3 b.safetensors", "step"),
    "the file is torn": ("combine a.safetensors torn.safetensors", "torn"),
    "the file is empty": ("resize empty.safetensors --rank 2", "empty"),
    "beyond float16": ("combine a.safetensors:1e12 b.safetensors --dtype fp16", "would hold numbers beyond F16"),
}
WRONG_USAGE = {
    "two rules": ["combine", "a.safetensors", "--rank", "3", "--energy", "0.9"],
    "a rank and a cap": ["combine", "a.safetensors", "--rank", "3", "--max-rank", "9"],
    "no rule": ["resize", "a.safetensors"],
    "a rank of 0": ["resize", "a.safetensors", "--rank", "0"],
    "energy of 90": ["resize", "a.safetensors", "--energy", "90"],
    "energy of 0": ["resize", "a.safetensors", "--energy", "0"],
    "an error of 1": ["resize", "a.safetensors", "--max-error", "1"],
    "no number": ["resize", "a.safetensors", "--max-error", "nan"],
    "a size in words": ["combine", "a.safetensors", "--size", "large"],
    "a size of 0": ["combine", "a.safetensors", "--size", "0"],
    "an unknown type": ["combine", "a.safetensors", "--dtype", "int8"],
    "unknown names": ["combine", "a.safetensors", "--to", "nobody"],
    "no file": ["combine"],
    "no such option": ["average", "a.safetensors", "--fast"],
}


def left(folder):
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case, files, run, monkeypatch):
    monkeypatch.chdir(files)
    words, says = REFUSED[case]
    before = left(files)
    ended = run(*words.split(), "-o", "out" if "saved " in words else "out.safetensors")
    assert re.search(says, ended.refusal), ended.refusal
    assert left(files) == before


@pytest.mark.parametrize("case", WRONG_USAGE)
def test_wrong_usage(case, files, run, monkeypatch):
    monkeypatch.chdir(files)
    before = left(files)
    ended = run(*WRONG_USAGE[case], "-o", "out.safetensors")
    assert ended.status == 2, ended
    assert "Traceback" not in ended.stderr
    assert left(files) == before


@pytest.mark.parametrize("words", [
    ["combine", "missing.safetensors", "a.safetensors"], ["combine", "a.safetensors", "missing.safetensors"],
    ["resize", "missing.safetensors", "--rank", "2"], ["average", "a.safetensors", "missing.safetensors"],
    ["combine", "dora.safetensors", "a.safetensors", "--base", "missing.safetensors"],
], ids=" ".join)  # fmt: skip
def test_a_file_that_is_missing(words, files, run, monkeypatch):
    monkeypatch.chdir(files)
    ended = run(*words, "-o", "out.safetensors")
    assert "missing" in ended.failure
    assert not os.path.exists("out.safetensors")


@pytest.mark.parametrize("words", [
    ["combine", "a.safetensors", "b.safetensors"], ["combine", "a.safetensors:0.5"],
    ["resize", "a.safetensors", "--rank", "2"], ["average", "a.safetensors", "b.safetensors"],
], ids=" ".join)  # fmt: skip
def test_an_input_is_never_the_output(words, files, run, monkeypatch):
    monkeypatch.chdir(files)
    content = (files / "a.safetensors").read_bytes()
    os.link("a.safetensors", "linked.safetensors")
    for output in ("a.safetensors", "./a.safetensors", "linked.safetensors"):
        ended = run(*words, "-o", output, "--force")
        assert "input" in ended.refusal
        assert (files / "a.safetensors").read_bytes() == content
    (files / "kept.safetensors").write_bytes(b"kept")
    assert run(*words, "-o", "kept.safetensors").status == 1
    assert (files / "kept.safetensors").read_bytes() == b"kept"
    assert run(*words, "-o", "kept.safetensors", "--force").status == 0


def test_experts_of_a_pipeline(run, tmp_path):
    layers = {"blocks.0.self_attn.q": (24, 24), "blocks.0.cross_attn.k": (24, 24), "blocks.0.ffn.0": (48, 24)}
    one = kohya(tmp_path / "style_high_noise.safetensors", 1, layers=layers)[0]
    other = kohya(tmp_path / "style_low_noise.safetensors", 2, layers=layers)[0]
    out = tmp_path / "out.safetensors"
    for verb in ("combine", "average"):
        ended = run(verb, one, other, "-o", out)
        assert "combine those of one expert, or give --allow-mixed" in ended.refusal
        assert not out.exists()
        assert run(verb, one, other, "-o", out, "--allow-mixed").status == 0
        out.unlink()
    assert run("average", one, other, "--of", "factors", "-o", out).status == 1


def test_names_without_a_place_name_the_rank(tmp_path):
    full = {f"{key(path)}.diff": torch.randn(shape) for path, shape in LAYERS.items()}
    save_file(full, tmp_path / "full.safetensors")
    one = peft(tmp_path / "peft", 1)[0]
    with pytest.raises(LoraInspectError, match="give rank=N for plain LoRA"):
        combine([one, str(tmp_path / "full.safetensors")], tmp_path / "out")
    combine([one, str(tmp_path / "full.safetensors")], tmp_path / "out", rank=4)
