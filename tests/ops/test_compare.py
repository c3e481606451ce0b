"""Comparisons of files against dense float64 matrices: by names, ranks and types, in blocks, and of whole folders."""

import json
import math
from itertools import permutations

import layouts
import numpy
import pytest
import torch
from adapters import KOHYA, PEFT, Names
from adapters import factors as layers_of
from layouts import FUSED, SPLIT
from safetensors.torch import load_file, save_file

import lora_inspect
from lora_inspect import DamagedError, LoraInspectError, RefusedError

LAYERS = {
    f"blocks.{block}.{leaf}": shape
    for block in range(3)
    for leaf, shape in {"self_attn.q": (24, 20), "cross_attn.k": (24, 20), "ffn.0": (48, 20)}.items()
}
METADATA = {"ss_base_model_version": "wan2.1"}


def factors(seed, rank=4, layers=LAYERS, tail=1.0):
    """Factors of drawn numbers; direction by direction of a length that falls by `tail`."""
    numbers = torch.Generator().manual_seed(seed)
    lengths = tail ** torch.arange(rank, dtype=torch.float64)
    return {
        path: (
            torch.randn(rows, rank, generator=numbers, dtype=torch.float64) * lengths,
            torch.randn(rank, columns, generator=numbers, dtype=torch.float64),
        )
        for path, (rows, columns) in layers.items()
    }


def write(path, own, alpha=None, dtype=torch.float32, names="kohya"):
    tensors = {}
    for layer, (up, down) in own.items():
        if names == "kohya":
            name, ends = f"lora_unet_{layer.replace('.', '_')}", (".lora_up.weight", ".lora_down.weight")
        else:
            name, ends = f"diffusion_model.{layer}", (".lora_B.weight", ".lora_A.weight")
        tensors |= {name + end: factor.to(dtype).contiguous() for end, factor in zip(ends, (up, down), strict=True)}
        tensors[f"{name}.alpha"] = torch.tensor(float(alpha or down.shape[0]))
    save_file(tensors, path, METADATA)
    return path


def dense(own, scale=1.0):
    return {path: scale * (up @ down).numpy() for path, (up, down) in own.items()}


def flat(changes):
    """The change of the whole model as one vector; zeros where it has no module."""
    return numpy.concatenate([changes.get(path, numpy.zeros(shape)).ravel() for path, shape in LAYERS.items()])


def assert_two(found, a, b):
    """The numbers of two changes are those of the vectors."""
    norms = [float(numpy.linalg.norm(one)) for one in (a, b)]
    best = a @ b / (a @ a)
    assert found.norm == pytest.approx(norms, rel=1e-6)
    assert found.cosine == pytest.approx(a @ b / math.prod(norms), abs=1e-7)
    assert found.relative_difference == pytest.approx(numpy.linalg.norm(a - b) / norms[0], rel=1e-6)
    assert found.best_multiplier.value == pytest.approx(best, abs=1e-7)
    assert found.best_multiplier.left == pytest.approx(numpy.linalg.norm(best * a - b) / norms[1], rel=1e-6)
    energy = float(numpy.square(a + b).sum()) / (norms[0] ** 2 + norms[1] ** 2)
    assert found.sum_energy == pytest.approx(energy, rel=1e-6)


@pytest.fixture
def two(tmp_path):
    own, other = factors(1, 4), factors(2, 7)
    paths = [write(tmp_path / "a.safetensors", own, 2.0), write(tmp_path / "b.safetensors", other, 7.0)]
    return paths, [dense(own, 0.5), dense(other)]


@pytest.mark.parametrize("multipliers", [(1.0, 1.0), (0.7, -0.4), (-2.0, 0.1)])
def test_numbers_are_those_of_the_dense_changes_at_the_multipliers(multipliers, two):
    paths, changes = two
    found = lora_inspect.compare(list(zip(paths, multipliers, strict=True)))
    assert_two(found, *(multiplier * flat(one) for multiplier, one in zip(multipliers, changes, strict=True)))
    assert found.adapters == list(map(str, paths))
    assert (found.modules.shared, found.modules.only) == (9, [[], []])


def test_a_multiplier_of_0_is_no_change(two):
    paths, changes = two
    found = lora_inspect.compare([(paths[0], 1.0), (paths[1], 0.0)])
    assert found.norm == [pytest.approx(numpy.linalg.norm(flat(changes[0]))), 0.0]
    assert (found.cosine, found.overlap, found.relative_difference) == (None, None, pytest.approx(1.0))
    assert found.sum_energy == pytest.approx(1.0)


