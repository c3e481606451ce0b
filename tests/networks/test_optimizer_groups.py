"""Parameter groups by learning rate, kind and pattern, for every algorithm."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import networks
from networks import lora, lora_wan

MODULES = [
    importlib.import_module(f"networks.{file.stem}")
    for file in sorted(Path(networks.__file__).parent.glob("*.py"))
    if "functions_of(" in file.read_text() and not file.stem.startswith("lora_")
]
PATTERNS = {r".*0\.attn\..*": 5e-5, ".*conv": 2e-4, ".*attn.*": 5e-5, r".*\.point": 0}


def create(model, **options):
    return lora.create_network(["Block"], "lora_unet", 1.0, 4, 2.0, None, None, model, **options)


def by_description(network, rate=1e-3):
    groups, descriptions = network.prepare_optimizer_params(unet_lr=rate)
    assert len(set(descriptions)) == len(descriptions)
    names = {parameter: name.removeprefix("lora_unet_blocks_") for name, parameter in network.named_parameters()}
    return {
        description: (group["lr"], [names[parameter] for parameter in group["params"]])
        for description, group in zip(descriptions, groups, strict=True)
    }


def test_a_group_for_each_rate_and_kind_in_the_order_of_the_patterns(make_model):
    found = by_description(create(make_model(), lr_pattern=PATTERNS, use_dora=True, loraplus_lr_ratio=8))
    assert {description: rate for description, (rate, _) in found.items()} == pytest.approx(
        {
            "unet": 1e-3,
            "unet plus": 8e-3,
            "unet dora": 1e-3,
            "unet 5e-05": 5e-5,
            "unet 5e-05 plus": 4e-4,
            "unet 5e-05 dora": 5e-5,
            "unet 0.0002": 2e-4,
            "unet 0.0002 plus": 1.6e-3,
        }
    )
    assert list(found)[:3] == ["unet", "unet plus", "unet dora"]
    assert list(found)[3:6] == ["unet 5e-05", "unet 5e-05 plus", "unet 5e-05 dora"]
    attention = [f"{block}_attn_{leaf}" for block in range(2) for leaf in ("to_q", "to_out")]
    assert {description: names for description, (_, names) in found.items()} == {
        "unet": ["0_img_mod.lora_down.weight", "1_img_mod.lora_down.weight"],
        "unet plus": ["0_img_mod.lora_up.weight", "1_img_mod.lora_up.weight"],
        "unet dora": ["0_img_mod.dora_layer.weight", "1_img_mod.dora_layer.weight"],
        "unet 5e-05": [f"{name}.lora_down.weight" for name in attention],
        "unet 5e-05 plus": [f"{name}.lora_up.weight" for name in attention],
        "unet 5e-05 dora": [f"{name}.dora_layer.weight" for name in attention],
        "unet 0.0002": ["0_conv.lora_down.weight", "1_conv.lora_down.weight"],
        "unet 0.0002 plus": ["0_conv.lora_up.weight", "1_conv.lora_up.weight"],
    }


def test_the_first_pattern_counts_and_the_whole_path(make_model):
    patterns = {"to_q": 1.0, r"blocks\.0.*to_q": 2.0, ".*to_q": 3.0, ".*": 4.0}
    found = by_description(create(make_model(), lr_pattern=str(patterns)))
    counts = {description: len(names) for description, (_, names) in found.items()}
    assert counts == {"unet 2.0": 2, "unet 3.0": 2, "unet 4.0": 16}


def test_groups_do_not_depend_on_the_trainer_s_rate(make_model):
    """So that the state of an optimiser fits that of another rate."""
    options = {"lr_pattern": PATTERNS}
    alike = [list(by_description(create(make_model(), **options), rate).values()) for rate in (1e-3, 5e-5)]
    assert [names for _, names in alike[0]] == [names for _, names in alike[1]]


@pytest.mark.parametrize("rate", [0, 0.0, None])
def test_patterns_alone_have_a_rate(make_model, rate, caplog):
    caplog.set_level("INFO")
    network = create(make_model(), lr_pattern=PATTERNS)
    assert list(by_description(network, rate)) == ["unet 5e-05", "unet 0.0002"]
    assert len(network.get_trainable_params()) == 2 * (2 + 4)
    assert f"unet: the learning rate is {rate}, so its 4 parameters are not trained" in caplog.text
    assert "unet 0.0: the learning rate is 0.0, so its 4 parameters are not trained" in caplog.text
    assert "unet 0.0002: 4 parameters at the learning rate 0.0002" in caplog.text


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_algorithm_trains_at_the_rates_and_leaves_what_has_none(wan, wan_input, module):
    model = wan()
    make = lora_wan if module is lora else module
    options = {"lr_pattern": {r".*\.attn2\..*": 0, r".*\.ffn\..*": 1e-4}}
    network = make.create_arch_network(1.0, 4, 2.0, None, None, model, **options)
    network.apply_to(None, model)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    groups, descriptions = network.prepare_optimizer_params(unet_lr=1e-3)
    assert descriptions == ["unet", "unet 0.0001"]
    frozen = {name for name, _ in network.named_parameters() if "attn2" in name}
    kept = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    assert 0 < len(frozen) < len(kept)
    network.prepare_grad_etc(model)
    network.on_epoch_start(model)
    optimizer = torch.optim.SGD(groups)
    for _ in range(2):
        model(**wan_input).sample.square().mean().backward()
        torch.nn.utils.clip_grad_norm_(network.get_trainable_params(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    network.apply_max_norm_regularization(1e-3)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, kept[name]) == (name in frozen), name
        assert parameter.requires_grad == (name not in frozen)


def test_schedulers_multiply_each_rate(make_model):
    groups, _ = create(make_model(), lr_pattern=PATTERNS).prepare_optimizer_params(unet_lr=1e-3)
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    before = [group["lr"] for group in groups]
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate / 2 for rate in before])


def test_a_network_made_from_weights_has_the_rates_too(make_model, caplog):
    weights = create(make_model()).state_dict()
    options = {"lr_pattern": {"nothing": 1.0, **PATTERNS}}
    network = lora.create_arch_network_from_weights(1.0, weights, unet=make_model(), **options)
    assert by_description(network) == by_description(create(make_model(), lr_pattern=PATTERNS))
    assert "lr_pattern: 'nothing' matches no layer that could be adapted" in caplog.text
    assert "no effect" not in caplog.text


def test_layers_that_a_file_takes_in_have_their_rate(make_model, tmp_path):
    file = str(tmp_path / "all.safetensors")
    create(make_model()).save_weights(file, None, None)
    network = create(make_model(), default_exclude_patterns=[".*img_mod"], lr_pattern={".*img_mod": 3e-4})
    network.load_weights(file)
    assert len(by_description(network)["unet 0.0003"][1]) == 4


# What ends a step where the rates of two groups differ, as trainers name it (prodigyopt 1.1.2, dadaptation 3.2).
OF_ONE_RATE = ("prodigyopt.Prodigy", "Prodigy", "DAdaptation", "DAdaptAdam", "dadaptation.DAdaptLion", "DAdaptSGD")
OTHERS = ("AdamW", "prodigyplus.ProdigyPlusScheduleFree", "DAdaptAdaGrad", "DAdaptAdan", "", None)
SEVERAL = {
    "loraplus_lr_ratio": {"loraplus_lr_ratio": "4"},
    "lr_pattern": {"lr_pattern": "{'.*attn.*': 0.5}"},
    "loraplus_lr_ratio and lr_pattern": {"loraplus_lr_ratio": "4", "lr_pattern": "{'.*attn.*': 0.5}"},
}
ONE = (
    {},
    {"loraplus_lr_ratio": "1"},
    {"lr_pattern": "{'.*attn.*': 0}"},
    {"lr_pattern": "{'.*attn.*': 1.0}"},
    {"lr_pattern": "{'.*': 0.5}"},
)


@pytest.mark.parametrize("optimizer", OF_ONE_RATE)
@pytest.mark.parametrize("named", SEVERAL)
def test_prodigy_ends_the_first_step_where_options_make_several_rates(make_model, optimizer, named):
    args = SimpleNamespace(optimizer_type=optimizer, learning_rate=1.0)
    name = optimizer.rpartition(".")[2]
    with pytest.raises(ValueError, match=f"^{named}: {name} finds one learning rate for all parameters"):
        create(make_model(), **SEVERAL[named]).prepare_network(args)


@pytest.mark.parametrize("optimizer", [*OF_ONE_RATE, *OTHERS])
def test_prodigy_takes_options_that_make_one_rate(make_model, optimizer):
    args = SimpleNamespace(optimizer_type=optimizer, learning_rate=1.0)
    for options in (*ONE, *(SEVERAL.values() if optimizer in OTHERS else ())):
        network = create(make_model(), **options)
        network.prepare_network(args)
        groups, _ = network.prepare_optimizer_params(unet_lr=1.0)
        assert (len({group["lr"] for group in groups}) == 1) == (options in ONE)


def test_the_rate_of_sd_scripts_counts_for_prodigy(make_model):
    """It has one for the model, which goes before the one for all."""
    network = create(make_model(), lr_pattern={".*attn.*": 0.5})
    network.prepare_network(SimpleNamespace(optimizer_type="Prodigy", learning_rate=1.0, unet_lr=0.5))
    with pytest.raises(ValueError, match="lr_pattern: Prodigy"):
        network.prepare_network(SimpleNamespace(optimizer_type="Prodigy", learning_rate=0.5, unet_lr=1.0))


@pytest.mark.parametrize("module", [*MODULES, lora_wan], ids=lambda module: module.__name__)
def test_trainers_find_the_name_that_they_look_for_before_prepare_network(module, make_model):
    """musubi-tuner calls the network's method only where the module has the name."""
    network = create(make_model(), loraplus_lr_ratio="4")
    with pytest.raises(ValueError, match="loraplus_lr_ratio: Prodigy"):
        module.prepare_network(network, SimpleNamespace(optimizer_type="prodigyopt.Prodigy", learning_rate=1.0))
