"""LoRA+ by part, for every combination of its ratios: groups and rates by the rule of sd-scripts' networks/lora.py.

The one difference is the specification's: `loraplus_lr_ratio` is not for text encoders.
"""

from itertools import product
from types import SimpleNamespace

import pytest
from torch import nn

from networks import adapt, loha, lora_flux, lora_sd15
from networks.network_args import parse

NAMES = ("loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio")
MODEL_RATE, ENCODER_RATE = 1e-4, 5e-5


class Transformer2DModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.to_q, self.to_k = nn.Linear(4, 4), nn.Linear(4, 4)


class CLIPMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(4, 4)


def network_of(**options):
    return lora_sd15.create_network(1.0, 2, 1.0, None, [CLIPMLP()], nn.Sequential(Transformer2DModel()), **options)


def rates_of(network, **rates):
    """{description: (rate, names of the parameters)}."""
    rates = {"unet_lr": MODEL_RATE, "text_encoder_lr": ENCODER_RATE} | rates
    groups, descriptions = network.prepare_optimizer_params(**rates)
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {
        description: (group["lr"], sorted(names[parameter] for parameter in group["params"]))
        for description, group in zip(descriptions, groups, strict=True)
    }


def expected_groups(part, rate, ratio, layers):
    downs, ups = ([f"{layer}.lora_{role}.weight" for layer in layers] for role in ("down", "up"))
    if ratio is None:
        return {part: (pytest.approx(rate), sorted([*downs, *ups]))}
    return {part: (pytest.approx(rate), downs), f"{part} plus": (pytest.approx(rate * ratio), ups)}


def options_of(ratios):
    return {name: str(ratio) for name, ratio in zip(NAMES, ratios, strict=True) if ratio is not None}


COMBINATIONS = list(product((None, 4.0, 8.0), (None, 2.0, 16.0), (None, 3.0, 8.0)))


@pytest.mark.parametrize("ratios", COMBINATIONS, ids=str)
def test_each_part_has_groups_of_its_ratio(ratios):
    shared, of_model, of_encoders = ratios
    found = rates_of(network_of(**options_of(ratios)))
    model_layers = ["lora_unet_0_to_k", "lora_unet_0_to_q"]
    assert found == {
        **expected_groups("textencoder", ENCODER_RATE, of_encoders, ["lora_te_fc1"]),
        **expected_groups("unet", MODEL_RATE, of_model or shared, model_layers),
    }


ENCODERS_LINE = "sd-scripts would raise it too"


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({}, 0),
        ({"loraplus_lr_ratio": "8"}, 1),
        ({"loraplus_lr_ratio": "8", "loraplus_unet_lr_ratio": "2"}, 1),
        ({"loraplus_lr_ratio": "8", "loraplus_text_encoder_lr_ratio": "2"}, 0),
        ({"loraplus_unet_lr_ratio": "8"}, 0),
    ],
)
def test_shared_ratio_with_trained_encoders_is_logged_once(options, lines, caplog):
    caplog.set_level("INFO")
    rates_of(network_of(**options))
    assert caplog.text.count(ENCODERS_LINE) == lines
    assert "no effect" not in caplog.text


@pytest.mark.parametrize("leave_out", ["rate", "apply_to"])
def test_shared_ratio_without_trained_encoders_is_not_logged(leave_out, caplog):
    caplog.set_level("INFO")
    network = network_of(loraplus_lr_ratio="8")
    if leave_out == "apply_to":
        network.apply_to(None, None, apply_text_encoder=False)
        found = rates_of(network)
    else:
        found = rates_of(network, text_encoder_lr=0)
    assert list(found) == ["unet", "unet plus"]
    assert ENCODERS_LINE not in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loraplus_text_encoder_lr_ratio": "4"}, "loraplus_text_encoder_lr_ratio: no effect, as no text encoder"),
        (
            {"loraplus_lr_ratio": "4", "loraplus_unet_lr_ratio": "2"},
            "loraplus_lr_ratio: no effect, as loraplus_unet_lr_ratio goes before it",
        ),
    ],
)
def test_ratio_without_effect_is_logged(options, message, caplog):
    caplog.set_level("INFO")
    adapt(nn.Sequential(nn.Linear(4, 4)), **options).prepare_optimizer_params(1e-3)
    assert message in caplog.text


