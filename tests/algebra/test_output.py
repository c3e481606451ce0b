"""The files of sums of adapters: their names, alphas, configs, sizes and metadata, and what is read back."""

import json
import os

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_inspect.algebra.combination import made_by_rule, measured
from lora_inspect.algebra.inputs import read_inputs
from lora_inspect.algebra.linear.ranks import RankRule
from lora_inspect.algebra.options import CombineRequest
from lora_inspect.algebra.output import streamed_file
from lora_inspect.algebra.plan import plan_sum
from lora_inspect.errors import CouldNotWorkError, RefusedError, WouldOverwriteError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.progress import silent
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.model.settings import parse_arguments

EXACT = RankRule()
LAYERS = {"layers.0.attention.query": (24, 20), "layers.0.output.dense": (20, 36)}
KERNEL = {"down_blocks.0.resnets.0.conv1": (12, 8, 3, 3)}


def tensors_of(seed, rank, prefix, ends, layers, flat, alpha):
    numbers = torch.Generator().manual_seed(seed)
    found, dense = {}, {}
    for path, (rows, columns, *kernel) in layers.items():
        name = prefix + (path.replace(".", "_") if flat else path)
        down = torch.randn(rank, columns, *kernel, generator=numbers)
        up = torch.randn(rows, rank, *[1] * len(kernel), generator=numbers)
        found |= {name + ends[0]: down, name + ends[1]: up}
        if alpha is not None:
            found[f"{name}.alpha"] = torch.tensor(alpha)
        dense[path] = (up.double().flatten(1) @ down.double().flatten(1)).numpy()
    return found, dense


def kohya(folder, seed, rank, alpha, layers=KERNEL):
    tensors, dense = tensors_of(
        seed, rank, "lora_unet_", (".lora_down.weight", ".lora_up.weight"), layers, True, alpha
    )  # fmt: skip
    path = folder / f"kohya{seed}.safetensors"
    save_file(tensors, path)
    return path, {name: alpha / rank * value for name, value in dense.items()}


