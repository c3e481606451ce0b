"""`combine`: sums against dense float64 matrices, in every element type, with every rule, and of parts of adapters."""

import json
import os

import pytest
import torch
from dense_sums import KERNELS, LAYERS, key, kohya, metadata_of, peft, ranks_of, read, relative, summed, tails
from safetensors.torch import load_file, save_file

from lora_inspect import combine, open_adapter
from lora_inspect.files.system import usable_cores

TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# The rounding of both factors, relative to the norm of the change.
ROUNDING = {"F64": 1e-12, "F32": 2e-7, "F16": 1e-3, "BF16": 8e-3}


def test_two_files_at_their_strengths_as_one_file(tmp_path):
    """The question of kohya-ss/sd-scripts#868: 0.7 and 0.4 look right in the WebUI; no tool gives them as one file."""
    first, one = kohya(tmp_path / "a.safetensors", 1, rank=8, alpha=4.0)
    second, other = kohya(tmp_path / "b.safetensors", 2, rank=16, alpha=1.0)
    combine([(first, 0.7), (second, 0.4)], tmp_path / "out.safetensors")
    assert relative(read(tmp_path / "out.safetensors"), summed((0.7, one), (0.4, other))) < 2e-7


def test_blocks_of_one_and_blocks_of_another(run, tmp_path):
    layers = {f"blocks.{number}.attn.q": (12, 10) for number in range(20)}
    first, one = kohya(tmp_path / "a.safetensors", 1, layers=layers)
    second, other = kohya(tmp_path / "b.safetensors", 2, rank=3, alpha=5.0, layers=layers)
    out = tmp_path / "out.safetensors"
    ended = run("combine", f"{first}:0,blocks.0-9=1", f"{second}:0,blocks.10-19=1", "-o", out)
    assert ended.status == 0, ended.stderr
    meant = {path: (one if at < 10 else other)[path] for at, path in enumerate(layers)}
    assert relative(read(out, layers), meant) < 2e-7
    assert set(ranks_of(out).values()) == {4, 3}


@pytest.mark.parametrize("multipliers", [(0.7, -0.4, 1.5), (-1.0, 2.0, 0.1), (1.0, 0.0, -3.0)])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_sum_is_that_of_dense_matrices(dtype, multipliers, tmp_path):
    ranks, alphas = (4, 9, 1), (2.0, None, 16.0)
    made = [
        kohya(tmp_path / f"{seed}.safetensors", seed, ranks[seed], alphas[seed], dtype=TYPES[dtype])
        for seed in range(3)
    ]
    named = [(path, multiplier) for (path, _), multiplier in zip(made, multipliers, strict=True)]
    result = combine(named, tmp_path / "out.safetensors")
    meant = summed(*((m, changes) for (_, changes), m in zip(made, multipliers, strict=True)))
    error = relative(read(tmp_path / "out.safetensors"), meant)
    assert result.dtype == dtype
    assert error < ROUNDING[dtype]
    assert (result.error, result.energy) == (0.0, 1.0)
    if dtype in ("F16", "BF16"):
        assert result.rounding == pytest.approx(error, rel=0.4)
    used = sum(rank for rank, multiplier in zip(ranks, multipliers, strict=True) if multiplier)
    assert set(ranks_of(tmp_path / "out.safetensors").values()) == {used}


@pytest.mark.parametrize(("first", "second", "wide"), [
    ("F16", "BF16", "F32"), ("F16", "F16", "F16"), ("F32", "BF16", "F32"), ("F64", "F16", "F64"),
])  # fmt: skip
def test_the_widest_type_of_the_inputs_is_written(first, second, wide, tmp_path):
    one, _ = kohya(tmp_path / "a.safetensors", 1, dtype=TYPES[first])
    other, _ = kohya(tmp_path / "b.safetensors", 2, dtype=TYPES[second])
    assert combine([one, other], tmp_path / "out.safetensors").dtype == wide
    own = load_file(tmp_path / "out.safetensors")
    assert {value.dtype for name, value in own.items() if "alpha" not in name} == {TYPES[wide]}


def test_eight_bits_are_read_and_written_in_sixteen(tmp_path):
    one, _ = kohya(tmp_path / "a.safetensors", 1)
    tensors = {name: value.to(torch.float8_e4m3fn) if value.dim() else value for name, value in load_file(one).items()}
    save_file(tensors, one)
    meant = {}
    for path in LAYERS:
        down, up = (tensors[f"{key(path)}.lora_{role}.weight"].double() for role in ("down", "up"))
        meant[path] = 0.5 * 1.5 * up @ down
    other, _ = kohya(tmp_path / "b.safetensors", 2)
    combine([(one, 1.5), (other, 0.0)], tmp_path / "out.safetensors")
    assert relative(read(tmp_path / "out.safetensors"), meant) < ROUNDING["BF16"]


