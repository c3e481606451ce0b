"""The changes that a weight is compared with beside those that are said to be in it: each is another one."""

import pytest
import torch
from adapters import drawn, drawn_lora
from safetensors.torch import save_file

from lora_inspect.ops.merge import MergeOptions, plan_merge
from lora_inspect.verifying.causes import alternatives
from lora_inspect.verifying.shares import idle_terms_of, terms_of

NAME, SIZE = "lora_unet_blocks_0_attn_q", 8
LORA = drawn_lora(NAME, rank=2, alpha=1.0, out=SIZE, inputs=SIZE)
ADAPTERS = {
    "lora": LORA,
    "dora": {**LORA, f"{NAME}.dora_scale": drawn(5, SIZE, 1).abs() + 1},
    "oft": {f"{NAME}.oft_blocks": 0.1 * drawn(6, 2, 4, 4), f"{NAME}.alpha": torch.tensor(0.5)},
}


@pytest.fixture
def folds_of(tmp_path):
    def planned(kind, multiplier):
        save_file({"blocks.0.attn.q.weight": drawn(1, SIZE, SIZE)}, tmp_path / "base.safetensors")
        save_file(ADAPTERS[kind], tmp_path / "adapter.safetensors")
        named = [(str(tmp_path / "adapter.safetensors"), multiplier)]
        plan = plan_merge(str(tmp_path / "base.safetensors"), named, MergeOptions())
        (folds,) = plan.folds.values()
        return folds

    return planned


@pytest.mark.parametrize("multiplier", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_no_alternative_is_what_is_asked_about(kind, multiplier, folds_of):
    folds = folds_of(kind, multiplier)
    terms = tuple(terms_of(folds))
    found = list(alternatives(terms, idle_terms_of(folds), None))
    assert found
    assert not [other.code for other in found if (other.terms, other.rule) == (terms, None)]


@pytest.mark.parametrize("multiplier", [0.5, 2.0])
def test_a_rotation_may_be_there_at_multiplier_1(multiplier, folds_of):
    folds = folds_of("oft", multiplier)
    (lost,) = [other for other in alternatives(terms_of(folds), [], None) if other.code == "multiplier-lost"]
    assert [[fold.multiplier for fold in term.folds] for term in lost.terms] == [[1.0]]
