"""What merge says that the output keeps of each adapter, against least squares over whole files in float64."""

import pytest
import torch
from adapters import drawn
from safetensors.torch import load_file, save_file
from verified_merges import delta, key, lora, weight, with_dora

from lora_inspect.errors import LoraInspectError
from lora_inspect.merging import fold, working_crew
from lora_inspect.merging.retention import (
    AdapterRetention,
    WeightRetention,
    check_kept,
    looked_rows,
    notes_on,
    worst_of,
)
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

pytestmark = pytest.mark.numeric
BLOCKS, OUT, IN = 3, 320, 256
SIZES = {"blocks": BLOCKS, "out": OUT, "inputs": IN}
BF16 = torch.bfloat16


@pytest.fixture
def base():
    tensors = {weight(block): (0.1 * drawn(block, OUT, IN)).to(BF16) for block in range(BLOCKS)}
    return tensors | {"norm.weight": drawn(7, OUT).to(BF16), "positions": torch.arange(5)}


@pytest.fixture
def merged(tmp_path, base):
    """merge(adapters by name with their tensors, options) -> (result, tensors of the output)."""

    def made(adapters, tensors=None, multipliers=None, **options):
        save_file(base if tensors is None else tensors, tmp_path / "base.safetensors")
        pairs = []
        for name, own in adapters.items():
            save_file(own, tmp_path / f"{name}.safetensors")
            pairs.append((str(tmp_path / f"{name}.safetensors"), (multipliers or {}).get(name, 1.0)))
        out = tmp_path / "out.safetensors"
        plan = plan_merge(str(tmp_path / "base.safetensors"), pairs, MergeOptions(**options))
        return merge(plan, str(out), force=True), load_file(out)

    return made


def dense(base, out, *changes):
    """The least squares of (merged - base) on the changes by block, in float64, over all blocks together."""
    names = [weight(block) for block in range(BLOCKS)]
    x = torch.cat([(out[name].double() - base[name].double()).flatten() for name in names])
    matrix = torch.stack([torch.cat([change(block).flatten() for block in range(BLOCKS)]) for change in changes], 1)
    return torch.linalg.lstsq(matrix, x[:, None]).solution.flatten().tolist()


def looked_at(tensor):
    """The rows of a weight of 16 bits that are looked at."""
    return torch.cat([tensor[start:stop] for start, stop in looked_rows(OUT, 0, OUT)])


def shares(result):
    return [one.share for one in result.kept]


@pytest.mark.parametrize("size", [0.01, 0.001, 0.0004])
def test_a_sixteenth_of_the_rows_tells_what_is_kept_in_16_bits(merged, base, size):
    adapter = lora(size=size, **SIZES)
    result, out = merged({"a": adapter}, allow_loss=True)
    rows = ({name: looked_at(tensors[name]) for name in map(weight, range(BLOCKS))} for tensors in (base, out))
    assert shares(result) == pytest.approx(dense(*rows, lambda block: looked_at(delta(adapter, block))), abs=1e-4)
    # They are 60 of 960, of which each keeps what its change, of rank 4, is large enough for.
    assert shares(result) == pytest.approx(dense(base, out, lambda block: delta(adapter, block)), abs=0.1)
    assert result.kept[0].is_sampled
    assert result.kept[0].in_words.startswith("~")


def test_two_adapters_have_shares_of_their_own(merged, base):
    one, other = lora(size=0.01, **SIZES), lora(seed=5, size=0.002, **SIZES)
    result, out = merged({"a": one, "b": other})
    expected = dense(base, out, lambda block: delta(one, block), lambda block: delta(other, block))
    assert shares(result) == pytest.approx(expected, abs=0.01)


def test_the_change_of_dora_is_that_of_the_order_given(merged, base):
    one = lora(size=0.01, **SIZES)
    widened = {name: tensor.float() for name, tensor in base.items()}
    other = with_dora(lora(seed=5, size=0.01, **SIZES), widened, blocks=BLOCKS)

    def behind(block):
        before = base[weight(block)].double() + delta(one, block)
        v = before + delta(other, block)
        return other[f"{key(block)}.dora_scale"].double() * v / v.norm(dim=1, keepdim=True) - before

    result, out = merged({"a": one, "b": other})
    assert shares(result) == pytest.approx(dense(base, out, lambda block: delta(one, block), behind), abs=0.01)


