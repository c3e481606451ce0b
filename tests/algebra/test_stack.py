"""Stacks of constructed adapters: what `compare` says of each, and that the command it recommends runs."""

import json
import shlex
from itertools import combinations
from statistics import median

import numpy
import pytest
from stacks import (
    LAYERS,
    NEARLY_OPPOSITE,
    PARTLY_OPPOSITE,
    SPIKED,
    A,
    B,
    command_of,
    dense,
    drawn,
    plus,
    run_command,
    with_direction,
    write,
)

import lora_inspect
from lora_inspect.algebra.linear.core import SharedFactors, decomposed, shared_factors
from lora_inspect.algebra.linear.core_space import CoreSpace, leading_cores
from lora_inspect.algebra.linear.factors import Factors, joined
from lora_inspect.algebra.measures.stack import Peak, WeightName, medians, peaks_of, sign_numbers, spikes

INDEPENDENT = "they add up as independent adapters do: load them together, or combine them"
DISJOINT = "they change different modules: load them together, or combine them"
SHARED = "they push the same direction: divide each direction by how often they count it"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# What is written, the words behind `compare`, the sentence, and the command without its output; by case.
STACKS = {
    "independent": ({"a": A, "b": B}, "a.safetensors:0.8 b.safetensors:0.6", INDEPENDENT, ""),
    "same direction": (
        {"a": A, "c": plus((0.7, A), (0.3, B))},
        "a.safetensors c.safetensors",
        SHARED,
        " --calibrate svc",
    ),
    "twice": ({"a": A}, "a.safetensors:0.8 a.safetensors", SHARED, " --calibrate svc"),
    "opposite": (
        {"a": A, "b": B, "n": plus((-1.0, A))},
        "a.safetensors n.safetensors:0.5 b.safetensors",
        "a.safetensors and n.safetensors:0.5 cancel each other: leave n.safetensors:0.5 out, which changes less",
        "a.safetensors b.safetensors",
    ),
    "nearly opposite in one block": (
        {"a": A, "n": NEARLY_OPPOSITE},
        "a.safetensors:0.8 n.safetensors:0.6",
        "a.safetensors:0.8 and n.safetensors:0.6 conflict in blocks.1: leave n.safetensors:0.6 out",
        "a.safetensors:0.8",
    ),
    "disjoint": (
        {"a": drawn(1, LAYERS[:6]), "b": drawn(2, LAYERS[6:])},
        "a.safetensors:0.8 b.safetensors",
        DISJOINT,
        "",
    ),
    "one dead": (
        {"a": A, "b": B, "dead": plus((0.0, A))},
        "a.safetensors dead.safetensors b.safetensors:0.6",
        "dead.safetensors changes nothing: leave it out",
        "a.safetensors b.safetensors:0.6",
    ),
    "different ranks": (
        {"a": drawn(1, values=(2, 1)), "b": drawn(2, values=numpy.linspace(2, 1, 12))},
        "a.safetensors b.safetensors",
        INDEPENDENT,
        "",
    ),
    "one pair of three in conflict": (
        {"a": A, "b": B, "c": PARTLY_OPPOSITE},
        "a.safetensors b.safetensors:0.9 c.safetensors",
        "a.safetensors and c.safetensors conflict in blocks.0, blocks.1, blocks.2, …: let the larger numbers decide "
        "the signs, and give the result the energy of independent adapters",
        " --method ties --density 0.5 --calibrate energy",
    ),
    "a multiplier of 0": (
        {"a": A, "b": B},
        "a.safetensors:0.8 b.safetensors:0",
        "b.safetensors:0 changes nothing: leave it out",
        "a.safetensors:0.8",
    ),
    "a negative multiplier": (
        {"a": A},
        "a.safetensors:0.8 a.safetensors:-0.8",
        "a.safetensors:0.8 and a.safetensors:-0.8 cancel each other: leave a.safetensors:-0.8 out",
        "a.safetensors:0.8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", STACKS)
def test_a_stack_has_its_sentence_and_a_command_that_runs(case, run):
    files, named, sentence, words = STACKS[case]
    for name, own in files.items():
        write(name, own)
    shown = run("compare", *named.split())
    assert shown.status == 0
    assert shown.stdout.splitlines()[-2] == f"recommended: {sentence}"
    combined = words if words and not words.startswith(" ") else f"{named}{words}"
    assert command_of(shown) == f"lora-inspect combine {combined} -o combined.safetensors"
    output = run_command(command_of(shown), run)
    assert lora_inspect.compare([output, "a.safetensors"]).norm[0] > 0


# A spike of one input, and directions of two inputs, each 4.5 times the median, that are a spike together.
SPIKES = {
    "of an input": ((with_direction(A, 13.0, 5), B), [None, 0]),
    "of the sum alone": ((with_direction(A, 9.0, 5), with_direction(B, 9.0, 5)), [None]),
}


@pytest.mark.parametrize("case", SPIKES)
def test_a_spike_is_cut_to_the_largest_value_of_the_other_layers(case, run):
    (one, other), of = SPIKES[case]
    write("a", one)
    write("b", other)
    stack = lora_inspect.compare(["a.safetensors", "b.safetensors"]).stack
    assert [spike.adapter for spike in stack.spikes] == of
    sums = {name: numpy.linalg.svd(own, compute_uv=False) for name, own in dense(one, other).items()}
    of_sum = stack.spikes[0]
    firsts = [values[0] for name, values in sums.items() if name.endswith("self_attn_k")]
    assert of_sum.module == SPIKED
    assert of_sum.value == pytest.approx(sums[SPIKED][0], rel=1e-6)
    assert of_sum.times_next == pytest.approx(sums[SPIKED][0] / sums[SPIKED][1], rel=1e-5)
    assert of_sum.times_median == pytest.approx(sums[SPIKED][0] / median(firsts), rel=1e-6)
    shown = run("compare", "a.safetensors", "b.safetensors")
    largest = max(values[0] for name, values in sums.items() if name != SPIKED)
    cap = command_of(shown).split("--clip-sigma ")[1].split()[0]
    assert largest <= float(cap) <= 1.001 * largest
    assert shown.stdout.splitlines()[-2] == f"recommended: the sum has a spike in {SPIKED}: cut it to {cap}"
    assert f"spike of the sum: {sums[SPIKED][0]:.4g} in {SPIKED}, " in shown.stdout
    output = run_command(command_of(shown), run)
    write("whole", plus((1.0, one), (1.0, other)))
    kept = lora_inspect.compare([output, "whole.safetensors"])
    others = [block.relative_difference for name, block in kept.blocks.items() if name != "blocks.2"]
    assert max(others) < 1e-6  # nothing else was cut
    assert lora_inspect.compare([output, "b.safetensors:0"]).stack.spikes == []


def test_the_rounding_of_changes_that_cancel_each_other_is_no_spike():
    write("a", A)
    write("n", plus((-1.0, with_direction(A, 40.0, 5)), (1.0, with_direction(A, 40.0, 5)), (-1.0, A)))
    found = lora_inspect.compare(["a.safetensors", "n.safetensors"])
    assert found.sum_energy < 1e-12
    assert found.stack.spikes == []


def test_the_number_of_a_cap_is_the_limit_where_other_kinds_are_larger_by_nature(run):
    own = {name: (up * (6.5 if name.endswith("v") else 1), down) for name, (up, down) in A.items()}
    write("a", with_direction(own, 12.0, 5))
    write("b", B)
    shown = run("compare", "a.safetensors", "b.safetensors")
    sums = dense(with_direction(own, 12.0, 5), B)
    firsts = [numpy.linalg.norm(matrix, 2) for name, matrix in sums.items() if name.endswith("self_attn_k")]
    assert float(command_of(shown).split("--clip-sigma ")[1].split()[0]) == pytest.approx(5 * median(firsts), rel=1e-3)
    run_command(command_of(shown), run)


def test_a_kind_of_fewer_than_three_layers_is_measured_by_all():
    peaks = [Peak(20.0, 1.0, "q"), Peak(1.0, 0.9, "q"), *(Peak(3.0, 2.9, "k") for _ in range(4)), Peak(0.0, 0.0, "k")]
    assert medians(peaks) == [3.0] * 7
    assert spikes(peaks) == [0]
    assert spikes([*peaks, Peak(1.0, 0.9, "q")]) == [0]
    assert spikes([Peak(14.0, 1.0, "q"), *peaks[1:]]) == []
    assert spikes([Peak(20.0, 5.0, "q"), *peaks[1:]]) == []


def conflict_of(one, other, most):
    """The sign conflict by the formula, of dense matrices: balanced directions, the bases of all of them, and signs."""
    sides = []
    for matrix in (one, other):
        left, values, right = numpy.linalg.svd(matrix)
        count = min(most, int((values > 1e-9 * values[0]).sum()))
        sides.append((left[:, :count] * values[:count] ** 0.5, right[:count].T * values[:count] ** 0.5))
    bases = [numpy.linalg.svd(numpy.hstack(own), full_matrices=False)[0] for own in zip(*sides, strict=True)]
    a, b = (bases[0].T @ up @ down.T @ bases[1] for up, down in sides)
    least = numpy.minimum(abs(a), abs(b))
    return least[a * b < 0].sum(), least.sum()


def test_sign_conflicts_are_those_of_dense_matrices():
    one, other = drawn(1), plus((-0.35, A), (1.0, drawn(3, values=(3, 2.5, 2.2, 1.3, 0.9, 0.8, 0.5))))
    write("a", one)
    write("b", other)
    found = lora_inspect.compare(["a.safetensors", ("b.safetensors", 0.5)])
    parts = [conflict_of(dense(one)[name], 0.5 * dense(other)[name], 8) for name in LAYERS]
    assert max(len(down) for _, down in other.values()) > 8
    assert found.sign_conflict == pytest.approx(sum(o for o, _ in parts) / sum(s for _, s in parts), rel=1e-4)
    of_block = [part for name, part in zip(LAYERS, parts, strict=True) if "blocks_3" in name]
    meant = sum(o for o, _ in of_block) / sum(s for _, s in of_block)
    assert found.blocks["blocks.3"].sign_conflict == pytest.approx(meant, rel=1e-4)


def test_sign_conflicts_of_independent_same_and_opposite_changes():
    write("a", A)
    for name, own in {"b": B, "n": plus((-1.0, A))}.items():
        write(name, own)
    conflicts = [
        lora_inspect.compare(["a.safetensors", other]).sign_conflict
        for other in ("b.safetensors", "a.safetensors:0.3", "n.safetensors:0.3")
    ]
    assert conflicts[0] == pytest.approx(0.5, abs=0.05)
    assert conflicts[1:] == [pytest.approx(0.0, abs=1e-6), pytest.approx(1.0, abs=1e-6)]


def test_leading_cores_are_those_of_the_core_space():
    owns = [dense(own)[SPIKED] for own in (A, B, drawn(3, values=(3, 1)))]
    changes = []
    for matrix in owns:
        left, values, right = numpy.linalg.svd(matrix)
        rank = int((values > 1e-9).sum())
        changes.append(Factors.of(left[:, :rank] * values[:rank], right[:rank], matrix.shape))
    known = CoreSpace(changes, [1e-9] * 3).cores
    shared = shared_factors(joined(changes), [one.rank for one in changes])
    leading = [
        core
        for (core,) in leading_cores([decomposed(SharedFactors(*(side[None] for side in one))) for one in shared], 10)
    ]
    room = [(0, size - own) for size, own in zip(leading[0].shape, known[0].shape, strict=True)]
    known = [numpy.pad(core, room) for core in known]
    for at, other in combinations(range(3), 2):
        # Rows and columns may have other signs, which are those of both cores.
        numpy.testing.assert_allclose(leading[at] * leading[other], known[at] * known[other], atol=1e-9)


def test_the_record_has_the_stack(run):
    write("a", with_direction(A, 40.0, 5))
    write("n", NEARLY_OPPOSITE)
    record = json.loads(run("compare", "a.safetensors", "n.safetensors", "--json").stdout)
    found = lora_inspect.compare(["a.safetensors", "n.safetensors"])
    assert record["stack"] == found.stack.to_dict()
    assert record["stack"]["conflict"]["adapters"] == [0, 1]
    assert record["stack"]["conflict"]["blocks"] == ["blocks.1"]
    assert record["stack"]["conflict"]["sign_conflict"] == record["sign_conflict"] == found.sign_conflict
    assert [spike["adapter"] for spike in record["stack"]["spikes"]] == [None, 0]
    assert record["stack"]["recommendation"]["case"] == "spike"


def test_nothing_at_all_is_a_look_at_the_file(run):
    write("a", A)
    shown = run("compare", "a.safetensors:0", "a.safetensors:0")
    assert shown.stdout.splitlines()[-2] == "recommended: they change nothing: look at the files"
    assert command_of(shown) == "lora-inspect info a.safetensors"
    assert run(*shlex.split(command_of(shown))[1:]).status == 0


def test_stack_of_zero_factors_recommends_look_at_file(run):
    for name in "zy":
        write(name, plus((0.0, A)))
    shown = run("compare", "z.safetensors", "y.safetensors")
    assert shown.status == 0
    assert shown.stdout.splitlines()[-2] == "recommended: they change nothing: look at the files"
    record = json.loads(run("compare", "z.safetensors", "y.safetensors", "--json").stdout)
    assert record["norm"] == [0.0, 0.0]


def test_names_that_are_taken_or_that_a_shell_would_read_are_no_trouble(run):
    write("-a b", A)
    write("it's", B)
    write("combined", A)
    shown = run("compare", "./-a b.safetensors:0.8", "it's.safetensors")
    output = run_command(command_of(shown), run)
    assert output == "combined-2.safetensors"


def test_options_that_choose_modules_are_in_the_command(run, folder):
    write("a", A)
    write("b", B)
    write("n", plus((-1.0, A)))
    (folder / "w.toml").write_text('["n.safetensors"]\nmultiplier = 0.5\n')
    words = ("a.safetensors", "n.safetensors", "b.safetensors", "--weights", "w.toml", "--exclude", "blocks.3")
    command = command_of(run("compare", *words))
    assert command == (
        "lora-inspect combine a.safetensors n.safetensors:0 b.safetensors --exclude blocks.3 -o combined.safetensors"
    )
    output = run_command(command, run)
    assert list(lora_inspect.compare([output, "b.safetensors"], exclude=["blocks.3"]).modules.only) == [[], []]


def test_a_folder_of_peft_gets_a_folder(run):
    write("a", A)
    write("b", B)
    for name in "ab":
        run("convert", f"{name}.safetensors", "--to", "peft", "-o", name)
    assert run_command(command_of(run("compare", "a", "b.safetensors")), run) == "combined"
    assert lora_inspect.compare(["combined", "a"]).modules.shared == len(LAYERS)


def test_changes_without_a_core_get_lower_multipliers(run, fixtures):
    dora, base = (fixtures / "synthetic" / f"{name}.safetensors" for name in ("dora_without_flag", "base_f32"))
    shown = run("compare", dora, f"{dora}:0.5", "--base", base)
    sentence = "they push the same direction: lower all multipliers to the energy of independent adapters"
    assert shown.stdout.splitlines()[-2] == f"recommended: {sentence}"
    energy = lora_inspect.compare([dora, (dora, 0.5)], base=base).sum_energy
    words = shlex.split(command_of(shown))
    assert words[2:6] == [f"{dora}:{energy**-0.5:.4g}", f"{dora}:{0.5 * energy**-0.5:.4g}", "--base", str(base)]
    run_command(command_of(shown), run)


def stacked(matrices):
    """Our peaks and sign numbers of one weight that these matrices change."""
    changes = []
    for matrix in matrices:
        left, values, right = numpy.linalg.svd(matrix, full_matrices=False)
        rank = max(1, int((values > 1e-9 * values[0]).sum()))
        changes.append(Factors.of(left[:, :rank] * values[:rank], right[:rank], matrix.shape))
    shared = [SharedFactors(*(side[None] for side in one))
              for one in shared_factors(joined(changes), [one.rank for one in changes])]  # fmt: skip
    own, there = [decomposed(one) for one in shared], range(len(matrices))
    sums = sum(one.core for one in shared)
    (peaks,) = peaks_of([WeightName("layer", "layer")], own, there, len(matrices), sums)
    return peaks.values, [one[0] for one in sign_numbers(own, there, len(matrices))]


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
def test_peaks_are_the_largest_singular_values_of_each_change_and_of_the_sum(size, shape):
    numbers = numpy.random.default_rng(4)
    matrices = [size * numbers.normal(size=(shape[0], 3)) @ numbers.normal(size=(3, shape[1])) for _ in range(3)]
    found, _ = stacked(matrices)
    for own, matrix in zip(found, [*matrices, sum(matrices)], strict=True):
        assert own == pytest.approx(numpy.linalg.svd(matrix, compute_uv=False)[:2].tolist(), rel=1e-6)


def test_changes_that_cancel_each_other_have_no_peak():
    matrix = numpy.random.default_rng(4).normal(size=(12, 9))
    found, _ = stacked([matrix, -matrix])
    assert found[-1] == (0.0, 0.0)
    assert found[0] == pytest.approx(found[1])


def test_sign_numbers_are_the_same_in_both_orders():
    numbers = numpy.random.default_rng(4)
    _, (opposed, smaller) = stacked([numbers.normal(size=(12, 9)) for _ in range(3)])
    for matrix in (opposed, smaller):
        assert (matrix == matrix.T).all()
        assert (matrix >= 0.0).all()
        assert not matrix.diagonal().any()
    assert (opposed <= smaller).all()


def test_the_conflict_of_each_two_adapters_is_a_share_in_both_orders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        write(f"{seed}", drawn(seed))
    found = lora_inspect.compare([f"{seed}.safetensors" for seed in range(3)])
    conflict, difference = (numpy.array(matrix) for matrix in (found.sign_conflict, found.relative_difference))
    assert (conflict == conflict.T).all()
    assert ((conflict >= 0.0) & (conflict <= 1.0)).all()
    assert not difference.diagonal().any()
