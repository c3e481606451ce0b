"""What does not fit is an error that names it; nothing is dropped without a word."""

import logging
import os
import re

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from lora_inspect.cli.group import cli
from networks import lora, lora_wan


def create(model, **options):
    network = lora.create_network(
        ["Block"], "lora_unet", 1.0, 4, options.pop("alpha", 3.0), None, None, model, **options
    )
    network.apply_to(None, model)
    return network


@pytest.fixture
def saved(make_model, tmp_path):
    """Writes the weights of a network with these options, changed by `change`, and returns the file."""

    def write(change=None, metadata=None, **options):
        weights = {key: tensor.clone() for key, tensor in create(make_model(), **options).state_dict().items()}
        weights = change(weights) if change else weights
        save_file(weights, tmp_path / "weights.safetensors", metadata)
        return str(tmp_path / "weights.safetensors")

    return write


def without(*parts):
    return lambda weights: {key: tensor for key, tensor in weights.items() if not any(part in key for part in parts)}


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"use_dora": True}, {"use_rslora": True, "use_dora": True}]
)
def test_a_file_of_the_same_options_loads_without_a_warning(make_model, saved, caplog, options):
    network = create(make_model(5), **options)
    with caplog.at_level(logging.WARNING):
        result = network.load_weights(saved(**options))
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert caplog.messages == []


@pytest.mark.parametrize(("network_has", "file_has"), [(True, False), (False, True)])
def test_rslora_mismatch(make_model, saved, network_has, file_has):
    network = create(make_model(), use_rslora=network_has)
    with pytest.raises(ValueError, match="RS-LoRA flag mismatch") as error:
        network.load_weights(saved(use_rslora=file_has, alpha=1.0))
    assert "Hint" not in str(error.value)


def test_rslora_mismatch_with_the_hint(make_model, saved):
    file = saved(without("flag"), use_rslora=True, alpha=0)
    with pytest.raises(ValueError, match=r"RS-LoRA flag mismatch.*100% of the alphas equal sqrt\(rank\)"):
        create(make_model(), use_rslora=True).load_weights(file)


def test_rslora_mismatch_with_a_file_of_lycoris_has_no_hint(make_model, saved):
    file = saved(without("flag"), {"ss_network_module": "lycoris.kohya"}, use_rslora=True, alpha=0)
    with pytest.raises(ValueError, match="RS-LoRA flag mismatch") as error:
        create(make_model(), use_rslora=True).load_weights(file)
    assert "Hint" not in str(error.value)


def test_a_file_without_flags_that_looks_like_rslora_is_a_warning(make_model, saved, caplog):
    with caplog.at_level(logging.WARNING):
        create(make_model()).load_weights(saved(without("flag"), use_rslora=True, alpha=0))
    assert "sqrt(rank)" in caplog.text


STRIPPED = {"file": str, "pickle": lambda file: as_pickle(file)}


def as_pickle(file):
    torch.save(load_file(file), file.replace("safetensors", "pt"))
    return file.replace("safetensors", "pt")


@pytest.mark.parametrize("strip", STRIPPED.values(), ids=STRIPPED)
def test_alphas_of_sqrt_rank_without_flags_are_not_taken_for_a_standard_file_of_alpha_1(make_model, saved, strip):
    """RS-LoRA of alpha 0 in native form and RS-LoRA of alpha 1 in standard form store the same alphas."""
    file = strip(saved(without("flag"), use_rslora=True, alpha=0))
    network = create(make_model(5), use_rslora=True, alpha=1.0)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(ValueError, match=r"RS-LoRA flag mismatch.*100% of the alphas equal sqrt\(rank\)") as error:
        network.load_weights(file)
    assert "lora-inspect metadata set FILE 'lora_inspect.scale=alpha/sqrt(rank)' --allow-meaning-change" in str(error)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_the_way_out_of_the_hint_loads_the_file(make_model, saved):
    file = saved(without("flag"), use_rslora=True, alpha=0)
    command = ["metadata", "set", file, "lora_inspect.scale=alpha/sqrt(rank)", "--allow-meaning-change"]
    assert CliRunner().invoke(cli, command).exit_code == 0
    network = create(make_model(5), use_rslora=True, alpha=1.0)
    network.load_weights(file)
    assert {lora.scale for lora in network.unet_loras} == {1.0}


