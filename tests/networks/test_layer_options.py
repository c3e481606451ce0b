"""sd-scripts' options for kinds of layers and numbered blocks of FLUX.1, Stable Diffusion 3 and Lumina-Image 2.0."""

import json
import math
import re

import pytest
import torch
from safetensors import safe_open
from torch import nn

from lora_inspect import open_adapter
from lora_inspect.architectures.trained import trained
from networks import loha, lora_anima, lora_flux, lora_lumina, lora_sd3, oft
from networks.modules.lora_module import LoRAModule
from networks.network.layer_options import options_of


def block(name, *paths, convolutions=()):
    """A block of the class `name` with a layer at each path."""
    root = type(name, (nn.Module,), {})()
    for path in (*paths, *convolutions):
        *parents, leaf = path.split(".")
        at = root
        for parent in parents:
            if not hasattr(at, parent):
                at.add_module(parent, nn.Module())
            at = getattr(at, parent)
        at.add_module(leaf, nn.Conv2d(4, 4, 2) if path in convolutions else nn.Linear(4, 4))
    return root


def flux():
    double = ("img_mod.lin", "img_attn.qkv", "img_mlp.0", "txt_mod.lin", "txt_attn.qkv", "txt_mlp.0")
    model = block("Flux", "img_in", "time_in.in_layer", "vector_in.in_layer", "guidance_in.in_layer", "txt_in")
    model.double_blocks = nn.ModuleList(block("DoubleStreamBlock", *double) for _ in range(2))
    single = ("linear1", "modulation.lin")
    model.single_blocks = nn.ModuleList(block("SingleStreamBlock", *single) for _ in range(3))
    return model


SD3_LAYERS = ("attn.qkv", "mlp.fc1", "adaLN_modulation.1")


def sd3():
    model = block(
        "MMDiT", "context_embedder", "t_embedder.mlp.0", "final_layer.linear", convolutions=("x_embedder.proj",)
    )
    model.joint_blocks = nn.ModuleList(nn.Module() for _ in range(3))
    for joint in model.joint_blocks:
        for side in ("context_block", "x_block"):
            joint.add_module(side, block("SingleDiTBlock", *SD3_LAYERS))
    return model


def lumina():
    # In the order of the real model, where the noise refiner comes after the other one.
    model = block("NextDiT", "t_embedder.mlp.0", "cap_embedder.1")
    for name in ("context_refiner", "noise_refiner", "layers"):
        if name == "noise_refiner":
            model.x_embedder = nn.Linear(4, 4)
        blocks = (block("JointTransformerBlock", "attention.qkv", "adaLN_modulation.1") for _ in range(2))
        model.add_module(name, nn.ModuleList(blocks))
    model.final_layer = block("FinalLayer", "linear")
    return model


def ranks(module, model, **options):
    """{dotted path: rank} in the order of the network; 4 is that of layers that no option is about."""
    network = module.create_network(1.0, 4, 2.0, None, None, model, **options)
    return {network._paths[lora.lora_name]: lora.lora_dim for lora in network.unet_loras}


# By option the words that stand in the names of its layers, as create_network of sd-scripts has them.
OF_FLUX = {"img_attn_dim": "img_attn", "txt_attn_dim": "txt_attn", "img_mlp_dim": "img_mlp", "txt_mlp_dim": "txt_mlp"}
OF_FLUX |= {"single_dim": "linear1"}
MODULATION = {"img_mod_dim": "img_mod", "txt_mod_dim": "txt_mod", "single_mod_dim": "modulation"}


@pytest.mark.parametrize(("option", "word"), OF_FLUX.items())
def test_a_kind_of_layer_has_its_rank_and_0_leaves_it_out(option, word):
    plain = ranks(lora_flux, flux())
    assert ranks(lora_flux, flux(), **{option: "2"}) == {path: 2 if word in path else 4 for path in plain}
    assert ranks(lora_flux, flux(), **{option: "0"}) == {path: 4 for path in plain if word not in path}


@pytest.mark.parametrize(("option", "word"), MODULATION.items())
def test_a_rank_of_the_modulation_takes_it_in(option, word):
    plain = ranks(lora_flux, flux())
    assert not any("mod" in path for path in plain)
    taken = {path: rank for path, rank in ranks(lora_flux, flux(), **{option: "2"}).items() if path not in plain}
    assert set(taken.values()) == {2}
    assert all(word in path for path in taken)
    assert ranks(lora_flux, flux(), **{option: "0"}) == plain
    assert ranks(lora_flux, flux(), **{option: "2", "exclude_patterns": "['.*mod.*']"}) == plain


