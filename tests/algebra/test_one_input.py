"""`combine` of one adapter without a rule: algorithm, names, ranks, types and flags stay, one factor is multiplied."""

import json
import os

import pytest
import torch
from adapters import KINDS
from adapters import adapter as made_adapter
from dense_sums import LAYERS, key, kohya, metadata_of, peft, read, relative, summed
from safetensors.torch import load_file, save_file

from lora_inspect import combine, merge
from lora_inspect.errors import RefusedError


def of_kind(name, folder, seed=5):
    """A base of float64, and a file of a kind of adapter of its layers."""
    numbers = torch.Generator().manual_seed(seed)
    layers = {"blocks.0.self_attn.q": (24, 20), "blocks.1.self_attn.k": (20, 20)}
    weights = {path: torch.randn(shape, generator=numbers, dtype=torch.float64) for path, shape in layers.items()}
    save_file({f"{path}.weight": weight for path, weight in weights.items()}, folder / "base.safetensors")
    tensors, _ = made_adapter(KINDS[name], {path: {"weight": w} for path, w in weights.items()}, key, True, seed)
    save_file(tensors, folder / "in.safetensors")
    return folder / "base.safetensors", folder / "in.safetensors", tensors


# Kinds with a factor that takes a multiplier.
SCALED = ("lora", "rslora flag", "lora A/B", "loha", "lokr whole", "lokr low-rank", "full")