# The file's options and metadata, those of the network, and the scale by the formula: 2/4, or 2/sqrt(4).
NEAR_MISSES = {
    "standard form": ({"use_rslora": True, "alpha": 1.0, "save_format": "standard"}, {}, {"use_rslora": True}, 0.5),
    "our metadata": (
        {"use_rslora": True, "alpha": 0},
        {"lora_inspect.scale": "alpha/sqrt(rank)"},
        {"use_rslora": True},
        1.0,
    ),
    "asked as 0": ({"use_rslora": True, "alpha": 0}, {"ss_network_alpha": "0.0"}, {"use_rslora": True}, 1.0),
    "asked as 2": ({"alpha": 2.0}, {"ss_network_alpha": "2.0"}, {"use_rslora": True}, 0.5),
    "asked as 2, plain": ({"alpha": 2.0}, {"ss_network_alpha": "2.0"}, {}, 0.5),
    "plain": ({"alpha": 2.0}, None, {}, 0.5),
    "plain, of the same alpha": ({"alpha": 2.0}, None, {"alpha": 2.0}, 0.5),
}


@pytest.mark.parametrize("case", NEAR_MISSES)
def test_alphas_of_sqrt_rank_that_something_explains_load(make_model, tmp_path, case):
    """Rank 4 with alpha 2 is plain LoRA as well."""
    options, metadata, own, scale = NEAR_MISSES[case]
    file = str(tmp_path / "weights.safetensors")
    create(make_model(), **options).save_weights(file, None, None)
    weights = {key: tensor for key, tensor in load_file(file).items() if "flag" not in key}
    assert {float(tensor) for key, tensor in weights.items() if key.endswith(".alpha")} == {2.0}
    if metadata != {}:
        save_file(weights, file, metadata)
    network = create(make_model(5), **{"alpha": 1.0, **own})
    network.load_weights(file)
    assert {lora.scale for lora in network.unet_loras} == {scale}


@pytest.mark.numeric
def test_a_network_of_a_standard_file_of_alpha_1_merges_its_tensors_alone(make_model, tmp_path):
    """Generators make the network with the metadata and merge without: its own alphas are those of the file then."""
    file, x = str(tmp_path / "weights.safetensors"), torch.randn(2, 8, 12)
    trained, merged = make_model(), make_model()
    network = create(trained, use_rslora=True, alpha=1.0, save_format="standard")
    with torch.no_grad():
        for module in network.unet_loras:
            module.lora_up.weight.normal_(std=0.1)
    network.save_weights(file, None, None)
    merging, weights = lora.create_network_from_weights(
        1.0, file, None, None, merged, for_inference=True, use_rslora="True"
    )
    merging.merge_to(None, merged, weights)
    assert torch.allclose(merged(x), trained(x), atol=1e-5)


@pytest.mark.parametrize(("told", "scale"), [({}, 0.5), ({"use_rslora": "True"}, 1.0)])
def test_a_network_of_alphas_of_sqrt_rank_says_how_it_reads_them(make_model, saved, caplog, told, scale):
    weights = load_file(saved(without("flag"), use_rslora=True, alpha=0))
    with caplog.at_level(logging.WARNING):
        network = lora.create_arch_network_from_weights(1.0, weights, unet=make_model(), **told)
    assert {lora.scale for lora in network.unet_loras} == {scale}
    assert "The weights do not state RS-LoRA" in caplog.text


def test_our_metadata_settles_the_rule_where_flags_were_lost(make_model, saved):
    file = saved(without("flag"), {"lora_inspect.scale": "alpha/sqrt(rank)"}, use_rslora=True)
    create(make_model(), use_rslora=True).load_weights(file)
    with pytest.raises(ValueError, match="RS-LoRA flag mismatch"):
        create(make_model()).load_weights(file)


