"""Layers that keep codes in the place of their weight: those of libraries, and small ones of the same contracts."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from oracles import oracle
from torch import nn

from networks import loha, lokr, lora, oft
from networks.modules.lora_module import LoRAModule
from networks.modules.pissa import PissaModule

IN, OUT, ALPHA = 64, 48, 2.0
MODULES = {"lora": lora, "loha": loha, "lokr": lokr, "oft": oft}


def rows_in_codes(weight):
    step = weight.abs().amax(1, keepdim=True) / 127
    return (weight / step).round().to(torch.int8), step


class OwnLinear(nn.Linear):
    """Codes under the name of the weight, as OneTrainer's W8A8 has them, decoded by a method that is counted."""

    decodings = 0

    def __init__(self):
        super().__init__(IN, OUT)
        codes, step = rows_in_codes(self.weight.detach())
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.register_buffer("scale", step)

    def values(self, dtype=torch.float32):
        return self.weight.to(dtype) * self.scale.to(dtype)

    def unquantized_weight(self, dtype, device):
        type(self).decodings += 1
        return self.values(dtype)

    def forward(self, x):
        return F.linear(x, self.values(x.dtype), self.bias)


class ScaledLinear(OwnLinear):
    """fp8 with the scale under another name than musubi-tuner's, as OneTrainer's LinearFp8."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(self.weight.float().to(torch.float8_e4m3fn), requires_grad=False)


class DecodedLinear(nn.Linear):
    """Without a weight: the name of one decodes it, as in ai-toolkit's OstrisLinear."""

    def __init__(self):
        super().__init__(IN, OUT)
        codes, step = rows_in_codes(self.weight.detach())
        del self._parameters["weight"]
        self.register_buffer("codes", codes)
        self.register_buffer("step", step)
        self.is_open = True

    def dequantize_weight(self):
        return self.codes.float() * self.step

    @property
    def weight(self):
        assert self.is_open, "the whole weight is decoded"
        return self.dequantize_weight()

    def forward(self, x):
        return F.linear(x, self.dequantize_weight().to(x.dtype), self.bias)


class ForeignLinear(nn.Module):
    """No Linear of torch, and packed codes under a name of its own, as HQQ's."""

    def __init__(self):
        super().__init__()
        own = nn.Linear(IN, OUT)
        self.in_features, self.out_features, self.bias = IN, OUT, own.bias
        codes, step = rows_in_codes(own.weight.detach())
        self.W_q = nn.Parameter(codes.t().contiguous().to(torch.int32), requires_grad=False)
        self.register_buffer("step", step)

    def dequantize(self):
        return self.W_q.t().float() * self.step

    def forward(self, x):
        return F.linear(x, self.dequantize().to(x.dtype), self.bias)


class SealedLinear(nn.Linear):
    """Codes that nothing says how to decode."""

    def __init__(self):
        super().__init__(IN, OUT)
        codes, self.step = rows_in_codes(self.weight.detach())
        self.weight = nn.Parameter(codes.view(-1, 2), requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.weight.view(OUT, IN).to(x.dtype) * self.step, self.bias)


def nf4():
    return oracle("bitsandbytes").nn.Linear4bit(IN, OUT, quant_type="nf4", compress_statistics=True).to("cpu")


def eight_bits():
    return oracle("bitsandbytes").nn.Linear8bitLt(IN, OUT, has_fp16_weights=False).to("cpu")


def gguf_of(kind):
    def make():
        pytest.importorskip("diffusers")
        gguf = pytest.importorskip("gguf")
        from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

        layer = GGUFLinear(IN, OUT, bias=True, compute_dtype=torch.float32)
        own, code = nn.Linear(IN, OUT), gguf.GGMLQuantizationType[kind]
        codes = torch.from_numpy(gguf.quants.quantize(own.weight.detach().numpy(), code))
        layer.weight, layer.bias = GGUFParameter(codes, quant_type=code), own.bias
        return layer

    return make


