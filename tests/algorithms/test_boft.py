"""Shapes that are no stages of blocks, for both programs, and what each refuses that the other takes."""

import pytest

from lora_inspect.algorithms import every

ROWS = {"rescale": (8, 1)}
COLUMNS = {"lengths": (8, 1)}


def check(name, blocks):
    beside = {"lycoris_boft": ROWS, "boft": COLUMNS}[name]
    return every()[name].formula.check({"blocks": blocks, **beside})


@pytest.mark.parametrize("name", ["lycoris_boft", "boft"])
@pytest.mark.parametrize("blocks", [(1, 2, 4, 4), (2, 2, 4, 4), (2, 4, 2, 2), (3, 4, 2, 2)])
def test_stages_that_fill_their_groups(name, blocks):
    assert check(name, blocks) is None


@pytest.mark.parametrize("name", ["lycoris_boft", "boft"])
@pytest.mark.parametrize(
    "blocks", [(0, 2, 4, 4), (3, 2, 4, 4), (2, 4, 2, 3), (2, 0, 4, 4), (4, 4, 2, 2), (10**12, 2, 4, 4)]
)
def test_stages_that_do_not(name, blocks):
    assert check(name, blocks)


def test_odd_blocks_have_one_stage_in_peft():
    assert every()["boft"].formula.check({"blocks": (1, 3, 3, 3), "lengths": (5, 1)}) is None
    assert every()["boft"].formula.check({"blocks": (2, 2, 3, 3), "lengths": (5, 1)})
    assert every()["lycoris_boft"].formula.check({"blocks": (1, 3, 3, 3)})


@pytest.mark.parametrize("lengths", [(), (8,), (8, 2), (0, 1), (8, 1, 1)])
def test_lengths_are_one_number_for_each_output(lengths):
    assert "boft_s" in every()["boft"].formula.check({"blocks": (1, 2, 4, 4), "lengths": lengths})


def test_oft_takes_no_stages_and_boft_takes_stages_alone():
    shapes = {"blocks": (2, 2, 4, 4)}
    assert [name for name in ("lycoris_boft", "oft") if every()[name].fits(shapes)] == ["lycoris_boft"]
    shapes = {"blocks": (2, 4, 4)}
    assert [name for name in ("lycoris_boft", "oft") if every()[name].fits(shapes)] == ["oft"]
