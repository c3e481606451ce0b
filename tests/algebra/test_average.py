"""`average`: weights by their closed forms, steps from settings, metadata and names, and both ways of averaging."""

import itertools
import json
import math
import os

import numpy
import pytest
import torch
from dense_sums import LAYERS, key, kohya, metadata_of, ranks_of, read, relative, summed, tails
from safetensors.torch import load_file

from lora_inspect import LoraInspectError, average

STEPS = (100, 250, 400, 1000)


def epochs(folder, steps=STEPS, names=None, with_metadata=True, ranks=None):
    made = []
    for at, step in enumerate(steps):
        name = names[at] if names else f"style-{at}.safetensors"
        metadata = {"ss_steps": str(step)} if with_metadata else None
        made.append(kohya(folder / name, at, ranks[at] if ranks else 4, 3.0, metadata=metadata))
    return made


def power_weights(steps, width):
    """(t_k^(g+1) - t_(k-1)^(g+1)) / t_N^(g+1), with g the largest root of g³ + 7 g² + (16 - t) g + (12 - t)."""
    inverse = width**-2
    roots = numpy.roots([1, 7, 16 - inverse, 12 - inverse])
    (gamma,) = (float(root.real) for root in roots if abs(root.imag) < 1e-9 and root.real >= 0)
    powers = [(step / steps[-1]) ** (gamma + 1) for step in (0, *steps)]
    return [after - before for before, after in itertools.pairwise(powers)]


def beta_weights(count, beta):
    """The state begins with the first file: then beta · state + (1 - beta) · file."""
    weights = [1.0]
    for _ in range(count - 1):
        weights = [*(beta * one for one in weights), 1 - beta]
    return weights


def test_the_exponents_are_those_of_the_page():
    from lora_inspect.algebra.average_weights import exponent

    found = [exponent(width) for width in (0.05, 0.10, 0.15, 0.20, 0.25)]
    assert found == pytest.approx([16.97, 6.94, 3.56, 1.83, 0.72], abs=0.01)
    for width, gamma in zip((0.05, 0.10, 0.15, 0.20, 0.25), found, strict=True):
        assert (gamma + 1) ** 0.5 / (gamma + 2) / (gamma + 3) ** 0.5 == pytest.approx(width, rel=1e-9)


RULES = {
    "uniform": ({"uniform": True}, [0.25] * 4),
    "no rule": ({}, [0.25] * 4),
    "beta 0.9": ({"beta": 0.9}, beta_weights(4, 0.9)),
    "beta 0.3": ({"beta": 0.3}, beta_weights(4, 0.3)),
    **{f"width {width}": ({"sigma_rel": width}, power_weights(STEPS, width)) for width in (0.05, 0.15, 0.2, 0.28)},
}


@pytest.mark.parametrize("rule", RULES)
def test_the_average_of_changes(rule, tmp_path):
    options, weights = RULES[rule]
    made = epochs(tmp_path)
    # In any order of the arguments.
    order = [2, 0, 3, 1]
    result = average([made[at][0] for at in order], tmp_path / "out.safetensors", exact=True, **options)
    assert result.weights == pytest.approx([weights[at] for at in order], abs=1e-12)
    assert sum(result.weights) == pytest.approx(1)
    assert result.steps == tuple(STEPS[at] for at in order)
    meant = summed(*((weight, changes) for weight, (_, changes) in zip(weights, made, strict=True)))
    assert relative(read(tmp_path / "out.safetensors"), meant) < 3e-7
    # Files of hardly any weight have no directions of their own beyond rounding.
    assert set(ranks_of(tmp_path / "out.safetensors").values()) == {4 if rule == "width 0.05" else 16}


@pytest.mark.parametrize("ranks", [(4, 4, 4, 4), (2, 7, 3, 1)])
def test_the_rank_is_the_largest_of_the_inputs(ranks, tmp_path):
    made = epochs(tmp_path, ranks=ranks)
    result = average([path for path, _ in made], tmp_path / "out.safetensors")
    meant = summed(*((0.25, changes) for _, changes in made))
    best = tails(meant, dict.fromkeys(meant, max(ranks)))
    assert set(ranks_of(tmp_path / "out.safetensors").values()) == {max(ranks)}
    assert relative(read(tmp_path / "out.safetensors"), meant) == pytest.approx(best, rel=1e-6)
    assert result.error == pytest.approx(best, abs=1e-6)


def test_equal_files_average_to_themselves(tmp_path):
    path, changes = kohya(tmp_path / "a.safetensors", 1)
    other, _ = kohya(tmp_path / "b.safetensors", 1)
    for options in ({}, {"of": "factors"}):
        average([path, other], tmp_path / "out.safetensors", force=True, **options)
        assert relative(read(tmp_path / "out.safetensors"), changes) < 2e-7


