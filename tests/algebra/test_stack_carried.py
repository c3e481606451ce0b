"""The shares that `compare` names are those of the file that its command writes, by float64 matrices of its tensors."""

import json
import shlex

import numpy
import pytest
from safetensors.numpy import load_file, save_file
from stacks import (
    LAYERS,
    NEARLY_OPPOSITE,
    PARTLY_OPPOSITE,
    A,
    B,
    command_of,
    drawn,
    plus,
    run_command,
    with_direction,
    write,
)

import lora_inspect
from lora_inspect.algebra.measures.stack_commands import StackTrials

A_LATE = plus((1.0, A), (0.15, drawn(9)))
FILES = {
    "a": A, "a_late": A_LATE, "b": B, "opposite": plus((-1.0, A)), "nearly": NEARLY_OPPOSITE,
    "partly": PARTLY_OPPOSITE, "spiked": with_direction(A, 40.0, 5), "dead": plus((0.0, A)),
}  # fmt: skip
TWO_MULTIPLIERS = [("a", f"a_late:{tenths / 10:g}") for tenths in range(1, 11)]
WITH_UNRELATED = [("a", "a_late:0.4", "b"), ("a", "a_late", "b:0.5"), ("a", *["a_late"] * 4, "b:0.8")]
IN_CONFLICT = [("a:0.8", "nearly:0.6"), ("a", "b:0.9", "partly"), ("a", "opposite:0.6", "b"), ("b", "spiked")]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, own in FILES.items():
        write(name, own)
    return tmp_path


def deltas_of(path):
    """The delta (ROWS, COLUMNS) in float64 of each layer of a kohya file, with the scale alpha/rank."""
    tensors = {key: value.astype(numpy.float64) for key, value in load_file(path).items()}
    deltas = {}
    for layer in LAYERS:
        if f"{layer}.lora_up.weight" in tensors:
            up, down = tensors[f"{layer}.lora_up.weight"], tensors[f"{layer}.lora_down.weight"]
            deltas[layer] = tensors[f"{layer}.alpha"] / len(down) * up @ down
        if f"{layer}.diff" in tensors:
            deltas[layer] = tensors[f"{layer}.diff"]
    return deltas


def inner(one, other):
    return sum(float((one[layer] * other[layer]).sum()) for layer in one.keys() & other.keys())


def deltas_of_argument(argument):
    name, _, multiplier = argument.partition(":")
    return {layer: float(multiplier or 1.0) * delta for layer, delta in deltas_of(f"{name}.safetensors").items()}


def named(stack):
    pairs = [argument.partition(":") for argument in stack]
    return [f"{name}.safetensors{colon}{multiplier}" for name, colon, multiplier in pairs]


def shares_of_result(stack, command, run):
    """The shares of adapters in the output of a command, and its squared norm over that of independent adapters."""
    written = deltas_of(run_command(command, run))
    changes = [deltas_of_argument(argument) for argument in stack]
    squares = [inner(change, change) for change in changes]
    shares = [inner(written, change) / square for change, square in zip(changes, squares, strict=True)]
    return shares, inner(written, written) / sum(squares)


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("stack", [*TWO_MULTIPLIERS, *WITH_UNRELATED, *IN_CONFLICT], ids=" ".join)
def test_carried_shares_are_those_of_written_file(stack, run):
    shown = run("compare", *named(stack))
    carried = lora_inspect.compare(named(stack)).stack.recommendation.carried
    shares, _ = shares_of_result(stack, command_of(shown), run)
    printed = [line.split() for line in shown.stdout.splitlines()]
    for share, expected, argument in zip(carried, shares, named(stack), strict=True):
        if share is None:
            assert argument not in shlex.split(command_of(shown))
            assert [argument, "left", "out"] in printed
        else:
            assert share == pytest.approx(expected, rel=0.02)
            assert [argument, f"{share:.1%}"] in printed


