"""Adapters of single experts on bases that have all of them in one parameter stored as (experts, in, out).

What is expected is computed in float64 on the base that has the experts one by one, and put together here: gate and up
as columns that take turns, as the classes of gpt-oss have them, or one before the other where there are no biases.
"""

import pytest
import torch
from adapters import assert_within, dotted, expected, factors

from lora_inspect.merging import fold

pytestmark = pytest.mark.numeric

EXPERTS, WIDTH, INNER = 3, 8, 5
MLP = "model.layers.0.mlp"


def single():
    """The experts one by one, and another layer."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    found = {"model.layers.0.self_attn.q_proj.weight": random(WIDTH, WIDTH + 1)}
    found[f"{MLP}.router.weight"] = random(EXPERTS, WIDTH)
    for expert in range(EXPERTS):
        for part, shape in {"gate": (INNER, WIDTH), "up": (INNER, WIDTH), "down": (WIDTH, INNER)}.items():
            found[f"{MLP}.experts.{expert}.{part}_proj.weight"] = random(*shape)
    return found


def together(tensors, has_biases):
    """The same tensors with all experts in one parameter."""
    found = {key: value for key, value in tensors.items() if ".experts." not in key}

    def of(part):
        return torch.stack([tensors[f"{MLP}.experts.{expert}.{part}_proj.weight"].T for expert in range(EXPERTS)])

    gate, up = of("gate"), of("up")
    first = torch.stack([gate, up], 3).flatten(2) if has_biases else torch.cat([gate, up], 2)
    found |= {f"{MLP}.experts.gate_up_proj": first, f"{MLP}.experts.down_proj": of("down")}
    if has_biases:
        found[f"{MLP}.experts.gate_up_proj_bias"] = torch.zeros(EXPERTS, 2 * INNER)
        found[f"{MLP}.experts.down_proj_bias"] = torch.zeros(EXPERTS, WIDTH)
    return found


def paths(tensors, end="_proj"):
    names = [key.removesuffix(".weight") for key in tensors]
    return [name for name in names if name.endswith(end)]


@pytest.fixture(params=[1 << 20, 24], ids=["in one block", "in tiny blocks"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(fold, "BLOCK_ELEMENTS", request.param)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("multiplier", [1.0, -0.5])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("has_biases", [True, False], ids=["taking turns", "gate before up"])
def test_single_experts_on_a_base_that_stores_in_out(has_biases, dora, multiplier, merged):
    base = single()
    adapter = factors(base, paths(base), dora)
    found = merged(together(base, has_biases), dotted("diffusion_model.", adapter), multiplier)
    values, bounds = expected(base, adapter, multiplier, interpolate=False)
    assert_within(found, together(values, has_biases), together(bounds, has_biases))


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("part", ["gate", "up", "down"])
@pytest.mark.parametrize("has_biases", [True, False], ids=["taking turns", "gate before up"])
def test_all_else_stays_bit_for_bit(has_biases, part, merged):
    base = single()
    adapter = factors(base, [f"{MLP}.experts.1.{part}_proj"])
    whole = together(base, has_biases)
    found = merged(whole, dotted("diffusion_model.", adapter))
    values, bounds = expected(base, adapter, 1.0, interpolate=False)
    assert_within(found, together(values, has_biases), together(bounds, has_biases))
    changed = {key: found[key] != whole[key] for key in whole if not torch.equal(found[key], whole[key])}
    ((name, where),) = changed.items()
    assert where.any(2).any(1).tolist() == [False, True, False]
    columns = where[1].any(0).nonzero().flatten().tolist()
    own = {
        ("down", True): range(WIDTH), ("gate", True): range(0, 2 * INNER, 2), ("up", True): range(1, 2 * INNER, 2),
        ("down", False): range(WIDTH), ("gate", False): range(INNER), ("up", False): range(INNER, 2 * INNER),
    }  # fmt: skip
    assert (name.rpartition(".")[2], columns) == (
        "down_proj" if part == "down" else "gate_up_proj", list(own[part, has_biases]),
    )  # fmt: skip


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("multiplier", [1.0, 0.25])
def test_layers_that_unsloth_makes_of_gpt_oss(multiplier, merged):
    """A Linear (out, in) of each expert is the transposed matrix of it: gate and up take turns in its rows already."""
    whole = together(single(), has_biases=True)
    linear = {
        f"{MLP}.experts.{part}s.{expert}.weight": whole[f"{MLP}.experts.{part}"][expert].T
        for part in ("gate_up_proj", "down_proj")
        for expert in range(EXPERTS)
    }
    adapter = factors(linear, [name.removesuffix(".weight") for name in linear])
    values, bounds = expected(linear, adapter, multiplier, interpolate=False)

    def stacked(tensors):
        return {
            f"{MLP}.experts.{part}": torch.stack(
                [tensors[f"{MLP}.experts.{part}s.{expert}.weight"].T for expert in range(EXPERTS)]
            )
            for part in ("gate_up_proj", "down_proj")
        }

    found = merged(whole, dotted("diffusion_model.", adapter), multiplier)
    rest = {key: torch.zeros_like(value).double() for key, value in whole.items()}
    assert_within(found, {**whole, **stacked(values)}, {**rest, **stacked(bounds)})


@pytest.mark.parametrize("has_biases", [True, False], ids=["taking turns", "gate before up"])
def test_the_true_change_of_an_expert_is_known(has_biases, tmp_path, run, merged):
    """A plain LoRA of full rank, made of DoRA and the base, does to the single expert what DoRA does."""
    from safetensors.torch import load_file, save_file

    base = single()
    adapter = factors(base, paths(base), dora=True)
    base_file, dora, plain = (tmp_path / f"{name}.safetensors" for name in ("whole", "dora", "plain"))
    save_file({key: value.contiguous() for key, value in together(base, has_biases).items()}, base_file)
    save_file({key: value.contiguous() for key, value in dotted("diffusion_model.", adapter).items()}, dora)
    assert run("convert", dora, "--base", base_file, "--rank", "8", "-o", plain).status == 0
    found = merged(base, load_file(plain))
    values, _ = expected(base, adapter, 1.0, interpolate=False)
    for key, value in values.items():
        assert (found[key] - value).norm() <= 1e-5 * value.norm(), key