def values_of(layer):
    """The numbers behind the codes, by the libraries' own functions."""
    weight = layer._parameters.get("weight")
    if hasattr(layer, "values"):
        return layer.values()
    if isinstance(layer, DecodedLinear):
        return layer.dequantize_weight()
    if isinstance(layer, ForeignLinear):
        return layer.dequantize()
    if isinstance(layer, SealedLinear):
        return layer.weight.view(OUT, IN) * layer.step
    if hasattr(weight, "quant_type") and type(weight).__name__ == "GGUFParameter":
        gguf = sys.modules["gguf"]
        return torch.from_numpy(gguf.quants.dequantize(weight.as_tensor().numpy(), weight.quant_type))
    functional = oracle("bitsandbytes").functional
    if weight.dtype == torch.uint8:
        return functional.dequantize_4bit(weight.data, weight.quant_state).float()
    scales = layer.state.SCB if weight.SCB is None else weight.SCB
    return functional.int8_vectorwise_dequant(weight.data, scales)


DECODED = {
    "codes of its own": OwnLinear,
    "scaled fp8": ScaledLinear,
    "no weight": DecodedLinear,
    "foreign": ForeignLinear,
    "4 bits": nf4,
    "8 bits": eight_bits,
    "GGUF Q8_0": gguf_of("Q8_0"),
    "GGUF Q4_0": gguf_of("Q4_0"),
}
LAYERS = DECODED | {"sealed": SealedLinear}
# How far products are from those of the numbers: their inputs are 8 bits, or the numbers 16.
NEAR = {"8 bits": 0.03, "GGUF Q8_0": 2e-3, "GGUF Q4_0": 2e-3}


def network_on(model, module=lora, **options):
    torch.manual_seed(3)
    if module is lora:
        return lora.create_network(None, "lora_unet", 1.0, 4, ALPHA, None, None, model, **options)
    return module.create_arch_network(1.0, 4, ALPHA, None, None, model, architecture="krea2", **options)


def trained(network, strength=0.1):
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(strength * torch.randn_like(parameter))
    return network


def plain_of(layer):
    """torch's own layer of the same numbers."""
    plain = nn.Linear(IN, OUT).requires_grad_(False)
    plain.weight.copy_(values_of(layer))
    plain.bias.copy_(layer.bias)
    return plain


@pytest.fixture(params=LAYERS)
def layer(request):
    made = LAYERS[request.param]()
    made.requires_grad_(False)
    made.near = NEAR.get(request.param, 1e-5)
    return made


@pytest.mark.numeric
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("name", MODULES)
def test_a_layer_in_codes_is_adapted_beside_its_own_product(layer, name):
    input, plain = torch.randn(3, 20, IN), plain_of(layer)
    before = layer(input)
    network = network_on(nn.Sequential(layer), MODULES[name])
    [module] = network.unet_loras
    assert module.org_module is layer
    network.apply_to(None, None)
    first = layer(input)
    ours = trained(network_on(nn.Sequential(plain), MODULES[name]))
    trained(network)
    change_due = -plain(input)
    ours.apply_to(None, None)
    change_due += plain(input)
    output = layer(input)
    output.square().sum().backward()
    assert all(parameter.grad.any() for parameter in network.parameters())
    found = output - before
    assert found.abs().max() > 0.05
    assert (found - change_due).abs().max() <= max(layer.near, 1e-5) * before.abs().max()
    assert (first - before).abs().max() <= 1e-6
    network.remove()
    assert "forward" not in vars(layer)
    assert torch.equal(layer(input), before)


@pytest.mark.numeric
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("kind", DECODED)
def test_dora_has_the_norms_of_the_numbers_behind_the_codes(kind, reference):
    layer = DECODED[kind]().requires_grad_(False)
    module = LoRAModule("x", layer, 1.0, 4, ALPHA, use_dora=True)
    module.apply_to()
    values, input = values_of(layer), torch.randn(20, IN)
    assert torch.allclose(module.dora_layer.weight, values.norm(dim=1), rtol=1e-3 if "GGUF" in kind else 1e-5)
    reference.perturb(module, 0.1)
    due = F.linear(input.double(), reference.weight(values, module, ALPHA, "dora"), layer.bias.double())
    for _ in range(2):  # decoded, and from what is kept of it
        output = layer(input)
        assert (output.double() - due).abs().max() <= max(NEAR.get(kind, 0), 1e-5) * due.abs().max()