@pytest.mark.parametrize("change", [None, without("dora")])
def test_dora_expected_but_missing(make_model, saved, change):
    file = saved(change, use_dora=change is not None)
    with pytest.raises(ValueError, match="DoRA flag mismatch: network expects DoRA but weights lack it"):
        create(make_model(), use_dora=True).load_weights(file)


def test_dora_missing_although_the_flag_says_it(make_model, saved):
    with pytest.raises(ValueError, match="use_dora_flag is True"):
        create(make_model()).load_weights(saved(without("dora_layer"), use_dora=True))
    with pytest.raises(ValueError, match="DoRA flag mismatch: network expects DoRA but weights lack it"):
        create(make_model(), use_dora=True).load_weights(saved(without("dora_layer"), use_dora=True))


def test_dora_not_expected_is_a_warning(make_model, saved, caplog):
    network = create(make_model())
    with caplog.at_level(logging.WARNING):
        network.load_weights(saved(use_dora=True))
    assert "DoRA flag mismatch: weights contain DoRA but network doesn't expect it" in caplog.text
    assert not network.use_dora
    assert "use_dora_flag" not in network.state_dict()


def test_the_flag_is_not_flipped_by_a_file(make_model):
    network = create(make_model(), use_rslora=True)
    network.load_state_dict(network.state_dict() | {"use_dora_flag": torch.tensor(True)})
    assert not network.state_dict()["use_dora_flag"]
    with pytest.raises(RuntimeError, match="RS-LoRA flag mismatch"):
        network.load_state_dict(network.state_dict() | {"use_rslora_flag": torch.tensor(False)})


def test_partial_magnitudes_are_named(make_model, saved):
    file = saved(without("blocks_0_attn_to_q.dora", "blocks_1_img_mod.dora"), use_dora=True)
    with pytest.raises(ValueError, match="2 are missing") as error:
        create(make_model(), use_dora=True).load_weights(file)
    assert "lora_unet_blocks_0_attn_to_q.dora_layer.weight" in str(error.value)


def test_flags_are_optional(make_model, saved):
    create(make_model(), use_dora=True).load_weights(saved(without("flag"), use_dora=True))
    create(make_model()).load_weights(
        saved(lambda weights: weights | {"use_rslora_flag": torch.tensor(0.0), "use_dora_flag": torch.tensor(False)})
    )


def test_the_file_s_alpha_is_the_one_that_counts(make_model, saved):
    network = create(make_model(), alpha=1.0)
    network.load_weights(saved(alpha=8.0))
    assert {module.scale for module in network.unet_loras} == {2.0}
    # Without an alpha the scale is 1, whatever the network was made with.
    network.load_weights(saved(without("alpha")))
    assert {(module.scale, module.alpha.item()) for module in network.unet_loras} == {(1.0, 4.0)}


def rename(old, new):
    return lambda weights: {key.replace(old, new): tensor for key, tensor in weights.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename("lora_unet_", "lora_te_"), "no module of the weights is in the network"),
        (
            rename("blocks_0_img_mod", "blocks_7_img_mod"),
            "1 module of the weights is not in the network: lora_unet_blocks_7",
        ),
        (rename("blocks_0_img_mod.lora_up", "blocks_0_img_mod.hada_up"), "cannot be used"),
        (
            without("blocks_0_img_mod.lora_up"),
            r"lora_unet_blocks_0_img_mod\.lora_down\.weight is there, but its module has no up factor",
        ),
        (without("blocks_0_img_mod.lora"), r"1 tensor .* LoRA network: lora_unet_blocks_0_img_mod\.alpha"),
        (lambda w: w | {"lora_unet_blocks_0_img_mod.alpha": torch.tensor(0.0)}, "alpha is 0"),
        (lambda w: w | {"lora_unet_blocks_0_img_mod.alpha": torch.ones(2)}, "single number"),
        (lambda w: w | {"lora_unet_blocks_0_img_mod.lora_up.weight": torch.ones(12, 3)}, r"rank 4 and up .* rank 3"),
        (lambda w: w | {"lora_unet_blocks_0_img_mod.lora_up.weight": torch.ones(13, 4)}, "another model"),
        (
            lambda w: w | {"lora_unet_blocks_0_img_mod.lora_up.weight": torch.ones(())},
            r"down \[4, 12\] and up \[\] need at least two dimensions",
        ),
        (
            lambda w: w | {"lora_unet_blocks_0_img_mod.lora_down.weight": torch.ones(0, 12)},
            r"down \[0, 12\] .* is empty",
        ),
        (lambda w: w | {"extra": torch.ones(1)}, "1 tensor of the weights cannot be used"),
        (
            lambda w: w | {"lora_unet_blocks_0_img_mod.lora_up.weight": torch.full((12, 4), torch.nan)},
            "lora_unet_blocks_0_img_mod.lora_up.weight holds NaN or infinity",
        ),
        (lambda w: {}, "no LoRA module"),
    ],
)
def test_what_does_not_fit(make_model, saved, change, message):
    file = saved(change)
    with pytest.raises(ValueError, match=message):
        create(make_model()).load_weights(file)


