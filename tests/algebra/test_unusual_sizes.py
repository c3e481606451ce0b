"""Modules of an unusual size: each rule at its limit, with the numbers that it names."""

import time

import pytest

from lora_inspect.algebra.measures.change_sizes import ChangeSize
from lora_inspect.algebra.measures.unusual_sizes import dead, small_scales, spikes, unusual


def size(number, sigma_1=1.0, sigma_2=0.9, kind="q", **others):
    """The size of a module in a block of this number."""
    fields = {"rank": 8, "alpha": 8.0, "scale": 1.0, "norm": sigma_1, **others}
    return ChangeSize(
        f"blocks.{number}.{kind}", "model", f"blocks.{number}", kind, "weight", (24, 20), sigma_1=sigma_1,
        sigma_2=sigma_2, **fields,
    )  # fmt: skip


def test_a_spike_is_above_five_times_both_and_names_its_numbers():
    (spike,) = spikes([*(size(number) for number in range(4)), size(4, 5.1, 1.0)])
    assert (spike.key, spike.sigma_1, spike.sigma_2, spike.median, spike.compared) == ("blocks.4.q", 5.1, 1.0, 1.0, 5)
    assert spike.says == (
        "one direction of blocks.4.q outweighs all others: sigma_1 5.1 against sigma_2 1, and a median sigma_1 of 1 in "
        "5 layers of this kind"
    )


@pytest.mark.parametrize(("sigma_1", "sigma_2"), [(5.0, 0.1), (10.0, 2.0), (4.9, 0.0)])
def test_five_times_exactly_is_no_spike(sigma_1, sigma_2):
    assert spikes([*(size(number) for number in range(4)), size(4, sigma_1, sigma_2)]) == []


def test_a_kind_of_fewer_than_three_is_compared_with_all_modules():
    others = [size(number) for number in range(5)]
    (spike,) = spikes([*others, size(0, 6.0, 0.5, kind="head"), size(1, 4.0, 0.5, kind="head")])
    assert (spike.key, spike.kind, spike.median, spike.compared) == ("blocks.0.head", None, 1.0, 7)
    # The median of three is that of the kind, however much the other kinds are below it.
    heads = [size(number, 6.0, 0.5, kind="head") for number in range(3)]
    assert spikes([*others, *heads]) == []


def test_a_dead_module_is_below_a_millionth_of_the_median_of_the_others():
    others = [size(number, norm=2.0) for number in range(4)]
    assert dead([*others, size(4, norm=2.1e-6)]) == []
    (module,) = dead([*others, size(4, norm=1.9e-6)])
    assert (module.key, module.norm, module.median, module.compared) == ("blocks.4.q", 1.9e-6, 2.0, 4)
    (module,) = dead([*others, size(4, norm=0.0)])
    assert module.says == "blocks.4.q changes nothing: norm 0, against a median of 2 in 4 layers of this kind"


def test_layers_of_a_kind_that_all_change_nothing_are_no_dead_modules():
    others = [size(number, kind="v") for number in range(4)]
    assert dead([*others, *(size(number, norm=0.0) for number in range(4))]) == []


def test_small_scales_are_told_by_scale_with_the_ratio_to_other_layers_of_the_kind():
    small = [size(number, norm=0.05, rank=32, alpha=1.0, scale=1.0 / 32.0) for number in range(2)]
    usual = [size(number, norm=2.0, rank=32, alpha=32.0) for number in range(2, 5)]
    (found,) = small_scales([*small, *usual])
    assert (found.keys, found.scale, found.ratio) == (("blocks.0.q", "blocks.1.q"), 1.0 / 32.0, pytest.approx(40.0))
    assert found.says == (
        "scale 0.031: alpha 1 at rank 32, in 2 modules (blocks.0.q, …); 40 times below the other layers of this kind"
    )


def test_a_scale_of_zero_has_no_ratio_to_other_layers():
    (found,) = small_scales([size(0, norm=0.0, alpha=0.0, scale=0.0), *(size(number) for number in range(1, 4))])
    assert (found.ratio, found.says) == (None, "scale 0: alpha 0 at rank 8, in 1 module (blocks.0.q)")


@pytest.mark.parametrize(
    ("scale", "is_small"), [(1 / 16, True), (-1 / 16, True), (0.0, True), (1 / 15, False), (-2.0, False)]
)
def test_a_scale_of_a_sixteenth_is_small(scale, is_small):
    found = small_scales([size(number, scale=scale) for number in range(3)])
    assert [one.ratio for one in found] == ([None] if is_small else [])


def test_the_unusual_module_is_the_furthest_from_its_kind_in_either_direction():
    usual = [size(number, norm=2.0) for number in range(5)]
    weak = size(5, norm=0.05, rank=32, alpha=1.0, scale=1.0 / 32.0)
    found = unusual([*usual, weak, size(6, norm=22.0)])
    assert found.says == (
        "blocks.5.q: scale 0.031: alpha 1 at rank 32; norm 0.05, 40 times below the other layers of this kind "
        "(median 2 of 6)"
    )
    strong = unusual([*usual, size(6, norm=22.0)])
    assert (strong.key, strong.ratio) == ("blocks.6.q", pytest.approx(1.0 / 11.0))
    assert "11 times above" in strong.says


def test_nothing_is_unusual_below_ten_times_or_in_a_kind_of_two():
    usual = [size(number, norm=2.0) for number in range(5)]
    assert unusual([*usual, size(5, norm=19.0)]) is None
    assert unusual([size(0, norm=1.0), size(1, norm=50.0)]) is None
    assert unusual([*usual, size(5, norm=0.0)]) is None
    assert unusual([*usual, size(5, norm=1e-7)]) is None
    assert unusual([]) is None


def test_a_median_of_zero_is_nothing_to_compare_with():
    assert spikes([*(size(number, 0.0, 0.0, norm=0.0) for number in range(3)), size(4, 6.0, 1.0)]) == []


def test_a_hundred_thousand_modules_of_a_kind_are_compared_in_a_moment():
    sizes = [size(number, 1.0 + number % 7) for number in range(100_000)]
    began = time.process_time()
    assert (spikes(sizes), dead(sizes), small_scales(sizes), unusual(sizes)) == ([], [], [], None)
    assert time.process_time() - began < 10.0


def test_spikes_are_told_with_the_largest_first():
    found = spikes([*(size(number) for number in range(9)), size(9, 6.0, 1.0), size(10, 8.0, 1.0)])
    assert [one.key for one in found] == ["blocks.10.q", "blocks.9.q"]
