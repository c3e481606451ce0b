"""docs/extending.md shows a file of the package, and one file more is enough for another algorithm."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import lora_inspect.algorithms.on_demand.hira as shown
from lora_inspect import algorithms, combine
from lora_inspect.algorithms.record import Algorithm, Formula
from lora_inspect.errors import LoraInspectError
from lora_inspect.maths.change import Transposed
from lora_inspect.ops.convert import ConvertOptions, convert_to_standard
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge
from lora_inspect.reading.file_info import inspect
from lora_inspect.reporting.file_record import as_json

pytestmark = pytest.mark.numeric
PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def test_the_page_shows_the_file_that_it_names():
    code, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert code == Path(shown.__file__).read_text(encoding="utf-8")


class Stretched:
    """Rows of the weight times 1 + multiplier · gain."""

    together = 1

    def __init__(self, gain):
        self.gain = gain

    def settled(self, blocks, multiplier):
        return self

    def fold(self, rows, first, multiplier):
        rows.mul_(1 + multiplier * self.gain[first : first + rows.shape[0]])

    def transposed(self):
        return Transposed(self)


# All that another algorithm is: a gain (out, 1) for each row, and one (out, rank) · (rank, 1) of two factors.
GAINS = Algorithm(
    name="gains",
    title="Gains",
    dialects={"": {"up": ".gains_up", "down": ".gains_down"}},
    marks=("up", "down"),
    formula=Formula(
        check=lambda shapes: None if shapes["up"][1:] == shapes["down"][:1] else "gains make no product",
        shape=lambda shapes: (shapes["up"][0], None),
        misfit=lambda shapes, weight: None if weight[0] == shapes["up"][0] else f"has {shapes['up'][0]} gains",
        rank=lambda shapes: None,
        change=lambda tensors, scale, alpha: Stretched(tensors["up"] @ tensors["down"]),
    ),
    multiplies=True,
    rows={"up": "down"},
)


@pytest.fixture
def gains():
    with algorithms.added(GAINS):
        yield GAINS


@pytest.fixture
def files(tmp_path):
    generator = torch.Generator().manual_seed(0)
    draw = {"layer.gains_up": (6, 2), "layer.gains_down": (2, 1), "layer.weight": (6, 4)}
    tensors = {key: torch.randn(shape, generator=generator, dtype=torch.float64) for key, shape in draw.items()}
    weight = {"layer.weight": tensors.pop("layer.weight")}
    base, adapter = tmp_path / "base.safetensors", tmp_path / "adapter.safetensors"
    save_file(weight, base)
    save_file(tensors, adapter)
    return str(base), str(adapter), weight["layer.weight"], tensors["layer.gains_up"] @ tensors["layer.gains_down"]


def merged(base, adapter, multiplier, output):
    merge(plan_merge(base, [(adapter, multiplier)], MergeOptions()), str(output), force=True)
    return load_file(output)["layer.weight"]


def test_without_it_its_files_are_refused(files):
    with pytest.raises(LoraInspectError, match="none of its 2 tensors belongs to a known adapter"):
        plan_merge(files[0], [(files[1], 1.0)], MergeOptions())


def test_it_is_read_merged_and_converted(gains, files, tmp_path):
    base, adapter, weight, gain = files
    record = as_json(inspect(adapter), modules=True)
    assert (record["algorithms"], record["unclaimed"], record["problems"]) == ({"gains": 1}, [], [])
    (module,) = record["module_list"]
    assert (module["shape"], module["scale"]) == ([6, None], 1.0)
    for multiplier in (1.0, 0.5, -1.0):
        found = merged(base, adapter, multiplier, tmp_path / "merged.safetensors")
        torch.testing.assert_close(found, weight * (1 + multiplier * gain), rtol=1e-12, atol=1e-12)
    assert torch.equal(merged(base, adapter, 0.0, tmp_path / "merged.safetensors"), weight)
    result = convert_to_standard(adapter, str(tmp_path / "standard.safetensors"), ConvertOptions())
    assert result.exact
    before = merged(base, adapter, 1.0, tmp_path / "before.safetensors")
    assert torch.equal(merged(base, result.output, 1.0, tmp_path / "after.safetensors"), before)


def test_a_name_is_taken_once(gains):
    with pytest.raises(ValueError, match="there is an algorithm called gains already"):
        algorithms.add(gains)
    assert ".gains_up" in algorithms.CANDIDATES


def test_nothing_of_it_is_left_behind():
    with algorithms.added(GAINS):
        pass
    assert "gains" not in algorithms.ALGORITHMS
    assert ".gains_up" not in algorithms.CANDIDATES


@pytest.mark.parametrize("fields", [{"rank": lambda shapes: None}, {"low_rank": None}], ids=["rank", "low_rank"])
def test_product_of_lora_without_function_keeps_its_sum(fields, tmp_path):
    product = algorithms.by_name("lora").formula
    products = GAINS._replace(formula=product._replace(**fields), multiplies=False, has_alpha=False, scaled=("up",))
    generator = torch.Generator().manual_seed(1)
    up, down = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((9, 2), (2, 8)))
    adapter, output = tmp_path / "products.safetensors", tmp_path / "sum.safetensors"
    save_file({"layer.gains_up": up, "layer.gains_down": down}, adapter)
    with algorithms.added(products):
        combine([f"{adapter}:0.5", adapter], output, rank=2)
    factors = load_file(output)
    found = factors["layer.lora_up.weight"] @ factors["layer.lora_down.weight"]
    torch.testing.assert_close(found, 1.5 * up @ down, rtol=1e-12, atol=1e-12)