@pytest.mark.parametrize("rule", [{}, {"beta": 0.7}, {"sigma_rel": 0.15}], ids=str)
def test_the_average_of_factors(rule, tmp_path):
    made = epochs(tmp_path)
    result = average([path for path, _ in made], tmp_path / "out.safetensors", of="factors", **rule)
    weights = [0.25] * 4 if not rule else beta_weights(4, 0.7) if "beta" in rule else power_weights(STEPS, 0.15)
    tensors = [load_file(path) for path, _ in made]
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == tensors[0].keys()
    for name, value in found.items():
        meant = sum(weight * own[name].double() for weight, own in zip(weights, tensors, strict=True))
        assert torch.allclose(value.double(), meant, rtol=1e-6, atol=1e-9), name
    exact = summed(*((weight, changes) for weight, (_, changes) in zip(weights, made, strict=True)))
    apart = relative(read(tmp_path / "out.safetensors"), exact)
    assert result.apart == pytest.approx(apart, rel=1e-5)
    assert result.error == pytest.approx(apart, rel=1e-5)
    assert average([path for path, _ in made], None, **rule).apart == pytest.approx(apart, rel=1e-5)


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["a-000002", "a-000004", "a-000010"], (2, 4, 10)),
        (["v2-step100", "v2-step300", "v2-step200"], (100, 300, 200)),
        (["run3_e1_s10", "run3_e2_s20", "run3_e3_s30"], (10, 20, 30)),
    ],
)
def test_steps_of_names(names, steps, tmp_path):
    made = epochs(tmp_path, steps, [f"{name}.safetensors" for name in names], with_metadata=False)
    # The time of a file says nothing.
    for at, (path, _) in enumerate(made):
        os.utime(path, (1_000_000 - at, 1_000_000 - at))
    result = average([path for path, _ in made], None, sigma_rel=0.2)
    assert result.steps == steps
    meant = dict(zip(sorted(steps), power_weights(sorted(steps), 0.2), strict=True))
    assert result.weights == pytest.approx([meant[step] for step in steps], abs=1e-12)


def test_metadata_comes_before_names_and_settings_before_both(tmp_path):
    made = epochs(tmp_path, (30, 20, 10), ["a-1.safetensors", "a-2.safetensors", "a-3.safetensors"])
    paths = [path for path, _ in made]
    assert average(paths, None, beta=0.5).steps == (30, 20, 10)
    assert average([f"{paths[0]}:step=5", *paths[1:]], None, beta=0.5).steps == (5, 20, 10)


@pytest.mark.parametrize(
    ("names", "steps", "rule", "message"),
    [
        (
            ["a.safetensors", "b.safetensors"],
            None,
            {"beta": 0.5},
            "neither ss_steps in its metadata nor its name tells",
        ),
        (["a.safetensors", "b.safetensors"], (10, 10), {"sigma_rel": 0.1}, "its step is 10, as that of"),
        (["a.safetensors", "b.safetensors"], (0, 10), {"sigma_rel": 0.1}, "its step is 0"),
    ],
)
def test_steps_that_tell_no_weights_are_refused(names, steps, rule, message, tmp_path):
    made = epochs(tmp_path, steps or (1, 2), names, with_metadata=steps is not None)
    with pytest.raises(LoraInspectError, match=message):
        average([path for path, _ in made], tmp_path / "out.safetensors", **rule)
    # Without them the plain average has all that it needs.
    assert average([path for path, _ in made], None).weights == (0.5, 0.5)


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (["--sigma-rel", "0.2887"], 2), (["--sigma-rel", "0"], 2), (["--beta", "1"], 2), (["--beta", "0"], 2),
        (["--beta", "0.5", "--uniform"], 2), (["--exact", "--rank", "3"], 2), (["--of", "factors", "--rank", "3"], 2),
        (["--of", "factors", "--to", "peft"], 1),
    ],
)  # fmt: skip
def test_options_that_exclude_each_other(options, status, run, tmp_path):
    made = epochs(tmp_path)
    ended = run("average", *(path for path, _ in made), *options, "-o", tmp_path / "out.safetensors")
    assert ended.status == status, ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("change", ["rank", "alpha", "modules"])
def test_factors_that_do_not_pair_up_are_refused(change, tmp_path):
    one, _ = kohya(tmp_path / "a.safetensors", 1, 4, 3.0)
    other, _ = kohya(
        tmp_path / "b.safetensors",
        2,
        5 if change == "rank" else 4,
        2.0 if change == "alpha" else 3.0,
        layers=dict([*LAYERS.items()][:2]) if change == "modules" else LAYERS,
    )
    with pytest.raises(LoraInspectError, match="so their factors have no average; leave of"):
        average([one, other], tmp_path / "out.safetensors", of="factors")
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors", "b.safetensors"]
    average([one, other], tmp_path / "out.safetensors")


def test_a_file_alone_has_no_average(tmp_path):
    path, _ = kohya(tmp_path / "a.safetensors", 1)
    with pytest.raises(LoraInspectError, match="an average is of several files; name at least two"):
        average([path], tmp_path / "out.safetensors")


def test_the_record_has_no_folder(tmp_path):
    made = epochs(tmp_path)
    average([path for path, _ in made], tmp_path / "out.safetensors", beta=0.5)
    record = json.loads(metadata_of(tmp_path / "out.safetensors")["lora_inspect.combined"])
    assert record["verb"] == "average"
    assert str(tmp_path) not in json.dumps(record)
    assert math.isfinite(record["error"])
    assert key("x") == "lora_unet_x"
