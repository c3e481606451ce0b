"""Which shapes are one weight: a 1x1 convolution is a Linear, and nothing else is."""

import pytest

from lora_inspect.algorithms.lora import flattened_other_than, other_than, other_than_shape


@pytest.mark.parametrize(
    ("changed", "weight"), [((4, 3), (4, 3)), ((4, 3), (4, 3, 1, 1)), ((4, 3, 1), (4, 3)), ((4, 3, 2, 1), (4, 3, 2))]
)
def test_ones_behind_the_inputs_make_no_difference(changed, weight):
    assert other_than(changed, weight) is None


@pytest.mark.parametrize(
    ("changed", "weight"),
    [((4, 3), (3, 4)), ((4, 1), (4,)), ((4,), (4, 1)), ((4, 3, 2), (4, 6)), ((4, 3, 1, 2), (4, 3, 2))],
)
def test_any_other_shape_is_another_weight(changed, weight):
    assert other_than(changed, weight) == f"changes a weight of {list(changed)}"


@pytest.mark.parametrize("weight", [(4, 6), (4, 3, 2), (4, 1, 3, 2), (4, 6, 1, 1)])
def test_a_flattened_kernel_is_any_of_as_many_columns(weight):
    assert flattened_other_than(4, 6, weight) is None
    assert other_than_shape((4, 6), weight) is None


@pytest.mark.parametrize("weight", [(6, 4), (4, 5), (3, 4, 2), (6,)])
def test_other_rows_or_columns_are_another_weight(weight):
    assert flattened_other_than(4, 6, weight) == "changes a weight of 4 rows and 6 columns"
    assert other_than_shape((4, 6), weight) == "changes a weight of 4 rows and 6 columns"


def test_factors_that_tell_the_kernel_are_held_to_it():
    assert other_than_shape((4, 3, 2), (4, 3, 2)) is None
    assert other_than_shape((4, 3, 2), (4, 2, 3)) == "changes a weight of [4, 3, 2]"
