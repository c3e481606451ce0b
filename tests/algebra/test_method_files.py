"""`combine --method` from files to a file: the formula at the multipliers, the record, and what is refused."""

import json
import math
import shutil

import numpy
import pytest
import torch
from dense_methods import FORMULAS, SETTINGS, slerp
from dense_sums import LAYERS, key, kohya, metadata_of, read
from safetensors.torch import load_file, save_file

from lora_inspect import RefusedError, combine
from lora_inspect.algebra.methods import by_name, known_methods

pytestmark = pytest.mark.numeric
MULTIPLIERS = (0.8, -0.5, 1.5)
GIVEN = {"density": SETTINGS.density, "seed": SETTINGS.seed, "t": SETTINGS.t}


def given(name):
    """The settings of a method as keywords."""
    return {setting: GIVEN[setting] for setting in by_name(name).settings}


def written(folder, count, **options):
    """Files of plain LoRA, and by path the factors of each at its multiplier."""
    files, pairs = [], {path: [] for path in LAYERS}
    for seed, multiplier in zip(range(count), MULTIPLIERS, strict=False):
        path, changes = kohya(folder / f"{seed}.safetensors", seed, **options)
        files.append((path, multiplier))
        for layer, change in changes.items():
            pairs[layer].append((multiplier * change.numpy(), numpy.eye(change.shape[1])))
    return files, pairs


def apart(found, meant):
    difference = math.sqrt(sum(float(((found[path] - meant[path]) ** 2).sum()) for path in meant))
    return difference / math.sqrt(sum(float((meant[path] ** 2).sum()) for path in meant))


@pytest.mark.parametrize("name", [*FORMULAS, "slerp"])
def test_the_file_is_the_formula_at_the_multipliers(name, tmp_path):
    files, pairs = written(tmp_path, by_name(name).inputs or 3)
    result = combine(files, tmp_path / "out.safetensors", method=name, lambda_=0.7, **given(name))
    formula = FORMULAS.get(name, slerp)
    meant = {path: 0.7 * torch.from_numpy(formula(own)) for path, own in pairs.items()}
    assert apart(read(tmp_path / "out.safetensors"), meant) < 1e-6
    # The share of an input in the result: <D, D_i> over its square.
    for place, share in enumerate(result.shares):
        changes = {path: torch.from_numpy(own[place][0]) for path, own in pairs.items()}
        inner = sum(float((meant[path] * changes[path]).sum()) for path in meant)
        assert share == pytest.approx(inner / sum(float((change**2).sum()) for change in changes.values()), abs=1e-6)


@pytest.mark.parametrize("name", known_methods())
def test_a_rank_is_kept_and_its_error_is_true(name, tmp_path):
    files, _ = written(tmp_path, by_name(name).inputs or 3)
    steps = {"method": name, "lambda_": 0.7, **given(name)}
    combine(files, tmp_path / "whole.safetensors", **steps)
    result = combine(files, tmp_path / "trimmed.safetensors", max_rank=2, **steps)
    assert max(result.ranks) == 2
    assert result.error == pytest.approx(
        apart(read(tmp_path / "trimmed.safetensors"), read(tmp_path / "whole.safetensors")), abs=1e-5
    )
    planned = combine(files, None, max_rank=2, **steps)
    assert (planned.ranks, planned.method) == (result.ranks, result.method)


def test_the_energy_is_that_of_independent_adapters(tmp_path):
    files, pairs = written(tmp_path, 3)
    result = combine(files, tmp_path / "out.safetensors", calibrate="energy")
    found = read(tmp_path / "out.safetensors")
    energy = sum(float((change**2).sum()) for change in found.values())
    assert energy == pytest.approx(sum(float((up**2).sum()) for own in pairs.values() for up, _ in own), rel=1e-5)
    # One multiplier for all modules.
    whole = {path: torch.from_numpy(sum(up for up, _ in own)) for path, own in pairs.items()}
    ratios = [found[path] / whole[path] for path in whole]
    assert max(float((ratio - ratios[0].flatten()[0]).abs().max()) for ratio in ratios) < 1e-3
    assert combine(files, None, calibrate="energy").shares == pytest.approx(result.shares, rel=1e-6)


def test_a_cap_names_the_modules_that_it_cuts(tmp_path):
    files, pairs = written(tmp_path, 2)
    sums = {path: numpy.linalg.svd(sum(up for up, _ in own), compute_uv=False) for path, own in pairs.items()}
    cap = float(numpy.median([values[0] for values in sums.values()]))
    result = combine(files, tmp_path / "out.safetensors", clip_sigma=cap)
    assert {one.module: pytest.approx(one.value, rel=1e-5) for one in result.clipped} == {
        key(path): values[0] for path, values in sums.items() if values[0] > cap * (1 + 1e-9)
    }
    for one in result.clipped:
        values = next(values for path, values in sums.items() if key(path) == one.module)
        assert one.cut == pytest.approx(1 - (numpy.minimum(values, cap) ** 2).sum() / (values**2).sum(), rel=1e-4)
    found = read(tmp_path / "out.safetensors")
    assert max(float(torch.linalg.svdvals(change)[0]) for change in found.values()) <= cap * (1 + 1e-5)


