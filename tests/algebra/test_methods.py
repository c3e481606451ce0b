"""Each method against its formula on dense matrices in float64, and what has to be equal whatever the method."""

import hashlib
from pathlib import Path

import numpy
import pytest
from dense_methods import COLUMNS, FORMULAS, ROWS, SETTINGS, dense, divisors, in_core, slerp, svd

from lora_inspect.algebra.core_merging import MergedModule, MergeRule
from lora_inspect.algebra.linear.core_space import CoreSpace
from lora_inspect.algebra.linear.factors import Factors
from lora_inspect.algebra.methods import by_name, known_methods
from lora_inspect.algebra.methods.record import MethodSettings, without_zeros

pytestmark = pytest.mark.numeric
RANK = 4
# At density 1 one adapter is itself, but for methods that change its singular values.
OF_ONE = [name for name in known_methods() if name not in ("iso-c", "slerp")]
AVERAGING = ["mean", "ties", "dare-ties", "tsv", "svc"]


def drawn(seed, rank=RANK, rows=ROWS, columns=COLUMNS):
    numbers = numpy.random.default_rng(seed)
    return numbers.normal(size=(rows, rank)), numbers.normal(size=(rank, columns))


def merged(name, pairs, settings=SETTINGS, shares=None, **steps):
    """The dense result of our method."""
    changes = [None if pair is None else Factors.of(*pair, (len(pair[0]), pair[1].shape[1])) for pair in pairs]
    rule = MergeRule(by_name(name), settings, (None,) * len(pairs), **steps)
    found = MergedModule("layer", changes, shares or [1e-7] * len(pairs), rule)
    change = found.change(len(found.values))
    return (change.up * change.weights) @ change.down


STACKS = {
    "two": [drawn(1), drawn(2)],
    "three": [drawn(1), drawn(2), drawn(3)],
    "other ranks": [drawn(1, 2), drawn(2, 7), drawn(3, 1)],
    "one that is missing": [drawn(1), None, drawn(3)],
    "other sizes": [tuple(1e-3 * part for part in drawn(1)), drawn(2)],
}


def apart(found, meant):
    return numpy.linalg.norm(found - meant) / numpy.linalg.norm(meant)


def test_every_method_has_its_formula_here():
    assert {*FORMULAS, "slerp", "dare", "dare-ties"} == set(known_methods())


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("name", FORMULAS)
def test_it_is_the_dense_formula(name, stack):
    assert apart(merged(name, stack), FORMULAS[name](stack)) < 1e-6


def test_slerp_is_the_dense_formula():
    assert apart(merged("slerp", STACKS["two"]), slerp(STACKS["two"])) < 1e-9


@pytest.mark.parametrize("name", ["dare", "dare-ties"])
def test_dare_keeps_numbers_of_the_cores_at_random_and_divides_them(name):
    pairs = [drawn(1, 12), drawn(2, 12)]
    seen = {}

    def record(cores):
        seen["cores"] = cores
        return sum(cores)

    in_core(pairs, record)
    bases = [
        svd(numpy.hstack(sides))[0]
        for sides in zip(*[(u * numpy.sqrt(s), v.T * numpy.sqrt(s)) for u, s, v in map(svd, dense(pairs))], strict=True)
    ]
    found = bases[0].T @ merged(name, pairs) @ bases[1]
    sums = [0.0, *(core / SETTINGS.density for core in seen["cores"]), sum(seen["cores"]) / SETTINGS.density]
    choices = numpy.stack([numpy.broadcast_to(one, found.shape) for one in sums])
    if name == "dare-ties":  # two survivors of one sign are averaged; of two signs the larger one stays
        choices[-1] /= 2
    nearest = numpy.abs(choices - found).min(axis=0)
    assert nearest.max() < 1e-6 * numpy.abs(choices).max()
    dropped = numpy.mean(numpy.abs(found) < 1e-9)
    assert abs(dropped - (1 - SETTINGS.density) ** 2) < 0.08


