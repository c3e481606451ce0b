"""What codes with a scale keep of changes, and their stochastic rounding, against float64."""

import pytest
import torch
from adapters import drawn
from safetensors.torch import load_file, save_file

from lora_inspect.errors import LoraInspectError
from lora_inspect.merging import fold
from lora_inspect.ops.merge import MergeOptions, merge, plan_merge

pytestmark = pytest.mark.numeric
OUT, IN, RANK = 192, 160, 8
NAME, MODULE = "blocks.0.attn.q", "lora_unet_blocks_0_attn_q"
E4M3, E5M2, I8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8
LARGEST = {E4M3: 448, E5M2: 57344, I8: 127}
# the type of the codes, and the shape of the scale: of the weight, of rows
GRIDS = {"e4m3": (E4M3, ()), "e4m3 by row": (E4M3, (OUT, 1)), "e5m2": (E5M2, ()), "int8 by row": (I8, (OUT, 1))}
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)


def coded(dtype, shape):
    """A weight on its grid; no row has its largest code, so that the scale stays."""
    values = drawn(0, OUT, IN)
    peak = values.abs().amax(1, keepdim=True) if shape else values.abs().max()
    scale = 1.05 * peak / LARGEST[dtype]
    codes = (values / scale).round() if dtype == I8 else values / scale
    return {f"{NAME}.weight": codes.to(dtype), f"{NAME}.weight_scale": scale}


def decoded(tensors):
    return tensors[f"{NAME}.weight"].double() * tensors[f"{NAME}.weight_scale"].double()


def adapter(size, rows=OUT):
    up, down = drawn(1, OUT, RANK), drawn(2, RANK, IN)
    up[rows:] = 0
    up *= size / RANK**0.5
    tensors = {f"{MODULE}.lora_up.weight": up, f"{MODULE}.lora_down.weight": down}
    return tensors | {f"{MODULE}.alpha": torch.tensor(float(RANK))}, up.double() @ down.double()


@pytest.fixture
def merged(tmp_path):
    """merge(base, adapter, options) -> (what is kept of it, tensors of the output)."""

    def made(base, own, **options):
        save_file(base, tmp_path / "base.safetensors")
        save_file(own, tmp_path / "a.safetensors")
        plan = plan_merge(
            str(tmp_path / "base.safetensors"), [(str(tmp_path / "a.safetensors"), 1.0)], MergeOptions(**options)
        )
        (kept,) = merge(plan, str(tmp_path / "out.safetensors"), force=True).kept
        return kept, load_file(tmp_path / "out.safetensors")

    return made


@every_grid
@pytest.mark.parametrize("size", [0.05, 0.01, 0.002])
@pytest.mark.parametrize("seed", [None, 4])
def test_the_share_is_that_of_the_whole_weight_in_float64(grid, size, seed, merged):
    base = coded(*grid)
    own, change = adapter(size)
    kept, out = merged(base, own, seed=seed, allow_loss=True)
    x = decoded(out) - decoded(base)
    assert kept.share == pytest.approx(float((x * change).sum() / change.square().sum()), abs=1e-4)
    assert kept.noise == pytest.approx(float((x - change).norm() / change.norm()), rel=1e-3)
    assert not kept.is_sampled


@every_grid
def test_stochastic_codes_are_beside_the_number_and_have_it_as_their_mean(grid, merged):
    base = coded(*grid)
    own, change = adapter(0.01)
    _, out = merged(base, own, seed=4)
    assert out[f"{NAME}.weight_scale"].equal(base[f"{NAME}.weight_scale"])
    exact, error = decoded(base) + change, decoded(out) - decoded(base) - change
    scale = base[f"{NAME}.weight_scale"].double().expand(OUT, IN)
    powers = 2.0 ** torch.floor(torch.log2((exact / scale).abs().clamp(min=1e-30)))
    bits, least = {E4M3: (3, -6), E5M2: (2, -14), I8: (None, 0)}[grid[0]]
    steps = scale if bits is None else powers.clamp(min=2.0**least) * 2.0**-bits * scale
    assert (error.abs() < steps * (1 + 1e-4)).all()
    # Six standard errors: of errors with a mean of 0, and of their products with the change.
    assert abs(error.mean()) < 6 * error.std() / (OUT * IN) ** 0.5
    assert abs((error * change).mean()) < 6 * (error * change).std() / (OUT * IN) ** 0.5


@every_grid
def test_stochastic_rounding_leaves_codes_that_do_not_change(grid, merged):
    base = coded(*grid)
    own, _ = adapter(0.01, rows=50)
    for seed in range(4):
        _, out = merged(base, own, seed=seed)
        codes, before = (one[f"{NAME}.weight"].view(torch.uint8) for one in (out, base))
        assert codes[50:].equal(before[50:])
        assert not codes[:50].equal(before[:50])


@every_grid
def test_stochastic_codes_are_those_of_the_seed_however_the_rows_are_cut(grid, merged, monkeypatch):
    base = coded(*grid)
    own, _ = adapter(0.01)
    codes = []
    for elements, seed in ((1 << 18, 9), (1000, 9), (1 << 18, 10)):
        monkeypatch.setattr(fold, "BLOCK_ELEMENTS", elements)
        codes.append(merged(base, own, seed=seed)[1][f"{NAME}.weight"].view(torch.uint8))
    assert codes[0].equal(codes[1])
    assert not codes[0].equal(codes[2])


@pytest.mark.parametrize("seed", [None, 4])
def test_a_scale_that_does_not_hold_is_looked_at_as_it_is_written(seed, merged):
    """The weight is written twice, and what counts is the second time."""
    base = coded(E4M3, ())
    own, change = adapter(3.0)
    kept, out = merged(base, own, seed=seed)
    assert not out[f"{NAME}.weight_scale"].equal(base[f"{NAME}.weight_scale"])
    x = decoded(out) - decoded(base)
    assert kept.share == pytest.approx(float((x * change).sum() / change.square().sum()), abs=1e-4)
    assert kept.noise == pytest.approx(float((x - change).norm() / change.norm()), rel=1e-3)


def test_a_loss_names_the_type_of_the_codes_and_finer_ones(merged, tmp_path):
    own, _ = adapter(0.002)
    with pytest.raises(LoraInspectError, match=r"steps of F8_E4M3, least in .* --changed-dtype bf16 or --dtype bf16"):
        merged(coded(E4M3, ()), own)
    assert not (tmp_path / "out.safetensors").exists()
    kept, _ = merged(coded(E4M3, ()), own, changed_dtype="BF16")
    assert kept.share > 0.7
    assert kept.is_sampled