def test_all_is_kept_in_float32(merged, base):
    result, _ = merged({"a": lora(size=1e-5, **SIZES)}, dtype="F32")
    assert shares(result) == pytest.approx([1], abs=1e-4)


def test_the_same_adapter_under_two_names_has_no_share_of_its_own(merged):
    adapter = lora(size=0.01, **SIZES)
    result, _ = merged({"a": adapter, "b": adapter})
    assert shares(result) == [None, None]
    assert {one.in_words for one in result.kept} == {"no share, as another adapter makes the same change,"}


def test_a_multiplier_of_0_has_no_share_and_is_not_refused(merged):
    result, _ = merged({"a": lora(size=0.01, **SIZES), "b": lora(seed=5, **SIZES)}, multipliers={"b": 0.0})
    assert shares(result) == [pytest.approx(1, abs=0.01), None]


def test_what_would_be_lost_is_refused_and_nothing_is_written(merged, tmp_path):
    adapter = lora(size=1e-4, **SIZES)
    with pytest.raises(
        LoraInspectError, match=r"a\.safetensors: the output would keep ~0\.\d\d of it: .* BF16"
    ) as refused:
        merged({"a": adapter})
    assert "--dtype fp32" in str(refused.value)
    assert "--rounding stochastic" in str(refused.value)
    assert "--allow-loss" in str(refused.value)
    assert weight(0) in str(refused.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "base.safetensors"]
    result, _ = merged({"a": adapter}, allow_loss=True)
    assert 0 < result.kept[0].share < 0.5
    assert any("the output keeps" in note for note in result.notes)


