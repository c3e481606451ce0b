"""Products with a change that is not built: gradients against float64 autograd of the formula, and what is kept."""

import pytest
import torch
from torch import nn

from lora_inspect.algorithms import loha
from networks import loha as loha_network
from networks import lokr as lokr_network
from networks.kernels import hadamard, kronecker
from networks.kernels.adapted_linear import adapted_linear
from networks.kernels.half_precision import accumulates_fast

pytestmark = pytest.mark.numeric

SCALE = 0.7
IN, OUT = 35, 66


def hadamard_delta(w1_a, w1_b, w2_a, w2_b):
    return (w1_a @ w1_b) * (w2_a @ w2_b)


def kronecker_delta(w1, *w2):
    """w1 ⊗ w2, entry by entry of the two; w2 may come as a pair."""
    large = w2[0] if len(w2) == 1 else w2[0] @ w2[1]
    return torch.einsum("ab,cd->acbd", w1, large).reshape(OUT, IN)


def by_chain(tokens, factors, dtype):
    return kronecker.chain(tokens, factors[0], factors[1:], SCALE, dtype)


# What is multiplied, the shapes of the factors, the kernel and the order of its factors, and how it is to be chosen.
RANKED = [(OUT, 3), (3, IN), (OUT, 3), (3, IN)]
WAYS = {
    "rank²": (hadamard_delta, RANKED, lambda tokens, factors, dtype: (hadamard.LowRankKernel(dtype, SCALE), factors)),
    "rows": (hadamard_delta, RANKED, lambda tokens, factors, dtype: (hadamard.RowBlocksKernel(dtype, SCALE), factors)),
    "w2 first": (kronecker_delta, [(11, 5), (6, 7)], by_chain),
    "w2 last": (kronecker_delta, [(3, 7), (22, 5)], by_chain),
    "thin w2": (kronecker_delta, [(6, 5), (11, 2), (2, 7)], by_chain),
    "thick w2": (kronecker_delta, [(6, 5), (11, 13), (13, 7)], by_chain),
}
every_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(autouse=True)
def _several_blocks(monkeypatch):
    monkeypatch.setattr("networks.kernels.hadamard._LEAST_ROWS", 1)
    monkeypatch.setattr("networks.kernels.half_precision._CACHED", 16 * IN)


def operands(way, tokens, dtype=torch.float64):
    """The factors, and what else `adapted_linear` takes, each with a gradient."""
    factors = [torch.randn(shape, dtype=dtype).requires_grad_() for shape in WAYS[way][1]]
    shapes = {"input": (tokens, IN), "weight": (OUT, IN), "bias": (OUT,)}
    tensors = {name: torch.randn(shape, dtype=dtype).requires_grad_() for name, shape in shapes.items()}
    tensors["gain"] = (0.5 + torch.rand(OUT, dtype=dtype)).requires_grad_()
    return factors, tensors


def computed(way, factors, input, weight=None, bias=None, gain=None, dtype=torch.float64):
    kernel, ordered = WAYS[way][2](input.shape[0], factors, dtype)
    return adapted_linear(kernel, input, weight, bias, gain, ordered)


def expected(way, factors, input, weight=None, bias=None, gain=None):
    """The formula, for autograd to differentiate."""
    delta = SCALE * WAYS[way][0](*factors)
    total = input @ (delta if weight is None else weight + delta).t()
    total = total if gain is None else total * gain
    return total if bias is None else total + bias


def assert_same(found, wanted, tolerance=1e-11):
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape
        largest = theirs.abs().max().item() if theirs.numel() else 0.0
        assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("tokens", [0, 1, 9])
