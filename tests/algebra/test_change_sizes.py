"""Sizes of changes against dense float64 matrices of numpy."""

import json
import math
import subprocess
import sys
import tracemalloc

import numpy
import pytest
import torch
from adapters import lora
from dense_sums import KERNELS, LAYERS, factors, key, kohya, peft
from safetensors.torch import load_file, save_file

from lora_inspect.algebra.measures.change_sizes import changes_of_base, measured_changes
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter


def read(path):
    return read_adapter(open_checkpoint(str(path)))


def measured(path, base=None, **options):
    adapter = read(path)
    return measured_changes(adapter, base and changes_of_base(adapter, str(base)), **options)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def path_of(size):
    """The path of a layer whose key is kohya's."""
    return next(path for path in LAYERS if key(path) == size.key)


def has_size_of(size, matrix, rel=1e-9):
    """Holds a size against the singular values of a dense matrix."""
    values = numpy.linalg.svd(numpy.asarray(matrix, dtype=numpy.float64), compute_uv=False)
    assert size.norm == pytest.approx(numpy.linalg.norm(matrix), rel=rel)
    assert size.sigma_1 == pytest.approx(values[0], rel=rel)
    assert size.sigma_2 == pytest.approx(values[1], rel=1e-6, abs=1e-9 * values[0])


def test_sizes_of_lora_are_those_of_the_dense_matrices(tmp_path):
    path, changes = kohya(tmp_path / "a.safetensors", 1, rank=4, alpha=3.0, layers=LAYERS | KERNELS)
    found = {one.key: one for one in measured(path).sizes}
    assert found.keys() == set(map(key, changes))
    for name, matrix in changes.items():
        size = found[key(name)]
        has_size_of(size, matrix)
        assert (size.rank, size.alpha, size.scale, size.parameter) == (4, 3.0, 0.75, "weight")
        assert size.shape == (LAYERS | KERNELS)[name]


def test_a_rank_above_the_sides_of_the_layer_is_measured_too(tmp_path):
    layers = {"blocks.0.ffn.0": (6, 5)}
    path, changes = kohya(tmp_path / "a.safetensors", 2, rank=64, alpha=64.0, layers=layers)
    has_size_of(measured(path).sizes[0], changes["blocks.0.ffn.0"])


def test_a_rank_far_above_the_sides_takes_no_matrix_of_its_square(tmp_path):
    path, changes = kohya(tmp_path / "a.safetensors", 2, rank=3000, alpha=3000.0, layers={"blocks.0.ffn.0": (4, 3)})
    tracemalloc.start()
    try:
        has_size_of(measured(path).sizes[0], changes["blocks.0.ffn.0"])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8 * 3000**2 / 4


def test_a_module_of_rank_one_has_no_second_singular_value(tmp_path):
    path, changes = kohya(tmp_path / "a.safetensors", 2, rank=1, alpha=1.0)
    for size in measured(path).sizes:
        norm = numpy.linalg.norm(changes[path_of(size)])
        assert (size.sigma_1, size.sigma_2) == (pytest.approx(norm, rel=1e-9), 0.0)


def test_sizes_of_rslora_have_its_scale(tmp_path):
    path, changes = peft(tmp_path / "a", 3, rank=4, alpha=6.0, stabilised=True)
    sizes = measured(path).sizes
    assert len(sizes) == len(changes)
    for size in sizes:
        has_size_of(size, changes[size.key.removeprefix("base_model.model.")])
        assert size.scale == 3.0


def test_a_tucker_core_is_a_part_of_the_change(tmp_path):
    up, mid, down = drawn(1, 12, 3, 1, 1), drawn(2, 3, 3, 3, 3), drawn(3, 3, 8, 1, 1)
    name = "lora_unet_mid_block_resnets_0_conv1"
    tensors = {f"{name}.lora_{role}.weight": one for role, one in (("up", up), ("mid", mid), ("down", down))}
    save_file({**tensors, f"{name}.alpha": torch.tensor(1.5)}, path := tmp_path / "a.safetensors")
    matrix = 0.5 * torch.einsum("or,rskl,si->oikl", up[..., 0, 0].double(), mid.double(), down[..., 0, 0].double())
    (size,) = measured(path).sizes
    has_size_of(size, matrix.reshape(12, -1))
    assert size.shape == (12, 8, 3, 3)


