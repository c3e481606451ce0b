"""A merge by several threads: the same bytes and the same errors as by one, whatever comes in between."""

import pytest
import torch
from adapters import drawn
from row_dependent_products import row_dependent_products
from safetensors.torch import save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.merging import fold, working_crew
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

pytestmark = pytest.mark.slow

LAYERS, OUT, IN = 6, 70, 30


@pytest.fixture
def files(tmp_path):
    """A base with adapters of every kind that a pass over a weight, a group of rows or its neighbours may matter to."""
    base = {"first.bias": drawn(0, 9)}
    for layer in range(LAYERS):
        base |= {
            f"blocks.{layer}.q.weight": drawn(layer, OUT, IN).bfloat16(),
            f"blocks.{layer}.q.bias": drawn(layer, OUT),
        }
    save_file(base, tmp_path / "base.safetensors")
    kinds = {
        "lora": {},
        "rows": {"dora_scale": (OUT, 1)},
        "columns": {"dora_scale": (1, IN)},
    }
    for number, (kind, more) in enumerate(kinds.items()):
        tensors = {}
        for layer in range(LAYERS):
            name, seed = f"lora_unet_blocks_{layer}_q", 100 * number + layer
            tensors |= {f"{name}.lora_down.weight": drawn(seed, 4, IN), f"{name}.lora_up.weight": drawn(seed, OUT, 4)}
            tensors |= {f"{name}.alpha": torch.tensor(2.0)}
            tensors |= {f"{name}.{key}": 1 + drawn(seed, *shape).abs() for key, shape in more.items()}
        save_file(tensors, tmp_path / f"{kind}.safetensors")
    return tmp_path


def merged(folder, monkeypatch, threads, *kinds, dtype=None):
    monkeypatch.setattr(working_crew, "computing_threads", lambda most: threads)
    monkeypatch.setattr(working_crew, "COPIED_BYTES", 64)
    adapters = [(str(folder / f"{kind}.safetensors"), 0.5) for kind in kinds]
    plan = plan_merge(str(folder / "base.safetensors"), adapters, MergeOptions(dtype=dtype))
    out = folder / "out.safetensors"
    told = []
    merge(plan, str(out), force=True, progress=told.append)
    assert sum(told) == plan.bytes
    return out.read_bytes()


@pytest.mark.parametrize("dtype", [None, "F16"])
@pytest.mark.parametrize("kinds", [("lora",), ("rows",), ("columns",), ("columns", "lora", "rows")])
@pytest.mark.parametrize("elements", [1, 200, 1 << 18])
def test_the_bytes_do_not_depend_on_the_number_of_threads(kinds, dtype, elements, files, monkeypatch):
    monkeypatch.setattr(fold, "BLOCK_ELEMENTS", elements)
    alone = merged(files, monkeypatch, 1, *kinds, dtype=dtype)
    for threads in (2, 5):
        assert merged(files, monkeypatch, threads, *kinds, dtype=dtype) == alone


@pytest.mark.parametrize("kinds", [("lora",), ("rows",), ("lora", "rows")])
def test_nor_on_how_the_rows_are_cut(kinds, files, monkeypatch):
    """In float64, as its last bit is written as it is computed, and with few rows computed in another way than many."""
    base = {f"blocks.{layer}.q.weight": drawn(layer, OUT, IN).double() for layer in range(LAYERS)}
    save_file(base, files / "base.safetensors")
    found = set()
    with row_dependent_products():
        for rows in (OUT, 1, 2, 3, 5, 7, 16):
            monkeypatch.setattr(fold, "BLOCK_ELEMENTS", rows * IN)
            found.add(merged(files, monkeypatch, 2, *kinds))
    assert len(found) == 1


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_of_weights_that_fail_the_first_in_the_file_is_told(threads, files, monkeypatch):
    monkeypatch.setattr(fold, "BLOCK_ELEMENTS", 60)
    base = {f"blocks.{layer}.q.weight": drawn(layer, OUT, IN) for layer in range(LAYERS)}
    for layer in (2, 3, 5):
        base[f"blocks.{layer}.q.weight"][-layer] = torch.inf
    save_file(base, files / "base.safetensors")
    with pytest.raises(LoraInspectError, match=r"folding lora_unet_blocks_2_q into blocks\.2\.q\.weight gives"):
        merged(files, monkeypatch, threads, "lora")
    assert not (files / "out.safetensors").exists()
    assert not list(files.glob("*.partial*"))


def test_torch_has_its_threads_again(files, monkeypatch):
    before = torch.get_num_threads()
    merged(files, monkeypatch, 3, "lora")
    assert torch.get_num_threads() == before
