"""Layers that are not exactly torch's: which are adapted, what is computed beside them, and why the others are not."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from networks import adapt, loha, lokr, lora, oft
from networks.modules.base_forward import follows_its_weight
from networks.modules.lora_module import LoRAModule
from networks.modules.module_merging import LoRAInfModule
from networks.modules.pissa import PissaModule

FEATURES = 16


class PlainLinear(nn.Linear):
    """A class with nothing of its own."""


class CompatibleLinear(nn.Linear):
    """As diffusers had them: a further argument, and torch's own forward."""

    def forward(self, input, scale=1.0):
        return super().forward(input)


class DoubledLinear(nn.Linear):
    """Another function of its weight than torch's."""

    def forward(self, input):
        return F.linear(input, self.weight * 2, self.bias)


class PlainConv2d(nn.Conv2d):
    """A class with nothing of its own."""


class CompatibleConv2d(nn.Conv2d):
    def forward(self, input, scale=1.0):
        return self._conv_forward(input, self.weight, self.bias)


class CausalConv2d(nn.Conv2d):
    """Pads by itself, so that a convolution of the same settings has fewer positions."""

    def forward(self, input):
        return super().forward(F.pad(input, (2, 0, 2, 0)))


class StandardisedConv2d(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class StrictConv2d(nn.Conv2d):
    """Computes with weights of its own shape alone, which what is added to its output has others than."""

    def _conv_forward(self, input, weight, bias):
        assert weight is self.weight
        return super()._conv_forward(input, weight, bias)


class DeeperLinear(nn.Linear):
    def forward(self, input):
        return super().forward(input)[None]


class Codes(torch.Tensor):
    """A weight in codes of 8 bits that has the shape and the dtype of its values, as those of torchao have."""

    @staticmethod
    def __new__(cls, codes, step):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes, step):
        self.codes, self.step = codes, step

    @property
    def values(self):
        return self.codes.float() * self.step

    def dequantize(self):
        return self.values

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].step)
        raise NotImplementedError(f"{function} of codes")

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is F.linear:
            input, weight, bias = args
            return F.linear(input, weight.values, bias)
        return super().__torch_function__(function, types, args, kwargs or {})


class ClosedCodes(Codes):
    dequantize = torch.Tensor.dequantize


def in_codes(layer, kind=Codes):
    step = layer.weight.detach().abs().max() / 127
    codes = (layer.weight.detach() / step).round().to(torch.int8)
    layer.weight = nn.Parameter(kind(codes, step), requires_grad=False)
    return layer


def frozen(layer):
    return layer.requires_grad_(False)


LINEARS = {
    "subclass": lambda: PlainLinear(FEATURES, 24),
    "compatible": lambda: CompatibleLinear(FEATURES, 24),
    "doubled": lambda: DoubledLinear(FEATURES, 24),
    "codes": lambda: in_codes(nn.Linear(FEATURES, 24)),
    "closed codes": lambda: in_codes(nn.Linear(FEATURES, 24), ClosedCodes),
}
CONVOLUTIONS = {
    "subclass": lambda: PlainConv2d(4, 6, 3, padding=1),
    "compatible": lambda: CompatibleConv2d(4, 6, 3, stride=2, dilation=2, padding=2, groups=2),
    "strict": lambda: StrictConv2d(4, 6, 3, padding=1),
}
MODULES = {"lora": lora, "loha": loha, "lokr": lokr, "oft": oft}


def network_on(model, module=lora, **options):
    architecture = {} if module is lora else {"architecture": "krea2"}
    torch.manual_seed(3)
    make = module.create_arch_network if architecture else lora.create_network
    first = () if architecture else (None, "lora_unet")
    return make(*first, 1.0, 4, 2.0, None, None, model, **architecture, **options)


def trained(network):
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def change_of(module, base_output, input):
    """What the module's factors add to an output, in float64, whatever the base."""
    down, up = module.lora_down, module.lora_up
    if isinstance(module.org_module, nn.Linear):
        return module.scale * input.double() @ down.weight.double().t() @ up.weight.double().t()
    base = module.org_module
    grouped = down.weight.double().repeat(base.groups, 1, 1, 1)
    settings = (base.stride, base.padding, base.dilation, base.groups)
    hidden = F.conv2d(input.double(), grouped, None, *settings)
    return module.scale * F.conv2d(hidden, up.weight.double(), groups=base.groups)