def test_numbers_of_a_block_are_those_of_its_modules(two):
    paths, changes = two
    found = lora_inspect.compare(paths)
    assert [*found.blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    for name, block in found.blocks.items():
        assert_two(block, *(numpy.concatenate([m.ravel() for p, m in one.items() if name in p]) for one in changes))


def test_three_adapters_have_matrices(two, tmp_path):
    own = factors(3, 2)
    paths, changes = [*two[0], write(tmp_path / "c.safetensors", own)], [*two[1], dense(own)]
    found, vectors = lora_inspect.compare(paths), [flat(one) for one in changes]
    for one, other in permutations(range(3), 2):
        a, b = vectors[one], vectors[other]
        assert found.cosine[one][other] == pytest.approx(a @ b / numpy.linalg.norm(a) / numpy.linalg.norm(b), abs=1e-7)
        left = numpy.linalg.norm(a - b) / numpy.linalg.norm(a)
        assert found.relative_difference[one][other] == pytest.approx(left, rel=1e-6)
        assert found.best_multiplier.value[one][other] == pytest.approx(a @ b / (a @ a), abs=1e-7)
    assert [found.cosine[n][n] for n in range(3)] == pytest.approx([1.0] * 3)
    assert [found.overlap[n][n] for n in range(3)] == [1.0] * 3
    energy = float(numpy.square(sum(vectors)).sum()) / sum(float(one @ one) for one in vectors)
    assert found.sum_energy == pytest.approx(energy, rel=1e-6)


@pytest.mark.parametrize("how", ["one direction twice", "no change"])
def test_a_module_of_a_lower_rank_stays_apart_from_those_computed_with_it(how, two, tmp_path):
    own = factors(3, 4)
    up, down = own["blocks.1.ffn.0"]
    own["blocks.1.ffn.0"] = (up[:, [0, 0, 1, 2]], down) if how == "one direction twice" else (0.0 * up, down)
    paths = [two[0][0], write(tmp_path / "c.safetensors", own)]
    changes = [two[1][0], dense(own)]
    found = lora_inspect.compare(paths)
    for name, block in found.blocks.items():
        assert_two(block, *(numpy.concatenate([m.ravel() for p, m in one.items() if name in p]) for one in changes))


def turned(own, seed=9):
    """The same changes by other factors, with more of them."""
    numbers = torch.Generator().manual_seed(seed)
    found = {}
    for path, (up, down) in own.items():
        turn = torch.linalg.qr(torch.randn(len(down), len(down), dtype=torch.float64, generator=numbers)).Q
        found[path] = (
            torch.cat([3.0 * up @ turn, torch.zeros(len(up), 2)], 1),
            torch.cat([turn.T @ down, torch.ones(2, down.shape[1])]) / 3.0,
        )
    return found


VERSIONS = {
    "other factors of a higher rank": (lambda own, path: write(path, turned(own)), 1e-6),
    "another alpha": (lambda own, path: write(path, {p: (up * 4.0, down) for p, (up, down) in own.items()}, 1.0), 1e-6),
    "other names": (lambda own, path: write(path, own, names="dotted"), 1e-6),
    "bfloat16": (lambda own, path: write(path, own, dtype=torch.bfloat16), 2.0**-8),
    "float64": (lambda own, path: write(path, own, dtype=torch.float64), 1e-6),
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_of_one_change_is_that_change(version, tmp_path):
    make, most = VERSIONS[version]
    own = factors(1)
    paths = [write(tmp_path / "a.safetensors", own), make(own, tmp_path / "b.safetensors")]
    for pair in (paths, paths[::-1]):
        found = lora_inspect.compare(pair)
        assert found.relative_difference <= most
        assert found.cosine == pytest.approx(1.0, abs=most**2)
        assert found.overlap == pytest.approx(1.0, abs=4 * most)
        assert found.sum_energy == pytest.approx(2.0, rel=most)
        assert found.modules.only == [[], []]


def test_one_file_named_twice_is_two_adapters(two):
    (path, _), (change, _) = two
    found = lora_inspect.compare([path, (path, 0.5)])
    assert found.relative_difference == pytest.approx(0.5, rel=1e-9)
    assert found.best_multiplier.value == pytest.approx(0.5, rel=1e-9)
    assert found.norm[1] == pytest.approx(0.5 * numpy.linalg.norm(flat(change)))
    assert found.sum_energy == pytest.approx(1.5**2 / 1.25, rel=1e-9)
    assert found.notes == (f"{path}: it is named 2 times, and each of them counts.",)


def test_the_opposite_change_has_the_cosine_minus_1_and_a_sum_of_nothing(two):
    found = lora_inspect.compare([two[0][0], (two[0][0], -1.0)])
    assert (found.cosine, found.relative_difference) == (pytest.approx(-1.0), pytest.approx(2.0))
    assert found.sum_energy == pytest.approx(0.0, abs=1e-12)


def test_a_module_that_one_adapter_lacks_is_no_change_of_it(tmp_path):
    own, other = factors(1), factors(2)
    first, *_, last = LAYERS
    del own[first], other[last]
    paths = [write(tmp_path / "a.safetensors", own), write(tmp_path / "b.safetensors", other)]
    found = lora_inspect.compare(paths)
    assert_two(found, flat(dense(own)), flat(dense(other)))
    assert found.modules.shared == 7
    assert found.modules.only == [["lora_unet_blocks_2_ffn_0"], ["lora_unet_blocks_0_self_attn_q"]]


def test_adapters_without_a_common_module_are_independent(tmp_path):
    own, other = ({p: one for p, one in factors(1).items() if block in p} for block in ("blocks.0", "blocks.1"))
    paths = [write(tmp_path / "a.safetensors", own), write(tmp_path / "b.safetensors", other)]
    found = lora_inspect.compare(paths)
    assert (found.modules.shared, found.cosine, found.overlap) == (0, 0.0, None)
    assert found.sum_energy == pytest.approx(1.0)
    assert_two(found, flat(dense(own)), flat(dense(other)))


def test_excluded_modules_count_nowhere(two):
    paths, changes = two
    found = lora_inspect.compare(paths, exclude=["blocks.1", "*.ffn.0"])
    kept = [path for path in LAYERS if "blocks.1" not in path and "ffn" not in path]
    assert_two(found, *(numpy.concatenate([one[path].ravel() for path in kept]) for one in changes))
    assert (found.modules.shared, found.modules.only) == (4, [[], []])


def test_multipliers_of_blocks_count(two):
    paths, changes = two
    found = lora_inspect.compare([f"{paths[0]}:0.5,blocks.1=2", paths[1]])
    scaled = {path: (2.0 if "blocks.1" in path else 0.5) * one for path, one in changes[0].items()}
    assert_two(found, flat(scaled), flat(changes[1]))


@pytest.fixture(scope="module")
def flux():
    original = layouts.flux(blocks=2, width=4)
    return original, layouts.flux_in_diffusers(original)


def test_a_fused_layer_is_compared_in_parts_whichever_is_first(flux, tmp_path):
    original, split = flux
    fused, parts = layers_of(original, FUSED, seed=1), layers_of(split, SPLIT, seed=2)
    save_file(Names("lora_unet_", "", True, KOHYA).tensors(fused), tmp_path / "a.safetensors")
    save_file(Names("transformer.", "", False, PEFT).tensors(parts), tmp_path / "b.safetensors")

    def whole(base, layers):
        zeros = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in base.items()}
        return zeros | {
            f"{p}.weight": one.alpha / len(one.down) * (one.up.double() @ one.down.double())
            for p, one in layers.items()
        }

    dense_of = [layouts.flux_in_diffusers(whole(original, fused)), whole(split, parts)]
    a, b = (numpy.concatenate([one[name].numpy().ravel() for name in sorted(split)]) for one in dense_of)
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    one, other = lora_inspect.compare(paths), lora_inspect.compare(paths[::-1])
    assert_two(one, a, b)
    assert_two(other, b, a)
    assert one.overlap == pytest.approx(other.overlap, rel=1e-9)
    assert one.modules.shared == other.modules.shared
    assert one.modules.only == other.modules.only[::-1]
    assert one.blocks.keys() == other.blocks.keys()
    assert "transformer_blocks.0" in one.blocks


def test_a_layer_of_another_size_is_refused_by_name(two, tmp_path):
    own = factors(3, layers={path: (rows + 2, columns) for path, (rows, columns) in LAYERS.items()})
    other = write(tmp_path / "c.safetensors", own)
    with pytest.raises(RefusedError, match=r"c\.safetensors: .+ changes a weight of \[\d+, 20\], but .+a\.safetensors"):
        lora_inspect.compare([two[0][0], other])


def test_numbers_that_are_not_finite_are_refused_by_name(two, tmp_path):
    own = factors(3)
    own["blocks.1.ffn.0"][0][3, 1] = math.nan
    other = write(tmp_path / "c.safetensors", own)
    with pytest.raises(DamagedError, match=r"lora_unet_blocks_1_ffn_0\.lora_up\.weight holds nan"):
        lora_inspect.compare([two[0][0], other])


def test_a_change_that_depends_on_the_base_needs_one(two, tmp_path):
    path = write(tmp_path / "c.safetensors", {"blocks.0.self_attn.q": factors(3)["blocks.0.self_attn.q"]})
    magnitude = {"lora_unet_blocks_0_self_attn_q.dora_scale": torch.ones(24, 1)}
    save_file(load_file(path) | magnitude, path, METADATA)
    with pytest.raises(RefusedError, match=r"lora_unet_blocks_0_self_attn_q is DoRA, .* base; give base=BASE"):
        lora_inspect.compare([two[0][0], path])
    assert lora_inspect.compare([two[0][0], (path, 0.0)]).norm[1] == 0.0


def test_biases_count_as_other_parameters_do(two, tmp_path):
    bias = torch.randn(24, generator=torch.Generator().manual_seed(5))
    path = tmp_path / "c.safetensors"
    save_file(load_file(two[0][0]) | {"lora_unet_blocks_0_self_attn_q.diff_b": bias}, path, METADATA)
    found = lora_inspect.compare([two[0][0], path])
    meant = numpy.linalg.norm(flat(two[1][0])), float(bias.double().norm())
    assert found.relative_difference == pytest.approx(meant[1] / meant[0], rel=1e-6)
    assert found.norm[1] == pytest.approx(math.hypot(*meant), rel=1e-6)


def merged_changes(base, adapter, tmp_path):
    """The difference that a merge makes of all weights, as one vector."""
    out = tmp_path / f"merged{len(list(tmp_path.iterdir()))}.safetensors"
    lora_inspect.merge(base, [adapter], out)
    before, after = load_file(base), load_file(out)
    return numpy.concatenate([(after[key].double() - before[key].double()).numpy().ravel() for key in before])


@pytest.mark.parametrize("multiplier", [1.0, -0.5])
def test_dora_is_compared_by_its_change_of_the_base(multiplier, fixtures, tmp_path):
    base, dora, plain = (
        fixtures / "synthetic" / f"{name}.safetensors" for name in ("base_f32", "dora_without_flag", "rslora_flag")
    )
    one, other = merged_changes(base, (dora, multiplier), tmp_path), merged_changes(base, plain, tmp_path)
    found = lora_inspect.compare([(dora, multiplier), plain], base=base)
    norms = [numpy.linalg.norm(one), numpy.linalg.norm(other)]
    assert found.norm == pytest.approx(norms, rel=1e-5)
    assert found.cosine == pytest.approx(one @ other / (norms[0] * norms[1]), abs=1e-5)
    assert found.relative_difference == pytest.approx(numpy.linalg.norm(one - other) / norms[0], rel=1e-5)


def test_a_base_without_a_use_is_refused(two, fixtures):
    with pytest.raises(RefusedError, match="base has nothing to do"):
        lora_inspect.compare(
            [fixtures / "synthetic/rslora_flag.safetensors"] * 2, base=fixtures / "synthetic/base_f32.safetensors"
        )


@pytest.mark.parametrize("name", ["peft-0.19.0-gpt-oss", "peft-0.18.1-qwen3-moe"])
def test_experts_are_compared_one_by_one(name, fixtures, tmp_path):
    base = fixtures / "experts" / f"{name[12:]}.safetensors"
    adapter = fixtures / "experts" / name
    norm = float(numpy.linalg.norm(merged_changes(base, adapter, tmp_path)))
    found = lora_inspect.compare([adapter, (adapter, 0.25)])
    assert found.norm == pytest.approx([norm, norm / 4], rel=1e-5)
    assert found.relative_difference == pytest.approx(0.75, rel=1e-6)
    assert found.cosine == pytest.approx(1.0)


def test_a_model_names_the_verbs_for_models(two, fixtures):
    with pytest.raises(RefusedError, match=r"it is no adapter; .*`lora-inspect verify`.*`lora-inspect extract`"):
        lora_inspect.compare([two[0][0], fixtures / "synthetic" / "base_f32.safetensors"])


def test_one_adapter_is_none_too_few(two):
    with pytest.raises(ValueError, match="one adapter cannot be compared"):
        lora_inspect.compare(two[0][0])
    with pytest.raises(FileNotFoundError):
        lora_inspect.compare("nothing.safetensors")


@pytest.mark.parametrize(("limit", "is_ok"), [(0.4999, False), (0.5001, True)])
def test_a_limit_is_of_the_relative_difference(limit, is_ok, two):
    path = two[0][0]
    assert lora_inspect.compare([path, (path, 0.5)], max_difference=limit).ok is is_ok
    assert lora_inspect.compare([path, path, (path, 0.5)], max_difference=limit).ok is is_ok


def test_no_change_is_infinitely_far_from_one(two):
    path = two[0][0]
    assert not lora_inspect.compare([(path, 0.0), path], max_difference=1e9).ok
    assert lora_inspect.compare([(path, 0.0), (path, 0.0)], max_difference=0.0).ok


def test_progress_counts_modules(two):
    told = []
    lora_inspect.compare(two[0], progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 9) for done in range(10)]