@pytest.mark.parametrize("given", ["", "weight", "weight bias", "weight gain", "weight bias gain"])
@every_way
def test_output_and_every_gradient_are_those_of_the_formula(way, given, tokens):
    factors, tensors = operands(way, tokens)
    chosen = {name: tensors[name] for name in ("input", *given.split())}
    output, wanted = computed(way, factors, **chosen), expected(way, factors, **chosen)
    assert_same([output], [wanted])
    upstream, inputs = torch.randn_like(wanted), [*factors, *chosen.values()]
    assert_same(torch.autograd.grad(output, inputs, upstream), torch.autograd.grad(wanted, inputs, upstream))


@every_way
def test_gradients_by_differences(way):
    factors, tensors = operands(way, 3)
    chosen = [tensors[name] for name in ("input", "weight", "bias", "gain")]
    assert torch.autograd.gradcheck(
        lambda *given: computed(way, given[4:], *given[:4]), (*chosen, *factors), fast_mode=True
    )


@every_way
def test_only_what_is_asked_for_has_a_gradient(way):
    factors, tensors = operands(way, 5)
    for wanted in (tensors["input"], factors[0], tensors["weight"]):
        chosen = [tensor.detach() for tensor in (tensors["input"], tensors["weight"], *factors)]
        place = [tensor is wanted for tensor in (tensors["input"], tensors["weight"], *factors)].index(True)
        chosen[place] = wanted
        upstream = torch.randn(5, OUT, dtype=torch.float64)
        ours = torch.autograd.grad(computed(way, chosen[2:], *chosen[:2]), wanted, upstream)
        assert_same(ours, torch.autograd.grad(expected(way, chosen[2:], *chosen[:2]), wanted, upstream))


@every_way
def test_tokens_and_gradients_may_lie_in_any_order_in_memory(way):
    factors, tensors = operands(way, 8)
    input = torch.randn(IN, 8, dtype=torch.float64).t().requires_grad_()
    inputs = [input, tensors["weight"], *factors]
    output, wanted = computed(way, factors, input, tensors["weight"]), expected(way, factors, input, tensors["weight"])
    for upstream in (torch.randn(OUT, 8, dtype=torch.float64).t(), torch.ones((), dtype=torch.float64).expand(8, OUT)):
        ours = torch.autograd.grad(output, inputs, upstream, retain_graph=True)
        assert_same(ours, torch.autograd.grad(wanted, inputs, upstream, retain_graph=True))


@every_way
def test_single_operations_are_the_same_product(way):
    factors, tensors = operands(way, 4)
    kernel, ordered = WAYS[way][2](4, factors, torch.float64)
    composed, wanted = kernel.composed(tensors["input"], ordered), expected(way, factors, tensors["input"])
    assert_same([composed], [wanted])
    inputs = [tensors["input"], *factors]
    assert_same(torch.autograd.grad(composed.sum(), inputs), torch.autograd.grad(wanted.sum(), inputs))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_way
def test_half_precision_is_rounded_once(way, dtype):
    factors, tensors = operands(way, 64, torch.float32)
    half = {name: tensor.detach().to(dtype) for name, tensor in tensors.items() if name != "gain"}
    output = computed(way, factors, **half, dtype=torch.float32)
    wanted = expected(way, [factor.double() for factor in factors], **{name: t.double() for name, t in half.items()})
    assert output.dtype == dtype
    # No entry is further off than half a unit of its own last place, but for float32's own error before the rounding.
    bound = 0.5001 * units(wanted, dtype) + 1e-5 * wanted.abs().max()
    if accumulates_fast(half["input"]):
        # What the base's product is added to has been rounded as well: the change, or for rows the bias.
        base = half["input"].double() @ half["weight"].double().t()
        first = half["bias"].double().expand_as(wanted) if way == "rows" else wanted - base
        # Products of parts leave out 3 · 2⁻¹⁶ of each term, of which there are few here.
        bound += 0.5001 * units(first, dtype) + 12 * 2**-16 * wanted.abs().max()
    assert ((output.double() - wanted).abs() <= bound).all()


