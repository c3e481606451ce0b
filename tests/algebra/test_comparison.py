"""Comparisons of changes against dense float64 matrices: norms, angles, overlaps, and what is nearly the same."""

import math
from itertools import permutations

import numpy
import pytest
import torch
from safetensors.torch import save_file

from lora_inspect.algebra.alignment import MultipliedAdapter, aligned
from lora_inspect.algebra.measures.comparison import block_of, compared, in_order_of_blocks, total
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.errors import DamagedError, RefusedError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.progress import silent
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.model.contribution import Module
from lora_inspect.schemes.record import ModuleName

SHAPES = {"lora_unet_blocks_0_self_attn_q": (48, 40), "lora_unet_blocks_0_ffn_0": (96, 40)}


def factors(rank, seed):
    numbers = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(rows, rank, generator=numbers), torch.randn(rank, columns, generator=numbers))
        for name, (rows, columns) in SHAPES.items()
    }


def write(path, own, alpha=None):
    tensors = {}
    for name, (up, down) in own.items():
        tensors |= {f"{name}.lora_up.weight": up.contiguous(), f"{name}.lora_down.weight": down.contiguous()}
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha or down.shape[0]))
    save_file(tensors, path)
    return read_adapter(open_checkpoint(str(path)))


def dense(own, alpha=None):
    return {
        name: float(alpha or down.shape[0]) / down.shape[0] * (up.double() @ down.double()).numpy()
        for name, (up, down) in own.items()
    }


def compare(adapters, multipliers=None):
    inputs = [
        MultipliedAdapter(adapter, dict.fromkeys(adapter.modules, multiplier))
        for adapter, multiplier in zip(adapters, multipliers or [1.0] * len(adapters), strict=True)
    ]
    found = compared(aligned(inputs, ConvertOptions()), adapters, silent)
    return total(found, len(adapters))


@pytest.fixture
def three(tmp_path):
    owns = [factors(4, 1), factors(7, 2), factors(3, 3)]
    return [write(tmp_path / f"{number}.safetensors", own, 2.0) for number, own in enumerate(owns)], [
        dense(own, 2.0) for own in owns
    ]


def flat(matrices, multiplier=1.0):
    return multiplier * numpy.concatenate([matrices[name].ravel() for name in SHAPES])


@pytest.mark.parametrize("multipliers", [(1.0, 1.0, 1.0), (0.7, -0.4, 2.0)])
def test_numbers_are_those_of_the_dense_changes(multipliers, three):
    adapters, changes = three
    found = compare(adapters, multipliers)
    vectors = [flat(own, multiplier) for own, multiplier in zip(changes, multipliers, strict=True)]
    assert found.norms == pytest.approx([numpy.linalg.norm(one) for one in vectors], rel=1e-9)
    for one, other in permutations(range(3), 2):
        a, b = vectors[one], vectors[other]
        norm = numpy.linalg.norm(a)
        assert found.relative_difference(one, other) == pytest.approx(numpy.linalg.norm(a - b) / norm, rel=1e-9)
        assert found.cosine(one, other) == pytest.approx(a @ b / norm / numpy.linalg.norm(b), rel=1e-9, abs=1e-12)
        best = found.best_multiplier(one, other)
        assert best.value == pytest.approx(a @ b / norm**2, rel=1e-9, abs=1e-12)
        assert best.left == pytest.approx(numpy.linalg.norm(best.value * a - b) / numpy.linalg.norm(b), rel=1e-9)
    energies = sum(one @ one for one in vectors)
    assert found.sum_energy == pytest.approx(float(numpy.square(sum(vectors)).sum()) / energies, rel=1e-9)


def test_overlap_is_that_of_the_bases(three):
    adapters, changes = three
    found = compare(adapters)
    for one, other in permutations(range(3), 2):
        parts, weights = [], []
        for name in SHAPES:
            a, b = changes[one][name], changes[other][name]
            sides = []
            for left, right in ((a, b), (a.T, b.T)):
                bases = []
                for side in (left, right):
                    vectors, values, _ = numpy.linalg.svd(side, full_matrices=False)
                    bases.append(vectors[:, values > 1e-6 * values[0]])
                rank = min(base.shape[1] for base in bases)
                sides.append(float(numpy.square(bases[0].T @ bases[1]).sum()) / rank)
            parts.append(sum(sides) / 2)
            weights.append(numpy.linalg.norm(a) * numpy.linalg.norm(b))
        meant = numpy.average(parts, weights=weights)
        assert 0.02 < meant < 0.5
        assert found.overlap(one, other) == pytest.approx(meant, rel=1e-6)


def test_the_same_change_at_another_rank_alpha_and_type_is_the_same(tmp_path):
    own = factors(4, 1)
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(9))).Q
    longer = {
        name: (
            torch.cat([2.0 * up.double() @ turn, torch.zeros(up.shape[0], 2)], 1),
            torch.cat([0.5 * turn.T @ down.double(), torch.ones(2, down.shape[1])]),
        )
        for name, (up, down) in own.items()
    }
    adapters = [write(tmp_path / "a.safetensors", own, 2.0), write(tmp_path / "b.safetensors", longer, 3.0)]
    found = compare(adapters)
    assert found.relative_difference(0, 1) < 1e-7
    assert found.cosine(0, 1) == pytest.approx(1.0, abs=1e-12)
    assert found.overlap(0, 1) == pytest.approx(1.0, abs=1e-9)
    assert found.sum_energy == pytest.approx(2.0, rel=1e-9)