@pytest.mark.numeric
@pytest.mark.parametrize("make", [*LINEARS.values(), *CONVOLUTIONS.values()], ids=[*LINEARS, *CONVOLUTIONS])
def test_a_layer_of_any_class_is_adapted_beside_its_own_forward(make):
    torch.manual_seed(0)
    base = frozen(make())
    input = torch.randn(3, 4, 9, 9) if hasattr(base, "kernel_size") else torch.randn(3, 5, FEATURES)
    before = base(input)
    network = network_on(nn.Sequential(base))
    assert [module.org_module for module in network.unet_loras] == [base]
    network.apply_to(None, None)
    assert torch.equal(base(input), before)
    module = trained(network).unet_loras[0]
    wanted = before.double() + change_of(module, before, input)
    assert torch.allclose(base(input).double(), wanted, atol=1e-5)
    base(input).square().sum().backward()
    assert all(parameter.grad.any() for parameter in network.parameters())


@pytest.mark.numeric
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("make", [*LINEARS.values(), CONVOLUTIONS["strict"]], ids=[*LINEARS, "convolution"])
def test_every_algorithm_calls_the_forward_of_a_class(make, name):
    """LoHa, LoKr and OFT add to the output of a class what they add to that of torch's layer with this output."""
    torch.manual_seed(0)
    base = frozen(make())
    is_convolution = hasattr(base, "kernel_size")
    input = torch.randn(3, 4, 9, 9) if is_convolution else torch.randn(3, 5, FEATURES)
    before = base(input)
    # torch's own layer of the weight that the output is made of.
    ours = nn.Conv2d(4, 6, 3, padding=1) if is_convolution else nn.Linear(FEATURES, 24)
    weight = base.weight if type(base.weight) is nn.Parameter else base.weight.values
    with torch.no_grad():
        ours.weight.copy_(weight * (2 if isinstance(base, DoubledLinear) else 1))
        ours.bias.copy_(base.bias)
    frozen(ours)
    networks = [trained(network_on(nn.Sequential(layer), MODULES[name])) for layer in (base, ours)]
    for network in networks:
        network.apply_to(None, None)
    assert not torch.allclose(ours(input), before, atol=1e-3)
    assert torch.allclose(base(input), ours(input), atol=1e-5)
    input.requires_grad_()
    found, wanted = (torch.autograd.grad(layer(input).square().sum(), input)[0] for layer in (base, ours))
    assert torch.allclose(found, wanted, atol=1e-4)