@pytest.mark.numeric
@pytest.mark.parametrize("stack", [*TWO_MULTIPLIERS, *WITH_UNRELATED], ids=" ".join)
def test_shared_directions_keep_three_quarters_of_each(stack, run):
    recommendation = lora_inspect.compare(named(stack)).stack.recommendation
    shares, energy = shares_of_result(stack, recommendation.command, run)
    assert recommendation.case == "shared"
    assert min(shares) >= 0.75
    assert energy <= 1.1


@pytest.mark.parametrize("multiplier", [0.1, 0.2, 0.3, 0.5])
def test_unequal_multipliers_get_energy_calibration(multiplier):
    command = lora_inspect.compare(["a.safetensors", ("a_late.safetensors", multiplier)]).stack.recommendation.command
    assert "--calibrate energy" in command


@pytest.mark.parametrize("multiplier", [0.4, 1.0])
def test_equal_multipliers_keep_svc(multiplier):
    stack = [("a.safetensors", multiplier), ("a_late.safetensors", multiplier)]
    recommendation = lora_inspect.compare(stack).stack.recommendation
    assert "--calibrate svc" in recommendation.command
    assert recommendation.carried == pytest.approx((1.0, 1.0), abs=0.05)


def test_versions_beside_unrelated_adapter_get_divided_multipliers(run):
    """SVC and one multiplier for all both leave less than three quarters of the unrelated adapter."""
    stack = ("a", "a_late", "a", "a_late", "a", "b")
    recommendation = lora_inspect.compare(named(stack)).stack.recommendation
    assert recommendation.sentence.endswith("divide each multiplier by the share of its adapter in the sum")
    changes = [deltas_of_argument(argument) for argument in stack]
    in_sum = [sum(inner(change, other) for other in changes) / inner(change, change) for change in changes]
    words = shlex.split(recommendation.command)[2:8]
    multipliers = [float(word.partition(":")[2] or 1.0) for word in words]
    assert multipliers == pytest.approx([1.0 / max(share, 1.0) for share in in_sum], rel=1e-3)
    shares, energy = shares_of_result(stack, recommendation.command, run)
    assert recommendation.carried == pytest.approx(shares, rel=1e-3)
    assert min(shares) >= 0.75
    assert energy <= 1.1


@pytest.mark.parametrize("stack", IN_CONFLICT, ids=" ".join)
def test_conflicts_and_spikes_keep_half_of_each(stack):
    recommendation = lora_inspect.compare(named(stack)).stack.recommendation
    assert recommendation.case in ("conflict", "opposite", "spike")
    assert min(share for share in recommendation.carried if share is not None) >= 0.5


def test_large_spike_is_cut_to_half_of_its_adapter():
    recommendation = lora_inspect.compare(named(("b", "spiked"))).stack.recommendation
    cap = float(recommendation.command.split("--clip-sigma ")[1].split()[0])
    assert recommendation.sentence.endswith(f"cut it to {cap:g}, which keeps half of spiked.safetensors")
    # The other directions of the spiked adapter are as good as orthogonal to b, and stay.
    square = sum(float(numpy.square(delta).sum()) for delta in deltas_of("spiked.safetensors").values())
    assert cap == pytest.approx((0.5 * square - (square - 40.0**2)) / 40.0, rel=0.02)


def test_spike_that_no_cap_removes_is_left_to_next_case():
    large = {name: (up * (50 if name.endswith("v") else 1), down) for name, (up, down) in A.items()}
    write("large", with_direction(large, 40.0, 5))
    stack = lora_inspect.compare(named(("large", "b"))).stack
    assert [spike.adapter for spike in stack.spikes] == [None, 0]
    assert stack.recommendation.case == "independent"


def test_weak_sum_of_independent_adapters_leaves_weaker_out():
    """A cosine that is small, but takes most of an adapter with a low multiplier."""
    write("crossing", plus((1.0, B), (-0.05, A)))
    stack = ("a", "crossing:0.06")
    recommendation = lora_inspect.compare(named(stack)).stack.recommendation
    assert recommendation.case == "independent"
    changes = [deltas_of_argument(argument) for argument in stack]
    share = 1.0 + inner(*changes) / inner(changes[1], changes[1])
    assert share < 0.5
    assert recommendation.sentence == (
        f"the sum carries {share:.0%} of crossing.safetensors:0.06: leave crossing.safetensors:0.06 out"
    )
    assert recommendation.carried == (pytest.approx(1.0), None)


