"""Dropouts act in training steps alone: not while a trainer samples with the network in training mode."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from networks.loha import LoHaModule
from networks.lokr import LoKrModule
from networks.modules.lora_module import LoRAModule
from networks.modules.pissa import PissaModule
from networks.oft import OFTModule

pytestmark = pytest.mark.numeric

CLASSES = (LoRAModule, LoHaModule, LoKrModule, PissaModule)
DROPOUTS = ("dropout", "rank_dropout", "module_dropout")
# A module with DoRA has the last of them only.
COMBINATIONS = [(cls, name, {}) for cls in CLASSES for name in DROPOUTS] + [
    (LoRAModule, "module_dropout", {"use_dora": True}),
    (OFTModule, "module_dropout", {}),
    (LoRAModule, "dropout", {"split_dims": [6, 18]}),
    (LoRAModule, "rank_dropout", {"split_dims": [6, 18]}),
]


def adapted(cls, name, options):
    """(base, its module in training mode)."""
    base = nn.Linear(16, 24).requires_grad_(False)
    if cls is PissaModule:
        options = {**options, "init_lora_weights": "pissa"}
    module = cls("x", base, 1.0, 4, 4.0, **{name: 0.5}, **options)
    module.apply_to()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return base, module.train()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("sampling", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(("cls", "name", "options"), COMBINATIONS)
def test_dropouts_are_off_while_a_trainer_samples(cls, name, options, checkpointed, sampling):
    base, module = adapted(cls, name, options)
    x = torch.randn(3, 5, 16)
    with sampling():
        exact = module.eval()(x)
        module.train()
        state = torch.get_rng_state()
        # Models in training mode checkpoint while they sample as well.
        outputs = [checkpoint(base, x, use_reentrant=True) if checkpointed else base(x) for _ in range(8)]
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(output, exact) for output in outputs)


@pytest.mark.parametrize(("cls", "name", "options"), COMBINATIONS)
def test_dropouts_are_on_in_training_steps(cls, name, options):
    base, module = adapted(cls, name, options)
    x = torch.randn(3, 5, 16)
    assert len({base(x).sum().item() for _ in range(8)}) > 1
    module.eval()
    assert len({base(x).sum().item() for _ in range(8)}) == 1


class Offloaded(torch.autograd.Function):
    """Checkpointing as trainers write it themselves."""

    @staticmethod
    def forward(ctx, run, x):
        ctx.save_for_backward(x)
        ctx.run, ctx.state = run, torch.get_rng_state()
        with torch.no_grad():
            return run(x)

    @staticmethod
    def backward(ctx, gradient):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(ctx.state)
            output = ctx.run(x)
        output.backward(gradient)
        return None, x.grad


CHECKPOINTS = {
    "reentrant": lambda run, x: checkpoint(run, x, use_reentrant=True),
    "not reentrant": lambda run, x: checkpoint(run, x, use_reentrant=False),
    "of a trainer": Offloaded.apply,
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize(("cls", "name", "options"), COMBINATIONS)
def test_checkpointing_draws_the_same_dropouts_in_both_forwards(cls, name, options, kind):
    base, module = adapted(cls, name, options)
    # As in a block, where what a layer takes needs no gradient of its own in the first of the two forwards.
    block = nn.Sequential(nn.LayerNorm(16, elementwise_affine=False), base)
    x = torch.randn(3, 5, 16)
    for seed in range(4):
        results = []
        for run in (block, lambda x: CHECKPOINTS[kind](block, x)):
            torch.manual_seed(seed)
            leaf = x.clone().requires_grad_()
            output = run(leaf)
            # A module that was skipped has no gradients.
            gradients = torch.autograd.grad if kind == "not reentrant" else backward
            results.append([output, *gradients(output.square().sum(), [leaf, *module.parameters()], allow_unused=True)])
        for plain, checkpointed in zip(*results, strict=True):
            assert (plain is None) == (checkpointed is None)
            assert plain is None or torch.equal(plain, checkpointed)


def backward(loss, leaves, allow_unused):
    """Reentrant checkpointing knows no torch.autograd.grad."""
    for leaf in leaves:
        leaf.grad = None
    loss.backward()
    return [leaf.grad for leaf in leaves]


def test_a_function_whose_gradient_nobody_wants_is_no_training_step():
    base, _ = adapted(LoRAModule, "dropout", {})
    x = torch.randn(3, 16)

    class Sampler(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return base(x)

    assert torch.equal(Sampler.apply(x), Sampler.apply(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_sampling_drops_nothing():
    torch._dynamo.reset()
    base, module = adapted(LoRAModule, "rank_dropout", {})
    x = torch.randn(3, 5, 16)
    compiled = torch.compile(base, backend="eager", fullgraph=True)
    assert not torch.equal(compiled(x), compiled(x))
    with torch.no_grad():
        sampled = compiled(x)
        assert torch.allclose(sampled, module.eval()(x), atol=1e-5)
        assert torch.equal(compiled(x), sampled)