def test_layers_outside_of_the_blocks_come_last_in_the_order_of_the_list():
    found = ranks(lora_flux, flux(), in_dims="[1,0,2,3,5]", network_reg_dims="time_in=6,txt_in=0")
    outside = ["img_in", "time_in.in_layer", "vector_in.in_layer", "guidance_in.in_layer"]
    assert list(found.items())[-4:] == list(zip(outside, (1, 6, 2, 3), strict=True))
    assert "txt_in" not in found


@pytest.mark.parametrize(
    ("options", "double", "single"),
    [
        ({"train_blocks": "single"}, "", "012"),
        ({"train_blocks": "double"}, "01", ""),
        ({"train_blocks": "all"}, "01", "012"),
        ({"train_double_block_indices": "1", "train_single_block_indices": "0,2"}, "1", "02"),
        ({"train_double_block_indices": "none"}, "", "012"),
        ({"train_single_block_indices": " 1-2 ", "train_double_block_indices": "all"}, "01", "12"),
        # An expression for names goes before the numbers, as in sd-scripts.
        ({"train_double_block_indices": "none", "network_reg_dims": "double_blocks_1=4"}, "1", "012"),
    ],
)
def test_blocks_are_chosen_by_kind_and_number(options, double, single):
    found = ranks(lora_flux, flux(), **options)
    numbers = {name: {path.split(".")[1] for path in found if path.startswith(name)} for name in ("double", "single")}
    assert numbers == {"double": set(double), "single": set(single)}


def test_blocks_that_the_model_does_not_have_are_named(caplog):
    ranks(lora_flux, flux(), train_single_block_indices="0-4")
    assert "train_single_block_indices: the model has no blocks 3, 4 in single_blocks" in caplog.text


@pytest.mark.parametrize("conv", [{}, {"conv_dim": "3"}])
def test_embedders_of_sd3_have_ranks_and_their_convolution_that_of_convolutions(conv):
    found = ranks(lora_sd3, sd3(), emb_dims="[1,2,5,0,0,6]", x_attn_dim="2", train_block_indices="0,2", **conv)
    numbered = {path: rank for path, rank in found.items() if path.startswith("joint_blocks")}
    sides = [f"joint_blocks.{at}.{side}" for at in (0, 2) for side in ("context_block", "x_block")]
    expected = {
        f"{side}.{layer}": 2 if "x_block.attn" in f"{side}.{layer}" else 4 for side in sides for layer in SD3_LAYERS
    }
    assert numbered == expected
    rest = {path: rank for path, rank in found.items() if path not in numbered}
    convolution = 3 if conv else 5
    assert rest == {
        "context_embedder": 1,
        "t_embedder.mlp.0": 2,
        "x_embedder.proj": convolution,
        "final_layer.linear": 6,
    }


def test_options_of_lumina():
    found = ranks(lora_lumina, lumina(), embedder_dims="1,2,3", mlp_dim="5", refiner_dim="6", train_blocks="refiners")
    refiners = [f"{name}_refiner.{at}" for name in ("noise", "context") for at in range(2)]
    layers = ("attention.qkv", "adaLN_modulation.1")
    expected = {f"{refiner}.{layer}": 6 for refiner in refiners for layer in layers}
    assert found == {**expected, "x_embedder": 1, "t_embedder.mlp.0": 5, "cap_embedder.1": 3}


def numbered(path, *layers, count=2):
    return [f"{path}.{at}.{layer}" for at in range(count) for layer in layers]


OF_LUMINA = ("attention.qkv", "adaLN_modulation.1")
NOISE, CONTEXT = (numbered(f"{name}_refiner", *OF_LUMINA) for name in ("noise", "context"))
EMBEDDERS = ["x_embedder", "t_embedder.mlp.0", "cap_embedder.1"]
SIDES = [f"joint_blocks.1.{side}_block.{layer}" for side in ("context", "x") for layer in SD3_LAYERS]
# The order in which create_network of sd-scripts 48d368fa made its modules for these models.
MADE = [
    (lora_lumina, lumina, {}, [*CONTEXT, *NOISE, *numbered("layers", *OF_LUMINA), "final_layer.linear"]),
    (lora_lumina, lumina, {"train_blocks": "refiners"}, [*NOISE, *CONTEXT]),
    (lora_lumina, lumina, {"train_blocks": "refiners", "embedder_dims": "4,4,4"}, [*NOISE, *CONTEXT, *EMBEDDERS]),
    (
        lora_lumina,
        lumina,
        {"train_blocks": "transformer", "embedder_dims": "4,4,4"},
        [*numbered("layers", *OF_LUMINA), *EMBEDDERS],
    ),
    (
        lora_flux,
        flux,
        {"train_blocks": "single", "in_dims": "4,4,4,4,4", "single_mod_dim": "4"},
        [
            *numbered("single_blocks", "linear1", "modulation.lin", count=3),
            *("img_in", "time_in.in_layer", "vector_in.in_layer", "guidance_in.in_layer", "txt_in"),
        ],
    ),
    (
        lora_sd3,
        sd3,
        {"train_block_indices": "1", "emb_dims": "4,4,4,4,4,4"},
        [*SIDES, "context_embedder", "t_embedder.mlp.0", "x_embedder.proj", "final_layer.linear"],
    ),
]