# Folders.


def trimmed(own, rank):
    """The nearest changes of a rank, by the SVD of the dense matrix."""
    found = {}
    for path, (up, down) in own.items():
        left, values, right = torch.linalg.svd(up @ down, full_matrices=False)
        found[path] = (left[:, :rank] * values[:rank], right[:rank])
    return found


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "loras"
    place.mkdir()
    own = factors(1, 8, tail=0.3)
    write(place / "a.safetensors", own)
    write(place / "cast.safetensors", own, dtype=torch.bfloat16)
    write(place / "half.safetensors", own, 4.0)
    write(place / "names.safetensors", own, names="dotted")
    write(place / "resized.safetensors", trimmed(own, 3))
    for number in range(2, 6):
        write(place / f"other{number}.safetensors", factors(number, 8, tail=0.3))
    return place, own


def test_versions_of_one_change_are_a_group(folder):
    place, own = folder
    found = lora_inspect.compare(place)
    versions = ["a", "half", "names", "cast", "resized"]
    assert found.groups == [[str(place / f"{name}.safetensors") for name in versions]]
    assert len(found.adapters) == 9
    told = {one.path.removeprefix(f"{place}/").removesuffix(".safetensors"): one for one in found.members}
    assert {name: one.how for name, one in told.items()} == {
        "cast": ["cast"], "half": ["rescaled"], "names": ["renamed"], "resized": ["resized"],
    }  # fmt: skip
    assert {name: one.multiplier for name, one in told.items()} == pytest.approx(
        {"cast": 1.0, "half": 0.5, "names": 1.0, "resized": 1.0}, rel=1e-3
    )
    whole, part = flat(dense(own)), flat(dense(trimmed(own, 3)))
    meant = numpy.linalg.norm(whole - part) / numpy.linalg.norm(whole)
    assert 0.01 < meant < 0.1
    assert told["resized"].difference == pytest.approx(meant, rel=1e-4)