def test_another_rank(make_model, saved):
    network = lora.create_network(["Block"], "lora_unet", 1.0, 8, 2.0, None, None, make_model())
    with pytest.raises(ValueError, match="has rank 4, but the network has rank 8"):
        network.load_weights(saved())


def test_fewer_modules_than_the_network_has_is_a_warning(make_model, saved, caplog):
    with caplog.at_level(logging.WARNING):
        result = create(make_model()).load_weights(saved(without("blocks_0")))
    assert "no weights for 5 of the network's 10 modules" in caplog.text
    assert len(result.missing_keys) == 15


def weights_of(model, **options):
    return create(model, **options).state_dict()


def test_from_weights_finds_modules_outside_the_target_classes(make_model):
    network = lora.create_network(None, "lora_unet", 1.0, 2, 1.0, None, None, make_model())
    found = lora_wan.create_arch_network_from_weights(1.0, network.state_dict(), unet=make_model())
    names = {module.lora_name for module in found.unet_loras}
    assert "lora_unet_embed" in names
    assert len(names) == 11
    assert {type(module) for module in found.unet_loras} == {lora.LoRAModule}


def test_from_weights_reads_ranks_alphas_and_rules(make_model):
    weights = weights_of(make_model(), use_rslora=True, use_dora=True, conv_dim=2, conv_alpha=6.0)
    weights.pop("lora_unet_blocks_0_point.alpha")
    found = {m.lora_name: m for m in lora.create_arch_network_from_weights(0.7, weights, unet=make_model()).unet_loras}
    assert found["lora_unet_blocks_0_attn_to_q"].scale == pytest.approx(3 / 2)
    assert found["lora_unet_blocks_0_conv"].scale == pytest.approx(6 / 2**0.5)
    assert found["lora_unet_blocks_0_point"].scale == 1.0
    assert found["lora_unet_blocks_0_attn_to_q"].use_dora
    assert {module.multiplier for module in found.values()} == {0.7}


def test_from_weights_reads_slices(make_model):
    weights = {"lora_unet_embed.alpha": torch.tensor(2.0)}
    for number, size in enumerate((4, 3, 5)):
        weights[f"lora_unet_embed.lora_down.{number}.weight"] = torch.randn(2, 12)
        weights[f"lora_unet_embed.lora_up.{number}.weight"] = torch.randn(size, 2)
    model = make_model()
    base = model.embed.weight.clone()
    network = lora.create_arch_network_from_weights(1.0, weights, unet=model, for_inference=True)
    assert network.unet_loras[0].split_dims == [4, 3, 5]
    network.merge_to(None, model, weights)
    parts = [
        weights[f"lora_unet_embed.lora_up.{n}.weight"] @ weights[f"lora_unet_embed.lora_down.{n}.weight"]
        for n in range(3)
    ]
    assert torch.allclose(model.embed.weight, base + torch.cat(parts), atol=1e-5)