def test_a_small_difference_keeps_its_digits(tmp_path):
    own = factors(4, 1)
    other = {name: (up.double() * (1 + 1e-6), down.double()) for name, (up, down) in own.items()}
    adapters = [write(tmp_path / "a.safetensors", own), write(tmp_path / "b.safetensors", other)]
    assert compare(adapters).relative_difference(0, 1) == pytest.approx(1e-6, rel=1e-6)


def test_another_strength_is_a_best_multiplier_that_leaves_nothing(tmp_path):
    own = factors(4, 1)
    adapters = [write(tmp_path / "a.safetensors", own, 4.0), write(tmp_path / "b.safetensors", own, 3.0)]
    best = compare(adapters).best_multiplier(0, 1)
    assert best.value == pytest.approx(0.75, rel=1e-12)
    assert best.left < 1e-7


def test_a_module_of_one_alone_is_a_difference(tmp_path):
    own = factors(4, 1)
    (first, second) = SHAPES
    adapters = [
        write(tmp_path / "a.safetensors", own),
        write(tmp_path / "b.safetensors", {second: own[second]}),
        write(tmp_path / "c.safetensors", {first: own[first]}),
    ]
    found, changes = compare(adapters), dense(own)
    norms = [numpy.linalg.norm(changes[name]) for name in SHAPES]
    assert found.relative_difference(0, 1) == pytest.approx(norms[0] / math.hypot(*norms), rel=1e-9)
    assert found.relative_difference(1, 2) == pytest.approx(math.hypot(*norms) / norms[1], rel=1e-9)
    assert found.cosine(1, 2) == 0.0
    assert found.overlap(1, 2) is None
    assert found.overlap(0, 1) == pytest.approx(1.0, abs=1e-9)


def test_what_changes_nothing_has_no_angle(tmp_path):
    own = factors(4, 1)
    nothing = {name: (torch.zeros_like(up), down) for name, (up, down) in own.items()}
    adapters = [write(tmp_path / "a.safetensors", own), write(tmp_path / "b.safetensors", nothing)]
    found = compare(adapters)
    assert (found.cosine(0, 1), found.relative_difference(1, 0), found.best_multiplier(1, 0)) == (None, None, None)
    assert found.relative_difference(0, 1) == pytest.approx(1.0)


def test_multipliers_of_0_leave_an_adapter_without_a_change(three):
    found = compare(three[0], (1.0, 0.0, 1.0))
    assert found.norms[1] == 0.0
    assert found.sum_energy is not None


BLOCKS = {
    ("double_blocks.3.img_attn.qkv", None): "double_blocks.3",
    ("transformer_blocks.12.attn.to_out.0", None): "transformer_blocks.12",
    ("down_blocks.1.attentions.0.proj_in", None): "down_blocks.1",
    ("x_embedder", None): "model",
    (None, "blocks_0_self_attn_q"): "blocks.0",
    (None, "up_block2_conv"): "model",
}


@pytest.mark.parametrize("names", BLOCKS, ids=str)
def test_a_block_is_the_path_up_to_its_first_number(names):
    path, body = names
    module = Module(ModuleName("kohya", "model", "lora_unet_", body or path.replace(".", "_"), True), (), path=path)
    assert block_of(module) == BLOCKS[names]
    of_encoder = module._replace(name=module.name._replace(component="text_encoder"))
    block = BLOCKS[names]
    assert block_of(of_encoder) == ("text_encoder" if block == "model" else f"text_encoder.{block}")


def test_blocks_are_in_the_order_of_their_numbers():
    names = ["single_blocks.2", "double_blocks.10", "model", "double_blocks.9", "single_blocks.0"]
    assert in_order_of_blocks(names) == [
        *("double_blocks.9", "double_blocks.10", "model", "single_blocks.0", "single_blocks.2"),
    ]


def test_numbers_that_are_not_finite_are_refused_by_the_name_of_their_tensor(tmp_path):
    own = factors(4, 1)
    (first, _) = SHAPES
    own[first][1][2, 3] = math.inf
    adapters = [write(tmp_path / "a.safetensors", own), write(tmp_path / "b.safetensors", factors(4, 2))]
    with pytest.raises(DamagedError, match=rf"a\.safetensors: {first}\.lora_down\.weight holds inf"):
        compare(adapters)


def test_adapters_of_two_sizes_are_refused(tmp_path, monkeypatch):
    one = write(tmp_path / "a.safetensors", factors(4, 1))
    monkeypatch.setitem(SHAPES, next(iter(SHAPES)), (50, 40))
    other = write(tmp_path / "b.safetensors", factors(4, 2))
    with pytest.raises(RefusedError, match=r"b\.safetensors: .+ changes a weight of \[50, 40\], but .+ \[48, 40\]"):
        compare([one, other])


def test_the_order_of_adapters_changes_nothing(three):
    adapters, _ = three
    found, turned = compare(adapters), compare(adapters[::-1])
    assert turned.norms == pytest.approx(found.norms[::-1], rel=1e-12)
    for one, other in permutations(range(3), 2):
        assert turned.cosine(2 - one, 2 - other) == pytest.approx(found.cosine(one, other), rel=1e-9)
        assert turned.overlap(2 - one, 2 - other) == pytest.approx(found.overlap(one, other), rel=1e-9)
    assert turned.sum_energy == pytest.approx(found.sum_energy, rel=1e-12)
