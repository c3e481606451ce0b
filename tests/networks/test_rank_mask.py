"""T-LoRA: which ranks act at a timestep, in which forwards, and what stands in the file."""

import copy
import json

import pytest
import torch
from lycoris.modules.tlora import TLoraModule, clear_timestep_mask, compute_timestep_mask, set_timestep_mask
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from networks import lora, lora_wan
from networks.modules.lora_module import LoRAModule
from networks.modules.masks import RankMask
from networks.modules.pissa import PissaModule

pytestmark = pytest.mark.numeric

TIMESTEPS = [0.0, 120.0, 500.0, 999.0]
LAYERS = {
    "linear": (lambda: nn.Linear(12, 16), (4, 5, 12), {}),
    "slices": (lambda: nn.Linear(12, 16, bias=False), (4, 5, 12), {"split_dims": [4, 12]}),
    "two axes of positions": (lambda: nn.Linear(12, 16), (4, 2, 3, 12), {}),
    "conv": (lambda: nn.Conv2d(12, 16, 3, padding=1), (4, 12, 5, 6), {}),
    "conv3d": (lambda: nn.Conv3d(12, 16, 1), (4, 12, 2, 3, 2), {}),
    "grouped": (lambda: nn.Conv2d(12, 16, 3, groups=2), (4, 12, 5, 6), {}),
}


def create(model, dim=6, **options):
    options = {"use_tlora": "True"} | options
    network = lora.create_network(["Block"], "lora_unet", 1.0, dim, 3.0, None, None, model, **options)
    network.apply_to(None, model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def active(timestep, rank, min_rank, alpha):
    return int(compute_timestep_mask(timestep, 1000, rank, min_rank, alpha).sum())


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("rank", "min_rank"), [(1, 1), (4, 1), (8, 3), (64, 32), (4, 4), (4, 9)])
def test_the_ranks_that_act_are_lycoris_s(rank, min_rank, alpha):
    mask = RankMask(min_rank, alpha)
    mask.ranks.add(rank)
    timesteps = list(range(0, 1001, 25))
    mask.set(torch.tensor(timesteps), 1000)
    ones = mask.masked(torch.ones(len(timesteps), 1, rank), rank, -1)
    expected = torch.stack([compute_timestep_mask(t, 1000, rank, min_rank, alpha) for t in timesteps])
    assert torch.equal(ones, expected)
    mask.set([t / 1000 for t in (0, 250, 500, 1000)], 1.0)
    counts = mask.masked(torch.ones(4, rank), rank, -1).sum(1).tolist()
    assert counts == [active(t, rank, min_rank, alpha) for t in (0, 250, 500, 1000)]


@pytest.mark.parametrize("dropouts", [{}, {"module_dropout": 1e-9}])
@pytest.mark.parametrize("kind", LAYERS)
def test_each_sample_is_the_lora_of_its_own_ranks(kind, dropouts):
    """Forward and gradients, against LoRAs in float64 whose factors have no other ranks."""
    make, shape, options = LAYERS[kind]
    base = make().double().requires_grad_(False)
    mask = RankMask(2, 1.0)
    module = LoRAModule("x", copy.deepcopy(base), 0.7, 6, 3.0, rank_mask=mask, **dropouts, **options).double()
    module.apply_to()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    x = torch.randn(shape, dtype=torch.float64)
    mask.set(torch.tensor(TIMESTEPS), 1000.0)
    output = module(x)
    output.square().sum().backward()
    gradients = {name: torch.zeros_like(parameter) for name, parameter in module.named_parameters()}
    for index, timestep in enumerate(TIMESTEPS):
        rank = active(timestep, 6, 2, 1.0)
        alone = LoRAModule("x", copy.deepcopy(base), 0.7, rank, 3.0 * rank / 6, **options).double()
        alone.apply_to()
        parts = dict(module.named_parameters())
        cut = {name: (slice(rank),) if "down" in name else (slice(None), slice(rank)) for name in parts}
        alone.load_state_dict(
            {name: value.detach()[cut[name]] for name, value in parts.items()} | {"alpha": alone.alpha}
        )
        expected = alone(x[index : index + 1])
        torch.testing.assert_close(output[index : index + 1], expected)
        expected.square().sum().backward()
        for name, parameter in alone.named_parameters():
            gradients[name][cut[name]] += parameter.grad
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name])


@pytest.mark.parametrize("timestep", [0, 300, 1000])
@pytest.mark.slow
def test_with_pissa_it_is_lycoris_s_module(timestep):
    """Their start takes the principal components as well, and subtracts what they were under the same mask."""
    base = nn.Linear(12, 16).requires_grad_(False)
    theirs = TLoraModule("x", copy.deepcopy(base), 1.0, 6, 3.0).double()
    mask = RankMask(2, 1.5)
    ours = PissaModule("x", copy.deepcopy(base), 1.0, 6, 3.0, init_lora_weights="pissa", rank_mask=mask).double()
    ours.org_module.double()
    ours.apply_to()
    with torch.no_grad():
        initial_up, initial_down = theirs.base_p * theirs.base_lambda, theirs.base_q
        ours.initial_up.copy_(initial_up)
        ours.initial_down.copy_(initial_down)
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        ours.lora_up.weight.copy_(theirs.p_layer.weight * theirs.lambda_layer)
        ours.lora_down.weight.copy_(theirs.q_layer.weight)
    x = torch.randn(3, 5, 12, dtype=torch.float64)
    mask.set(float(timestep), 1000)
    set_timestep_mask(compute_timestep_mask(timestep, 1000, 6, 2, 1.5).double())
    try:
        change = theirs.bypass_forward_diff(x)
    finally:
        clear_timestep_mask()
    torch.testing.assert_close(ours(x) - base.double()(x), change)
    assert change.abs().max() > 0.01