def test_folder_rescaled_file_is_compared_with_file_of_same_rank(run, tmp_path):
    own = factors(1, 8)
    filled = {path: (torch.nn.functional.pad(up, (0, 4)), torch.nn.functional.pad(down, (0, 0, 0, 4)))
              for path, (up, down) in own.items()}  # fmt: skip
    write(tmp_path / "a.safetensors", own)
    write(tmp_path / "filled.safetensors", filled)
    write(tmp_path / "later.safetensors", own)
    write(tmp_path / "scaled.safetensors", own, 8 * 0.6)
    found = lora_inspect.compare(tmp_path)
    paths = [str(tmp_path / f"{name}.safetensors") for name in ("filled", "a", "later", "scaled")]
    assert found.groups == [paths]
    assert [(one.path, one.of, one.how) for one in found.members] == [
        (paths[1], paths[0], ["resized"]), (paths[2], paths[1], []), (paths[3], paths[1], ["rescaled"]),
    ]  # fmt: skip
    assert [one.multiplier for one in found.members] == pytest.approx([1.0, 1.0, 0.6], rel=1e-6)
    shown = run("compare", tmp_path).stdout
    assert f"rescaled by 0.6 from {paths[1]}, difference" in shown
    assert f"the same as {paths[1]}, difference" in shown
    assert " resized, difference" in shown