def test_sizes_of_loha_are_those_of_the_product_of_its_products(tmp_path):
    parts = {
        f"w{number}_{side}": drawn(seed, *shape)
        for seed, (number, side, shape) in enumerate(
            (number, side, shape) for number in (1, 2) for side, shape in (("a", (24, 2)), ("b", (2, 20)))
        )
    }
    tensors = {f"lora_unet_blocks_0_attn_q.hada_{role}": value for role, value in parts.items()}
    save_file({**tensors, "lora_unet_blocks_0_attn_q.alpha": torch.tensor(1.0)}, path := tmp_path / "a.safetensors")
    a, b, c, d = (parts[role].double() for role in ("w1_a", "w1_b", "w2_a", "w2_b"))
    (size,) = measured(path).sizes
    has_size_of(size, 0.5 * (a @ b) * (c @ d))


LOKR = {
    "both whole": {"w1": (2, 4), "w2": (12, 5)},
    "a thin large factor": {"w1": (2, 4), "w2_a": (12, 2), "w2_b": (2, 5)},
    "two thin factors": {"w1_a": (6, 2), "w1_b": (2, 4), "w2_a": (4, 2), "w2_b": (2, 5)},
    "a kernel": {"w1": (2, 4), "w2": (6, 2, 3, 3)},
}


@pytest.mark.parametrize("kind", LOKR)
def test_sizes_of_lokr_are_those_of_the_kronecker_product(kind, tmp_path):
    parts = {role: drawn(seed, *shape) for seed, (role, shape) in enumerate(LOKR[kind].items())}
    tensors = {f"lora_unet_blocks_0_attn_q.lokr_{role}": value for role, value in parts.items()}
    save_file({**tensors, "lora_unet_blocks_0_attn_q.alpha": torch.tensor(3.0)}, path := tmp_path / "a.safetensors")
    whole = {
        name: (parts[name] if name in parts else parts[f"{name}_a"].double() @ parts[f"{name}_b"].double()).flatten(1)
        for name in ("w1", "w2")
    }
    scale = 1.0 if {"w1", "w2"} <= parts.keys() else 1.5
    (size,) = measured(path).sizes
    has_size_of(size, scale * numpy.kron(whole["w1"].double(), whole["w2"].double()))


def test_a_full_difference_has_the_size_of_its_matrix(tmp_path):
    for number, shape in enumerate([(24, 20), (160, 150)]):
        matrix = drawn(5, *shape)
        save_file({"lora_unet_blocks_0_attn_q.diff": matrix}, path := tmp_path / f"{number}.safetensors")
        (size,) = measured(path).sizes
        values = numpy.linalg.svd(matrix.double().numpy(), compute_uv=False)
        assert size.norm == pytest.approx(numpy.linalg.norm(values), rel=1e-9)
        # Large matrices are searched, and never overrated.
        assert values[0] * 0.98 <= size.sigma_1 <= values[0] * (1 + 1e-9)
        assert size.scale is None


def test_a_vector_has_a_norm_and_no_singular_values(tmp_path):
    vector = drawn(6, 20)
    save_file(
        {"lora_unet_blocks_0_norm.w_norm": vector, **numbers(lora("lora_unet_blocks_0_q"))}, tmp_path / "a.safetensors"
    )
    found = {one.key: one for one in measured(tmp_path / "a.safetensors").sizes}
    size = found["lora_unet_blocks_0_norm"]
    assert (size.sigma_1, size.sigma_2) == (None, None)
    assert size.norm == pytest.approx(numpy.linalg.norm(vector.double()), rel=1e-9)


def numbers(toy):
    """The tensors of a toy whose numbers are one each."""
    return {name: torch.full(shape, float(value)) for name, (_, shape, value) in toy.items()}


def test_experts_have_the_norm_of_all_and_the_singular_values_of_the_strongest(fixtures):
    folder = fixtures / "experts" / "peft-0.18.1-qwen3-moe"
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    rank, experts = config["r"], 3
    found = {one.key.rpartition(".")[2]: one for one in measured(folder).sizes if len(one.shape) == 3}
    assert found.keys() == {"gate_up_proj", "down_proj"}
    for name, wrapper in (("gate_up_proj", ".base_layer"), ("down_proj", "")):
        prefix = f"base_model.model.model.layers.0.mlp.experts{wrapper}.lora_"
        down, up = (tensors[f"{prefix}{side}.weight"].double() for side in "AB")
        # PEFT has the rank of an expert inside of the rows of A, and outside of the columns of B.
        downs = down.reshape(experts, rank, -1)
        ups = up.reshape(len(up), rank, experts).permute(2, 0, 1)
        changes = config["lora_alpha"] / rank * (ups @ downs)
        values = torch.linalg.svdvals(changes)
        strongest = values[values[:, 0].argmax()]
        size = found[name]
        assert size.norm == pytest.approx(float(changes.norm()), rel=1e-9)
        assert (size.sigma_1, size.sigma_2) == pytest.approx(strongest[:2].tolist(), rel=1e-6)