@pytest.mark.parametrize("name", NAMES[:2])
def test_ratio_of_untrained_model_is_logged(name, caplog):
    network = network_of(**{name: "4"}, loraplus_text_encoder_lr_ratio="2")
    network.apply_to(None, None, apply_unet=False)
    assert list(rates_of(network)) == ["textencoder", "textencoder plus"]
    assert f"{name}: no effect, as the model is not trained" in caplog.text


def test_set_loraplus_takes_three_ratios():
    network = network_of()
    network.set_loraplus_lr_ratio(8.0, 2.0, 4.0)
    found = rates_of(network)
    assert (found["unet plus"][0], found["textencoder plus"][0]) == pytest.approx((2e-4, 2e-4))
    network.set_loraplus_lr_ratio(8.0)
    found = rates_of(network)
    assert found["unet plus"][0] == pytest.approx(8e-4)
    assert "textencoder plus" not in found


def test_pattern_rate_of_encoder_has_encoder_ratio():
    network = network_of(lr_pattern="{'.*': 1e-3}", loraplus_lr_ratio="8", loraplus_text_encoder_lr_ratio="2")
    found = rates_of(network)
    rates = (found["textencoder 0.001 plus"][0], found["unet 0.001 plus"][0])
    assert rates == pytest.approx((2e-3, 8e-3))


def test_network_of_weights_has_ratios():
    weights = network_of().state_dict()
    network, _ = lora_sd15.create_network_from_weights(
        1.0,
        None,
        None,
        [CLIPMLP()],
        nn.Sequential(Transformer2DModel()),
        weights_sd=weights,
        loraplus_unet_lr_ratio="2",
        loraplus_text_encoder_lr_ratio="4",
    )
    found = rates_of(network)
    assert (found["unet plus"][0], found["textencoder plus"][0]) == pytest.approx((2e-4, 2e-4))


@pytest.mark.parametrize("name", NAMES)
def test_prodigy_names_ratio_of_trained_part(name):
    args = SimpleNamespace(optimizer_type="Prodigy", learning_rate=1.0)
    network = network_of(**{name: "4"})
    with pytest.raises(ValueError, match=f"^{name}: Prodigy finds one learning rate"):
        network.prepare_network(args)
    network_of(**{name: "1"}).prepare_network(args)
    network_of(**{name: "4"}, lr_pattern="{'.*': 0}").prepare_network(args)
    if name == NAMES[2]:
        args.network_train_unet_only = True
        network.prepare_network(args)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ratio", ["0", "-1", "fast"])
def test_ratio_not_above_0_is_refused(name, ratio):
    with pytest.raises(ValueError, match=f"^{name}='{ratio}'"):
        parse({name: ratio})


@pytest.mark.parametrize("name", NAMES)
def test_other_algorithm_refuses_ratio(name):
    def loha_of(**options):
        model = nn.Sequential(Transformer2DModel())
        return loha.create_network(1.0, 4, 2.0, None, None, model, architecture="sd15", **options)

    with pytest.raises(ValueError, match=f"^{name} is not for LoHa"):
        loha_of(**{name: "4"})
    network = loha_of()
    with pytest.raises(ValueError, match=f"^{name} is not for LoHa"):
        network.set_loraplus_lr_ratio(**{NAMES[0]: None, name: 4.0})


def test_each_encoder_of_flux_has_encoder_ratio():
    class DoubleStreamBlock(nn.Module):
        def __init__(self):
            super().__init__()
            self.img_attn = nn.Linear(4, 4)

    class T5Attention(CLIPMLP):
        pass

    network = lora_flux.create_network(
        1.0, 2, 1.0, None, [CLIPMLP(), T5Attention()], nn.Sequential(DoubleStreamBlock()), train_t5xxl="True",
        loraplus_lr_ratio="8", loraplus_text_encoder_lr_ratio="3",
    )  # fmt: skip
    groups, descriptions = network.prepare_optimizer_params_with_multiple_te_lrs([5e-5, 1e-5], 1e-4, 1e-3)
    assert {name: group["lr"] for name, group in zip(descriptions, groups, strict=True)} == pytest.approx(
        {
            "textencoder 1": 5e-5,
            "textencoder 1 plus": 1.5e-4,
            "textencoder 2": 1e-5,
            "textencoder 2 plus": 3e-5,
            "unet": 1e-4,
            "unet plus": 8e-4,
        }
    )
