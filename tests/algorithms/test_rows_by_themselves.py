"""What becomes of a row does not show which rows come with it, whatever a library does with few of them."""

import json
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from row_dependent_products import row_dependent_products
from safetensors.torch import save_file

from lora_inspect.algorithms.record import SEEN
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.matching.place import Place, Placed
from lora_inspect.maths.chain import folded, settled
from lora_inspect.maths.dora import INPUT
from lora_inspect.reading.adapter import read_adapter

pytestmark = pytest.mark.numeric

sys.path.append(str(Path(__file__).parent))
CASES = {path.stem: import_module(f"cases.{path.stem}") for path in sorted(Path(__file__).parent.glob("cases/*.py"))}
EVERY = [pytest.param(case, id=f"{name}: {case.id}") for name, module in CASES.items() for case in module.cases()]
ROWS = (1, 2, 3, 5, 7)
# What is summed over the rows of the weight is summed in float64, whose own last bit shows how they are cut.
SUMMED = {"deft", "frod", "peanut"}


def contributions(case, folder):
    """Those of the adapter of a case, as it is read from files."""
    save_file(case.base, folder / "base.safetensors")
    adapter = weights = folder / "adapter.safetensors"
    if case.config is not None:
        adapter = folder / "adapter"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text(json.dumps(case.config))
        weights = adapter / "adapter_model.safetensors"
    save_file(dict(case.tensors), weights, metadata=dict(case.metadata))
    return read_adapter(open_checkpoint(str(adapter))).contributions


def blocks_of(weight, count):
    """Reads the weight in blocks of about so many rows, in memory of their own."""

    def read(together):
        step = len(weight) if together == 0 else max(together, count // together * together)
        return ((first, weight[first : first + step].clone()) for first in range(0, len(weight), step))

    return read


def changed(contribution, case, folder, dtype, count):
    """The parameter with the contribution in it, folded in blocks of so many rows."""
    algorithm = contribution.algorithm
    target = open_checkpoint(str(folder / "base.safetensors")).tensors[f"layer.{algorithm.parameter}"]
    placed = Placed(contribution, Place(target, transposed=bool(algorithm.transposed)))
    infos = dict(contribution.operands)
    if contribution.magnitude:
        infos["magnitude"] = contribution.magnitude.info
    tensors = {role: case.tensors[info.name] for role, info in infos.items()}
    tensors = {role: one.long() if role in algorithm.positions else one.to(dtype) for role, one in tensors.items()}
    if contribution.formula.seen:
        whole = case.base["layer.weight"].to(dtype)
        tensors[SEEN] = contribution.formula.seen(tensors, blocks_of(whole, count)(1))
    weight = case.base[target.name].to(dtype)
    read = blocks_of(weight.flatten(1) if weight.dim() > 1 else weight.unsqueeze(1), count)
    multiplier = 0.5 if 0.5 in case.multipliers else 1.0
    links = settled([(placed.change(tensors, case.dora_rule), multiplier)], read)
    return torch.cat([rows for _, rows in folded(links, read)])


def is_summed(contribution):
    """Whether numbers of all rows of the weight, as it is stored, are added up for it."""
    algorithm, magnitude = contribution.algorithm, contribution.magnitude
    over_rows = magnitude is not None and (magnitude.axis == INPUT) != bool(algorithm.transposed)
    return over_rows or algorithm.name in SUMMED


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", EVERY)
def test_what_becomes_of_rows_does_not_show_how_they_are_cut(case, dtype, tmp_path):
    for contribution in contributions(case, tmp_path):
        if dtype == torch.float64 and is_summed(contribution):
            continue
        with row_dependent_products():
            whole = changed(contribution, case, tmp_path, dtype, 1 << 20)
            for rows in ROWS:
                found = changed(contribution, case, tmp_path, dtype, rows)
                assert torch.equal(found, whole), f"in blocks of {rows} rows"
