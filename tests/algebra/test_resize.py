"""`resize`: larger ranks that change nothing, smaller ones that are the best, and RS-LoRA that stays RS-LoRA."""

import json
import os

import pytest
import torch
from dense_sums import KERNELS, LAYERS, key, kohya, metadata_of, peft, ranks_of, read, relative, tails
from safetensors.torch import load_file

from lora_inspect import merge, open_adapter, resize
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter


def scales(path):
    """The scales of the modules, as the program's own reader has them."""
    return {round(one.known_scale, 6) for one in read_adapter(open_checkpoint(str(path))).contributions}


@pytest.mark.parametrize("layers", [LAYERS, KERNELS], ids=["linear", "kernels"])
@pytest.mark.parametrize("rank", [6, 16, 500])
def test_a_larger_rank_changes_nothing(rank, layers, tmp_path):
    path, meant = kohya(tmp_path / "a.safetensors", 1, 4, 3.0, layers=layers)
    result = resize(path, tmp_path / "out.safetensors", rank=rank)
    assert relative(read(tmp_path / "out.safetensors", layers), meant) < 2e-7
    tensors = load_file(tmp_path / "out.safetensors")
    for name, (rows, columns, *kernel) in layers.items():
        inputs = columns * int(torch.tensor(kernel).prod()) if kernel else columns
        own = min(rank, rows, inputs)
        down, up = (tensors[f"{key(name)}.lora_{role}.weight"].flatten(1) for role in ("down", "up"))
        assert len(down) == own
        assert float(tensors[f"{key(name)}.alpha"]) == own
        assert not up[:, 4:].any()
        new = down[4:]
        assert bool((new.norm(dim=1) > 0).all())
        # As a training begins: uniform within 1/sqrt(inputs), no two rows alike.
        assert float(new.abs().max()) <= inputs**-0.5
        assert float(new.std()) == pytest.approx((1 / 3 / inputs) ** 0.5, rel=0.2)
        assert len(torch.unique(new, dim=0)) == len(new)
    assert result.error == 0.0


def test_new_rows_are_the_same_each_time(tmp_path):
    path, _ = kohya(tmp_path / "a.safetensors", 1)
    for name in ("one", "other"):
        resize(path, tmp_path / f"{name}.safetensors", rank=16)
    one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    firsts = [value[4:, 0] for name, value in one.items() if "down" in name]
    assert all(not torch.equal(firsts[0], value) for value in firsts[1:])


@pytest.mark.parametrize(
    "rule", [{"rank": 2}, {"energy": 0.8}, {"max_error": 0.4}, {"max_rank": 3}, {"size": "8kB"}], ids=str
)
def test_a_smaller_rank_is_the_best(rule, tmp_path):
    path, meant = kohya(tmp_path / "a.safetensors", 1, 9, 3.0)
    result = resize(path, tmp_path / "out.safetensors", **rule)
    found, ranks = read(tmp_path / "out.safetensors"), ranks_of(tmp_path / "out.safetensors")
    best = tails(meant, {name: ranks.get(key(name), 0) for name in meant})
    error = relative({name: found.get(name, torch.zeros_like(value)) for name, value in meant.items()}, meant)
    assert error == pytest.approx(best, rel=1e-6)
    assert result.error == pytest.approx(error, abs=1e-6)
    assert result.error > 0.01
    assert max(ranks.values()) < 9


@pytest.mark.parametrize("rank", [2, 4, 9, 16])
def test_rslora_stays_with_its_flag(rank, tmp_path):
    flag = {"use_rslora_flag": torch.tensor(True)}
    path, _ = kohya(tmp_path / "a.safetensors", 1, 4, 3.0, extra=flag)
    meant = read(path)
    assert set(scales(path)) == {3.0 / 2.0}
    resize(path, tmp_path / "out.safetensors", rank=rank)
    tensors = load_file(tmp_path / "out.safetensors")
    assert bool(tensors["use_rslora_flag"])
    assert [*scales(tmp_path / "out.safetensors")] == [pytest.approx(1.0)]
    assert {round(float(value) ** 2, 4) for name, value in tensors.items() if name.endswith("alpha")} == {rank}
    best = tails(meant, dict.fromkeys(meant, min(rank, 4)))
    assert relative(read(tmp_path / "out.safetensors"), meant) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("said", [
    {"ss_network_args": '{"use_rslora": "True"}'}, {"ss_network_args": '{"rank_stabilized": "True"}'},
    {"lora_inspect.scale": "alpha/sqrt(rank)"},
])  # fmt: skip
def test_rslora_stays_with_its_metadata(said, tmp_path):
    path, _ = kohya(tmp_path / "a.safetensors", 1, 4, 3.0, metadata={"ss_network_module": "networks.lora", **said})
    resize(path, tmp_path / "out.safetensors", rank=9)
    for module in open_adapter(path).modules:
        own = next(one for one in open_adapter(tmp_path / "out.safetensors").modules if one.key == module.key)
        one, other = module.delta().double(), own.delta().double()
        assert (one - other).norm() < 1e-6 * one.norm()