def test_a_neighbouring_epoch_is_a_change_of_its_own(tmp_path):
    own, step = factors(1, 8), factors(2, 8)
    later = {p: (up + 0.03 * step[p][0], down + 0.03 * step[p][1]) for p, (up, down) in own.items()}
    write(tmp_path / "a.safetensors", own)
    write(tmp_path / "b.safetensors", later)
    assert 0.01 < lora_inspect.compare(sorted(tmp_path.iterdir())).relative_difference < 0.1
    assert lora_inspect.compare(tmp_path).groups == []


def test_a_resize_that_loses_more_than_a_hundredth_of_the_energy_is_another_change(tmp_path):
    own = factors(1, 8, tail=0.8)
    write(tmp_path / "a.safetensors", own)
    write(tmp_path / "b.safetensors", trimmed(own, 2))
    assert lora_inspect.compare(tmp_path).groups == []


def test_adapters_that_change_nothing_are_one_change(tmp_path):
    nothing = {path: (torch.zeros_like(up), down) for path, (up, down) in factors(1).items()}
    write(tmp_path / "a.safetensors", factors(1))
    write(tmp_path / "b.safetensors", nothing)
    write(tmp_path / "c.safetensors", nothing, names="dotted")
    assert lora_inspect.compare(tmp_path).groups == [[str(tmp_path / f"{name}.safetensors") for name in "bc"]]