def test_weaker_adapter_is_left_out_in_any_order():
    write("crossing", plus((1.0, B), (-0.05, A)))
    recommendation = lora_inspect.compare(named(("crossing:0.06", "a"))).stack.recommendation
    assert recommendation.carried == (None, pytest.approx(1.0))


def test_rest_of_shared_stack_is_computed_again():
    """No command keeps enough of the crossing adapter, but SVC does of the two others."""
    write("crossing", plus((1.0, B), (-0.05, A)))
    recommendation = lora_inspect.compare(named(("a", "a_late", "crossing:0.06"))).stack.recommendation
    assert recommendation.sentence == (
        "they push the same direction: leave crossing.safetensors:0.06 out and divide each direction by how often they "
        "count it"
    )
    assert recommendation.carried == (pytest.approx(1.0, abs=0.05), pytest.approx(1.0, abs=0.05), None)


def test_strong_result_of_svc_is_not_recommended(monkeypatch):
    """SVC keeps enough of both, but with more than a tenth above the energy of independent adapters."""
    of_method = StackTrials._of_method

    def strengthened(*arguments):
        facts = of_method(*arguments)
        return facts._replace(energy=1.11 * sum(facts.squares))

    monkeypatch.setattr(StackTrials, "_of_method", strengthened)
    recommendation = lora_inspect.compare(named(("a", "a_late"))).stack.recommendation
    assert "--calibrate energy" in recommendation.command


def test_dead_adapter_of_shared_stack_is_left_out():
    recommendation = lora_inspect.compare(named(("a", "dead", "a_late"))).stack.recommendation
    assert recommendation.sentence.startswith("they push the same direction: leave dead.safetensors out and divide")
    assert shlex.split(recommendation.command)[2:4] == named(("a", "a_late"))
    assert recommendation.carried == (pytest.approx(1.0, abs=0.05), None, pytest.approx(1.0, abs=0.05))


def test_excluded_modules_count_for_svc_as_in_command(run):
    """With --exclude, an adapter that is left out stays in the command, and counts in the mean of SVC."""
    words = (*named(("a", "dead", "a_late")), "--exclude", "blocks.3")
    shown = run("compare", *words, "--json")
    recommendation = json.loads(shown.stdout)["stack"]["recommendation"]
    assert "dead.safetensors:0 " in recommendation["command"]
    written = deltas_of(run_command(recommendation["command"], run))
    change = {layer: delta for layer, delta in deltas_of("a.safetensors").items() if layer in written}
    expected = inner(written, change) / inner(change, change)
    assert recommendation["carried"] == [pytest.approx(expected, rel=1e-4), None, pytest.approx(expected, rel=0.02)]


def test_full_differences_carry_exact_shares(run):
    deltas = deltas_of("a.safetensors")
    tensors = {f"{layer}.diff": delta.astype(numpy.float32) for layer, delta in deltas.items()}
    save_file(tensors, "whole.safetensors", {"ss_base_model_version": "wan2.1"})
    stack = ("whole", "a_late:0.3")
    recommendation = lora_inspect.compare(named(stack)).stack.recommendation
    assert recommendation.sentence.endswith("lower all multipliers to the energy of independent adapters")
    shares, _ = shares_of_result(stack, recommendation.command, run)
    assert recommendation.carried == pytest.approx(shares, rel=1e-3)
    assert min(shares) >= 0.75