def test_no_fused_product_stands_in_for_the_forward_of_a_class(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the layer's own forward is left out")

    monkeypatch.setattr("networks.modules.lora_module.fused_linear", refuse)
    input = torch.randn(2, FEATURES)
    plain = LoRAModule("x", frozen(nn.Linear(FEATURES, 24)))
    plain.apply_to()
    with pytest.raises(AssertionError, match="left out"):
        plain(input)
    for make in LINEARS.values():
        module = LoRAModule("x", frozen(make()))
        module.apply_to()
        module(input)


def test_a_weight_that_becomes_codes_behind_the_network_is_not_multiplied_as_numbers():
    """torchao's quantize_ exchanges the weights of a model, which may have its network already."""
    base = frozen(nn.Linear(FEATURES, 24))
    module = LoRAModule("x", base)
    module.apply_to()
    in_codes(base)
    input = torch.randn(2, FEATURES)
    assert torch.equal(base(input), F.linear(input, base.weight.values, base.bias))


@pytest.mark.numeric
@pytest.mark.parametrize("make", ["subclass", "compatible", "codes"])
def test_dora_on_a_class_that_follows_its_weight(make, reference):
    torch.manual_seed(0)
    base = frozen(LINEARS[make]())
    module = LoRAModule("x", base, 1.0, 4, 2.0, use_dora=True)
    input = torch.randn(3, FEATURES)
    before = base(input)
    module.apply_to()
    assert torch.allclose(base(input), before, atol=1e-6)
    reference.perturb(module, 0.1)
    weight = base.weight.values if make == "codes" else base.weight
    wanted = F.linear(input.double(), reference.weight(weight, module, 2.0, "dora"), base.bias.double())
    assert torch.allclose(base(input).double(), wanted, atol=1e-5)


def test_dora_on_a_class_of_another_forward_is_refused():
    model = nn.Sequential(frozen(nn.Linear(FEATURES, FEATURES)), frozen(DoubledLinear(FEATURES, 24)))
    for module, option in ((lora, {}), (loha, {}), (lokr, {})):
        with pytest.raises(
            ValueError, match="lora_unet_1: use_dora does not support a DoubledLinear, as its forward uses"
        ):
            network_on(model, module, use_dora="True", **option)
    assert len(network_on(model, use_dora="True", exclude_patterns="['1']").unet_loras) == 1


def test_dora_and_pissa_on_codes_without_known_values_are_refused():
    values = r"stored as ClosedCodes of torch\.float32, but its values are unknown"
    with pytest.raises(ValueError, match=rf"^x: use_dora needs .*{values}"):
        LoRAModule("x", LINEARS["closed codes"](), use_dora=True).apply_to()
    with pytest.raises(ValueError, match=rf"^x: use_dora needs .*{values}"):
        loha.LoHaModule("x", LINEARS["closed codes"](), use_dora=True).apply_to()
    with pytest.raises(ValueError, match=rf"^x: init_lora_weights=pissa needs .*{values}"):
        PissaModule("x", LINEARS["closed codes"]()).apply_to()
    with pytest.raises(ValueError, match=rf"^x: ggpo_sigma needs .*{values}"):
        LoRAModule("x", LINEARS["closed codes"](), ggpo_sigma=1.0, ggpo_beta=1.0)


class Int8Linear(nn.Module):
    """A layer with a product of its own codes, whose rule is unknown."""

    def __init__(self):
        super().__init__()
        self.in_features = self.out_features = 8
        self.bias = None
        self.register_buffer("weight", torch.ones(8, 8, dtype=torch.int8))

    def forward(self, x):
        return nn.functional.linear(x, self.weight.float())


@pytest.mark.parametrize(("options", "name"), [({"dora": True}, "use_dora"), ({"init_lora_weights": "pissa"}, "pissa")])
def test_dora_and_pissa_on_codes_name_layer_and_option(options, name):
    with pytest.raises(ValueError, match=f"lora_unet_1: .*{name}.*exclude_patterns"):
        adapt(nn.Sequential(nn.Linear(8, 8), Int8Linear()), rank=2, **options)


@pytest.mark.numeric
def test_pissa_takes_the_components_of_the_values_of_codes():
    torch.manual_seed(0)
    base = LINEARS["codes"]()
    module = PissaModule("x", base, 1.0, 2, 2.0)
    module.apply_to()
    left, values, right = torch.linalg.svd(base.weight.values, full_matrices=False)
    wanted = left[:, :2] @ torch.diag(values[:2]) @ right[:2]
    assert torch.allclose(module.initial_up @ module.initial_down, wanted, atol=1e-5)


@pytest.mark.numeric
@pytest.mark.parametrize("make", [LINEARS["subclass"], LINEARS["compatible"], *CONVOLUTIONS.values()])
def test_a_class_that_follows_its_weight_is_merged(make):
    torch.manual_seed(0)
    base = frozen(make())
    input = torch.randn(3, 4, 9, 9) if hasattr(base, "kernel_size") else torch.randn(3, FEATURES)
    merged = copy.deepcopy(base)
    running = trained(network_on(nn.Sequential(base)))
    running.apply_to(None, None)
    weights = running.state_dict()
    merging = lora.create_network_from_weights(None, 1.0, weights, None, nn.Sequential(merged), for_inference=True)
    merging.merge_to(None, None, weights)
    assert torch.allclose(merged(input), base(input), atol=1e-5)


# The base, and what the error says of it.
NO_MERGE = {
    "another forward": (lambda: DoubledLinear(8, 8), "DoubledLinear, and its forward uses the weight differently"),
    "codes": (
        lambda: in_codes(nn.Linear(8, 8)),
        r"stored as Codes of torch\.float32, and no change can be added to that",
    ),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Linear(8, 8)), "computes its weight from other tensors"),
}


