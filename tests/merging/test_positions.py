"""Whole numbers of an adapter that say where in a weight its values belong, and those that belong nowhere."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

ROWS, COLUMNS = 5, 3
ENTRIES = torch.tensor([[0, 2, 4, 4], [1, 2, 0, 2]])
VALUES = torch.tensor([1.0, 2.0, 3.0, 4.0])


@pytest.fixture
def write(tmp_path):
    """Writes an adapter with these entries and gives its path and that of a base of zeros."""

    def written(entries, base=(ROWS, COLUMNS)):
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "SHIRA", "r": 1}))
        name = "base_model.model.layer.shira_"
        tensors = {f"{name}indices": entries.contiguous(), f"{name}weight": VALUES}
        save_file(tensors, folder / "adapter_model.safetensors")
        save_file({"layer.weight": torch.zeros(base)}, tmp_path / "base.safetensors")
        return str(tmp_path / "base.safetensors"), str(folder)

    return written


def merged(base, adapter, tmp_path):
    merge(plan_merge(base, [(adapter, 1.0)], MergeOptions()), str(tmp_path / "merged.safetensors"), force=True)
    return load_file(tmp_path / "merged.safetensors")["layer.weight"]


def expected(entries=ENTRIES):
    weight = torch.zeros(ROWS, COLUMNS)
    for (row, column), value in zip(entries.long().T.tolist(), VALUES, strict=True):
        weight[row, column] += value
    return weight


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.float32])
def test_whole_numbers_of_any_type(dtype, write, tmp_path):
    assert torch.equal(merged(*write(ENTRIES.to(dtype)), tmp_path), expected())


def test_values_at_one_entry_add_up(write, tmp_path):
    entries = torch.tensor([[0, 2, 2, 4], [1, 2, 2, 2]])
    assert torch.equal(merged(*write(entries), tmp_path), expected(entries))


def test_they_go_on_into_the_standard_form_as_they_are(write, tmp_path):
    base, adapter = write(ENTRIES.to(torch.int32))
    result = convert_to_standard(adapter, str(tmp_path / "standard"), ConvertOptions())
    assert result.exact
    assert torch.equal(merged(base, result.output, tmp_path), expected())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bool])
def test_numbers_of_a_type_that_none_are_stored_in(dtype, write, tmp_path):
    with pytest.raises(LoraInspectError, match=r"shira_indices .* are not whole numbers"):
        merged(*write(ENTRIES.to(dtype)), tmp_path)


@pytest.mark.parametrize("odd", [0.5, float("nan"), float("inf"), -float("inf"), 1e30])
def test_floats_that_are_no_whole_numbers_of_a_weight(odd, write, tmp_path):
    entries = ENTRIES.float()
    entries[1, 1] = odd
    with pytest.raises(LoraInspectError, match=r"are not whole numbers|changes an entry of column"):
        merged(*write(entries), tmp_path)


@pytest.mark.parametrize(
    ("row", "column", "says"),
    [(5, 0, "row 5"), (-1, 0, "row -1"), (0, 3, "column 3"), (0, -1, "column -1"), (2**40, 0, f"row {2**40}")],
)
def test_entries_outside_the_weight(row, column, says, write, tmp_path):
    entries = ENTRIES.clone()
    entries[:, 3] = torch.tensor([row, column])
    with pytest.raises(LoraInspectError, match=rf"layer changes an entry of {says}, but layer.weight is \[5, 3\]"):
        merged(*write(entries), tmp_path)
    assert not (tmp_path / "merged.safetensors").exists()