def test_blocks_and_kinds_are_those_of_the_names(tmp_path):
    layers = {"blocks.3.self_attn.q": (24, 20), "blocks.11.self_attn.q": (24, 20)}
    own = factors(1, 4, layers)
    tensors = {
        f"{key(path)}.lora_{role}.weight": one
        for path, (down, up) in own.items()
        for role, one in (("down", down), ("up", up))
    }
    encoder = "lora_te_text_model_encoder_layers_5_self_attn_q_proj"
    save_file({**tensors, **numbers(lora(encoder))}, path := tmp_path / "a.safetensors")
    sizes = {one.key: one for one in measured(path).sizes}
    first, second = (sizes[key(name)] for name in layers)
    assert (first.block, second.block) == ("blocks.3", "blocks.11")
    assert first.kind == second.kind
    assert "3" not in first.kind
    assert first.component == "model"
    assert sizes[encoder].component != "model"
    assert sizes[encoder].kind != first.kind


def test_layers_of_one_name_in_two_encoders_and_a_weight_and_its_bias_are_of_several_kinds(tmp_path):
    tensors = {
        f"lora_te{number}_text_model_encoder_layers_0_mlp_fc1.{end}": value
        for number in (1, 2)
        for end, value in (("diff", drawn(1, 6, 5)), ("diff_b", drawn(2, 6)))
    }
    save_file(tensors, path := tmp_path / "a.safetensors")
    assert len({one.kind for one in measured(path).sizes}) == 4


def dora_file(folder):
    """A DoRA of one layer, its weight and its change in dense numbers: W' = m · V / ‖V‖ by rows, V = W + D."""
    weight, down, up = drawn(1, 24, 20), drawn(2, 4, 20), 0.1 * drawn(3, 24, 4)
    magnitude = 1.1 * weight.norm(dim=1, keepdim=True)
    name = "lora_unet_blocks_0_self_attn_q"
    save_file(
        {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(4.0),
         f"{name}.dora_scale": magnitude},
        folder / "dora.safetensors",
    )  # fmt: skip
    save_file({"blocks.0.self_attn.q.weight": weight}, folder / "base.safetensors")
    whole = weight.double() + up.double() @ down.double()
    change = magnitude.double() * whole / whole.norm(dim=1, keepdim=True) - weight.double()
    return folder / "dora.safetensors", folder / "base.safetensors", weight, change


def test_dora_is_left_out_with_the_reason_where_no_base_tells_its_change(tmp_path):
    path, _, _, _ = dora_file(tmp_path)
    found = measured(path)
    assert found.sizes == []
    assert [(one.key, one.reason) for one in found.left_out] == [
        (
            "lora_unet_blocks_0_self_attn_q",
            "the change of DoRA depends on the weight; info --norms --base BASE measures it",
        )
    ]


def test_dora_with_a_base_has_the_size_of_its_difference_and_the_norm_of_the_weight(tmp_path):
    path, base, weight, change = dora_file(tmp_path)
    (size,) = measured(path, base).sizes
    # LyCORIS adds an epsilon of float32 to the norms of the rows.
    has_size_of(size, change, rel=1e-6)
    assert size.weight_norm == pytest.approx(float(weight.double().norm()), rel=1e-12)
    assert size.relative_norm == pytest.approx(float(change.norm() / weight.double().norm()), rel=1e-6)


def test_a_part_of_a_fused_weight_is_compared_with_its_own_rows(tmp_path):
    rows, inputs = 24, 24
    fused = drawn(7, 3 * rows, inputs)
    tensors = numbers(lora("lora_te_text_model_encoder_layers_0_self_attn_k_proj", out=rows, inputs=inputs))
    save_file(tensors, path := tmp_path / "a.safetensors")
    # As OpenCLIP has it: the query, the key and the value in one weight.
    prefix = "cond_stage_model.model.transformer.resblocks.0"
    save_file({f"{prefix}.attn.in_proj_weight": fused}, base := tmp_path / "base.safetensors")
    (size,) = measured(path, base).sizes
    assert size.weight_norm == pytest.approx(float(fused[rows : 2 * rows].double().norm()), rel=1e-12)