def peft(folder, seed, rank, alpha):
    ends = (".lora_A.weight", ".lora_B.weight")
    tensors, dense = tensors_of(seed, rank, "base_model.model.", ends, LAYERS, False, None)
    place = folder / f"peft{seed}"
    place.mkdir()
    save_file(tensors, place / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": ["query", "dense"]}
    (place / "adapter_config.json").write_text(json.dumps({**config, "use_rslora": True}))
    return place, {name: alpha / rank**0.5 * value for name, value in dense.items()}


def write(inputs, out, multipliers=(0.7, -0.4), dtype="F32", force=False, metadata=None, rule=EXACT):
    """Write the sum; return its output, and the plans of the tensors that it then has."""
    request = CombineRequest(dtype=dtype)
    named = [f"{path}:{multiplier}" for path, multiplier in zip(inputs, multipliers, strict=True)]
    plan = plan_sum(read_inputs(parse_arguments(named), request), str(out), request, rule, is_resized=False)
    place = plan.output
    place.check(list(plan.inputs.files), force)
    making = made_by_rule(plan.modules, rule, plan.making, silent)
    place.write(
        place.plans(plan.most, plan.making), making, plan.making, metadata or (lambda: {}), plan.inputs.files, force
    )
    found = measured(plan.modules, plan.making, silent)
    return place, place.plans([one.spectrum.rounding for one in found], plan.making)


def dense_of(path):
    """The matrices of a file as its reader has them, by the paths of its modules."""
    adapter = read_adapter(open_checkpoint(str(path)))
    tensors = load_file(path if os.path.isfile(path) else path / "adapter_model.safetensors")
    found = {}
    for module in adapter.modules.values():
        (one,) = module.contributions
        up, down = (tensors[one.factors[role].name].double().flatten(1) for role in ("up", "down"))
        found[module.name.body.replace(".", "_")] = one.known_scale * (up @ down).numpy()
    return found, adapter


@pytest.mark.parametrize("kind", [kohya, peft])
def test_what_is_read_is_the_sum(kind, tmp_path):
    (one, first), (other, second) = kind(tmp_path, 1, 4, 2.0), kind(tmp_path, 2, 3, 8.0)
    out = tmp_path / ("out" if kind is peft else "out.safetensors")
    write([one, other], out)
    found, adapter = dense_of(out)
    assert len(found) == len(first)
    for path, value in first.items():
        meant = 0.7 * value - 0.4 * second[path]
        numpy.testing.assert_allclose(found[path.replace(".", "_")], meant, rtol=1e-5, atol=1e-5)
    assert {contribution.known_scale for contribution in adapter.contributions} == {1.0}
    assert {contribution.alpha for contribution in adapter.contributions} == {7.0}


def test_a_kernel_keeps_its_shape_and_alpha_is_the_rank(tmp_path):
    (one, _), (other, _) = kohya(tmp_path, 1, 4, 2.0), kohya(tmp_path, 2, 3, 8.0)
    write([one, other], tmp_path / "out.safetensors", dtype="BF16")
    tensors = load_file(tmp_path / "out.safetensors")
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    assert {key: (tuple(value.shape), value.dtype) for key, value in tensors.items()} == {
        f"{name}.lora_up.weight": ((12, 7, 1, 1), torch.bfloat16),
        f"{name}.lora_down.weight": ((7, 8, 3, 3), torch.bfloat16),
        f"{name}.alpha": ((), torch.float32),
    }
    assert float(tensors[f"{name}.alpha"]) == 7.0


def test_a_config_of_plain_lora_stands_beside_peft_names(tmp_path):
    (one, _), (other, _) = peft(tmp_path, 1, 4, 2), peft(tmp_path, 2, 3, 8)
    write([one, other], tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    said = {key: config[key] for key in ("r", "lora_alpha", "use_rslora", "use_dora", "target_modules")}
    assert said == {
        "r": 7, "lora_alpha": 7, "use_rslora": False, "use_dora": False, "target_modules": ["query", "dense"],
    }  # fmt: skip


def test_the_size_is_known_before(tmp_path):
    (one, _), (other, _) = kohya(tmp_path, 1, 4, 2.0), kohya(tmp_path, 2, 3, 8.0)
    place, plans = write([one, other], tmp_path / "out.safetensors")
    assert place.size(plans, {}) == os.path.getsize(tmp_path / "out.safetensors")


def test_metadata_is_asked_again_at_the_end(tmp_path):
    (one, _), (other, _) = kohya(tmp_path, 1, 4, 2.0), kohya(tmp_path, 2, 3, 8.0)
    said = iter(({"rounding": "not known"}, {"rounding": "1e-8"}))
    write([one, other], tmp_path / "out.safetensors", metadata=lambda: next(said))
    assert open_checkpoint(str(tmp_path / "out.safetensors")).metadata == {"rounding": "1e-8"}


def test_other_bytes_than_were_written_are_noticed_and_nothing_is_left(tmp_path, monkeypatch):
    (one, _), (other, _) = kohya(tmp_path, 1, 4, 2.0), kohya(tmp_path, 2, 3, 8.0)

    write_all_at = streamed_file.write_all_at

    def faulty(descriptor, data, at):
        is_factor = isinstance(data, memoryview)
        return write_all_at(descriptor, bytes([data[0] ^ 1]) + bytes(data[1:]) if is_factor else data, at)

    monkeypatch.setattr(streamed_file, "write_all_at", faulty)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(CouldNotWorkError, match="was read back with other bytes"):
        write([one, other], tmp_path / "out.safetensors")
    assert sorted(os.listdir(tmp_path)) == before


def test_a_file_that_is_there_stays(tmp_path):
    (one, _), (other, _) = kohya(tmp_path, 1, 4, 2.0), kohya(tmp_path, 2, 3, 8.0)
    (tmp_path / "out.safetensors").write_text("mine")
    with pytest.raises(WouldOverwriteError):
        write([one, other], tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").read_text() == "mine"
    write([one, other], tmp_path / "out.safetensors", force=True)
    assert load_file(tmp_path / "out.safetensors")


def test_an_input_is_no_output(tmp_path):
    (one, _), (other, _) = kohya(tmp_path, 1, 4, 2.0), kohya(tmp_path, 2, 3, 8.0)
    with pytest.raises(RefusedError, match="it is an input"):
        write([one, other], other, force=True)


def test_the_suffixes_are_those_of_the_first_adapter(tmp_path):
    ends = (".lora_A.weight", ".lora_B.weight")
    tensors, _ = tensors_of(1, 4, "lora_unet_", ends, KERNEL, True, 2.0)
    save_file(tensors, tmp_path / "first.safetensors")
    other, _ = kohya(tmp_path, 2, 3, 8.0, {**KERNEL, "down_blocks.0.resnets.0.conv2": (12, 12, 3, 3)})
    write([tmp_path / "first.safetensors", other], tmp_path / "out.safetensors")
    keys = load_file(tmp_path / "out.safetensors").keys()
    assert {key.split(".", 1)[1] for key in keys} == {"lora_A.weight", "lora_B.weight", "alpha"}
    assert len(keys) == 6


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16"])
def test_a_module_that_cancels_out_is_not_there_and_the_rest_is_aligned(dtype, tmp_path):
    layers = {**KERNEL, "down_blocks.0.resnets.0.conv2": (12, 12, 3, 3), "mid_block.resnets.0.conv1": (6, 4, 3, 3)}
    one, dense = kohya(tmp_path, 1, 3, 3.0, layers)
    tensors = load_file(one)
    name = "lora_unet_down_blocks_0_resnets_0_conv1"
    other = {key: value for key, value in tensors.items() if key.startswith(name)}
    other[f"{name}.lora_up.weight"] = -other[f"{name}.lora_up.weight"]
    save_file(other, tmp_path / "other.safetensors")
    write([one, tmp_path / "other.safetensors"], tmp_path / "out.safetensors", (1.0, 1.0), dtype)
    found, _ = dense_of(tmp_path / "out.safetensors")
    assert found.keys() == {path.replace(".", "_") for path in layers} - {name.removeprefix("lora_unet_")}
    bound = 2e-2 if dtype == "BF16" else 1e-5
    for path, value in found.items():
        meant = next(own for key, own in dense.items() if key.replace(".", "_") == path)
        assert numpy.linalg.norm(value - meant) < bound * numpy.linalg.norm(meant)
    for info in open_checkpoint(str(tmp_path / "out.safetensors")).tensors.values():
        assert info.start % (info.nbytes // max(1, info.numel)) == 0