@pytest.mark.parametrize("multiplier", [0.7, -1.5, 0.25])
@pytest.mark.parametrize("kind", SCALED)
def test_the_multiplier_is_in_one_factor(kind, multiplier, tmp_path):
    base, file, tensors = of_kind(kind, tmp_path)
    combine([(str(file), multiplier)], tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert {name: (one.dtype, one.shape) for name, one in found.items()} == {
        name: (one.dtype, one.shape) for name, one in tensors.items()
    }
    changed = [name for name in tensors if not torch.equal(found[name], tensors[name])]
    assert len(changed) == 2  # one of each module
    for name in changed:
        meant = (tensors[name].double() * multiplier).to(tensors[name].dtype)
        assert torch.equal(found[name], meant)
    merge(base, [(str(file), multiplier)], tmp_path / "meant.safetensors")
    merge(base, [str(tmp_path / "out.safetensors")], tmp_path / "found.safetensors")
    own, other = load_file(tmp_path / "found.safetensors"), load_file(tmp_path / "meant.safetensors")
    assert all((own[name] - other[name]).norm() < 1e-6 * other[name].norm() for name in other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("power", [0.25, -2.0, 4.0])
def test_a_power_of_two_changes_no_mantissa(power, dtype, tmp_path):
    path, _ = kohya(tmp_path / "a.safetensors", 1, dtype=dtype)
    combine([(path, power)], tmp_path / "out.safetensors")
    result = combine([(str(tmp_path / "out.safetensors"), 1 / power)], tmp_path / "back.safetensors")
    before, after = load_file(path), load_file(tmp_path / "back.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert result.rounding == 0.0


def test_metadata_and_flags_stay(tmp_path):
    said = {
        "ss_network_dim": "4",
        "ss_network_args": "{}",
        "custom": "kept",
        "ss_sd_model_name": "x",
        "sshs_legacy_hash": "0" * 8,
    }
    flag = {"use_rslora_flag": torch.tensor(True)}
    path, _ = kohya(tmp_path / "a.safetensors", 1, metadata=said, extra=flag)
    combine([(path, 0.5)], tmp_path / "out.safetensors")
    found = metadata_of(tmp_path / "out.safetensors")
    assert {name: found.get(name) for name in said if "hash" not in name} == {
        name: value for name, value in said.items() if "hash" not in name
    }
    assert found.get("sshs_legacy_hash") != "0" * 8
    assert json.loads(found["lora_inspect.combined"])["inputs"][0]["settings"] == "0.5"
    assert "use_rslora_flag" in load_file(tmp_path / "out.safetensors")


def test_a_config_stays_beside_the_weights(tmp_path):
    path, meant = peft(tmp_path / "a", 1, 4, 8.0, stabilised=True, config={"lora_dropout": 0.25})
    combine([(path, -0.5)], tmp_path / "out")
    before, after = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("a", "out"))
    assert before == after
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    for name, change in meant.items():
        down, up = (tensors[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
        assert torch.allclose(8.0 / 2.0 * up @ down, -0.5 * change, rtol=1e-6, atol=1e-8)


def test_parts_are_left_out(tmp_path, run):
    path, meant = kohya(tmp_path / "a.safetensors", 1)
    ended = run("combine", path, "--exclude", "*ffn*", "-o", tmp_path / "out.safetensors", "--json")
    assert ended.json["left_out"].keys() == {key(name) for name in LAYERS if "ffn" in name}
    kept = {name: value for name, value in meant.items() if "ffn" not in name}
    assert relative(read(tmp_path / "out.safetensors"), kept) < 1e-7


def test_dora_at_a_multiplier_is_written_where_its_rule_is_inside(tmp_path):
    base, file, _ = of_kind("lora", tmp_path)
    tensors = load_file(file)
    for name, weight in load_file(base).items():
        tensors[f"{key(name.removesuffix('.weight'))}.lora_magnitude_vector"] = weight.norm(dim=1).float() * 1.1
    save_file(tensors, file)
    combine([(str(file), 0.5)], tmp_path / "out.safetensors")
    merge(base, [(str(file), 0.5)], tmp_path / "meant.safetensors")
    merge(base, [str(tmp_path / "out.safetensors")], tmp_path / "found.safetensors")
    own, other = load_file(tmp_path / "found.safetensors"), load_file(tmp_path / "meant.safetensors")
    assert all((own[name] - other[name]).norm() < 1e-6 * other[name].norm() for name in other)


def test_dora_whose_multiplier_acts_outside_needs_a_base(tmp_path):
    base, file, _ = of_kind("lora", tmp_path)
    tensors = load_file(file)
    for name, weight in load_file(base).items():
        magnitude = weight.norm(dim=1, keepdim=True).float() * 1.1
        tensors[f"{key(name.removesuffix('.weight'))}.dora_scale"] = magnitude
    save_file(tensors, file)
    with pytest.raises(RefusedError, match="is DoRA, whose change depends on the weight of the base; give base=BASE"):
        combine([(str(file), 0.5)], tmp_path / "out.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["base.safetensors", "in.safetensors"]
    combine([(str(file), 0.5)], tmp_path / "out.safetensors", base=base)
    merge(base, [(str(file), 0.5)], tmp_path / "meant.safetensors")
    merge(base, [str(tmp_path / "out.safetensors")], tmp_path / "found.safetensors")
    own, other = load_file(tmp_path / "found.safetensors"), load_file(tmp_path / "meant.safetensors")
    assert all((own[name] - other[name]).norm() < 1e-6 * other[name].norm() for name in other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_another_type_is_rounded_once(dtype, tmp_path):
    path, _ = kohya(tmp_path / "a.safetensors", 1, dtype=torch.float64)
    combine([(path, 0.3)], tmp_path / "out.safetensors", dtype=dtype)
    before, after = load_file(path), load_file(tmp_path / "out.safetensors")
    for name, value in before.items():
        meant = value if "alpha" in name else (value * 0.3 if "lora_up" in name else value).to(dtype)
        assert torch.equal(after[name], meant), name


def test_numbers_beyond_the_type_are_refused(tmp_path):
    path, _ = kohya(tmp_path / "a.safetensors", 1, dtype=torch.float16)
    with pytest.raises(RefusedError, match="would hold numbers beyond F16"):
        combine([(path, 1e7)], tmp_path / "out.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors"]


def test_a_rule_makes_plain_lora_of_another_algorithm(tmp_path):
    base, file, _ = of_kind("loha", tmp_path)
    combine([(str(file), 0.7)], tmp_path / "out.safetensors", rank=16)
    assert all("lora" in name or "alpha" in name for name in load_file(tmp_path / "out.safetensors"))
    merge(base, [(str(file), 0.7)], tmp_path / "meant.safetensors")
    merge(base, [str(tmp_path / "out.safetensors")], tmp_path / "found.safetensors")
    own, other = load_file(tmp_path / "found.safetensors"), load_file(tmp_path / "meant.safetensors")
    assert all((own[name] - other[name]).norm() < 1e-6 * other[name].norm() for name in other)


def test_the_same_file_twice_counts_twice(tmp_path):
    path, meant = kohya(tmp_path / "a.safetensors", 1)
    result = combine([(path, 0.5), (path, 0.25)], tmp_path / "out.safetensors")
    assert relative(read(tmp_path / "out.safetensors"), summed((0.75, meant))) < 2e-7
    assert any("named 2 times" in note for note in result.notes)
    assert result.ranks == {4: 3}
