"""relative_distance: how far a change is from another one, against the matrices in float64."""

import math

import pytest
import torch
from adapters import change, drawn_lora
from safetensors.torch import save_file

from lora_inspect.converting.output.proof import FactorCache, ProofTerm, relative_distance
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter

NAME, OUT, IN = "lora_unet_blocks_0_attn_q", 6, 5
TENSORS = drawn_lora(NAME, rank=2, alpha=1.0, out=OUT, inputs=IN)
RUNS = [((0, 2, 0),), ((2, 6, 2),), ((0, 1, 0), (3, 6, 3))]


@pytest.fixture
def contribution(tmp_path):
    save_file(TENSORS, tmp_path / "adapter.safetensors")
    (module,) = read_adapter(open_checkpoint(str(tmp_path / "adapter.safetensors"))).modules.values()
    (found,) = module.contributions
    return found


def share_of(lost):
    return float(lost.norm() / change(TENSORS, NAME).norm())


def of_rows(runs):
    """The change on the rows of the runs alone."""
    whole = change(TENSORS, NAME)
    found = torch.zeros_like(whole)
    for first, last, at in runs:
        found[at : at + last - first] = whole[first:last]
    return found


def test_the_same_change_is_at_no_distance(contribution):
    assert relative_distance([ProofTerm(contribution)], [ProofTerm(contribution)], FactorCache()) == 0.0


@pytest.mark.numeric
@pytest.mark.parametrize("runs", RUNS)
def test_the_same_factors_on_some_rows_lack_the_others(runs, contribution):
    found = relative_distance([ProofTerm(contribution)], [ProofTerm(contribution, runs)], FactorCache())
    assert found == pytest.approx(share_of(change(TENSORS, NAME) - of_rows(runs)), rel=1e-9)


@pytest.mark.numeric
@pytest.mark.parametrize("scale", [0.25, 1.0, -0.5])
def test_another_scale_is_its_share(scale, contribution):
    other = contribution._replace(scale=contribution.scale * scale)
    assert relative_distance([ProofTerm(contribution)], [ProofTerm(other)], FactorCache()) == pytest.approx(
        abs(1 - scale)
    )


def test_two_sizes_are_infinitely_apart(contribution, tmp_path):
    save_file(drawn_lora(NAME, rank=2, alpha=1.0, out=OUT + 1, inputs=IN), tmp_path / "other.safetensors")
    (module,) = read_adapter(open_checkpoint(str(tmp_path / "other.safetensors"))).modules.values()
    assert relative_distance([ProofTerm(contribution)], [ProofTerm(module.contributions[0])], FactorCache()) == math.inf