@pytest.mark.numeric
@pytest.mark.parametrize("kind", ["all", "part"])
def test_dora_shares_are_those_of_written_file(kind, run, fixtures):
    """DoRA's changes do not add up, and the rank of the command leaves a part of them out; those of plain LoRA do."""
    dora, base = (str(fixtures / "synthetic" / f"{name}.safetensors") for name in ("dora_without_flag", "base_f32"))
    options = {}
    if kind == "part":
        tensors = load_file(dora)
        plain = sorted(key for key in tensors if "magnitude" in key or "dora" in key)[::2]
        save_file({key: value for key, value in tensors.items() if key not in plain}, "part.safetensors")
        dora, options = "part.safetensors", {"allow_partial_dora": True}
    recommendation = lora_inspect.compare([dora, (dora, 0.5)], base=base, **options).stack.recommendation
    original = load_file(base)

    def difference(*adapters, multiplier=1.0):
        named_adapters = [(adapter, multiplier) for adapter in adapters]
        lora_inspect.merge(base, named_adapters, "merged.safetensors", force=True, **options)
        merged = load_file("merged.safetensors")
        return {key: merged[key].astype(numpy.float64) - original[key] for key in original}

    written = difference(run_command(recommendation.command, run))
    for share, multiplier in zip(recommendation.carried, (1.0, 0.5), strict=True):
        change = difference(dora, multiplier=multiplier)
        expected = sum(float((written[key] * change[key]).sum()) for key in change)
        assert share == pytest.approx(
            expected / sum(float(numpy.square(own).sum()) for own in change.values()), rel=2e-3
        )


def test_changes_of_high_rank_get_energy_rule(run, fixtures):
    """Magnitudes 1.5 times as large scale the weights of the base, of which a low rank keeps too little."""
    dora, base = (str(fixtures / "synthetic" / f"{name}.safetensors") for name in ("dora_without_flag", "base_f32"))
    tensors = load_file(dora)
    scaled = {key: value * 1.5 if "dora_layer" in key else value for key, value in tensors.items()}
    save_file(scaled, "scaled.safetensors")
    stack = ["scaled.safetensors", ("scaled.safetensors", 0.2)]
    recommendation = lora_inspect.compare(stack, base=base).stack.recommendation
    assert "--energy 0.9" in recommendation.command
    assert "--rank" not in recommendation.command
    assert min(recommendation.carried) >= 0.75
    run_command(recommendation.command, run)


def test_stack_without_changes_has_no_shares(run):
    record = json.loads(run("compare", "dead.safetensors", "dead.safetensors", "--json").stdout)
    assert record["stack"]["recommendation"]["carried"] is None
    assert "carried" not in run("compare", "dead.safetensors", "dead.safetensors").stdout


def test_progress_counts_pass_for_tried_command_from_zero():
    calls = []
    lora_inspect.compare(named(("a", "a_late")), progress=lambda done, total: calls.append((done, total)))
    one_pass = [(done, len(LAYERS)) for done in range(len(LAYERS) + 1)]
    assert calls == [*one_pass, *one_pass]


def test_sum_takes_no_pass_after_comparison():
    calls = []
    lora_inspect.compare(named(("a", "b")), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(done, len(LAYERS)) for done in range(len(LAYERS) + 1)]


def test_stack_refused_by_combine_gets_reason_instead_of_command():
    """A text encoder has no name in the scheme of the first adapter."""
    tensors = {}
    for layer, (up, down) in A.items():
        block, leaf = layer.removeprefix("lora_unet_blocks_").split("_", 1)
        path = f"diffusion_model.blocks.{block}.{leaf.replace('attn_', 'attn.')}"
        tensors |= {
            f"{path}.lora_B.weight": up.astype(numpy.float32),
            f"{path}.lora_A.weight": down.astype(numpy.float32),
        }
    save_file({key: numpy.ascontiguousarray(value) for key, value in tensors.items()}, "dotted.safetensors")
    encoder = {f"lora_te_{layer.removeprefix('lora_unet_')}": factors for layer, factors in B.items()}
    write("encoder", {**B, **encoder})
    recommendation = lora_inspect.compare(named(("dotted", "encoder"))).stack.recommendation
    assert recommendation.case == "independent"
    assert "but combine refuses them: " in recommendation.sentence
    assert "--to" in recommendation.sentence
    assert recommendation.command == "lora-inspect info dotted.safetensors"
    assert recommendation.carried is None
