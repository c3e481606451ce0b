"""merge and DoRA: what is refused of norms and of the rule for multipliers."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.merging import fold
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

FACTORS = {"a.lora_down.weight": torch.ones(2, 5), "a.lora_up.weight": torch.ones(6, 2)}


def merged(folder, weight, tensors, **options):
    save_file({"a.weight": weight}, folder / "base.safetensors")
    save_file(tensors, folder / "adapter.safetensors")
    plan = plan_merge(
        str(folder / "base.safetensors"), [(str(folder / "adapter.safetensors"), 1.0)], MergeOptions(**options)
    )
    merge(plan, str(folder / "merged.safetensors"))


@pytest.mark.parametrize("axis", [(6, 1), (1, 5)], ids=["output", "input"])
def test_a_weight_whose_norm_overflows_is_an_error_and_not_a_weight_of_zeros(axis, tmp_path):
    huge = torch.full((6, 5), 1e22).bfloat16()
    with pytest.raises(LoraInspectError, match=r"folding a into a\.weight gives nan in BF16"):
        merged(tmp_path, huge, FACTORS | {"a.dora_scale": torch.full(axis, 1e22)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.safetensors", "base.safetensors"]


@pytest.mark.parametrize("axis", [0, 1], ids=["output", "input"])
def test_no_norm_of_float32_overflows_where_that_is_written(axis, tmp_path):
    huge = 1e22 * (1 + torch.arange(30.0).reshape(6, 5))
    ones = (6, 1) if axis == 0 else (1, 5)
    merged(tmp_path, huge, FACTORS | {"a.dora_scale": torch.full(ones, 1e22)})
    expected = 1e22 * huge.double() / huge.double().norm(dim=1 - axis, keepdim=True)
    torch.testing.assert_close(load_file(tmp_path / "merged.safetensors")["a.weight"], expected.float())


def test_a_rule_of_dora_for_adapters_without_it_is_an_error(tmp_path):
    with pytest.raises(LoraInspectError, match="--dora-multiplier lycoris has no effect"):
        merged(tmp_path, torch.ones(6, 5), FACTORS, dora_rule="lycoris")


@pytest.mark.numeric
@pytest.mark.parametrize("elements", [1, 11, 1 << 20])
@pytest.mark.parametrize("axes", [(0, 1), (1, 0), (1, 1)])
def test_the_size_of_the_blocks_changes_nothing_whichever_axis_comes_first(axes, elements, tmp_path, monkeypatch):
    """V = W + B A, W' = m V / (|V| + 2^-23), one adapter after the other, in float64."""
    monkeypatch.setattr(fold, "BLOCK_ELEMENTS", elements)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 5, generator=generator)
    save_file({"a.weight": weight}, tmp_path / "base.safetensors")
    expected, adapters = weight.double(), []
    for number, axis in enumerate(axes):
        up, down = torch.randn(6, 2, generator=generator), torch.randn(2, 5, generator=generator)
        magnitude = 1 + torch.rand((6, 1) if axis == 0 else (1, 5), generator=generator)
        adapters.append((str(tmp_path / f"adapter{number}.safetensors"), 1.0))
        tensors = {"a.lora_up.weight": up, "a.lora_down.weight": down, "a.dora_scale": magnitude}
        save_file(tensors, adapters[-1][0])
        combined = expected + up.double() @ down.double()
        expected = magnitude.double() * combined / (combined.norm(dim=1 - axis, keepdim=True) + 2.0**-23)
    merge(plan_merge(str(tmp_path / "base.safetensors"), adapters, MergeOptions()), str(tmp_path / "out.safetensors"))
    found = load_file(tmp_path / "out.safetensors")["a.weight"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