@pytest.mark.numeric
@pytest.mark.parametrize("module", [loha, lokr])
@pytest.mark.parametrize("kind", ["codes of its own", "no weight", "foreign"])
def test_dora_of_the_other_algorithms(kind, module):
    layer = DECODED[kind]().requires_grad_(False)
    plain, input = plain_of(layer), torch.randn(20, IN)
    for base in (layer, plain):
        network = network_on(nn.Sequential(base), module, use_dora="True")
        network.apply_to(None, None)
        trained(network)
    for _ in range(2):  # decoded, and from what is kept of it
        assert torch.allclose(layer(input), plain(input), atol=1e-5)


def lokr_of_thin_rows(*args, **options):
    return lokr.LoKrModule(*args, factor=4, **options)


CLASSES = {"lora": LoRAModule, "loha": loha.LoHaModule, "lokr": lokr_of_thin_rows}


def decodings_in_4_steps(module_class, rank):
    layer = OwnLinear().requires_grad_(False)
    module = module_class("x", layer, 1.0, rank, ALPHA, use_dora=True)
    OwnLinear.decodings = 0
    module.apply_to()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(4):
        layer(torch.randn(8, IN)).square().sum().backward()
        optimizer.step()
    copied = copy.deepcopy(module)
    assert copied.dora_layer.watch.decoded(layer) is None
    return OwnLinear.decodings


@pytest.mark.parametrize("name", CLASSES)
def test_a_weight_is_decoded_once_for_its_norm(name):
    # One for the start, which is before the first input, and one for all steps.
    assert decodings_in_4_steps(CLASSES[name], 4) == 2


@pytest.mark.parametrize("name", ["loha", "lokr"])
def test_a_weight_is_decoded_in_each_step_for_a_change_of_a_high_rank(name):
    # 32² rows of LoHa, and a whole factor of LoKr.
    assert decodings_in_4_steps(CLASSES[name], 32) == 5


def delta_of(module):
    if isinstance(module, LoRAModule):
        return module.lora_up.weight @ module.lora_down.weight
    of = module.factors
    if isinstance(module, loha.LoHaModule):
        return (of["w1_a"] @ of["w1_b"]) * (of["w2_a"] @ of["w2_b"])
    return torch.kron(of["w1"], of["w2_a"] @ of["w2_b"])