def test_a_layer_that_the_base_lacks_has_a_norm_and_no_weight(tmp_path):
    path, changes = kohya(tmp_path / "a.safetensors", 1)
    weight = drawn(8, *LAYERS["blocks.0.ffn.0"])
    save_file({"blocks.0.ffn.0.weight": weight}, base := tmp_path / "base.safetensors")
    found = {one.key: one for one in measured(path, base).sizes}
    assert {one.key for one in found.values() if one.weight_norm is None} == set(map(key, changes)) - {
        key("blocks.0.ffn.0")
    }
    size = found[key("blocks.0.ffn.0")]
    assert size.weight_norm == pytest.approx(float(weight.double().norm()), rel=1e-12)


def test_a_module_with_nan_is_left_out_and_the_others_are_measured(tmp_path):
    own = factors(1, 4)
    tensors = {
        f"{key(path)}.lora_{role}.weight": one
        for path, (down, up) in own.items()
        for role, one in (("down", down), ("up", up))
    }
    bad = f"{key('blocks.0.ffn.0')}.lora_up.weight"
    tensors[bad][0, 0] = math.nan
    save_file(tensors, path := tmp_path / "a.safetensors")
    found = measured(path)
    assert len(found.sizes) == 2
    (left,) = found.left_out
    assert left.key == key("blocks.0.ffn.0")
    assert bad in left.reason


LARGE = {
    "a small difference": {"diff": (24, 20)},
    "a large difference": {"diff": (160, 150)},
    "a vector": {"diff_b": (20,)},
    "LoRA": {"lora_up.weight": (24, 2), "lora_down.weight": (2, 20)},
    "LoKr": {"lokr_w1": (2, 4), "lokr_w2": (12, 5)},
    "LoKr of thin factors": {"lokr_w1": (2, 4), "lokr_w2_a": (12, 2), "lokr_w2_b": (2, 5)},
}


@pytest.mark.parametrize("kind", LARGE)
def test_numbers_whose_squares_are_beyond_float64_are_left_out(kind, tmp_path):
    tensors = {
        f"lora_unet_blocks_0_q.{end}": torch.full(shape, 1e200, dtype=torch.float64)
        for end, shape in LARGE[kind].items()
    }
    save_file(tensors, path := tmp_path / "a.safetensors")
    (left,) = measured(path).left_out
    assert left.reason == "its norm is beyond the range of numbers"


@pytest.mark.parametrize("kind", LARGE)
def test_infinite_numbers_are_left_out_with_the_tensor(kind, tmp_path):
    tensors = {f"lora_unet_blocks_0_q.{end}": torch.full(shape, math.inf) for end, shape in LARGE[kind].items()}
    save_file(tensors, path := tmp_path / "a.safetensors")
    (left,) = measured(path).left_out
    assert "lora_unet_blocks_0_q." in left.reason
    assert "holds inf" in left.reason


def test_a_weight_with_nan_has_no_norm_to_compare_with(tmp_path):
    path, _ = kohya(tmp_path / "a.safetensors", 1)
    weights = {f"{name}.weight": drawn(8, *shape) for name, shape in LAYERS.items()}
    weights["blocks.0.ffn.0.weight"][3, 4] = math.nan
    save_file(weights, base := tmp_path / "base.safetensors")
    found = measured(path, base)
    assert [(one.key, one.reason) for one in found.left_out] == [
        (key("blocks.0.ffn.0"), "its weight in the base is not finite")
    ]


def test_progress_counts_the_bytes_of_the_factors(tmp_path):
    path, _ = kohya(tmp_path / "a.safetensors", 1)
    told = []
    measured(path, progress=told.append)
    expected = [4 * 4 * (rows + columns) for rows, columns in LAYERS.values()]
    assert told[0] == 0
    assert sorted(told[1:]) == sorted(expected)


def test_no_torch_is_loaded_for_lora(tmp_path):
    path, _ = kohya(tmp_path / "a.safetensors", 1)
    code = (
        "import sys; from lora_inspect.cli import main\n"
        "try: main(['info', sys.argv[1], '--norms'])\n"
        "finally: print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    assert ended.stdout.endswith("\n['numpy']\n")