@every_way
def test_a_small_change_rounds_as_the_sum_alone(way):
    factors, tensors = operands(way, 256, torch.float32)
    with torch.no_grad():
        factors[0].mul_(0.03)
    half = {name: tensor.detach().bfloat16() for name, tensor in tensors.items() if name in ("input", "weight")}
    output = computed(way, factors, **half, dtype=torch.float32)
    wanted = expected(way, [factor.double() for factor in factors], **{name: t.double() for name, t in half.items()})
    ours, least = ((found.double() - wanted).square().mean() for found in (output, wanted.bfloat16()))
    assert ours <= 1.1 * least


def units(values, dtype):
    """A unit in the last place of each number."""
    return torch.finfo(dtype).eps * 2.0 ** values.abs().log2().floor()


def test_the_way_of_a_hadamard_product_follows_the_cost():
    def way(tokens, rank, shares_base=True):
        return type(hadamard.kernel(tokens, (3072, 3072), rank, 1.0, torch.float32, shares_base))

    assert [way(512, rank) for rank in (1, 8, 16, 32, 64)] == [hadamard.LowRankKernel] * 3 + [
        hadamard.RowBlocksKernel
    ] * 2
    # A few tokens do not pay for a pass over the delta, unless the rank's square is the larger side by far.
    assert [way(16, rank) for rank in (32, 128)] == [hadamard.LowRankKernel, hadamard.RowBlocksKernel]
    # Rows that share no product with the base's are three products more.
    assert [way(4096, 24, shares) for shares in (True, False)] == [hadamard.RowBlocksKernel, hadamard.LowRankKernel]


def test_the_order_of_a_kronecker_product_follows_the_cost():
    def order(w1, *w2):
        w2 = [torch.zeros(shape) for shape in w2]
        kernel, factors = kronecker.chain(100, torch.zeros(w1), w2, 1.0, torch.float32)
        return kernel.leads, kernel.closes, [tuple(factor.shape) for factor in factors]

    # 5 · 11 · (7 + 6) = 715 for w2 first, 6 · 7 · (5 + 11) = 672 for w2 last.
    assert order((6, 5), (11, 7)) == (False, True, [(6, 5), (11, 7)])
    assert order((6, 4), (11, 7)) == (True, False, [(6, 4), (11, 7)])
    assert order((6, 5), (11, 2), (2, 7)) == (True, True, [(6, 5), (2, 7), (11, 2)])
    assert order((6, 5), (11, 13), (13, 7)) == (False, True, [(6, 5), (11, 7)])


def kept_bytes(module_class, rank, tokens, dtype, width=256, **options):
    """Bytes that a forward pass keeps beside the base's parameters and the factors."""
    base = nn.Linear(width, width).to(dtype).requires_grad_(False)
    module = module_class("x", base, 1.0, rank, **options)
    module.apply_to()
    input = torch.randn(tokens, width).to(dtype).requires_grad_()
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        base(input)
    for tensor in (*base.parameters(), *module.parameters()):
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "rank"), [(64, 4), (64, 32), (512, 4), (512, 32)])
@pytest.mark.parametrize("module_class", [loha_network.LoHaModule, lokr_network.LoKrModule])
def test_nothing_but_the_input_is_kept(module_class, tokens, rank, dtype):
    assert kept_bytes(module_class, rank, tokens, dtype) == tokens * 256 * dtype.itemsize


def test_a_delta_that_has_to_be_built_keeps_its_factors_alone():
    factors = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in RANKED]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        found = hadamard.delta(factors, SCALE)
    assert {tensor.data_ptr() for tensor in kept} == {factor.data_ptr() for factor in factors}
    wanted, upstream = SCALE * hadamard_delta(*factors), torch.randn(OUT, IN, dtype=torch.float64)
    assert_same([found], [wanted])
    assert_same(torch.autograd.grad(found, factors, upstream), torch.autograd.grad(wanted, factors, upstream))


def test_roles_are_in_the_order_of_the_kernels():
    assert loha.ROLES == ("w1_a", "w1_b", "w2_a", "w2_b")