@pytest.mark.parametrize(("module", "model", "options", "paths"), MADE)
def test_a_seed_draws_the_factors_in_the_order_of_sd_scripts(module, model, options, paths):
    adapted = model()
    torch.manual_seed(5)
    network = module.create_network(1.0, 4, 2.0, None, None, adapted, **options)
    torch.manual_seed(5)
    assert [network._paths[lora.lora_name] for lora in network.unet_loras] == paths
    for lora in network.unet_loras:
        assert torch.equal(lora.lora_down.weight, drawn(lora.org_module, [4], 4)[0])


def drawn(layer, sizes, rank):
    """Each `down` of slices of these sizes, by the calls in LoRAModule of sd-scripts and musubi-tuner."""
    if isinstance(layer, nn.Conv2d):
        downs = [nn.Conv2d(layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, bias=False)]
        nn.Conv2d(rank, layer.out_channels, 1, bias=False)
    else:
        downs = [nn.Linear(layer.in_features, rank, bias=False) for _ in sizes]
        for size in sizes:
            nn.Linear(rank, size, bias=False)
    for down in downs:
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
    return [down.weight for down in downs]


def test_a_seed_draws_all_slices_as_sd_scripts():
    layer = nn.Linear(4, 6)
    torch.manual_seed(5)
    module = LoRAModule("x", layer, 1.0, 3, split_dims=[2, 2, 2])
    torch.manual_seed(5)
    due = drawn(layer, [2, 2, 2], 3)
    assert all(torch.equal(down.weight, one) for down, one in zip(module.lora_down, due, strict=True))


def test_an_option_without_layers_is_named(caplog):
    ranks(lora_lumina, lumina(), mlp_dim="5")
    assert "mlp_dim: no effect" in caplog.text


def test_other_algorithms_take_the_same_options():
    found = ranks(loha, flux(), architecture="flux", img_attn_dim="2", train_blocks="double")
    assert found == ranks(lora_flux, flux(), img_attn_dim="2", train_blocks="double")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_dims": "4,4"}, "in_dims='4,4': 5 whole numbers were expected"),
        ({"img_attn_dim": "-1"}, "img_attn_dim='-1'"),
        ({"train_blocks": "both"}, "train_blocks='both': one of all, double, single was expected"),
        ({"train_single_block_indices": "5-2"}, "'5-2' ends before it begins"),
        ({"train_single_block_indices": "first"}, "train_single_block_indices='first'"),
        ({"block_dims": "4"}, "unknown network_args option 'block_dims'"),
    ],
)
def test_an_option_that_cannot_be_used_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        ranks(lora_flux, flux(), **options)


def anima():
    model = nn.Module()
    layers = ("self_attn.q_proj", "cross_attn.q_proj", "mlp.layer1")
    model.blocks = nn.ModuleList(block("Block", *layers) for _ in range(2))
    return model


# The family, and the text in which sd-scripts looks for an expression: `re.search` in names, `re.fullmatch` of paths.
REG_FAMILIES = {
    "anima": (lora_anima, anima, lambda expression, path: re.fullmatch(expression, path)),
    "flux": (
        lora_flux,
        flux,
        lambda expression, path: re.search(expression, "lora_unet_" + path.replace(".", "_")),
    ),
}
REG_ALPHAS = [
    ".*attn.*=8,.*mlp.*=0.5",
    "attn=8",
    ".*self_attn.*=8,.*attn.*=2,.*=5",
    r"blocks\.0.*=0,img_attn=3, .*1.*=7,",
    "double_blocks_1=6,linear1$=0.25",
]


def pairs_of(text):
    return [pair.strip().rsplit("=", 1) for pair in text.split(",") if pair.strip()]