def test_fused_and_split_versions_are_one_change(flux, tmp_path):
    fused = layers_of(flux[0], [path for path in FUSED if "linear" not in path], seed=1)
    save_file(Names("lora_unet_", "", True, KOHYA).tensors(fused), tmp_path / "a.safetensors")
    lora_inspect.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", to="diffusers")
    (group,) = lora_inspect.compare(tmp_path).groups
    assert sorted(group) == [str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")]


def test_files_that_cannot_be_compared_are_listed_and_stop_no_other(folder, fixtures):
    place, _ = folder
    (place / "broken.safetensors").write_bytes(b"12")
    for name in ("base_f32", "dora_without_flag"):
        (place / f"{name}.safetensors").write_bytes((fixtures / "synthetic" / f"{name}.safetensors").read_bytes())
    bad = factors(7)
    bad["blocks.1.ffn.0"][0][3, 1] = math.inf
    write(place / "infinite.safetensors", bad)
    found = lora_inspect.compare(place)
    assert [len(group) for group in found.groups] == [5]
    reasons = {one.path.removeprefix(f"{place}/"): one.reason for one in found.skipped}
    assert [*reasons] == [f"{name}.safetensors" for name in ("base_f32", "broken", "dora_without_flag", "infinite")]
    assert "is no adapter" in reasons["base_f32.safetensors"]
    assert "2 bytes" in reasons["broken.safetensors"]
    assert "depends on the base" in reasons["dora_without_flag.safetensors"]
    assert "not finite" in reasons["infinite.safetensors"]
    assert len(found.adapters) == 9


def test_a_folder_without_an_adapter_is_refused(tmp_path, fixtures):
    for name in ("base_f32", "base_bf16"):
        (tmp_path / f"{name}.safetensors").write_bytes((fixtures / "synthetic" / f"{name}.safetensors").read_bytes())
    with pytest.raises(LoraInspectError, match="it holds no adapter to compare"):
        lora_inspect.compare(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoraInspectError):
        lora_inspect.compare(tmp_path / "empty")


@pytest.mark.parametrize("option", [{"max_difference": 0.1}, {"weights": "weights.toml"}])
def test_options_that_speak_of_adapters_by_name_have_no_folder(option, folder):
    with pytest.raises(ValueError, match=f"{next(iter(option))} is for adapters that are named, not for a folder"):
        lora_inspect.compare(folder[0], **option)


def test_the_record_of_a_folder_has_its_groups_and_no_numbers(folder):
    record = json.loads(json.dumps(lora_inspect.compare(folder[0]).to_dict()))
    assert [len(group) for group in record["groups"]] == [5]
    assert record["cosine"] is None
    assert record["blocks"] == {}