def test_a_1x1_convolution_may_be_stored_as_a_linear(make_model):
    weights = {
        "lora_unet_blocks_0_point.lora_down.weight": torch.randn(2, 12),
        "lora_unet_blocks_0_point.lora_up.weight": torch.randn(12, 2),
    }
    model = make_model()
    base = model.blocks[0].point.weight.clone()
    network = lora.create_arch_network_from_weights(1.0, weights, unet=model, for_inference=True)
    network.merge_to(None, model, weights)
    product = weights["lora_unet_blocks_0_point.lora_up.weight"] @ weights["lora_unet_blocks_0_point.lora_down.weight"]
    assert torch.allclose(model.blocks[0].point.weight[:, :, 0, 0], base[:, :, 0, 0] + product, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (rename("blocks_0", "blocks_9"), {}, "5 of the 10 modules of the weights have no layer in the model"),
        (lambda w: w, {"use_rslora": True}, "RS-LoRA flag mismatch"),
        (without("flag"), {"use_dora": True}, None),
        (without("dora"), {"use_dora": True}, "network expects DoRA but weights lack it"),
        (without("blocks_0_attn_to_q.dora"), {}, "5 modules have DoRA magnitudes, but 1 are missing"),
        (lambda w: w | {"use_dora_flag": torch.tensor(False)}, {}, "use_dora_flag is False"),
        (without("dora_layer"), {}, "use_dora_flag is True"),
        (lambda w: w, {"use_dor": True}, "did you mean 'use_dora'"),
    ],
)
def test_from_weights_that_contradict(make_model, change, options, message):
    weights = change(weights_of(make_model(), use_dora=True))
    if message is None:
        lora.create_arch_network_from_weights(1.0, weights, unet=make_model(), **options)
        return
    with pytest.raises(ValueError, match=message):
        lora.create_arch_network_from_weights(1.0, weights, unet=make_model(), **options)


def test_from_weights_takes_the_rule_from_metadata(make_model):
    weights = without("flag")(weights_of(make_model(), use_rslora=True))
    metadata = {"lora_inspect.scale": "alpha/sqrt(rank)"}
    model = make_model()
    network = lora.create_arch_network_from_weights(1.0, weights, unet=model, for_inference=True, metadata=metadata)
    assert network.use_rslora
    network.merge_to(None, model, weights)


def test_from_weights_without_dora_if_the_user_says_so(make_model, caplog):
    weights = weights_of(make_model(), use_dora=True)
    with caplog.at_level(logging.WARNING):
        network = lora.create_arch_network_from_weights(1.0, weights, unet=make_model(), use_dora="False")
    assert "network doesn't expect it" in caplog.text
    assert not network.use_dora


def test_options_that_choose_modules_have_no_effect_on_weights(make_model, caplog):
    with caplog.at_level(logging.WARNING):
        lora.create_arch_network_from_weights(1.0, weights_of(make_model()), unet=make_model(), conv_dim=2)
    assert "conv_dim: no effect" in caplog.text


def test_a_training_network_does_not_merge(make_model):
    model = make_model()
    weights = weights_of(make_model())
    network = lora.create_arch_network_from_weights(1.0, weights, unet=model)
    with pytest.raises(TypeError, match="for_inference=True"):
        network.merge_to(None, model, weights)


def test_nothing_is_merged_where_something_does_not_fit(make_model):
    model = make_model()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    weights = weights_of(make_model())
    network = lora.create_arch_network_from_weights(1.0, weights, unet=model, for_inference=True)
    with pytest.raises(ValueError, match="lora_unet_blocks_1_point"):
        network.merge_to(None, model, weights | {"lora_unet_blocks_1_point.lora_up.weight": torch.ones(5, 4, 1, 1)})
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_flag_without_a_single_value_is_named(make_model, saved):
    for shape in ((0,), (2,)):
        file = saved(lambda weights, shape=shape: weights | {"use_rslora_flag": torch.zeros(shape)})
        with pytest.raises(ValueError, match=r"use_rslora_flag has shape \[\d\]"):
            lora.create_network_from_weights(1.0, file, None, None, make_model())


def damaged_files(folder, weights):
    """Files of no weights by name, in both kinds."""
    save_file(weights, folder / "whole.safetensors")
    torch.save(weights, folder / "whole.pt")
    texts = {"empty": b"", "text": b"<html>no such file</html>" * 20}
    for ending, cut in (("safetensors", (50, -100)), ("pt", (50, -200))):
        whole = (folder / f"whole.{ending}").read_bytes()
        contents = {**texts, "head": whole[: cut[0]], "cut": whole[: cut[1]]}
        for name, content in contents.items():
            (folder / f"{name}.{ending}").write_bytes(content)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