@pytest.mark.parametrize("name", OF_ONE)
def test_one_adapter_at_density_1_is_itself(name):
    pair = drawn(1)
    assert apart(merged(name, [pair], MethodSettings()), pair[0] @ pair[1]) < 1e-9


@pytest.mark.parametrize("name", AVERAGING)
def test_two_equal_adapters_give_the_adapter(name):
    pair = drawn(1)
    assert apart(merged(name, [pair, pair], MethodSettings()), pair[0] @ pair[1]) < 1e-7


@pytest.mark.parametrize("name", [name for name in known_methods() if name not in ("tsv", "slerp")])
def test_an_adapter_and_its_negative_give_nothing(name):
    up, down = drawn(1)
    found = merged(name, [(up, down), (-up, down)], MethodSettings())
    assert numpy.linalg.norm(found) < 1e-9 * numpy.linalg.norm(up @ down)


@pytest.mark.parametrize("name", [name for name in known_methods() if name != "slerp"])
def test_the_order_of_the_inputs_does_not_matter(name):
    pairs = STACKS["other ranks"]
    found = [merged(name, [pairs[place] for place in order]) for order in ([0, 1, 2], [2, 0, 1])]
    assert apart(*found) < 1e-7


@pytest.mark.parametrize("name", known_methods())
def test_other_factors_of_the_same_changes_give_the_same(name):
    pairs, numbers = STACKS["two"], numpy.random.default_rng(5)
    others = []
    for up, down in pairs:
        turn = numbers.normal(size=(RANK, RANK))
        others.append((up @ turn, numpy.linalg.inv(turn) @ down))
    assert apart(merged(name, others), merged(name, pairs)) < 1e-6


@pytest.mark.parametrize("name", ["sum", "mean", "ties", "tsv", "iso-c", "svc"])
def test_noise_changes_as_little_as_it_is(name):
    pairs, numbers = STACKS["three"], numpy.random.default_rng(6)
    noisy = [(up * (1 + 1e-12 * numbers.normal(size=up.shape)), down) for up, down in pairs]
    assert apart(merged(name, noisy), merged(name, pairs)) < 1e-11


def test_what_three_adapters_share_is_divided_by_how_often_they_count_it():
    numbers = numpy.random.default_rng(4)
    shared = numpy.linalg.qr(numbers.normal(size=(ROWS, 1)))[0], numpy.linalg.qr(numbers.normal(size=(COLUMNS, 1)))[0].T
    pairs = []
    for seed in (1, 2, 3):
        up, down = drawn(seed, 3)
        pairs.append((numpy.hstack([40 * shared[0], up]), numpy.vstack([shared[1], down])))
    left, values, right, shares = divisors(dense(pairs))
    found = merged("svc", pairs)
    ours = values / numpy.diag(left.T @ found @ right.T)
    numpy.testing.assert_allclose(ours, shares, rtol=1e-5)
    assert 2.5 < ours[0] < 3
    assert ours[1:].max() < 1.6
    again = merged("sum", pairs, calibrate="svc")
    assert apart(again, found) < 1e-12


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-9])
def test_svc_equal_adapters_of_any_size_give_single_adapter(size):
    up, down = drawn(1)
    pair = size * up, down
    assert apart(merged("svc", [pair, pair]), size * up @ down) < 1e-9


@pytest.mark.parametrize("name", known_methods())
def test_a_cap_and_a_factor_act_on_the_result(name):
    pairs = STACKS["two"]
    values = numpy.linalg.svd(merged(name, pairs))[1]
    capped = numpy.linalg.svd(merged(name, pairs, factor=0.5, clip=0.3 * values[0]))[1]
    numpy.testing.assert_allclose(capped, numpy.minimum(0.5 * values, 0.3 * values[0]), atol=1e-8 * values[0])


@pytest.mark.parametrize("name", known_methods())
def test_the_page_has_the_paper_the_formula_and_the_conventions(name):
    page = (Path(__file__).parents[2] / "docs" / "combining_methods.md").read_text(encoding="utf-8")
    method = by_name(name)
    settings = ", ".join(f"`--{setting}`" for setting in method.settings)
    assert f"| `{name}` | {method.paper} | {method.formula} | {settings + ' ' if settings else ''}|" in page
    assert not method.conventions or f"| `{name}` | {method.conventions} |" in page