@pytest.mark.parametrize("dims", [None, ".*attn.*=2,.*mlp.*=0"])
@pytest.mark.parametrize("alphas", REG_ALPHAS)
@pytest.mark.parametrize("family", REG_FAMILIES)
def test_alpha_is_that_of_first_matching_expression(family, alphas, dims):
    """Ranks have expressions of their own; alpha 0 makes the scale 1."""
    module, make, is_match = REG_FAMILIES[family]
    options = {"network_reg_alphas": alphas} | ({"network_reg_dims": dims} if dims else {})
    network = module.create_network(1.0, 4, 3.0, None, None, make(), **options)
    plain = module.create_network(1.0, 4, 3.0, None, None, make())
    expected = {}
    for path in (plain._paths[lora.lora_name] for lora in plain.unet_loras):
        rank = next((int(number) for text, number in pairs_of(dims or "") if is_match(text, path)), 4)
        alpha = next((float(number) for text, number in pairs_of(alphas) if is_match(text, path)), 3.0)
        if rank:
            expected[path] = (rank, alpha or float(rank))
    assert {
        network._paths[lora.lora_name]: (lora.lora_dim, float(lora.alpha)) for lora in network.unet_loras
    } == expected


def test_alpha_pattern_goes_before_expressions():
    options = {"alpha_pattern": "{'.*qkv': 9}", "network_reg_alphas": "img_attn=2,mlp=5"}
    network = lora_flux.create_network(1.0, 4, 3.0, None, None, flux(), **options)
    alphas = {network._paths[lora.lora_name]: float(lora.alpha) for lora in network.unet_loras}
    assert {path: alpha for path, alpha in alphas.items() if "qkv" in path or "mlp" in path} == {
        path: 9.0 if "qkv" in path else 5.0 for path in alphas if "qkv" in path or "mlp" in path
    }


def test_alpha_expression_without_layer_is_logged(caplog):
    lora_flux.create_network(1.0, 4, 3.0, None, None, flux(), network_reg_alphas="attn=1,img_attn=2,nothing=3")
    for expression in ("img_attn", "nothing"):
        assert f"network_reg_alphas: '{expression}' matches no layer" in caplog.text


@pytest.mark.parametrize("value", ["mlp", "mlp=many", "mlp=-1", "(=4", "mlp=nan"])
def test_unreadable_alpha_expression_is_refused(value):
    with pytest.raises(ValueError, match=r"^network_reg_alphas"):
        lora_flux.create_network(1.0, 4, 3.0, None, None, flux(), network_reg_alphas=value)


def test_every_module_with_ranks_by_expression_has_alphas():
    for architecture in trained():
        assert {"network_reg_dims", "network_reg_alphas", "network_reg_lrs"} <= options_of(architecture).keys()


def test_alphas_by_expression_have_no_effect_on_weights(caplog):
    weights = lora_flux.create_network(1.0, 4, 3.0, None, None, flux()).state_dict()
    network = lora_flux.create_arch_network_from_weights(1.0, weights, unet=flux(), network_reg_alphas="attn=8")
    assert {float(lora.alpha) for lora in network.unet_loras} == {3.0}
    assert "network_reg_alphas: no effect, as the weights already settle that" in caplog.text


def test_alphas_by_expression_have_no_effect_on_oft(caplog):
    caplog.set_level("INFO")
    oft.create_network(1.0, 4, None, None, None, flux(), architecture="flux", network_reg_alphas="attn=8")
    assert "network_reg_alphas: no effect, as OFT has no scale" in caplog.text


@pytest.mark.parametrize("form", ["native", "standard"])
def test_file_of_alphas_by_expression_is_read_with_its_scales(form, tmp_path):
    """Alphas that differ from the requested one are no contradiction of RS-LoRA."""
    options = {"network_reg_alphas": "img_attn=8,txt_attn=5", "use_rslora": "True", "save_format": form}
    network = lora_flux.create_network(1.0, 4, 3.0, None, None, flux(), **options)
    file = tmp_path / "adapter.safetensors"
    args = json.dumps({name: value for name, value in options.items() if name != "save_format"})
    metadata = {"ss_network_module": "networks.lora_flux", "ss_network_dim": "4", "ss_network_alpha": "3.0"}
    network.save_weights(file, None, {**metadata, "ss_network_args": args})
    scales = {module.key: module.scale for module in open_adapter(file).modules}
    expected = {lora.lora_name: lora.scale for lora in network.unet_loras}
    assert scales == pytest.approx(expected)
    with safe_open(file, framework="pt") as opened:
        stored = opened.metadata()
    assert ("network_reg_alphas" in json.loads(stored["ss_network_args"])) == (form == "native")
    if form == "native":
        alphas = {network._paths[lora.lora_name]: float(lora.alpha) for lora in network.unet_loras}
        expected = {re.escape(path): alpha for path, alpha in alphas.items() if alpha != 3.0}
        assert json.loads(stored["ss_alpha_pattern"]) == expected