@pytest.mark.parametrize("stabilised", [False, True])
@pytest.mark.parametrize("rank", [2, 9])
def test_a_config_says_the_same_rule(rank, stabilised, tmp_path):
    path, meant = peft(tmp_path / "a", 1, 4, 3.0, stabilised=stabilised)
    resize(path, tmp_path / "out", rank=rank)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["r"]) == (stabilised, rank)
    best = tails(meant, dict.fromkeys(meant, min(rank, 4)))
    assert relative(read(tmp_path / "out"), meant) == pytest.approx(best, abs=1e-6)
    assert [*scales(tmp_path / "out")] == [pytest.approx(1.0)]


def test_merges_are_the_same(tmp_path):
    from safetensors.torch import save_file

    numbers = torch.Generator().manual_seed(9)
    base = {
        f"{name}.weight": torch.randn(shape, generator=numbers, dtype=torch.float64) for name, shape in LAYERS.items()
    }
    save_file(base, tmp_path / "base.safetensors")
    path, _ = peft(tmp_path / "a", 1, 4, 3.0, stabilised=True)
    resize(path, tmp_path / "out", rank=12)
    merge(tmp_path / "base.safetensors", [path], tmp_path / "meant.safetensors")
    merge(tmp_path / "base.safetensors", [tmp_path / "out"], tmp_path / "found.safetensors")
    meant, found = load_file(tmp_path / "meant.safetensors"), load_file(tmp_path / "found.safetensors")
    assert all((found[name] - meant[name]).abs().max() < 1e-6 for name in base)


def test_metadata_says_the_new_rank(tmp_path):
    said = {"ss_network_dim": "4", "ss_network_alpha": "3.0", "ss_network_module": "networks.lora", "custom": "kept"}
    path, _ = kohya(tmp_path / "a.safetensors", 1, 4, 3.0, metadata=said)
    resize(path, tmp_path / "out.safetensors", rank=8)
    found = metadata_of(tmp_path / "out.safetensors")
    assert (found["ss_network_dim"], float(found["ss_network_alpha"]), found["custom"]) == ("8", 8.0, "kept")
    assert json.loads(found["lora_inspect.combined"])["verb"] == "resize"


def test_nothing_is_written_without_an_output(tmp_path):
    path, meant = peft(tmp_path / "a", 1, 4, 3.0, stabilised=True)
    result = resize(path, None, rank=8)
    assert result.ranks == {8: len(meant)}
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def test_a_multiplier_of_the_argument_counts(tmp_path):
    path, meant = kohya(tmp_path / "a.safetensors", 1)
    resize((path, -0.5), tmp_path / "out.safetensors", rank=8)
    assert relative(read(tmp_path / "out.safetensors"), {name: -0.5 * value for name, value in meant.items()}) < 2e-7


def test_every_file_of_a_folder(run, tmp_path):
    (tmp_path / "in").mkdir()
    made = [kohya(tmp_path / "in" / f"{seed}.safetensors", seed) for seed in (1, 2)]
    ended = run("resize", tmp_path / "in", "--rank", "2", "-o", tmp_path / "out")
    assert ended.status == 0, ended.stderr
    for seed, (_, meant) in enumerate(made, 1):
        best = tails(meant, dict.fromkeys(meant, 2))
        assert relative(read(tmp_path / "out" / f"{seed}.safetensors"), meant) == pytest.approx(best, rel=1e-6)


def test_size_int_bounds_bytes_of_file(tmp_path):
    path, _ = kohya(tmp_path / "a.safetensors", 1, 16)
    result = resize(path, tmp_path / "out.safetensors", size=9_000)
    assert os.path.getsize(tmp_path / "out.safetensors") == result.bytes <= 9_000
    assert result.ranks == resize(path, None, size="9kB").ranks


@pytest.mark.parametrize(("size", "error"), [(True, TypeError), (9e3, TypeError), (0, ValueError), (-1, ValueError)])
def test_size_without_bytes_raises(size, error, tmp_path):
    path, _ = kohya(tmp_path / "a.safetensors", 1, 4)
    with pytest.raises(error, match="size"):
        resize(path, None, size=size)
