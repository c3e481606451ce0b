"""The dotted paths of modules: as written, or what an underscored name alone can mean."""

import pytest
from adapters import families, lora

from lora_inspect import schemes
from lora_inspect.architectures import by_name, every
from lora_inspect.reading.keys.suffixes import canonical_path, table_of

LAYOUTS = [
    pytest.param(layout, id=f"{architecture.name}-{layout.name}")
    for architecture in every()
    for layout in architecture.layouts
]


def named(key):
    return schemes.recognise(key)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_path_of_a_layout_is_recovered_from_its_underscores(layout):
    for template in layout.paths:
        path = template.replace("{i}", "{}").format(*range(7, 7 + template.count("{i}")))
        assert canonical_path(named("lora_unet_" + path.replace(".", "_")), [table_of(layout.paths)]) == path


DOTTED = {
    "transformer.transformer_blocks.0.attn.to_out.0": "transformer_blocks.0.attn.to_out.0",
    "diffusion_model.blocks.3.odd_name.q": "blocks.3.odd_name.q",
    "base_model.model.model.layers.0.self_attn.q_proj": "model.layers.0.self_attn.q_proj",
    "blocks.0.a": "blocks.0.a",
}


@pytest.mark.parametrize(("key", "path"), DOTTED.items())
def test_a_dotted_name_is_its_path(key, path):
    assert canonical_path(named(key)) == path


FLUX = [table_of(layout.paths) for layout in by_name("flux").layouts]
VIDEO = {layout.name: table_of(layout.paths) for layout in by_name("hunyuan_video").layouts}


@pytest.mark.parametrize(
    ("key", "groups", "path"),
    [
        ("lora_unet_double_blocks_10_img_attn_qkv", [FLUX], "double_blocks.10.img_attn.qkv"),
        ("lora_unet_double_blocks_0_img_attn_qkv_x", [FLUX], None),
        ("lora_unet_double_blocks_a_img_attn_qkv", [FLUX], None),
        ("lora_unet_final_layer_adaLN_modulation_1", [FLUX], "final_layer.adaLN_modulation.1"),
        ("lora_unet_final_layer_adaLN_modulation_2", [FLUX], None),
        ("lora_unet_double_blocks_0_img_attn_qkv", [], None),
        # A dot in one of HunyuanVideo's layouts is an underscore in another.
        ("lora_unet_double_blocks_0_img_attn_qkv", [VIDEO.values()], None),
        ("lora_unet_double_blocks_0_img_attn_qkv", [[VIDEO["original"]], VIDEO.values()],
         "double_blocks.0.img_attn_qkv"),
        ("lora_unet_double_blocks_0_img_attn_qkv", [[VIDEO["comfyui"]], VIDEO.values()],
         "double_blocks.0.img_attn.qkv"),
        ("lora_te_text_model_encoder_layers_3_self_attn_out_proj", [FLUX],
         "text_model.encoder.layers.3.self_attn.out_proj"),
        ("lora_te2_encoder_block_1_layer_0_SelfAttention_q", [], "encoder.block.1.layer.0.SelfAttention.q"),
        ("lora_te1_double_blocks_0_img_attn_qkv", [FLUX], None),
    ],
)  # fmt: skip
def test_an_underscored_name_is_what_alone_is_spelled_so(key, groups, path):
    assert canonical_path(named(key), *groups) == path


def listed(run, file):
    return {item["module"]: item["path"] for item in run("info", file, "--modules", "--json").json["module_list"]}


def test_info_lists_the_paths(write_safetensors, run):
    names = {
        "lora_unet_blocks_0_self_attn_q": "blocks.0.self_attn.q",
        "lora_unet_blocks_11_cross_attn_k_img": "blocks.11.cross_attn.k_img",
    }
    adapter = {key: tensor for name in names for key, tensor in lora(name).items()}
    assert listed(run, write_safetensors(adapter)) == names
    assert listed(run, write_safetensors(lora("lora_unet_odd_q"))) == {"lora_unet_odd_q": None}
    assert listed(run, write_safetensors(lora("diffusion_model.odd.q"))) == {"diffusion_model.odd.q": "odd.q"}


def test_families_that_agree_on_a_path_need_not_be_told_apart(write_safetensors, run):
    """FLUX.1 and Chroma have these names alike, and so has HunyuanVideo in ComfyUI."""
    name = "lora_unet_single_blocks_0_linear1"
    record = run("info", write_safetensors(lora(name)), "--modules", "--json").json
    assert len(families(record)) > 1
    assert [item["path"] for item in record["module_list"]] == ["single_blocks.0.linear1"]