def of_cores(name, *cores, **settings):
    """The merge of cores that are given as they are."""
    return by_name(name).merge([numpy.array(core) for core in cores], MethodSettings(**settings), "layer")


def test_numbers_below_a_millionth_of_a_millionth_of_the_largest_count_as_zero():
    # The tiny numbers neither elect nor divide, and a rest of rounding has no sign.
    found = of_cores("ties", [[1.0, 2.0, 0.3]], [[3.0, -5e-13, -0.3]], [[2.0, 1e-12, 1e-17]])
    numpy.testing.assert_allclose(found, [[2.0, 2.0, 0.0]], atol=1e-15)


@pytest.mark.parametrize(
    ("density", "kept"), [(1e-9, [[0, 0, -4.0]]), (0.5, [[0, 3.0, -4.0]]), (0.6, [[0, 3.0, -4.0]]), (1.0, [[1, 3, -4]])]
)
def test_at_least_one_number_is_kept_and_the_share_is_rounded(density, kept):
    numpy.testing.assert_array_equal(of_cores("ties", [[1.0, 3.0, -4.0]], density=density), kept)


def test_dare_draws_for_the_inputs_by_their_falling_norms():
    small, large = numpy.full((5, 6), 1.0), numpy.full((5, 6), 2.0)
    seed = int.from_bytes(hashlib.sha256(b"3 layer").digest()[:8], "little")
    numbers = numpy.random.default_rng(seed)
    first, second = (numbers.random((5, 6)) < 0.5 for _ in range(2))
    meant = (large * first + small * second) / 0.5
    for cores in ((small, large), (large, small)):
        numpy.testing.assert_array_equal(of_cores("dare", *cores, density=0.5, seed=3), meant)


def test_the_place_of_slerp_and_the_seed_have_defaults():
    pairs = STACKS["two"]
    assert apart(merged("slerp", pairs, MethodSettings()), merged("slerp", pairs, MethodSettings(t=0.5))) == 0
    assert (
        apart(
            merged("dare", pairs, MethodSettings(density=0.5)),
            merged("dare", pairs, MethodSettings(density=0.5, seed=0)),
        )
        == 0
    )


def test_slerp_of_one_direction_is_a_line():
    pair = drawn(1)
    found = merged("slerp", [pair, (3 * pair[0], pair[1])])
    assert apart(found, (0.7 + 0.3 * 3) * (pair[0] @ pair[1])) < 1e-9


@pytest.mark.parametrize("name", known_methods())
def test_methods_that_look_at_numbers_depend_on_the_basis_and_others_do_not(name):
    method, numbers = by_name(name), numpy.random.default_rng(5)
    cores = [numbers.normal(size=(6, 5)) for _ in range(method.inputs or 3)]
    left, right = (numpy.linalg.qr(numbers.normal(size=(size, size)))[0] for size in (6, 5))
    found = method.merge(cores, SETTINGS, "layer")
    turned = left.T @ method.merge([left @ core @ right for core in cores], SETTINGS, "layer") @ right.T
    assert bool(apart(turned, found) > 1e-3) is method.in_numbers


@pytest.mark.parametrize(("values", "is_unique"), [((2.0, 1.0), True), ((2.0, 2.0), False), ((2.0, 2.0 - 1e-8), False)])
def test_directions_of_one_length_have_no_basis_of_their_own(values, is_unique):
    numbers = numpy.random.default_rng(6)
    left, right = (numpy.linalg.qr(numbers.normal(size=(size, 2)))[0] for size in (30, 20))
    change = Factors.of(left * numpy.array(values), right.T, (30, 20))
    assert CoreSpace([change], [1e-7]).is_unique is is_unique


def test_numbers_are_zero_beside_the_largest_of_all_inputs():
    small, large = numpy.full((2, 2), 1e-13), numpy.ones((2, 2))
    assert [core.any() for core in without_zeros([small, large])] == [False, True]
    assert without_zeros([small, small])[0].all()
