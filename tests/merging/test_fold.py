"""`--dtype`: which tensors are cast, and what happens to numbers that are not finite."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

Q = "blocks.0.attn.q"
MODULE = "lora_unet_blocks_0_attn_q"


def same_bits(left, right):
    return left.dtype == right.dtype and left.shape == right.shape and left.numpy().tobytes() == right.numpy().tobytes()


@pytest.fixture
def cast(tmp_path, run):
    """`cast(untouched, dtype)`: what becomes of the untouched tensors of a base under --dtype; or the refusal."""
    generator = torch.Generator().manual_seed(0)
    adapter = {
        f"{MODULE}.lora_down.weight": torch.randn(2, 5, generator=generator),
        f"{MODULE}.lora_up.weight": torch.randn(6, 2, generator=generator),
        f"{MODULE}.alpha": torch.tensor(2.0),
    }
    save_file(adapter, tmp_path / "adapter.safetensors")

    def run_merge(untouched, dtype, refused=False):
        save_file({f"{Q}.weight": torch.ones(6, 5)} | untouched, tmp_path / "base.safetensors")
        names = [tmp_path / f"{name}.safetensors" for name in ("base", "adapter", "out")]
        ended = run("merge", *names[:2], "-o", names[2], "--dtype", dtype, "--force")
        if refused:
            assert not names[2].exists()
            return ended.refusal
        assert ended.status == 0, ended.stderr
        found = load_file(names[2])
        assert found[f"{Q}.weight"].dtype == getattr(torch, dtype)
        return found

    return run_merge


FP8 = torch.arange(30).reshape(6, 5).to(torch.float8_e4m3fn)
THIRD = torch.tensor(1 / 3)  # no number of half precision


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("scale", ["scale", "weight_zero_point", "weight_scale_2"])
def test_codes_of_an_unknown_kind_and_their_scales_are_never_cast(scale, dtype, cast):
    found = cast({"other.weight": FP8, f"other.{scale}": THIRD, "other.bias": torch.full((6,), 1 / 3)}, dtype)
    assert same_bits(found[f"other.{scale}"], THIRD)
    assert found["other.weight"].dtype == torch.float8_e4m3fn
    assert torch.equal(found["other.weight"].float(), FP8.float())
    assert same_bits(found["other.bias"].float(), torch.full((6,), 1 / 3).to(getattr(torch, dtype)).float())


def test_scales_in_another_shard_than_their_weight_are_known(tmp_path, cast, run):
    cast({}, "bfloat16")
    (tmp_path / "base").mkdir()
    shards = [{f"{Q}.weight": torch.ones(6, 5), "other.scale": THIRD}, {"other.weight": FP8}]  # of an unknown kind
    for number, shard in enumerate(shards, 1):
        save_file(shard, tmp_path / "base" / f"m-0000{number}-of-00002.safetensors")
    out = tmp_path / "folder"
    assert (
        run("merge", tmp_path / "base", tmp_path / "adapter.safetensors", "-o", out, "--dtype", "bfloat16").status == 0
    )
    assert same_bits(load_file(out / "m-00001-of-00002.safetensors")["other.scale"], THIRD)


@pytest.mark.parametrize("name", ["norm.query_norm.scale", "norm.weight", "x.logit_scale", "x.scale"])
def test_learned_scales_are_cast(name, cast):
    found = cast({name: torch.full((6,), 1 / 3), "x.weight": torch.ones(2, 2)}, "bfloat16")
    assert same_bits(found[name].float(), torch.full((6,), 1 / 3).bfloat16().float())
    assert found[name].dtype == torch.bfloat16


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_not_finite_in_the_base_stays_as_it_is(stored, dtype, cast):
    mask = torch.zeros(8, 8, dtype=stored).masked_fill_(torch.triu(torch.ones(8, 8), 1).bool(), -math.inf)
    odd = torch.tensor([math.nan, math.inf, -math.inf, 1.0], dtype=stored)
    found = cast({"attn.mask": mask, "padding.weight": odd, "attn.masked_bias": torch.tensor(-math.inf)}, dtype)
    expected = getattr(torch, dtype)
    assert found["attn.mask"].dtype == expected
    assert torch.equal(found["attn.mask"].double(), mask.double())
    assert torch.equal(
        torch.nan_to_num(found["padding.weight"].double(), 7, 8, 9), torch.tensor([7.0, 8, 9, 1]).double()
    )
    assert found["attn.masked_bias"].item() == -math.inf


@pytest.mark.parametrize(
    ("stored", "value", "dtype", "name"),
    [
        (torch.float64, 70000.0, "float16", "F16"),
        (torch.float32, -1e9, "float16", "F16"),
        (torch.bfloat16, 1e5, "float16", "F16"),
        (torch.float64, 1e300, "float32", "F32"),
        (torch.float32, torch.finfo(torch.float32).min, "bfloat16", "BF16"),
    ],
)
def test_a_finite_number_that_the_cast_makes_infinite_is_an_error(stored, value, dtype, name, cast):
    tensor = torch.tensor([math.nan, -math.inf, value, 1.0], dtype=stored)
    refusal = cast({"attn.masked_bias": tensor}, dtype, refused=True)
    assert refusal.endswith(
        f"base.safetensors: attn.masked_bias holds {tensor[2].item():g}, which is inf in {name}; "
        "choose another --dtype, or none."
    )


def test_the_largest_number_of_a_type_is_within_it(cast):
    largest = torch.tensor([65504.0, -65504.0, 65519.0])  # the last is rounded down
    assert cast({"x.bias": largest}, "float16")["x.bias"].tolist() == [65504.0, -65504.0, 65504.0]


def test_a_number_that_overflows_in_a_later_block_is_found(cast, monkeypatch):
    from lora_inspect.merging import fold

    monkeypatch.setattr(fold, "BLOCK_ELEMENTS", 8)
    tensor = torch.zeros(6, 4)
    tensor[:2] = -math.inf
    tensor[5, 3] = 1e6
    assert "x.table holds 1e+06" in cast({"x.table": tensor}, "float16", refused=True)


@pytest.mark.parametrize("multiplier", ["0", "1"])
def test_infinity_in_a_weight_that_is_changed_is_an_error_only_where_it_changes(multiplier, cast, tmp_path, run):
    cast({}, "bfloat16")
    save_file({f"{Q}.weight": torch.full((6, 5), -math.inf)}, tmp_path / "base.safetensors")
    adapter = f"{tmp_path / 'adapter.safetensors'}:{multiplier}"
    out = tmp_path / "new.safetensors"
    ended = run("merge", tmp_path / "base.safetensors", adapter, "-o", out, "--dtype", "bfloat16")
    if multiplier == "1":
        assert f"folding {MODULE} into {Q}.weight gives -inf in BF16" in ended.refusal
    else:
        assert torch.equal(load_file(out)[f"{Q}.weight"].float(), torch.full((6, 5), -math.inf))


def test_numbers_that_no_rotation_can_be_made_of_are_an_error(tmp_path, run):
    base, adapter, out = (tmp_path / f"{name}.safetensors" for name in ("base", "adapter", "out"))
    save_file({f"{Q}.weight": torch.ones(3, 3)}, base)
    # Beside numbers so large the identity of I - Q is rounded away, and Q of an odd size has no inverse.
    save_file({f"{MODULE}.oft_blocks": torch.full((1, 3, 3), 2.0**60).triu(1)}, adapter)
    ended = run("merge", base, adapter, "-o", out)
    assert (
        f"{adapter}: folding {MODULE} into {Q}.weight involves a matrix that lora-inspect cannot invert"
        in ended.refusal
    )
    assert sorted(tmp_path.iterdir()) == [adapter, base]