@pytest.mark.parametrize("name", ["empty", "text", "head", "cut"])
def test_damaged_file_is_named(make_model, tmp_path, name, ending):
    network = create(make_model())
    damaged_files(tmp_path, network.state_dict())
    file = str(tmp_path / f"{name}.{ending}")
    kind = r"\.safetensors file" if ending == "safetensors" else r"file of torch\.save"
    message = rf"^{re.escape(file)}: no complete {kind}.*; copy or download it again$"
    for read in (network.load_weights, from_file(make_model())):
        with pytest.raises(ValueError, match=message) as raised:
            read(file)
        assert str(raised.value).count(file) == 1


def test_file_of_other_model_is_named(make_model, saved):
    file = saved(rename("blocks_0_attn_to_q", "q"))
    problem = "1 of the 10 modules of the weights has no layer in the model (lora_unet_q)"
    with pytest.raises(ValueError, match=f"^{re.escape(f'{file}: {problem}; pass the model whose layers')}"):
        from_file(make_model())(file)


def from_file(model):
    return lambda file: lora.create_network_from_weights(1.0, file, None, None, model)


def test_pickle_of_objects_is_refused_without_torch_advice(make_model, tmp_path):
    file = str(tmp_path / "objects.pt")
    torch.save({"lora_unet_embed": torch.nn.Linear(2, 2)}, file)
    for read in (create(make_model()).load_weights, from_file(make_model())):
        with pytest.raises(ValueError, match=rf"^{re.escape(file)}: it holds objects of torch\.nn\.") as raised:
            read(file)
        assert "weights_only" not in str(raised.value)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_missing_file_is_not_found(make_model, tmp_path, ending):
    with pytest.raises(FileNotFoundError, match=f"missing.{ending}"):
        create(make_model()).load_weights(str(tmp_path / f"missing.{ending}"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
@pytest.mark.parametrize("name", ["pipe.safetensors", "pipe.pt"])
def test_a_pipe_is_not_waited_for(make_model, tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="is no file"):
        lora.create_network_from_weights(1.0, str(tmp_path / name), None, None, make_model())


@pytest.mark.parametrize("number", ["1" * 5000, "\N{ARABIC-INDIC DIGIT ONE}"])
def test_a_slice_in_numbers_that_nobody_writes_is_named(make_model, saved, number):
    key = f"lora_unet_blocks_0_attn_to_q.lora_down.{number}.weight"
    file = saved(lambda weights: weights | {key: torch.zeros(4, 12)})
    with pytest.raises(ValueError, match="1 tensor of the weights cannot be used"):
        lora.create_network_from_weights(1.0, file, None, None, make_model())


@pytest.mark.parametrize("name", ["complex64", "float4_e2m1fn_x2"])
def test_numbers_that_are_no_factor_s_are_named(make_model, saved, name):
    if not (dtype := getattr(torch, name, None)):
        pytest.skip(f"this torch has no {name}")
    key = "lora_unet_blocks_0_attn_to_q.lora_up.weight"
    file = saved(lambda weights: weights | {key: torch.zeros(12, 4, dtype=torch.complex64).view(dtype)})
    with pytest.raises(ValueError, match=f"there are {name} numbers in 1 tensor of the weights: {key}"):
        lora.create_network_from_weights(1.0, file, None, None, make_model())


@pytest.mark.parametrize(
    "wrap",
    [
        list,
        lambda weights: {"state_dict": weights},
        lambda weights: {1: torch.ones(1)},
        lambda weights: weights | {"epoch": 3},
    ],
)
def test_a_pickle_of_anything_but_weights_is_named(make_model, tmp_path, wrap):
    torch.save(wrap({"lora_unet_embed.alpha": torch.ones(1)}), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="holds no tensors by name"):
        lora.create_network_from_weights(1.0, str(tmp_path / "weights.pt"), None, None, make_model())