@pytest.mark.parametrize("case", NO_MERGE)
def test_a_merge_that_would_be_another_change_is_refused(case):
    make, says = NO_MERGE[case]
    base = frozen(make())
    module = LoRAInfModule("x", base)
    before, factors = (
        [tensor.clone() for tensor in base.parameters() if type(tensor) is nn.Parameter],
        module.state_dict(),
    )
    with pytest.raises(ValueError, match=f"x: the base .*{says}"):
        module.merge_to(factors)
    with pytest.raises(ValueError, match=says):
        module.pre_calculation()
    assert module.enabled
    now = [tensor for tensor in base.parameters() if type(tensor) is nn.Parameter]
    assert all(torch.equal(tensor, was) for tensor, was in zip(now, before, strict=True))


def test_a_weight_that_a_hook_makes_is_not_merged_into():
    with pytest.warns(FutureWarning):
        base = weight_norm(nn.Linear(8, 8))
    with pytest.raises(ValueError, match="computes its weight from other tensors"):
        LoRAInfModule("x", base).merge_to(LoRAInfModule("x", base).state_dict())


def test_a_checkpoint_s_weight_in_codes_is_not_merged_into():
    weight = in_codes(nn.Linear(FEATURES, 24)).weight
    network = network_on(nn.Sequential(nn.Linear(FEATURES, 24)), loha)
    weights = {f"x.{key}": tensor for key, tensor in network.unet_loras[0].state_dict().items()}
    with pytest.raises(ValueError, match="x: the base is stored as Codes of"):
        loha.merge_weights_to_tensor(weight, "x", weights, set(weights), 1.0, "cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_forward_of_a_class_is_tried_without_a_trace(dtype):
    follows = [PlainLinear(8, 6), CompatibleLinear(8, 6), *[make() for make in CONVOLUTIONS.values()]]
    others = [
        DoubledLinear(8, 6),
        DeeperLinear(8, 6),
        CausalConv2d(4, 6, 3),
        StandardisedConv2d(4, 6, 3),
        nn.utils.skip_init(Odd, 8, 6),
    ]
    for layer in (*follows, *others):
        layer.to(dtype)
        weight, generator = layer.weight, torch.get_rng_state()
        assert follows_its_weight(layer) == (layer in follows), layer
        assert layer.weight is weight
        assert torch.equal(torch.get_rng_state(), generator)


class Odd(nn.Linear):
    def forward(self, input):
        raise RuntimeError("codes first")


def in_block(*layers):
    """A model of one block of one class, and a Linear outside of it."""

    class Block(nn.Sequential):
        pass

    return nn.Sequential(Block(*layers), nn.Linear(4, 4))


def said_of(model, caplog, **options):
    with caplog.at_level(logging.INFO):
        network = lora.create_network(["Block"], "lora_unet", 1.0, 4, 2.0, None, None, model, **options)
    return network, caplog.messages


def lazy():
    return nn.LazyLinear(4)


def packed():
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(torch.zeros(8, 4))
    return layer


def integers():
    layer = nn.Linear(8, 8)
    layer.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    return layer


def emptied():
    layer = nn.Linear(8, 8)
    layer.weight = None
    return layer


# A layer that is left out beside one that is not: its path in the block, and what is said of it.
LEFT_OUT = {
    "integers": (integers, "", "its class is Linear, and its weight is stored as int8"),
    "packed": (packed, "", "its class is Linear, and its weight has the shape [8, 4] instead of [8, 8]"),
    "emptied": (emptied, "", "its class is Linear, and it has no weight"),
    "lazy": (lazy, "", "its class is LazyLinear, and its sizes are not known before its first input"),
    "causal": (
        lambda: CausalConv2d(4, 6, 3),
        "",
        "its class is CausalConv2d, and its forward is not the convolution of its settings",
    ),
    "standardised": (
        lambda: StandardisedConv2d(4, 6, 3),
        "",
        "its class is StandardisedConv2d, and its forward is not the convolution of its settings",
    ),
    "attention": (
        lambda: nn.MultiheadAttention(8, 2),
        ".out_proj",
        "its class is NonDynamicallyQuantizableLinear, and MultiheadAttention computes with its weight and does not "
        "call it",
    ),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 4, 3),
        "",
        "its class ConvTranspose2d is no Linear layer and no convolution",
    ),
    "embedding": (lambda: nn.Embedding(4, 4), "", "its class Embedding is no Linear layer and no convolution"),
    "norm": (lambda: nn.LayerNorm(4), "", "its class LayerNorm is no Linear layer and no convolution"),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_verbose_lists_every_layer_that_is_left_out_with_the_reason(case, caplog):
    make, path, reason = LEFT_OUT[case]
    model = in_block(nn.Linear(8, 8), make(), nn.Identity())
    network, lines = said_of(model, caplog, verbose="True")
    assert [module.lora_name for module in network.unet_loras] == ["lora_unet_0_0"]
    assert f"0.1{path}: not adapted, because {reason}" in lines
    assert "1: not adapted, because it is in no block of the classes that are adapted, Block" in lines
    assert not any(line.startswith("0.2:") for line in lines)
    # The layers that a program could have meant to train are told of in any case.
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert [line.endswith(f"{reason}; verbose=True lists them") for line in warned] == [True] * reason.startswith(
        "its class is"
    )