def test_the_record_has_the_method_and_its_settings(run, tmp_path):
    files, _ = written(tmp_path, 2)
    out = tmp_path / "out.safetensors"
    paths = [f"{path}:{multiplier}" for path, multiplier in files]
    words = (
        "--method",
        "dare-ties",
        "--density",
        "0.5",
        "--seed",
        "3",
        "--lambda",
        "0.5",
        "--clip-sigma",
        "9",
        "--json",
    )
    ended = run("combine", *paths, *words, "-o", out)
    assert ended.status == 0, ended.stderr
    method = {"name": "dare-ties", "density": 0.5, "seed": 3, "lambda": 0.5, "clip_sigma": 9.0}
    assert json.loads(metadata_of(out)["lora_inspect.combined"])["method"] == method
    assert json.loads(ended.stdout)["method"] == method
    assert json.loads(run("info", out, "--json").stdout)["combined"]["method"] == "dare-ties"
    assert "combine --method dare-ties of 0.safetensors:0.8" in " ".join(run("info", out).stdout.split())


def test_a_plain_sum_has_no_method(run, tmp_path):
    files, _ = written(tmp_path, 2)
    paths = [path for path, _ in files]
    out = tmp_path / "out.safetensors"
    record = json.loads(run("combine", *paths, "-o", out, "--json").stdout)
    assert (record["method"], record["shares"], record["clipped"]) == (None, None, [])
    assert "method" not in json.loads(metadata_of(out)["lora_inspect.combined"])


def test_a_seed_gives_the_same_bytes_on_any_number_of_threads(tmp_path, monkeypatch):
    files, _ = written(tmp_path, 3)
    made = []
    for count in (1, 5):
        monkeypatch.setattr("lora_inspect.algebra.linear.module_threads.usable_cores", lambda count=count: count)
        out = tmp_path / f"threads-{count}.safetensors"
        combine(files, out, method="dare", density=0.5, seed=1)
        made.append(out.read_bytes())
    assert made[0] == made[1]
    combine(files, tmp_path / "other.safetensors", method="dare", density=0.5, seed=2)
    assert (tmp_path / "other.safetensors").read_bytes() != made[0]


def test_differences_of_vectors_are_merged_number_by_number(tmp_path):
    one, other = torch.tensor([3.0, -1.0, 0.5, 0.0]), torch.tensor([1.0, 2.0, -0.25, 4.0])
    name = f"{key('blocks.0.ffn.0')}.diff_b"
    files = [kohya(tmp_path / f"{at}.safetensors", at, extra={name: own})[0] for at, own in enumerate((one, other))]
    combine(files, tmp_path / "out.safetensors", method="ties", density=1.0)
    # Of each pair the mean of those whose sign is that of the sum.
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors")[name], torch.tensor([2.0, 2.0, 0.5, 4.0]))


def with_vectors(folder):
    """Two files with a long difference of a bias, and all their changes and differences, one after the other."""
    name, paths, changes = f"{key('blocks.0.ffn.0')}.diff_b", [], []
    for at, length in enumerate((30.0, -50.0)):
        difference = length * torch.randn(4, generator=torch.Generator().manual_seed(at))
        path, own = kohya(folder / f"{at}.safetensors", at, extra={name: difference})
        paths.append(path)
        changes.append(torch.cat([difference.double(), *(change.flatten() for change in own.values())]))
    return name, paths, changes


@pytest.mark.parametrize("output", ["out.safetensors", None])
def test_shares_count_differences_of_vectors(output, tmp_path):
    _, paths, changes = with_vectors(tmp_path)
    found = combine(paths, output and tmp_path / output, method="mean")
    mean = sum(changes) / 2.0
    assert found.shares == pytest.approx([float(mean @ one / (one @ one)) for one in changes], rel=1e-5)


def test_the_energy_counts_differences_of_vectors(tmp_path):
    name, paths, changes = with_vectors(tmp_path)
    out = tmp_path / "out.safetensors"
    combine(paths, out, calibrate="energy")
    multiplier = math.sqrt(sum(float(one @ one) for one in changes) / float(sum(changes) @ sum(changes)))
    meant = multiplier * sum(load_file(path)[name] for path in paths)
    torch.testing.assert_close(load_file(out)[name], meant, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("name", ["mean", "ties", "svc"])
def test_experts_are_merged_one_by_one(name, fixtures, tmp_path):
    adapter = fixtures / "experts/peft-0.19.0-qwen3-moe"
    settings = {"density": 1.0} if name == "ties" else {}
    result = combine([adapter, adapter], tmp_path / "out", method=name, **settings)
    assert result.shares == pytest.approx((1.0, 1.0), abs=1e-5)


def test_a_layer_of_experts_that_one_input_lacks_is_merged_too(fixtures, tmp_path):
    adapter, other = fixtures / "experts/peft-0.19.0-qwen3-moe", tmp_path / "other"
    shutil.copytree(adapter, other)
    tensors = load_file(other / "adapter_model.safetensors")
    gone = [name for name in tensors if ".experts." in name]
    save_file({name: own for name, own in tensors.items() if name not in gone}, other / "adapter_model.safetensors")
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | {"target_parameters": None}))
    combine([other, adapter], tmp_path / "out", method="mean")
    made = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {name for name in made if ".experts." in name} == set(gone) != set()