def test_a_batch_of_timesteps_on_wan_is_each_sample_at_its_own(wan):
    model = wan()
    network = lora_wan.create_arch_network(1.0, 6, 3.0, None, None, model, use_tlora="True")
    network.apply_to(None, model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    inputs = {"hidden_states": torch.randn(2, 4, 2, 8, 8), "encoder_hidden_states": torch.randn(2, 7, 16)}
    timesteps = torch.tensor([300.0, 900.0])
    network.set_timestep_mask(timesteps, 1000)
    batch = model(**inputs, timestep=timesteps).sample
    for index in range(2):
        one = slice(index, index + 1)
        sample = {name: tensor[one] for name, tensor in inputs.items()} | {"timestep": timesteps[one]}
        network.set_timestep_mask(timesteps[one], 1000)
        alone = model(**sample).sample
        assert torch.allclose(batch[one], alone, rtol=1e-4, atol=1e-5)
        network.set_timestep_mask(0.0, 1000)
        assert not torch.allclose(batch[one], model(**sample).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", ["kaiming", "pissa"])
def test_the_first_step_is_the_base_at_every_timestep(make_model, start):
    model, x = make_model(), torch.randn(3, 8, 12)
    before = model(x)
    options = {"use_tlora": True, "init_lora_weights": start, "exclude_patterns": [".*(conv|point)"]}
    network = lora.create_network(["Block"], "lora_unet", 1.0, 6, 3.0, None, None, model, **options)
    network.apply_to(None, model)
    for timestep in TIMESTEPS:
        network.set_timestep_mask(torch.tensor([timestep]), 1000)
        assert torch.allclose(model(x), before, atol=1e-6)


def test_a_training_step_without_timesteps_is_an_error(make_model):
    model, x = make_model(), torch.randn(2, 8, 12)
    network = create(model)
    network.on_epoch_start(None)
    with pytest.raises(RuntimeError, match=r"needs the timesteps of each step.* set_timestep_mask\(timesteps, max_"):
        model(x)
    network.set_enabled(False)
    model(x)


def test_both_calls_of_trainers_mean_the_same(make_model):
    model, x = make_model(), torch.randn(2, 8, 12)
    network = create(model)
    outputs = []
    for call in (
        lambda: network.set_timestep_mask(torch.tensor([0.25, 0.75])),
        lambda: network.update_rank_mask_from_timesteps(torch.tensor([250, 750]), max_timestep=1000, device="cpu"),
        lambda: network.set_timestep_mask([250.0, 750.0], max_timestep=1000.0),
    ):
        call()
        outputs.append(model(x))
        network.clear_rank_mask()
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    plain = create(make_model(), use_tlora="False")
    plain.set_timestep_mask(torch.tensor([5.0, 7.0]))
    plain.clear_timestep_mask()


@pytest.mark.parametrize("sampling", [torch.no_grad, torch.inference_mode])
def test_a_trainer_s_samples_have_all_ranks_as_its_files(make_model, tmp_path, sampling):
    model, x = make_model(), torch.randn(2, 8, 12)
    network = create(model)
    network.train()
    network.set_timestep_mask(torch.tensor([900.0, 900.0]), 1000)
    step = model(x)
    file = str(tmp_path / "t.safetensors")
    network.save_weights(file, None, None)
    fresh = make_model()
    merging, weights = lora.create_network_from_weights(1.0, file, None, None, fresh, for_inference=True)
    merging.merge_to(None, fresh, weights)
    with sampling():
        sample = model(x)
    torch.testing.assert_close(sample, fresh(x), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(step, sample, atol=1e-2)


def test_in_evaluation_mode_ranks_are_masked_where_timesteps_come(make_model):
    model, x = make_model(), torch.randn(2, 8, 12)
    network = create(model)
    network.set_timestep_mask(900.0, 1000)
    step = model(x).detach()
    network.eval()
    with torch.no_grad():
        whole = model(x)
        network.set_timestep_mask(900.0, 1000)
        assert torch.allclose(model(x), step, atol=1e-6)
        network.clear_timestep_mask()
        assert torch.equal(model(x), whole)
    assert not torch.allclose(step, whole, atol=1e-2)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_masks_both_of_its_forwards(make_model, reentrant):
    model, x = make_model(), torch.randn(2, 8, 12).requires_grad_()
    network = create(model)
    network.set_timestep_mask(torch.tensor([700.0, 900.0]), 1000)
    gradients = []
    for run in (model, lambda inputs: checkpoint(model, inputs, use_reentrant=reentrant)):
        run(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
        # At timestep 700 two of six ranks act.
        assert not any(module.lora_down.weight.grad[2:].any() for module in network.unet_loras)
        assert all(module.lora_down.weight.grad[:2].any() for module in network.unet_loras)
        network.zero_grad()
    assert all(torch.allclose(one, two, rtol=1e-4, atol=1e-6) for one, two in zip(*gradients, strict=True))


# torch's own code inside its compiler warns of what later releases change.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_compiled_model_is_one_graph_for_all_timesteps(dtype):
    torch._dynamo.reset()
    base = nn.Linear(12, 16).to(dtype).requires_grad_(False)
    mask = RankMask(1, 1.0)
    module = LoRAModule("x", base, 1.0, 6, 3.0, rank_mask=mask)
    module.apply_to()
    nn.init.normal_(module.lora_up.weight)
    compiled = torch.compile(base, backend="eager", fullgraph=True)
    x = torch.randn(2, 5, 12).to(dtype)
    mask.set([100.0, 900.0], 1000)
    assert torch.allclose(compiled(x), base(x), atol=2e-2)
    with torch._dynamo.config.patch(error_on_recompile=True):
        mask.set([300.0, 600.0], 1000)
        assert torch.allclose(compiled(x), base(x), atol=2e-2)


def test_the_file_is_a_plain_lora_that_says_so(make_model, tmp_path, caplog):
    caplog.set_level("INFO")
    network = create(make_model(), tlora_min_rank="2", tlora_alpha="1.5", rank_pattern={".*to_q": 2})
    assert "T-LoRA enabled on 8 modules, all ranks at every timestep on: 2 of rank 2 or less" in caplog.text
    file = str(tmp_path / "t.safetensors")
    network.save_weights(file, None, None)
    with safe_open(file, "pt") as opened:
        assert json.loads(opened.metadata()["lora_inspect.tlora"]) == {"min_rank": 2, "alpha": 1.5}
    plain = create(make_model(), use_tlora="False", rank_pattern={".*to_q": 2})
    assert load_file(file).keys() == plain.state_dict().keys()
    plain.load_weights(file)
    assert "was trained with use_tlora=True; without it all ranks act at every timestep" in caplog.text
    caplog.clear()
    network.load_weights(file)
    resumed, _ = lora.create_network_from_weights(1.0, file, None, None, make_model(), use_tlora=True)
    assert resumed.rank_mask.ranks == {2, 6}
    assert "was trained with" not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": "True"}, "use_tlora cannot be combined with use_dora"),
        ({"use_dora": "True", "rank_dropout": 0.1}, "use_tlora cannot be combined with use_dora"),
        ({"init_lora_weights": "orthogonal"}, "use_tlora cannot be combined with init_lora_weights=orthogonal"),
        ({"tlora_min_rank": "0"}, "tlora_min_rank='0': a whole number above 0"),
        ({"tlora_alpha": "0"}, "tlora_alpha='0': a number above 0"),
        ({"use_tlora": "False", "tlora_min_rank": "2"}, "tlora_min_rank=2 has no meaning without use_tlora=True"),
        ({"use_tlora": "False", "tlora_alpha": "2"}, r"tlora_alpha=2\.0 has no meaning without use_tlora=True"),
    ],
)
def test_what_cannot_be_is_refused(make_model, options, message):
    with pytest.raises(ValueError, match=message):
        create(make_model(), **options)


@pytest.mark.parametrize(
    ("timesteps", "largest", "message"),
    [
        ([500.0], 1.0, "from 500 to 500, but numbers from 0 to max_timestep=1 were expected"),
        ([-1.0, 3.0], 1000, "from -1 to 3, but"),
        ([float("nan")], 1000, "timesteps from nan"),
        ([[1.0, 2.0]], 1000, r"timesteps of shape \[1, 2\], but one for each sample was expected"),
        ([], 1000, r"timesteps of shape \[0\]"),
    ],
)
def test_timesteps_that_cannot_be(make_model, timesteps, largest, message):
    with pytest.raises(ValueError, match=message):
        create(make_model()).set_timestep_mask(torch.tensor(timesteps), largest)


def test_timesteps_that_are_counted_from_one(make_model):
    network = create(make_model())
    network.set_timestep_mask(torch.tensor([1001.0]), 1000)
    assert network.rank_mask.masked(torch.ones(1, 6), 6, -1).sum() == 1


@pytest.mark.parametrize(("layer", "shape"), [(nn.Linear(12, 16), (1, 10, 12)), (nn.Linear(12, 16), (12,))])
def test_samples_of_other_axes_are_an_error(layer, shape):
    mask = RankMask(1, 1.0)
    module = LoRAModule("x", layer, 1.0, 6, 3.0, rank_mask=mask)
    module.apply_to()
    mask.set([100.0, 900.0], 1000)
    with pytest.raises(RuntimeError, match="got 2 different timesteps"):
        module(torch.randn(shape))
    mask.set([500.0, 500.0], 1000)
    module(torch.randn(shape))
