"""Several changes of one weight, of one adapter or of several, each against a formula written out in float64."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.merging import fold
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

pytestmark = pytest.mark.numeric
OUT, IN, RANK = 12, 10, 3
LAYER = "lora_unet_layer"


def random(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHT, BIAS = random(1, OUT, IN), random(2, OUT)


def lora(seed):
    down, up = random(seed, RANK, IN), random(seed + 1, OUT, RANK)
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(2.0)}, 2 / RANK * (up @ down)


class Added:
    """W + m · delta, of a LoRA or of a full difference."""

    def __init__(self, seed, full=False):
        self.tensors, self.delta = ({"diff": random(seed, OUT, IN)}, None) if full else lora(seed)
        if self.delta is None:
            self.delta = self.tensors["diff"]

    def __call__(self, weight, multiplier):
        return weight + multiplier * self.delta


class Decomposed(Added):
    """magnitude · V / ‖V‖ with V = W + m · delta, over the outputs."""

    def __init__(self, seed):
        super().__init__(seed)
        self.magnitude = random(seed + 2, OUT).abs()
        self.tensors["dora_layer.weight"] = self.magnitude

    def __call__(self, weight, multiplier):
        whole = super().__call__(weight, multiplier)
        return self.magnitude[:, None] * whole / whole.norm(dim=1, keepdim=True)


class DecomposedInputs(Added):
    """W + m · (magnitude · V / (‖V‖ + eps) - W) with V = W + delta, over the inputs."""

    def __init__(self, seed):
        super().__init__(seed)
        self.magnitude = random(seed + 2, 1, IN).abs()
        self.tensors["dora_scale"] = self.magnitude

    def __call__(self, weight, multiplier):
        whole = weight + self.delta
        full = self.magnitude * whole / (whole.norm(dim=0, keepdim=True) + 2.0**-23)
        return weight + multiplier * (full - weight)


class Rotated:
    """(m · (R - I) + I)ᵀ W for each block of four rows."""

    def __init__(self, seed):
        blocks = 0.5 * random(seed, OUT // 4, 4, 4)
        self.tensors = {"oft_blocks": blocks}
        one, skew = torch.eye(4, dtype=torch.float64), blocks - blocks.mT
        self.rotation = torch.block_diag(*((one + q) @ torch.linalg.inv(one - q) for q in skew))

    def __call__(self, weight, multiplier):
        one = torch.eye(OUT, dtype=torch.float64)
        return (multiplier * (self.rotation - one) + one).T @ weight


CHANGES = {
    "LoRA": lambda seed: Added(seed),
    "a full difference": lambda seed: Added(seed, full=True),
    "DoRA": Decomposed,
    "DoRA on inputs": DecomposedInputs,
    "OFT": Rotated,
}
ADDED = ("LoRA", "a full difference")
PAIRS = [(first, second) for first in CHANGES for second in CHANGES]


@pytest.fixture(params=[1, 30, 1 << 20], ids=["tiny blocks", "small blocks", "one block"])
def merged(request, tmp_path, monkeypatch):
    """The base with adapters of (tensors, multiplier) merged into it, and the plan."""
    monkeypatch.setattr(fold, "BLOCK_ELEMENTS", request.param)
    save_file({"layer.weight": WEIGHT, "layer.bias": BIAS}, tmp_path / "base.safetensors")

    def run(*adapters):
        named = []
        for number, (tensors, multiplier) in enumerate(adapters):
            path = tmp_path / f"adapter_{number}.safetensors"
            save_file({f"{LAYER}.{key}": value.contiguous() for key, value in tensors.items()}, path)
            named.append((str(path), multiplier))
        plan = plan_merge(str(tmp_path / "base.safetensors"), named, MergeOptions())
        merge(plan, str(tmp_path / "merged.safetensors"), force=True)
        return load_file(tmp_path / "merged.safetensors"), plan

    return run


def assert_close(found, expected):
    assert float((found - expected).abs().max()) <= 1e-10 * float(expected.abs().max())


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_adapters_are_folded_in_the_order_in_which_they_are_named(first, second, merged):
    one, two = CHANGES[first](10), CHANGES[second](20)
    found, plan = merged((one.tensors, 0.5), (two.tensors, -1.5))
    expected = two(one(WEIGHT, 0.5), -1.5)
    assert_close(found["layer.weight"], expected)
    assert torch.equal(found["layer.bias"], BIAS)
    both_add = first in ADDED and second in ADDED
    assert plan.order_matters == ([] if both_add else ["layer.weight"])
    exchanged = one(two(WEIGHT, -1.5), 0.5)
    assert both_add == bool(torch.allclose(expected, exchanged))


def test_what_a_multiplier_of_0_leaves_out_has_no_order(merged):
    one, two = Rotated(10), Added(20)
    found, plan = merged((one.tensors, 0.0), (two.tensors, 1.0))
    assert_close(found["layer.weight"], two(WEIGHT, 1.0))
    assert plan.order_matters == []


@pytest.mark.parametrize("order", [1, -1])
def test_lora_and_differences_of_weight_and_bias_on_one_module(order, merged):
    one, two, bias = Added(10), Added(20, full=True), random(30, OUT)
    tensors = {**one.tensors, **two.tensors, "diff_b": bias}
    found, plan = merged((dict(list(tensors.items())[::order]), 0.5))
    assert_close(found["layer.weight"], two(one(WEIGHT, 0.5), 0.5))
    assert_close(found["layer.bias"], BIAS + 0.5 * bias)
    assert (plan.modules, plan.order_matters) == (1, [])


@pytest.mark.parametrize("multiplying", [Decomposed, DecomposedInputs])
@pytest.mark.parametrize("order", [1, -1])
def test_of_one_module_what_is_added_comes_first(multiplying, order, merged):
    added, last = Added(10, full=True), multiplying(20)
    tensors = {**added.tensors, **last.tensors}
    found, plan = merged((dict(list(tensors.items())[::order]), 0.5))
    assert_close(found["layer.weight"], last(added(WEIGHT, 0.5), 0.5))
    assert plan.order_matters == ["layer.weight"]


def test_a_rotation_of_the_sum_with_a_lora_without_alpha(merged):
    added, last = Added(10), Rotated(20)
    added.tensors["alpha"] = None
    tensors = {key: value for key, value in added.tensors.items() if value is not None} | last.tensors
    added.delta = added.delta * RANK / 2
    found, _ = merged((tensors, 0.5))
    assert_close(found["layer.weight"], last(added(WEIGHT, 0.5), 0.5))


def test_a_third_adapter_sees_what_two_have_left(merged):
    changes = [Decomposed(10), Rotated(20), DecomposedInputs(30)]
    found, _ = merged(*((change.tensors, 0.5) for change in changes))
    expected = WEIGHT
    for change in changes:
        expected = change(expected, 0.5)
    assert_close(found["layer.weight"], expected)


def test_the_summary_says_where_the_order_matters(run, tmp_path):
    save_file({"layer.weight": WEIGHT, "layer.bias": BIAS}, tmp_path / "base.safetensors")
    files = []
    for name, change in (("added", Added(10)), ("rotated", Rotated(20))):
        files.append(tmp_path / f"{name}.safetensors")
        save_file({f"{LAYER}.{key}": value.contiguous() for key, value in change.tensors.items()}, files[-1])
    command = ("merge", tmp_path / "base.safetensors", *files, "--dry-run")
    assert "order: it matters for 1 weights" in run(*command).stdout
    assert run(*command, "--json").json["order_matters"] == ["layer.weight"]
    assert "order" not in run(*command[:3], "--dry-run").stdout
    assert "folds adapters in the given order" in run("merge", "--help").stdout


@pytest.mark.parametrize("multiplier", [0.5, -1.0, 2.0])
def test_pefts_oft_has_no_other_multiplier_than_0_and_1(multiplier, tmp_path):
    import json

    save_file({"layer.weight": WEIGHT}, tmp_path / "base.safetensors")
    folder = tmp_path / "adapter"
    folder.mkdir()
    config = {
        "peft_type": "OFT", "peft_version": "0.21.2", "use_cayley_neumann": True, "num_cayley_neumann_terms": 5,
        "block_share": False, "coft": False, "eps": 6e-5, "r": 0, "oft_block_size": 2,
    }  # fmt: skip
    tensors = {"base_model.model.layer.oft_R.weight": random(1, IN // 2, 1)}
    save_file(tensors, folder / "adapter_model.safetensors")
    plans = {"base": str(tmp_path / "base.safetensors")}

    def plan(number, **changed):
        (folder / "adapter_config.json").write_text(json.dumps({**config, **changed}))
        return plan_merge(plans["base"], [(str(folder), number)], MergeOptions())

    assert plan(1.0).modules == plan(0.0).modules == 1
    with pytest.raises(
        LoraInspectError, match=r"OFT of PEFT allows only multiplier 0 or 1, .* give 1, or 0 to leave it out"
    ):
        plan(multiplier)
    for changed, says in (
        ({"peft_version": "0.17.1"}, "PEFT before 0.18"),
        ({"peft_version": None}, "PEFT before 0.18"),
        ({"use_cayley_neumann": None}, "does not say the use_cayley_neumann"),
        ({"num_cayley_neumann_terms": 0}, "does not say the num_cayley_neumann_terms"),
        ({"eps": "much"}, "does not say the eps"),
        ({"block_share": 1}, "does not say the block_share"),
    ):
        with pytest.raises(LoraInspectError, match=says):
            plan(1.0, **changed)
    assert plan(1.0, peft_version="0.17.1", use_cayley_neumann=False).modules == 1