# The classes of the blocks, the model, and what the error has to name.
NOTHING = {
    "quantised": (
        ["Block"],
        lambda: in_block(integers()),
        ["1 layer cannot be adapted: 1 as its class is Linear,", "int8"],
    ),
    "no block": (
        ["Other"],
        lambda: in_block(nn.Linear(4, 4)),
        ["no block of the classes Other", "Block, Linear, Sequ"],
    ),
    "empty block": (["Block"], lambda: in_block(nn.LayerNorm(4)), ["no Linear layer and no convolution", "LayerNorm"]),
    "no layer": (None, lambda: nn.Sequential(nn.Embedding(4, 4)), ["no Linear layer and no conv", "Embedding, Sequ"]),
}


@pytest.mark.parametrize("case", NOTHING)
def test_an_error_names_the_classes_where_nothing_can_be_adapted(case):
    classes, make, named = NOTHING[case]
    with pytest.raises(RuntimeError, match="No LoRA modules found: ") as error:
        lora.create_network(classes, "lora_unet", 1.0, 4, 2.0, None, None, make()).apply_to(None, None)
    assert all(part in str(error.value) for part in named), str(error.value)


def test_an_exclude_of_everything_is_named_and_not_the_model(make_model):
    for options, says in (
        (
            {"exclude_patterns": "['.*']"},
            r"every layer that could be adapted is left out: 10 as it matches the exclude ",
        ),
        ({"exclude_patterns": "['.*']"}, r"exclude pattern '\.\*'"),
        ({"exclude_patterns": "['.*mod', '.*attn.*']", "enable_conv2d": "False"}, "4 as enable_conv2d is False"),
    ):
        network = lora.create_network(["Block"], "lora_unet", 1.0, 4, 2.0, None, None, make_model(), **options)
        with pytest.raises(RuntimeError, match=says):
            network.apply_to(None, None)


def test_weights_for_a_layer_that_cannot_be_adapted_say_why():
    weights = network_on(nn.Sequential(nn.Linear(8, 8))).state_dict()
    with pytest.raises(
        ValueError, match="lora_unet_0: 0 cannot be adapted, because its class is Linear, and its weight"
    ):
        lora.create_network_from_weights(None, 1.0, weights, None, nn.Sequential(integers()))


@pytest.mark.numeric
def test_convolutions_of_one_dimension_are_adapted():
    torch.manual_seed(0)
    model = frozen(nn.Sequential(nn.Conv1d(4, 6, 3, padding=1)))
    merged = copy.deepcopy(model)
    network = trained(network_on(model))
    network.apply_to(None, None)
    weights = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    merging = lora.create_network_from_weights(None, 1.0, weights, None, merged, for_inference=True)
    merging.merge_to(None, None, weights)
    input = torch.randn(2, 4, 9)
    assert torch.allclose(merged(input), model(input), atol=1e-5)
    with pytest.raises(RuntimeError, match="enable_conv2d is False"):
        network_on(nn.Sequential(nn.Conv1d(4, 6, 3)), enable_conv2d="False").apply_to(None, None)
