"""The algorithm of docs/extending.md, which is not part of the package, added while the program runs."""

import json
import re
from pathlib import Path

import peft
import pytest
import torch
from libraries import of_peft
from library_case import apply
from safetensors.torch import load_file, save_file

from lora_inspect import algorithms
from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.ops.info import as_json, inspect
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

pytestmark = pytest.mark.numeric
PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def hira():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names = {"__name__": "hira"}
    exec(code, names)
    with algorithms.added(names["ALGORITHM"]):
        yield names["ALGORITHM"]


def formula(tensors, layer, multiplier):
    product = tensors["layer.hira_B"] @ tensors["layer.hira_A"]
    return {"layer.weight": layer.weight.detach() * (1 + multiplier * product)}


@pytest.fixture
def case():
    return of_peft("HiRA", peft.HiraConfig(r=4, target_modules=["layer"]), "linear", formula, multipliers=(1.0,))


@pytest.fixture
def files(case, tmp_path):
    save_file(case.base, tmp_path / "base.safetensors")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(case.config))
    save_file(case.tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    return str(tmp_path / "base.safetensors"), str(tmp_path / "adapter")


def merged(base, adapter, output):
    merge(plan_merge(base, [(adapter, 1.0)], MergeOptions()), str(output))
    return load_file(output)


def test_without_it_its_files_are_refused(files):
    record = as_json(inspect(files[1]))
    assert [problem["severity"] for problem in record["problems"]] == ["error"]
    with pytest.raises(LoraInspectError, match="HIRA, an algorithm that is not built yet"):
        plan_merge(files[0], [(files[1], 1.0)], MergeOptions())


def test_it_is_read_merged_and_converted(hira, case, files, tmp_path):
    record = as_json(inspect(files[1]), modules=True)
    assert (record["algorithms"], record["unclaimed"], record["problems"]) == ({"hira": 1}, [], [])
    (module,) = record["module_list"]
    assert (module["shape"], module["scale"]) == ([20, 12], 1.0)
    found = merged(*files, tmp_path / "merged.safetensors")
    torch.testing.assert_close(found["layer.weight"], case.oracle(1.0)["layer.weight"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(apply(case.layer, found, case.input), case.library(1.0), rtol=1e-9, atol=1e-9)
    result = convert_to_standard(files[1], str(tmp_path / "standard"), ConvertOptions())
    assert result.exact
    again = merged(files[0], result.output, tmp_path / "again.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in found.items())


def test_afterwards_it_is_gone(hira):
    with pytest.raises(ValueError, match="there is an algorithm called hira already"):
        algorithms.add(hira)
    assert ".hira_A" in algorithms.CANDIDATES


def test_nothing_of_it_is_left_behind():
    assert "hira" not in algorithms.ALGORITHMS
    assert ".hira_A" not in algorithms.CANDIDATES


def test_its_rows_are_arranged_as_any_others(hira, run, tmp_path):
    """Query and key of FLUX become rows of one fused layer, and come back as they were."""
    parts = [f"lora_transformer_transformer_blocks_0_attn_to_{leaf}" for leaf in "qk"]
    tensors = {f"{part}.hira_A": torch.randn(2, 8) for part in parts}
    tensors |= {f"{part}.hira_B": torch.randn(8, 2) for part in parts}
    fused, back = tmp_path / "fused.safetensors", tmp_path / "back.safetensors"
    save_file(tensors, tmp_path / "in.safetensors", {"ss_base_model_version": "flux1"})
    assert run("convert", tmp_path / "in.safetensors", "--layout", "original", "-o", fused).status == 0
    assert run("convert", fused, "--layout", "diffusers", "-o", back).status == 0
    joined, found = load_file(fused), load_file(back)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    product = joined[f"{name}.hira_B"] @ joined[f"{name}.hira_A"]
    expected = [tensors[f"{part}.hira_B"] @ tensors[f"{part}.hira_A"] for part in parts]
    torch.testing.assert_close(product, torch.cat([*expected, torch.zeros(8, 8)]))
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