def test_a_sum_of_half_precision_keeps_directions_that_others_take_for_rounding(tmp_path):
    numbers = numpy.random.default_rng(8)
    layer = "lora_unet_blocks_0_self_attn_q"
    paths, sides = [], []
    for number in range(2):
        left, right = (numpy.linalg.qr(numbers.normal(size=(size, 2)))[0] for size in (40, 30))
        # The second singular value is 6e-5 of the first one.
        up, down = (torch.from_numpy(side * [8.0, 2.0**-4]).half() for side in (left, right))
        tensors = {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down.T.contiguous()}
        save_file({**tensors, f"{layer}.alpha": torch.tensor(2.0)}, path := tmp_path / f"{number}.safetensors")
        paths.append(path)
        sides.append((up.double(), down.double()))
    combine(paths, tmp_path / "mean.safetensors", method="mean", dtype="fp32")
    made = {name: value.double() for name, value in load_file(tmp_path / "mean.safetensors").items()}
    rank = made[f"{layer}.lora_down.weight"].shape[0]
    change = made[f"{layer}.lora_up.weight"] @ made[f"{layer}.lora_down.weight"] * made[f"{layer}.alpha"] / rank
    mean = sum(up @ down.T for up, down in sides) / 2.0
    assert rank == 4
    assert float((change - mean).norm() / mean.norm()) < 1e-6


def test_the_note_on_bases_counts_the_modules_without_one(tmp_path):
    numbers = numpy.random.default_rng(8)
    paths = []
    for number in range(2):
        tensors = {}
        for name, values in (("blocks_0_self_attn_q", (2.0, 2.0)), ("blocks_0_self_attn_k", (2.0, 1.0 + number))):
            left, right = (numpy.linalg.qr(numbers.normal(size=(size, 2)))[0] for size in (40, 30))
            tensors[f"lora_unet_{name}.lora_up.weight"] = torch.from_numpy(left * numpy.array(values))
            tensors[f"lora_unet_{name}.lora_down.weight"] = torch.from_numpy(right.T.copy())
            tensors[f"lora_unet_{name}.alpha"] = torch.tensor(2.0)
        save_file(tensors, path := tmp_path / f"{number}.safetensors")
        paths.append(path)
    notes = combine(paths[:1] * 2, None, method="ties", density=1.0).notes
    assert any(
        note.startswith("in 1 module (lora_unet_blocks_0_self_attn_q) the inputs have directions") for note in notes
    )


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--method", "tsv", "--density", "0.5"], "--method tsv has no --density; leave it out."),
        (["--method", "sum", "--seed", "1"], "--method sum has no --seed; leave it out."),
        (
            ["--method", "iso-c", "--calibrate", "svc"],
            "--method iso-c makes all singular values equal, so --calibrate svc has no directions to count; leave it "
            "out, or take --calibrate energy.",
        ),
        (["--method", "ties"], "--method ties needs --density, the share of the numbers that is kept, such as 0.5."),
        (["--method", "ties", "--density", "0"], "0 is no share, which is above 0 and at most 1."),
        (["--method", "slerp", "--t", "2"], "2 is no place between two adapters, which is from 0 to 1."),
        (["--clip-sigma", "0"], "0 is no cap of singular values, which is above 0."),
        (["--method", "tie", "--density", "1"], "'tie' is not one of 'sum', "),
    ],
)
def test_wrong_usage(words, says, run, tmp_path):
    files, _ = written(tmp_path, 2)
    ended = run("combine", *(path for path, _ in files), *words, "-o", tmp_path / "out.safetensors")
    assert ended.status == 2
    assert says in ended.stderr
    assert not (tmp_path / "out.safetensors").exists()


def test_slerp_of_three_is_refused(tmp_path):
    files, _ = written(tmp_path, 3)
    with pytest.raises(RefusedError, match="slerp is of 2 adapters, but 3 are named; name 2"):
        combine(files, tmp_path / "out.safetensors", method="slerp")


def test_a_change_without_thin_factors_is_refused(tmp_path):
    path, _ = kohya(tmp_path / "a.safetensors", 1)
    other = tmp_path / "b.safetensors"
    save_file({f"{key('blocks.0.ffn.0')}.diff": torch.randn(40, 20)}, other)
    with pytest.raises(RefusedError, match="of which TIES has no core"):
        combine([path, str(other)], tmp_path / "out.safetensors", method="ties", density=0.5)
