"""carry_scales: whatever carries the scale, what readers compute is the scale times the change that was read."""

import json
from fractions import Fraction

import pytest
import torch
from safetensors.torch import save_file

from lora_inspect.converting.steps.carried_scale import carry_scales
from lora_inspect.converting.steps.part import Factor, read_factor, read_parts
from lora_inspect.converting.target.key_names import ALPHA, CONFIG, FACTORS
from lora_inspect.errors import LoraInspectError
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.maths.scaling import to_float32
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.model.settings import Settings

NAME, OUT, IN, RANK = "lora_unet_blocks_0_attn_q", 6, 5, 4
SCALES = [1.0, 2.0, 0.5, -1.0, 0.0, 0.3]


def noise(*shape, seed, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def lora(dtype=torch.float32, bias=False):
    up = {f"{NAME}.lora_up.bias": noise(OUT, seed=2, dtype=dtype)} if bias else {}
    return {
        f"{NAME}.lora_down.weight": noise(RANK, IN, seed=0, dtype=dtype),
        f"{NAME}.lora_up.weight": noise(OUT, RANK, seed=1, dtype=dtype),
        **up,
    }


@pytest.fixture
def carried(tmp_path):
    """`carried(tensors, scale, carrier)`: the parts by the name of their algorithm, and their factors as numbers."""

    def run(tensors, scale, carrier):
        save_file(tensors, tmp_path / "adapter.safetensors")
        # A stored alpha of 0 would be no number to go by.
        adapter = read_adapter(open_checkpoint(str(tmp_path / "adapter.safetensors")), Settings(alpha=scale * RANK))
        (module,) = adapter.modules.values()
        scaled = [c._replace(scale=scale, alpha=scale * (c.rank or RANK)) for c in module.contributions]
        parts = carry_scales(read_parts(module._replace(contributions=tuple(scaled))), carrier)
        return {part.algorithm.name: part for part in parts}

    return run


def numbers(part, role):
    factor = part.factors[role]
    return (factor if isinstance(factor, Factor) else read_factor(factor)).values


def product(part):
    return numbers(part, "up") @ numbers(part, "down")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("carrier", [ALPHA, CONFIG, FACTORS])
def test_readers_find_the_scale_in_one_place(carrier, scale, carried):
    tensors = lora()
    part = carried(tensors, scale, carrier)["lora"]
    whole = tensors[f"{NAME}.lora_up.weight"].double() @ tensors[f"{NAME}.lora_down.weight"].double()
    torch.testing.assert_close(part.alpha / RANK * product(part), scale * whole, rtol=1e-6, atol=1e-7)
    in_alpha = carrier == CONFIG or (carrier == ALPHA and scale != 0.0)
    assert (part.scale, part.folded) == ((scale, 1.0) if in_alpha else (1.0, scale))
    expected = (scale * RANK if carrier == CONFIG else to_float32(scale * RANK)) if in_alpha else RANK
    assert part.alpha == expected


@pytest.mark.parametrize("scale", SCALES)
def test_a_config_without_a_rule_holds_the_alpha_of_the_scale(scale, carried):
    sides = {"w1_a": OUT, "w1_b": IN, "w2_a": OUT, "w2_b": IN}
    tensors = {
        f"{NAME}.hada_{role}": noise(*((size, RANK) if role.endswith("a") else (RANK, size)), seed=at)
        for at, (role, size) in enumerate(sides.items())
    }
    part = carried(tensors, scale, CONFIG)["loha"]
    assert (part.alpha, part.scale) == (scale * RANK, scale)
    assert all(torch.equal(numbers(part, role), tensors[f"{NAME}.hada_{role}"].double()) for role in sides)


@pytest.mark.parametrize("scale", [0.3, -0.7])
def test_what_rounding_the_alpha_loses_is_counted(scale, carried):
    part = carried(lora(), scale, ALPHA)["lora"]
    lost = abs(Fraction(to_float32(scale * RANK)) / RANK - Fraction(scale)) / abs(Fraction(scale))
    assert lost > 0
    assert part.error == pytest.approx(float(lost), rel=1e-6)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("carrier", [ALPHA, CONFIG, FACTORS])
def test_a_bias_of_the_up_layer_has_the_scale_that_readers_give_the_lora(carrier, scale, carried):
    tensors = lora(bias=True)
    parts = carried(tensors, scale, carrier)
    theirs = parts["lora"].alpha / RANK
    found = theirs * numbers(parts["lora_bias"], "bias")
    torch.testing.assert_close(found, scale * tensors[f"{NAME}.lora_up.bias"].double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_rounding_to_the_wider_type_loses_is_measured(dtype, carried):
    tensors, scale = lora(dtype), 0.3
    part = carried(tensors, scale, FACTORS)["lora"]
    down, up = (tensors[f"{NAME}.lora_{role}.weight"].double() for role in ("down", "up"))
    lost = (product(part) - scale * up @ down).norm() / (scale * up @ down).norm()
    assert part.error == pytest.approx(float(lost), rel=1e-3, abs=1e-16)
    assert (part.error > 1e-10) == (dtype == torch.float32)


def test_an_alpha_that_a_float32_cannot_hold_is_refused_and_json_holds_it(carried):
    with pytest.raises(LoraInspectError, match=rf"alpha of {NAME} is beyond float32 \(4e\+38\); scale its factors"):
        carried(lora(), 1e38, ALPHA)
    assert json.loads(json.dumps(carried(lora(), 1e38, CONFIG)["lora"].alpha)) == 4e38


def test_two_algorithms_whose_ranks_differ_cannot_share_one_alpha(carried):
    """alpha/rank of both would be the scale: 2 · 4 for one and 2 · 3 for the other."""
    shapes = {"w1_a": (OUT, 3), "w1_b": (3, IN), "w2_a": (OUT, 3), "w2_b": (3, IN)}
    loha = {f"{NAME}.hada_{role}": noise(*shape, seed=seed) for seed, (role, shape) in enumerate(shapes.items(), 3)}
    with pytest.raises(LoraInspectError, match=rf"{NAME} has several algorithms with one shared alpha.* need 6 and 8;"):
        carried({**lora(), **loha}, 2.0, ALPHA)