def replace(layer):
    layer.weight = nn.Parameter(layer.weight // 2, requires_grad=False)


def write(layer):
    layer.weight.div_(2, rounding_mode="floor")


def rescale(layer):
    layer.scale.mul_(2)


@pytest.mark.numeric
@pytest.mark.parametrize(("change", "name"), [(write, "lora"), (replace, "lora"), (rescale, "loha"), (write, "lokr")])
def test_kept_norms_follow_the_codes(change, name, caplog):
    layer = OwnLinear().requires_grad_(False)
    module = CLASSES[name]("x", layer, 1.0, 4, ALPHA, use_dora=True)
    module.apply_to()
    trained(module)
    layer(torch.randn(8, IN))
    change(layer)
    input = torch.randn(8, IN)
    norms = (layer.values() + module.scale * delta_of(module)).norm(dim=1)
    due = F.linear(input, layer.values() + module.scale * delta_of(module)) * module.dora_layer.weight / norms
    for _ in range(2):  # decoded again, and from what is kept of it
        assert torch.allclose(layer(input), due + layer.bias, rtol=1e-4, atol=1e-4)
    assert "the weights of the base changed since training began" in caplog.text


@pytest.mark.numeric
def test_the_norm_leaves_out_other_adapters_and_the_bias():
    layer = OwnLinear().requires_grad_(False)
    layer.bias.mul_(100)
    below = LoRAModule("below", layer)
    below.apply_to()
    trained(below, 1.0)
    module = LoRAModule("x", layer, 1.0, 4, ALPHA, use_dora=True)
    module.apply_to()
    trained(module)
    gains = [module._gain(torch.float32) for _ in range(2)]
    assert torch.allclose(*gains, rtol=1e-5)
    assert layer.bias.abs().max() > 1


@pytest.mark.numeric
def test_a_layer_that_refuses_few_rows_is_decoded_each_time():
    class Wide(OwnLinear):
        def forward(self, x):
            if len(x) < 17:
                raise RuntimeError("self.size(0) needs to be greater than 16")
            return super().forward(x)

    layer = Wide().requires_grad_(False)
    module = LoRAModule("x", layer, 1.0, 4, ALPHA, use_dora=True)
    module.apply_to()
    trained(module)
    gains = [module._gain(torch.float32) for _ in range(2)]
    assert torch.equal(*gains)
    assert layer.bias is layer._parameters["bias"]


def test_a_weight_that_is_a_property_is_not_decoded_in_training():
    layer = DecodedLinear().requires_grad_(False)
    module = LoRAModule("x", layer, 1.0, 4, ALPHA, use_dora=True)
    module.apply_to()
    layer.is_open = False
    layer(torch.randn(8, IN)).square().sum().backward()
    assert module.dora_layer.weight.grad.any()


@pytest.mark.numeric
def test_pissa_starts_from_the_numbers_behind_the_codes():
    layer = OwnLinear().requires_grad_(False)
    module = PissaModule("x", layer, 1.0, 2, 2.0)
    module.apply_to()
    left, values, right = torch.linalg.svd(layer.values(), full_matrices=False)
    wanted = left[:, :2] @ torch.diag(values[:2]) @ right[:2]
    assert torch.allclose(module.initial_up @ module.initial_down, wanted, atol=1e-5)


def test_codes_that_nothing_decodes_are_adapted_without_dora():
    layer = SealedLinear().requires_grad_(False)
    with pytest.raises(ValueError, match="x: use_dora does not support a SealedLinear"):
        LoRAModule("x", layer, use_dora=True)
    with pytest.raises(ValueError, match=r"a base weight is stored as torch\.int8, but the values of its codes"):
        PissaModule("x", layer).apply_to()


@pytest.mark.parametrize("kind", ["codes of its own", "no weight", "foreign"])
def test_nothing_is_merged_into_codes(kind):
    layer = DECODED[kind]()
    model = nn.Sequential(layer)
    weights = network_on(model).state_dict()
    network = lora.create_network_from_weights(None, 1.0, weights, None, model, for_inference=True)
    with pytest.raises(ValueError, match="lora_unet_0: the base is stored as"):
        network.merge_to(None, model, weights)


def test_layers_of_bitsandbytes_that_are_not_quantised_yet_are_adapted():
    layer = oracle("bitsandbytes").nn.Linear4bit(IN, OUT, quant_type="nf4").requires_grad_(False)
    network = trained(network_on(nn.Sequential(layer)))
    network.apply_to(None, None)
    input = torch.randn(2, IN)
    # Moving it to a device makes codes of its weight; a change beside it needs none of them.
    layer.to("cpu")
    assert layer.weight.dtype == torch.uint8
    [module] = network.unet_loras
    change = module.scale * input @ module.lora_down.weight.t() @ module.lora_up.weight.t()
    assert torch.allclose(layer(input), type(layer).forward(layer, input) + change, atol=1e-5)
    with pytest.raises(ValueError, match="use_dora does not support a Linear4bit"):
        network_on(nn.Sequential(oracle("bitsandbytes").nn.Linear4bit(IN, OUT)), use_dora="1")


def in_torchao(layer):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(nn.Sequential(layer), quantization.Int8WeightOnlyConfig())
    return layer


def in_quanto(layer):
    quanto = pytest.importorskip("optimum.quanto")
    model = nn.Sequential(layer)
    quanto.quantize(model, weights=quanto.qint8)
    quanto.freeze(model)
    return model[0]


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantise", [in_torchao, in_quanto])
def test_tensors_of_codes_have_the_norm_of_their_values(quantise, reference):
    layer = quantise(nn.Linear(IN, OUT).requires_grad_(False)).requires_grad_(False)
    values = layer.weight.dequantize()
    [module] = network_on(nn.Sequential(layer), use_dora="True").unet_loras
    module.apply_to()
    reference.perturb(module, 0.1)
    input = torch.randn(20, IN)
    due = F.linear(input.double(), reference.weight(values, module, ALPHA, "dora"), layer.bias.double())
    for _ in range(2):
        output = layer(input)
        output.sum().backward()
        assert torch.allclose(output.double(), due, atol=1e-4)
    assert module.dora_layer.watch.decoded(layer) is not None