@pytest.mark.parametrize("total", [18, 30, 70])
def test_more_rank_than_the_smaller_side(total, tmp_path):
    made = [kohya(tmp_path / f"{seed}.safetensors", seed, total // 2) for seed in (1, 2)]
    result = combine([(made[0][0], 0.5), (made[1][0], -2.0)], tmp_path / "out.safetensors")
    assert relative(read(tmp_path / "out.safetensors"), summed((0.5, made[0][1]), (-2.0, made[1][1]))) < 1e-6
    assert set(result.ranks) == {min(total, 20)}


@pytest.mark.parametrize("second", [{"rank": 3, "alpha": 5.0}, {"rank": 60, "alpha": 1.0}])
def test_kernels(second, tmp_path):
    one = kohya(tmp_path / "a.safetensors", 1, layers=KERNELS)
    other = kohya(tmp_path / "b.safetensors", 2, layers=KERNELS, **second)
    combine([(one[0], 0.7), (other[0], -0.3)], tmp_path / "out.safetensors")
    assert relative(read(tmp_path / "out.safetensors", KERNELS), summed((0.7, one[1]), (-0.3, other[1]))) < 1e-6
    shape = load_file(tmp_path / "out.safetensors")[f"{key('down_blocks.0.resnets.0.conv1')}.lora_down.weight"].shape
    assert tuple(shape[1:]) == (8, 3, 3)


RULES = [{"rank": 3}, {"rank": 1}, {"energy": 0.9}, {"energy": 0.999}, {"max_error": 0.2}, {"max_rank": 4},
         {"energy": 0.95, "max_rank": 2}, {"size": "9kB"}]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_trim_is_the_best_of_its_rank_and_its_error_is_true(rule, dtype, tmp_path):
    one = kohya(tmp_path / "a.safetensors", 1, 6, 3.0, dtype=dtype)
    other = kohya(tmp_path / "b.safetensors", 2, 5, 9.0, dtype=dtype)
    out, meant = tmp_path / "out.safetensors", summed((0.7, one[1]), (-0.4, other[1]))
    result = combine([(one[0], 0.7), (other[0], -0.4)], out, **rule)
    found = read(out)
    found |= {path: torch.zeros_like(meant[path]) for path in meant if path not in found}
    ranks = {path: ranks_of(out).get(key(path), 0) for path in meant}
    best, true = tails(meant, ranks), relative(found, meant)
    assert best * (1 - 1e-9) <= true + (0 if dtype == torch.float64 else 1e-6)
    assert true == pytest.approx(best, rel=1e-6, abs=1e-6)
    assert result.error == pytest.approx(true, abs=1e-6)
    assert result.energy == pytest.approx(1 - true**2, abs=1e-6)
    for path, rank in ranks.items():
        own, values = {path: meant[path]}, torch.linalg.svdvals(meant[path])
        if "rank" in rule:
            assert rank == rule["rank"]
        if "energy" in rule and "max_rank" not in rule:
            # The lowest rank that keeps the share.
            assert 1 - tails(own, {path: rank}) ** 2 >= rule["energy"] > 1 - tails(own, {path: rank - 1}) ** 2
        if "max_error" in rule:
            assert tails(own, {path: rank}) <= rule["max_error"] < tails(own, {path: rank - 1})
        assert rank <= int((values > 1e-7 * values[0]).sum())
    worst = max(meant, key=lambda path: tails({path: meant[path]}, ranks))
    assert result.worst.module == key(worst) or best < 1e-6
    assert result.worst.error == pytest.approx(tails({worst: meant[worst]}, ranks), abs=1e-6)


@pytest.mark.parametrize("size", [5_300, 5_555, 9_000, 14_321])
def test_a_size_is_kept_and_missed_by_less_than_a_rank(size, tmp_path):
    made = [kohya(tmp_path / f"{seed}.safetensors", seed, 8) for seed in (1, 2)]
    out = tmp_path / "out.safetensors"
    result = combine([path for path, _ in made], out, size=str(size))
    # The first rank of a module also takes the entries of its tensors in the header.
    largest = max(4 * (rows + columns) for rows, columns in LAYERS.values()) + 320
    assert size - largest < os.path.getsize(out) == result.bytes <= size


def test_both_factors_are_balanced_and_alpha_is_the_rank(tmp_path):
    one, _ = kohya(tmp_path / "a.safetensors", 1, 4, 64.0, size=10.0)
    other, _ = kohya(tmp_path / "b.safetensors", 2, 4, 0.5)
    combine([one, other], tmp_path / "out.safetensors")
    tensors = load_file(tmp_path / "out.safetensors")
    for path in LAYERS:
        down, up = (tensors[f"{key(path)}.lora_{role}.weight"].double() for role in ("down", "up"))
        assert (up.norm(dim=0) - down.norm(dim=1)).abs().max() < 1e-5 * up.norm(dim=0).max()
        assert float(tensors[f"{key(path)}.alpha"]) == len(down) == 8


def test_modules_of_one_alone_stay(tmp_path):
    names = [*LAYERS]
    one = kohya(tmp_path / "a.safetensors", 1, layers={names[0]: LAYERS[names[0]], names[1]: LAYERS[names[1]]})
    other = kohya(tmp_path / "b.safetensors", 2, layers={names[1]: LAYERS[names[1]], names[2]: LAYERS[names[2]]})
    result = combine([(one[0], 2.0), (other[0], -1.0)], tmp_path / "out.safetensors")
    assert relative(read(tmp_path / "out.safetensors"), summed((2.0, one[1]), (-1.0, other[1]))) < 2e-7
    assert result.modules == 3


def test_peft_and_kohya_either_way(tmp_path):
    layers = {path: shape for path, shape in LAYERS.items() if "self_attn" in path}
    one = peft(tmp_path / "a", 1, 4, 8.0, stabilised=True, layers=layers)
    other = kohya(tmp_path / "b.safetensors", 2, 3, 1.0, layers=layers)
    meant = summed((0.7, one[1]), (-0.3, other[1]))
    combine([(one[0], 0.7), (other[0], -0.3)], tmp_path / "out")
    assert relative(read(tmp_path / "out", layers), meant) < 2e-7
    combine([(other[0], -0.3), (one[0], 0.7)], tmp_path / "out.safetensors")
    assert relative(read(tmp_path / "out.safetensors", layers), meant) < 2e-7
    assert {one.scale for one in open_adapter(tmp_path / "out").modules} == {1.0}


def test_a_plan_says_what_is_written(tmp_path):
    made = [kohya(tmp_path / f"{seed}.safetensors", seed, 8) for seed in (1, 2)]
    for rule in ({}, {"rank": 3}, {"energy": 0.9}, {"size": "8kB"}):
        planned = combine([path for path, _ in made], None, **rule)
        result = combine([path for path, _ in made], tmp_path / "out.safetensors", force=True, **rule)
        same = ("modules", "ranks", "dtype", "left_out", "bytes")
        assert [getattr(planned, name) for name in same] == [getattr(result, name) for name in same]
        assert planned.error == pytest.approx(result.error, abs=1e-9)
        assert (planned.output, planned.is_made, planned.rounding) == (None, False, None)


@pytest.mark.parametrize(
    "options", [{}, {"rank": 5}, {"energy": 0.9}, {"size": "8kB"}, {"dtype": torch.bfloat16}], ids=str
)
def test_bytes_are_the_same_at_any_number_of_threads(options, tmp_path, monkeypatch):
    from lora_inspect.algebra.linear import module_threads

    made = [kohya(tmp_path / f"{seed}.safetensors", seed, 5 + seed) for seed in (1, 2, 3)]
    found = set()
    for count in (1, 2, 4):
        monkeypatch.setattr(module_threads, "usable_cores", lambda count=count: count)
        combine(
            [(path, 0.3 * at) for at, (path, _) in enumerate(made, 1)],
            tmp_path / "o.safetensors",
            force=True,
            **options,
        )
        found.add((tmp_path / "o.safetensors").read_bytes())
    assert len(found) == 1
    assert usable_cores() >= 1


@pytest.mark.slow
def test_bytes_are_the_same_at_any_setting_of_blas(run_process, tmp_path):
    layers = {"blocks.0.self_attn.q": (384, 320), "blocks.0.ffn.0": (512, 320)}
    made = [kohya(tmp_path / f"{seed}.safetensors", seed, 40, layers=layers) for seed in (1, 2)]
    found = set()
    for threads in ("1", "4"):
        for options in ([], ["--rank", "16"], ["--size", "150kB"]):
            words = ["combine", *(path for path, _ in made), *options, "-o", "out.safetensors", "--force"]
            ended = run_process("-m", "lora_inspect", *words, OPENBLAS_NUM_THREADS=threads, OMP_NUM_THREADS=threads)
            assert ended.status == 0, ended.stderr
            found.add((str(options), (tmp_path / "out.safetensors").read_bytes()))
    assert len(found) == 3


def test_the_record_names_inputs_without_folder_time_or_user(tmp_path):
    made = [kohya(tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2)]
    texts = set()
    for _ in range(2):
        combine([(made[0][0], 0.7), (made[1][0], -0.25)], tmp_path / "out.safetensors", force=True, rank=3)
        texts.add(metadata_of(tmp_path / "out.safetensors")["lora_inspect.combined"])
    (text,) = texts
    record = json.loads(text)
    assert record.keys() == {"version", "verb", "inputs", "rule", "dtype", "error", "rounding"}
    assert [(one["file"], one["settings"]) for one in record["inputs"]] == [
        ("1.safetensors", "0.7"), ("2.safetensors", "-0.25")
    ]  # fmt: skip
    assert all(len(one["sha256"]) == 64 for one in record["inputs"])
    assert (record["verb"], record["rule"]) == ("combine", {"rank": 3})
    assert str(tmp_path) not in text
    assert os.environ.get("USER", "root") not in text or "root" not in text
