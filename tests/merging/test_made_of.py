"""What tells the shards of one merge from those of another, and in which words."""

from dataclasses import replace

import pytest
from bases import write_adapter, write_base

from lora_inspect.merging.jobs.shards import difference, made_of
from lora_inspect.merging.plan import MergeOptions, plan_merge
from lora_inspect.merging.record import recorded


@pytest.fixture
def plan(tmp_path):
    return plan_merge(write_base(tmp_path / "base"), [(write_adapter(tmp_path / "lora"), 1.0)], MergeOptions())


def test_the_same_is_no_difference(plan):
    parts = made_of(plan, recorded(plan))
    assert difference(parts, parts) is None


def test_weights_that_are_changed_by_others_are_one(plan):
    """Whatever in the files beside the weights it comes from: the record does not tell of those."""
    record = recorded(plan)
    fewer = replace(plan, folds=dict(list(plan.folds.items())[1:]))
    parts, others = made_of(plan, record), made_of(fewer, record)
    assert difference(others, parts) == "the changed weights or their new numbers differ"


@pytest.mark.parametrize(
    "foreign", [{}, {"adapters": None}, {"adapters": []}, {"version": 3, "base": [], "options": 1}]
)
def test_anything_else_is_told_in_words(foreign, plan):
    parts = made_of(plan, recorded(plan))
    assert difference({**parts, **foreign} if foreign else {}, parts)