def test_a_folder_is_refused_whole(tmp_path, base):
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(base, folder / "model.safetensors")
    save_file(lora(size=1e-4, **SIZES), tmp_path / "a.safetensors")
    plan = plan_merge(str(folder), [(str(tmp_path / "a.safetensors"), 1.0)], MergeOptions())
    with pytest.raises(LoraInspectError, match="the output would keep"):
        merge(plan, str(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "base"]


def test_the_worst_weights_come_first(merged):
    tensors = lora(size=0.01, **SIZES)
    tensors[f"{key(1)}.lora_up.weight"] *= 0.03
    result, _ = merged({"a": tensors})
    (worst,) = result.kept[0].worst
    assert worst.name == weight(1)
    assert worst.share < 0.9 < result.kept[0].share
    assert result.to_dict()["kept_worst"] == {result.kept[0].path: {weight(1): round(worst.share, 6)}}


def test_the_record_says_what_was_done(merged):
    result, _ = merged({"a": lora(size=0.01, **SIZES)})
    path = result.kept[0].path
    record = result.to_dict()
    assert record["kept"] == {path: round(result.kept[0].share, 6)}
    assert record["kept_of_a_sample"] == [path]
    assert record["rounding"] == "nearest"
    assert "noise" not in record
    record = merged({"a": lora(size=0.01, **SIZES)}, seed=3)[0].to_dict()
    assert (record["rounding"], record["seed"]) == ("stochastic", 3)
    assert 0.01 < record["noise"][path] < 1


@pytest.mark.parametrize("dtype", [None, "F16"])
def test_stochastic_rounding_keeps_the_mean_of_what_the_nearest_number_loses(merged, base, dtype):
    adapter = lora(size=1e-4, **SIZES)
    result, out = merged({"a": adapter}, dtype=dtype, seed=11)
    assert dense(base, out, lambda block: delta(adapter, block)) == pytest.approx([1], abs=0.1)
    assert 0.9 < dense(base, out, lambda block: delta(adapter, block))[0] < 1.1
    changes = [delta(adapter, block) for block in range(BLOCKS)]
    errors = [out[weight(b)].double() - base[weight(b)].double() - changes[b] for b in range(BLOCKS)]
    error, size = (torch.cat([*map(looked_at, parts)]).norm() for parts in (errors, changes))
    assert result.kept[0].noise == pytest.approx(float(error / size), rel=0.01)


def test_stochastic_rounding_is_that_of_the_seed_whoever_computes_it(merged, monkeypatch):
    adapter = lora(size=0.001, **SIZES)
    first = merged({"a": adapter}, seed=5)[1]
    assert any(not torch.equal(first[weight(0)], merged({"a": adapter}, seed=seed)[1][weight(0)]) for seed in (0, 6))
    for elements, threads in ((999, 1), (5000, 3)):
        monkeypatch.setattr(fold, "BLOCK_ELEMENTS", elements)
        monkeypatch.setattr(working_crew, "computing_threads", lambda most, threads=threads: threads)
        result, again = merged({"a": adapter}, seed=5)
        assert all(torch.equal(first[name].view(torch.uint8), again[name].view(torch.uint8)) for name in first)
        assert shares(result) == pytest.approx([1], abs=0.2)


def test_the_share_does_not_depend_on_who_computes_it(merged, monkeypatch):
    adapter = lora(size=0.001, **SIZES)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(working_crew, "computing_threads", lambda most, threads=threads: threads)
        monkeypatch.setattr(fold, "BLOCK_ELEMENTS", 7000)
        found.append(shares(merged({"a": adapter})[0]))
    assert found[0] == found[1]
    monkeypatch.setattr(fold, "BLOCK_ELEMENTS", 300)
    assert shares(merged({"a": adapter})[0]) == pytest.approx(found[0], rel=1e-3)


def test_stochastic_rounding_leaves_what_does_not_change(merged, base):
    """Rows without a change, another multiplier of 0, and tensors beside: all bit for bit."""
    adapter = lora(size=0.001, **SIZES)
    adapter[f"{key(0)}.lora_up.weight"][::2] = 0
    _, out = merged({"a": adapter}, seed=5)
    assert torch.equal(out[weight(0)][::2], base[weight(0)][::2])
    assert not torch.equal(out[weight(0)][1::2], base[weight(0)][1::2])
    assert torch.equal(out["norm.weight"], base["norm.weight"])


def test_what_is_only_cast_goes_to_the_nearest_number(merged, base):
    _, out = merged({"a": lora(size=0.01, **SIZES)}, {**base, "norm.weight": drawn(7, OUT)}, dtype="BF16", seed=5)
    assert torch.equal(out["norm.weight"], drawn(7, OUT).to(BF16))


@pytest.mark.parametrize(
    ("multiplier", "dtype", "why"), [(1.0, "F32", "what changes is written in F32"), (0.0, None, "nothing changes")]
)
def test_stochastic_rounding_of_nothing_is_refused(merged, multiplier, dtype, why):
    with pytest.raises(LoraInspectError, match=f"--rounding stochastic has nothing to round, as {why}; leave it out"):
        merged({"a": lora(**SIZES)}, multipliers={"a": multiplier}, dtype=dtype, seed=1)


def kept(path, share, *worst):
    return AdapterRetention(path, share, None, "", False, tuple(WeightRetention(*one) for one in worst))


@pytest.mark.parametrize(
    ("share", "refused", "told"),
    [(0.4999, True, True), (0.5, False, True), (0.8999, False, True), (0.9, False, False), (None, False, False)],
)
def test_where_a_loss_is_told_and_where_it_is_refused(share, refused, told):
    found = [kept("a", share)]
    if refused:
        with pytest.raises(LoraInspectError, match=r"^a: the output would keep 0\.50 of it"):
            check_kept(found, None)
    else:
        check_kept(found, None)
    assert bool(notes_on(found, None)) == told


def test_the_worst_adapter_is_named_and_others_are_counted():
    found = [kept("a", 0.4), kept("b", 0.1, ("w", 0.01, "F8_E4M3"), ("v", 0.2, "BF16")), kept("c", 0.3)]
    with pytest.raises(LoraInspectError) as refused:
        check_kept(found, 4)
    assert str(refused.value) == (
        "b: the output would keep 0.10 of it, and of 2 other adapters no more than half: its change is small beside "
        "the steps of F8_E4M3 and BF16, least in w (0.01) and v (0.20); write finer numbers with --changed-dtype bf16 "
        "or --dtype bf16, or take what is left with --allow-loss."
    )


def test_ten_weights_are_recorded_at_most():
    weights = [WeightRetention(str(number), number / 20, "BF16") for number in range(20)]
    assert [one.name for one in worst_of(weights)] == [str(number) for number in range(10)]
