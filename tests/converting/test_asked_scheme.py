"""What modules are called in the schemes that programs load, and what is refused in one sentence."""

import json

import pytest
import torch
from adapters import lora
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lora_inspect.architectures import by_name
from lora_inspect.converting.options import ConvertOptions
from lora_inspect.ops.convert import convert_to_standard
from lora_inspect.reading.model.settings import Settings
from lora_inspect.schemes import by_name as by_name_of_scheme
from lora_inspect.schemes import written

HIDDEN = 8


def tensors_of(described):
    numbers = torch.Generator().manual_seed(3)
    return {
        key: torch.tensor(number) if shape == () else torch.randn(shape, generator=numbers)
        for key, (_, shape, number) in described.items()
    }


@pytest.fixture
def write(tmp_path):
    """A file of these modules, which says of which family it is."""

    def save(modules, family=None, out=HIDDEN, inputs=HIDDEN, says=None, **options):
        described = {}
        for module in modules:
            spelling = "kohya" if "." not in module else "peft"
            alpha = 4.0 if spelling == "kohya" else None
            described |= lora(module, rank=4, out=out, inputs=inputs, spelling=spelling, alpha=alpha, **options)
        metadata = dict(says or {})
        if family:
            metadata["ss_base_model_version"] = by_name(family).metadata_names[0]
        of_peft = any(module.startswith("base_model.") for module in modules)
        file = tmp_path / ("adapter_model.safetensors" if of_peft else "adapter.safetensors")
        if of_peft:
            config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": "all-linear"}
            (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors_of(described), file, metadata or None)
        return file

    return save


@pytest.fixture
def modules_in(tmp_path):
    """`modules_in(file, scheme)`: the names of the modules of the output in the scheme.

    A program of the same name as a scheme keeps the names that it reads, so the scheme is asked for as such.
    """

    def convert(file, scheme, only=(), **settings):
        out = tmp_path / ("out" if scheme == "peft" else "out.safetensors")
        options = ConvertOptions(scheme=scheme, only=only, settings=Settings(**settings))
        convert_to_standard(str(file), str(out), options, force=True)
        found = load_file(out / "adapter_model.safetensors" if scheme == "peft" else out)
        # That of the input stays where the scheme has both.
        downs = {".lora_A.weight", ".lora_down.weight", by_name_of_scheme(scheme).suffixes["down"]}
        return {key.removesuffix(down) for key in found for down in downs if key.endswith(down)}

    return convert


# A layer that is called otherwise in every layout of the family: what each scheme calls it.
WAN = {
    "kohya": "lora_unet_blocks_0_cross_attn_o",
    "musubi": "lora_unet_blocks_0_cross_attn_o",
    "peft": "base_model.model.blocks.0.attn2.to_out.0",
    "diffusers": "transformer.blocks.0.attn2.to_out.0",
    "comfyui": "diffusion_model.blocks.0.cross_attn.o",
    "lycoris": "lycoris_blocks_0_attn2_to_out_0",
}
SDXL = {
    "kohya": "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
    "peft": "base_model.model.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "diffusers": "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "comfyui": "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q",
    "lycoris": "lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
    "onetrainer": "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
}
SD15 = {
    "kohya": "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
    "diffusers": "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "comfyui": "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_out.0",
    "onetrainer": "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0",
}
# ComfyUI has names of its own for HunyuanVideo's, which nobody else reads below kohya's prefix but musubi-tuner. That
# trains Z-Image under the names of diffusers.
HUNYUAN = {
    "kohya": "lora_unet_double_blocks_0_img_mlp_0",
    "musubi": "lora_unet_double_blocks_0_img_mlp_fc1",
    "comfyui": "diffusion_model.double_blocks.0.img_mlp.0",
    "diffusers": "transformer.transformer_blocks.0.ff.net.0.proj",
}
Z_IMAGE = {
    "kohya": "lora_unet_layers_0_attention_out",
    "musubi": "lora_unet_layers_0_attention_to_out_0",
    "comfyui": "diffusion_model.layers.0.attention.out",
    "diffusers": "transformer.layers.0.attention.to_out.0",
    "onetrainer": "lora_unet_layers_0_attention_to_out_0",
}
FLUX = {
    "kohya": "lora_unet_single_blocks_0_linear2",
    "comfyui": "diffusion_model.single_blocks.0.linear2",
    "diffusers": "transformer.single_transformer_blocks.0.proj_out",
    "onetrainer": "lora_transformer_single_transformer_blocks_0_proj_out",
}
HUNYUAN_1_5 = {
    "kohya": "lora_unet_time_in_in_layer",
    "musubi": "lora_unet_time_in_mlp_0",
    "comfyui": "diffusion_model.time_in.in_layer",
    "diffusers": "transformer.time_embed.timestep_embedder.linear_1",
}
HUNYUAN_IMAGE = {  # sd-scripts trains it, under other names than ComfyUI has
    "kohya": "lora_unet_double_blocks_0_img_mlp_fc1",
    "comfyui": "diffusion_model.double_blocks.0.img_mlp.0",
    "diffusers": "transformer.transformer_blocks.0.ff.net.0.proj",
}
KREA = {
    "kohya": "lora_unet_txtfusion_layerwise_blocks_0_attn_wo",
    "musubi": "lora_unet_txtfusion_layerwise_blocks_0_attn_wo",
    "comfyui": "diffusion_model.txtfusion.layerwise_blocks.0.attn.wo",
    "diffusers": "transformer.text_fusion.layerwise_blocks.0.attn.to_out.0",
    "onetrainer": "lora_unet_text_fusion_layerwise_blocks_0_attn_to_out_0",
}
HIDREAM_O1 = {
    "kohya": "lora_unet_language_model_layers_0_mlp_up_proj",
    "musubi": "lora_unet_model_language_model_layers_0_mlp_up_proj",
    "comfyui": "diffusion_model.language_model.layers.0.mlp.up_proj",
}
# The same in every layout.
QWEN = {
    "kohya": "lora_unet_transformer_blocks_0_attn_to_add_out",
    "musubi": "lora_unet_transformer_blocks_0_attn_to_add_out",
    "comfyui": "diffusion_model.transformer_blocks.0.attn.to_add_out",
    "diffusers": "transformer.transformer_blocks.0.attn.to_add_out",
    "peft": "base_model.model.transformer_blocks.0.attn.to_add_out",
    "lycoris": "lycoris_transformer_blocks_0_attn_to_add_out",
    "onetrainer": "lora_unet_transformer_blocks_0_attn_to_add_out",
}
FAMILIES = {
    "wan": WAN, "sdxl": SDXL, "sd15": SD15, "hunyuan_video": HUNYUAN, "z_image": Z_IMAGE, "qwen_image": QWEN,
    "flux": FLUX, "hunyuan_video_1_5": HUNYUAN_1_5, "hunyuan_image": HUNYUAN_IMAGE, "krea2": KREA,
    "hidream_o1": HIDREAM_O1,
}  # fmt: skip
WRITTEN = [(family, source) for family, names in FAMILIES.items() for source in names]


@pytest.mark.parametrize(("family", "source"), WRITTEN)
def test_each_scheme_has_its_name_for_a_layer(family, source, write, modules_in):
    names = FAMILIES[family]
    # The width of SDXL's and SD1.5's text, which tells them.
    file = write([names[source]], family, inputs={"sd15": 768}.get(family, HIDDEN))
    assert {target: modules_in(file, target) for target in names} == {target: {name} for target, name in names.items()}


# What each scheme calls a layer of CLIP and one of T5, where they are the first and the second or third of a pipeline.
CLIP, T5 = "text_model.encoder.layers.0.mlp.fc1", "encoder.block.0.layer.0.SelfAttention.q"
FLUX_ENCODERS = {
    "kohya": ("lora_te1_", "lora_te3_"),
    "diffusers": ("text_encoder.", "text_encoder_2."),
    "comfyui": ("text_encoders.clip_l.transformer.", "text_encoders.t5xxl.transformer."),
    "onetrainer": ("lora_te1_", "lora_te2_"),
}


def encoders(scheme, prefixes):
    flat = scheme in ("kohya", "onetrainer")
    return [
        prefix + (path.replace(".", "_") if flat else path) for prefix, path in zip(prefixes, (CLIP, T5), strict=True)
    ]


@pytest.mark.parametrize("target", [one for one in FLUX_ENCODERS if one != "diffusers"])
@pytest.mark.parametrize("source", FLUX_ENCODERS)
def test_text_encoders_are_told_by_what_they_are(source, target, write, modules_in):
    # T5 has another number in each program: what it is decides, not what it is called.
    model = {
        "kohya": "lora_unet_double_blocks_0_img_attn_proj",
        "diffusers": "transformer.transformer_blocks.0.attn.to_out.0",
        "comfyui": "diffusion_model.double_blocks.0.img_attn.proj",
        "onetrainer": "lora_transformer_transformer_blocks_0_attn_to_out_0",
    }
    file = write([model[source], *encoders(source, FLUX_ENCODERS[source])], "flux")
    assert modules_in(file, target) == {model[target], *encoders(target, FLUX_ENCODERS[target])}


def test_what_a_pipeline_of_diffusers_leaves_out_silently_is_refused(write, run, tmp_path, modules_in):
    """Of text encoders it reads those of CLIP; test_asked_in_libraries.py loads such files."""
    names = {scheme: encoders(scheme, FLUX_ENCODERS[scheme]) for scheme in ("kohya", "diffusers")}
    file = write(["lora_unet_double_blocks_0_img_attn_proj", *names["kohya"]], "flux")
    ended = run("convert", file, "--to", "diffusers", "-o", tmp_path / "o.safetensors")
    assert "do not cover its text_encoder_3" in ended.refusal
    assert "leave it out with --only model --only text_encoder, or" in ended.refusal
    transformer = "transformer.transformer_blocks.0.attn.to_out.0"
    assert modules_in(file, "diffusers", ("model", "text_encoder")) == {transformer, names["diffusers"][0]}


SDXL_ENCODERS = ["lora_te1_" + CLIP.replace(".", "_"), "lora_te2_" + CLIP.replace(".", "_")]


@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_what_is_left_out_tells_the_family_as_well(component, write, modules_in):
    """A text encoder alone may be of several families, which call it otherwise."""
    file = write([SDXL["kohya"], *SDXL_ENCODERS], "sdxl")
    name = SDXL_ENCODERS[("text_encoder", "text_encoder_2").index(component)]
    assert modules_in(file, "kohya", (component,)) == {name}
    assert modules_in(file, "onetrainer", (component,)) == {name}


def test_every_component_that_is_asked_for_has_to_be_there(write, run, tmp_path):
    """A slip of the pen would leave out what was meant."""
    file = write([SDXL["kohya"], *SDXL_ENCODERS], "sdxl")
    ended = run("convert", file, "--only", "model", "--only", "text_encodr", "-o", tmp_path / "o.safetensors")
    assert "it has no component text_encodr; leave its --only out" in ended.refusal


def test_families_that_call_a_text_encoder_otherwise_are_told_by_the_user(write, run, tmp_path, modules_in):
    file = write([SDXL_ENCODERS[0]], inputs=768)
    refusal = run("convert", file, "--to", "kohya", "-o", tmp_path / "o.safetensors").refusal
    assert "each has its own kohya names for its text_encoder; choose one with --architecture" in refusal
    for family, prefix in (("sd15", "lora_te_"), ("sdxl", "lora_te1_")):
        assert modules_in(file, "kohya", architecture=family) == {prefix + CLIP.replace(".", "_")}


# A layer of each model, and what files call one of its text encoder, which classes of transformers have elsewhere.
MODELS = {
    "sd15": "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "lumina2": "transformer.layers.0.feed_forward.linear_1",
    "anima": "transformer.transformer_blocks.0.attn1.to_q",
    "hunyuan_video": "transformer.transformer_blocks.0.attn.to_q",
    "hidream_i1": "transformer.double_stream_blocks.0.block.attn1.to_q",
    "qwen_image": "transformer.transformer_blocks.0.attn.to_q",
}
WIDTHS = {"sd15": 768, "lumina2": 2304, "anima": 1024, "hunyuan_video": 4096, "hidream_i1": 4096, "qwen_image": 3584}
GEMMA = "text_encoders.gemma2_2b.transformer.model.layers.3.mlp.up_proj"
QWEN_06B = "text_encoders.qwen3_06b.transformer.model.layers.3.mlp.up_proj"
CLIP_OF_COMFYUI = "text_encoders.clip_l.transformer.text_model.encoder.layers.3.mlp.fc1"


@pytest.mark.parametrize(
    ("family", "found", "scheme", "written"),
    [
        ("lumina2", GEMMA, "kohya", "lora_te_layers_3_mlp_up_proj"),
        ("lumina2", "text_encoder.layers.3.mlp.up_proj", "comfyui", GEMMA),
        ("lumina2", "lora_te_layers_3_mlp_up_proj", "comfyui", GEMMA),
        ("anima", QWEN_06B, "kohya", "lora_te_layers_3_mlp_up_proj"),
        ("anima", "lora_te_layers_3_mlp_up_proj", "comfyui", QWEN_06B),
        # CLIPTextModel has lost its root in later transformers.
        ("sd15", "text_encoder.encoder.layers.3.mlp.fc1", "comfyui", CLIP_OF_COMFYUI),
        ("sd15", "text_encoder.encoder.layers.3.mlp.fc1", "kohya", "lora_te_text_model_encoder_layers_3_mlp_fc1"),
        ("sd15", CLIP_OF_COMFYUI, "onetrainer", "lora_te1_text_model_encoder_layers_3_mlp_fc1"),
        ("hunyuan_video", "text_encoder.model.layers.3.mlp.up_proj", "onetrainer", "lora_te1_layers_3_mlp_up_proj"),
        ("hidream_i1", "text_encoder_4.layers.3.mlp.up_proj", "onetrainer", "lora_te4_model_layers_3_mlp_up_proj"),
        (
            "qwen_image",
            "text_encoder.model.layers.3.mlp.up_proj",
            "onetrainer",
            "lora_te_model_language_model_layers_3_mlp_up_proj",
        ),
    ],
)
def test_layers_of_a_text_encoder_stand_where_the_programs_have_them(
    family, found, scheme, written, modules_in, tmp_path
):
    described = {}
    # The width of a text encoder tells which it is, and that of SD1.5's layer the family.
    for module, inputs in ((MODELS[family], 768 if family == "sd15" else HIDDEN), (found, WIDTHS[family])):
        spelling = "kohya" if "." not in module else "peft"
        described |= lora(module, rank=4, out=HIDDEN, inputs=inputs, spelling=spelling, alpha=None)
    metadata = {"ss_base_model_version": by_name(family).metadata_names[0]}
    save_file(tensors_of(described), tmp_path / "a.safetensors", metadata)
    assert written in modules_in(tmp_path / "a.safetensors", scheme)


def test_a_text_encoder_alone_becomes_a_folder_of_peft(write, modules_in):
    file = write(["lora_unet_mid_block_attentions_0_proj_in", "lora_te_text_model_encoder_layers_0_mlp_fc1"], "sd15")
    assert modules_in(file, "peft", ("text_encoder",)) == {f"base_model.model.{CLIP}"}


def test_components_that_are_left_out_are_named(write, run, tmp_path):
    file = write(["lora_unet_mid_block_attentions_0_proj_in", "lora_te_text_model_encoder_layers_0_mlp_fc1"], "sd15")
    ended = run("convert", file, "--to", "comfyui", "--only", "model", "-o", tmp_path / "o.safetensors", "--json")
    assert ended.status == 0, ended.stderr
    assert {key.partition(".")[0] for key in json.loads(ended.stdout)["dropped"]} == {
        "lora_te_text_model_encoder_layers_0_mlp_fc1"
    }


def test_the_second_expert_of_wan_is_a_file_of_its_own(write, run, tmp_path, modules_in):
    first, second = (f"transformer{number}.blocks.0.attn1.to_q" for number in ("", "_2"))
    file = write([first, second], "wan")
    for scheme, name in (("kohya", "lora_unet_blocks_0_self_attn_q"), ("diffusers", first)):
        ended = run("convert", file, "--to", scheme, "-o", tmp_path / "o.safetensors")
        assert (ended.status, "--only model_2" in ended.stderr) == (1, True)
        assert modules_in(file, scheme, ("model_2",)) == {name}


def test_the_output_says_of_which_expert_of_wan_it_is(write, run, tmp_path):
    """Neither its keys nor its name tell it any longer."""

    def told_of_output(file, *options):
        out = tmp_path / "o.safetensors"
        assert run("convert", file, "--to", "kohya", "-o", out, "--force", *options).status == 0
        return run("info", out, "--json").json["expert"]

    both = write(["transformer.blocks.0.attn1.to_q", "transformer_2.blocks.0.attn1.to_q"], "wan")
    assert told_of_output(both, "--only", "model_2") == "low noise"
    assert told_of_output(both, "--only", "model") == "high noise"
    named = write([WAN["diffusers"]], "wan").rename(tmp_path / "style_high_noise.safetensors")
    assert told_of_output(named) == "high noise"
    assert told_of_output(write([WAN["diffusers"]], "wan")) is None


def test_suffixes_and_alpha_are_those_of_the_scheme(tmp_path):
    # A file of kohya's names with the factors of PEFT, which most of their readers do not know.
    described = lora("lora_unet_blocks_0_cross_attn_o", rank=4, out=8, inputs=8, spelling="peft", alpha=None)
    save_file(tensors_of(described), tmp_path / "a.safetensors", {"ss_base_model_version": "wan"})
    expected = {
        "kohya": {".lora_down.weight", ".lora_up.weight", ".alpha"},
        "comfyui": {".lora_down.weight", ".lora_up.weight", ".alpha"},
        "diffusers": {".lora_A.weight", ".lora_B.weight"},
    }
    for scheme, suffixes in expected.items():
        out = tmp_path / f"{scheme}.safetensors"
        convert_to_standard(str(tmp_path / "a.safetensors"), str(out), ConvertOptions(scheme=scheme))
        assert {key.removeprefix(WAN[scheme]) for key in load_file(out)} == suffixes


def test_the_last_layers_of_flux_are_diffusers_own(run, tmp_path):
    """Trap 23: its alpha, here twice the rank, is in the factors; and the halves of the modulation change places."""
    factors = {}
    for layer, out in (
        ("final_layer_linear", HIDDEN),
        ("final_layer_adaLN_modulation_1", 2 * HIDDEN),
        ("img_in", HIDDEN),
    ):
        described = lora(f"lora_unet_{layer}", rank=4, out=out, inputs=HIDDEN, alpha=8.0)
        factors |= tensors_of(described)
    save_file(factors, tmp_path / "a.safetensors", {"ss_base_model_version": "flux1"})
    ended = run("convert", tmp_path / "a.safetensors", "--to", "diffusers", "-o", tmp_path / "o.safetensors")
    assert ended.status == 0, ended.stderr
    found = load_file(tmp_path / "o.safetensors")
    names = {
        "proj_out": "final_layer_linear",
        "norm_out.linear": "final_layer_adaLN_modulation_1",
        "x_embedder": "img_in",
    }
    assert found.keys() == {f"transformer.{name}.lora_{side}.weight" for name in names for side in "AB"}
    for name, layer in names.items():
        up, down = (factors[f"lora_unet_{layer}.lora_{side}.weight"] for side in ("up", "down"))
        if name == "norm_out.linear":
            up = torch.cat((up[HIDDEN:], up[:HIDDEN]))
        written = found[f"transformer.{name}.lora_B.weight"] @ found[f"transformer.{name}.lora_A.weight"]
        torch.testing.assert_close(written, 2 * up @ down, rtol=1e-5, atol=1e-5)


def test_diffusers_gets_the_config_that_its_pipelines_read(write, run, tmp_path):
    file = write([WAN["kohya"]], "wan")
    out = tmp_path / "out.safetensors"
    assert run("convert", file, "--to", "diffusers", "-o", out).status == 0
    with safe_open(out, "pt") as opened:
        config = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert config["transformer.target_modules"] == ["blocks.0.attn2.to_out.0"]
    assert (config["transformer.r"], config["transformer.lora_alpha"]) == (4, 4)
    assert config["transformer.use_dora"] is False


def test_peft_gets_a_config_that_says_everything(write, run, tmp_path):
    file = write([WAN["kohya"]], "wan")
    assert run("convert", file, "--to", "peft", "-o", tmp_path / "out").status == 0
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["blocks.0.attn2.to_out.0"]
    assert (config["r"], config["lora_alpha"], config["use_rslora"], config["use_dora"]) == (4, 4, False, False)


def test_dora_goes_where_it_is_exact_and_is_asked_for_elsewhere(write, run, tmp_path):
    magnitude = {"dora_scale": ("F32", (HIDDEN, 1), 1.0)}
    file = write([WAN["kohya"]], "wan", **magnitude)
    out = tmp_path / "out.safetensors"
    assert run("convert", file, "--to", "diffusers", "-o", out).status == 0
    assert f"{WAN['diffusers']}.lora_magnitude_vector" in load_file(out)
    ended = run("convert", file, "--to", "comfyui", "-o", out, "--force")
    assert (ended.status, "divides magnitudes by the norms of the base's weights" in ended.stderr) == (1, True)
    for scheme in ("kohya", "onetrainer"):
        ended = run("convert", file, "--to", scheme, "-o", out, "--force")
        assert (ended.status, "--keep-dora" in ended.stderr) == (1, True)
    kept = run("convert", file, "--to", "comfyui", "--keep-dora", "-o", out, "--force")
    assert (kept.status, "does not apply its magnitudes as they were trained" in kept.stdout) == (0, True)
    for option in ([], ["--keep-dora"]):
        ended = run("convert", file, "--to", "musubi", *option, "-o", out, "--force")
        assert (ended.status, "applies none" in ended.stderr) == (1, True)


@pytest.mark.parametrize(
    ("modules", "family", "scheme", "says"),
    [
        (["lora_unet_joint_blocks_0_x_block_attn_proj"], "sd3", "musubi", "no musubi names"),
        (
            [*(f"lora_unet_blocks_{at}_self_attn_q" for at in range(12)), "lora_unet_blocks_0_what_q"],
            "wan",
            "diffusers",
            "is no module of Wan",
        ),
        ([WAN["kohya"]], "wan", "onetrainer", "no onetrainer names"),
        (["lora_unet_transformer_blocks_0_attn_to_q"], "framepack", "comfyui", "no comfyui names"),
        (["diffusion_model.blocks.0.whatever.q"], None, "kohya", "lora-inspect knows no model family"),
        (["base_model.model.model.layers.0.self_attn.q_proj"], None, "kohya", "no kohya names"),
        (
            ["lora_unet_blocks_0_self_attn_q", "lora_te1_encoder_block_0_layer_0_SelfAttention_q"],
            "wan",
            "kohya",
            "--only",
        ),
    ],
)
def test_what_a_scheme_has_no_names_for(modules, family, scheme, says, write, run, tmp_path):
    ended = run("convert", write(modules, family), "--to", scheme, "-o", tmp_path / "o.safetensors")
    assert (ended.status, says in ended.stderr) == (1, True), ended.stderr
    assert not (tmp_path / "o.safetensors").exists()


def test_what_the_programs_of_a_scheme_do_not_compute(write, run, tmp_path):
    described = {f"{WAN['kohya']}.diff": ("F32", (HIDDEN, HIDDEN), 1.0)}
    save_file(tensors_of(described), tmp_path / "a.safetensors", {"ss_base_model_version": "wan"})
    for scheme in ("diffusers", "peft", "musubi"):
        ended = run("convert", tmp_path / "a.safetensors", "--to", scheme, "-o", tmp_path / "o")
        assert (ended.status, "cannot load" in ended.stderr) == (1, True), ended.stderr
    assert run("convert", tmp_path / "a.safetensors", "--to", "comfyui", "-o", tmp_path / "o.safetensors").status == 0


@pytest.mark.parametrize("with_core", [False, True], ids=["flat", "core"])
def test_loha_is_what_peft_computes_of_it(with_core, run, tmp_path):
    generator = torch.Generator().manual_seed(5)

    def numbers(*shape):
        return torch.randn(shape, generator=generator)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = torch.nn.Conv2d(3, 5, 3), torch.nn.Linear(4, 6)

    kernel = (
        {f"hada_w{at}_a": numbers(2, 5) for at in (1, 2)}
        | {f"hada_w{at}_b": numbers(2, 3) for at in (1, 2)}
        | {f"hada_t{at}": numbers(2, 2, 3, 3) for at in (1, 2)}
    )
    flat = {f"hada_w{at}_a": numbers(5, 2) for at in (1, 2)} | {f"hada_w{at}_b": numbers(2, 27) for at in (1, 2)}
    linear = {f"hada_w{at}_a": numbers(6, 2) for at in (1, 2)} | {f"hada_w{at}_b": numbers(2, 4) for at in (1, 2)}
    conv = kernel if with_core else flat
    tensors = {f"diffusion_model.conv.{role}": value for role, value in conv.items()}
    tensors |= {f"diffusion_model.fc.{role}": value for role, value in linear.items()}
    tensors |= {"diffusion_model.conv.alpha": torch.tensor(3.0), "diffusion_model.fc.alpha": torch.tensor(1.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    ended = run("convert", tmp_path / "a.safetensors", "--to", "peft", "-o", tmp_path / "out")
    assert ended.status == 0, ended.stderr
    model = Model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merged = PeftModel.from_pretrained(model, tmp_path / "out").merge_and_unload()
    if with_core:
        product = [
            torch.einsum(
                "pqxy,po,qi->oixy",
                *(conv[f"hada_{one}{at}{end}"] for one, end in (("t", ""), ("w", "_a"), ("w", "_b"))),
            )
            for at in (1, 2)
        ]
    else:
        product = [(conv[f"hada_w{at}_a"] @ conv[f"hada_w{at}_b"]).reshape(5, 3, 3, 3) for at in (1, 2)]
    expected = {"conv": 3 / 2 * product[0] * product[1]}
    expected["fc"] = 1 / 2 * (linear["hada_w1_a"] @ linear["hada_w1_b"]) * (linear["hada_w2_a"] @ linear["hada_w2_b"])
    for name, delta in expected.items():
        change = merged.state_dict()[f"{name}.weight"] - before[f"{name}.weight"]
        torch.testing.assert_close(change, delta, rtol=1e-5, atol=1e-5)


def test_a_bias_of_the_up_layer_is_one_that_nobody_scales(run, tmp_path):
    described = lora(WAN["diffusers"], rank=4, out=8, inputs=8, spelling="peft", alpha=None)
    tensors = tensors_of(described) | {f"{WAN['diffusers']}.lora_B.bias": torch.arange(8.0)}
    metadata = {"ss_base_model_version": "wan"}
    config = {"r": 4, "lora_alpha": 12, "target_modules": ["attn2.to_out.0"], "lora_bias": True}
    metadata["lora_adapter_metadata"] = json.dumps({f"transformer.{field}": value for field, value in config.items()})
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    for scheme in ("kohya", "comfyui"):
        out = tmp_path / f"{scheme}.safetensors"
        assert run("convert", tmp_path / "a.safetensors", "--to", scheme, "-o", out).status == 0
        found = load_file(out)
        assert torch.equal(found[f"{WAN[scheme]}.diff_b"], 3 * torch.arange(8.0))
        assert float(found[f"{WAN[scheme]}.alpha"]) == 12
    assert run("convert", tmp_path / "a.safetensors", "--to", "peft", "-o", tmp_path / "out").status == 0
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["lora_bias"] is True
    assert torch.equal(
        load_file(tmp_path / "out" / "adapter_model.safetensors")[f"{WAN['peft']}.lora_B.bias"], torch.arange(8.0)
    )


def test_a_family_is_named_where_the_names_are_of_several(write, run, tmp_path):
    file = write(["diffusion_model.double_blocks.0.img_mlp.0"])
    options = ("convert", file, "-o", tmp_path / "o.safetensors", "--to", "kohya")
    ended = run(*options)
    assert (ended.status, "choose one with --architecture" in ended.stderr) == (1, True), ended.stderr
    assert run(*options, "--architecture", "flux").status == 0
    ended = run(*options, "--architecture", "wan", "--force")
    assert (ended.status, "it is not for wan" in ended.stderr) == (1, True)
    assert run("convert", file, "-o", tmp_path / "p.safetensors", "--architecture", "flux").status == 2


def test_embeddings_go_where_they_are_read(write, run, tmp_path):
    modules = ["lora_unet_mid_block_attentions_0_proj_in", "lora_te_text_model_encoder_layers_0_mlp_fc1"]
    file = write(modules, "sd15")
    tensors = load_file(file) | {"bundle_emb.cat.string_to_param.*": torch.ones(2, 768)}
    save_file(tensors, file, {"ss_base_model_version": by_name("sd15").metadata_names[0]})
    out = tmp_path / "o.safetensors"
    assert run("convert", file, "--to", "comfyui", "-o", out).status == 0
    assert "bundle_emb.cat.string_to_param.*" in load_file(out)
    ended = run("convert", file, "--to", "diffusers", "-o", out, "--force")
    assert (ended.status, "leave them out with --only model" in ended.stderr) == (1, True), ended.stderr
    ended = run("convert", file, "--to", "diffusers", "-o", out, "--force", "--only", "model", "--json")
    assert ended.status == 0, ended.stderr
    assert "bundle_emb.cat.string_to_param.*" in json.loads(ended.stdout)["dropped"]
    # diffusers reads kohya's names of the rest.
    assert all(key.startswith("lora_unet_") for key in load_file(out))


def test_a_core_between_the_factors_is_no_lora_of_peft(write, run, tmp_path):
    module, out = "lora_unet_down_blocks_0_resnets_0_conv1", tmp_path / "o.safetensors"
    shapes = {"lora_down": (4, 8, 1, 1), "lora_mid": (4, 4, 3, 3), "lora_up": (8, 4, 1, 1)}
    described = {f"{module}.{name}.weight": ("F32", shape, 1.0) for name, shape in shapes.items()}
    save_file(tensors_of(described), tmp_path / "a.safetensors", {"ss_base_model_version": "sd_v1"})
    for scheme in ("diffusers", "peft"):
        refusal = run("convert", tmp_path / "a.safetensors", "--to", scheme, "-o", tmp_path / "o").refusal
        assert "is LoRA with a Tucker core" in refusal
        assert "--algorithm lora" in refusal
    assert run("convert", tmp_path / "a.safetensors", "--to", "comfyui", "-o", out).status == 0
    options = ("--to", "diffusers", "--algorithm", "lora", "--force")
    assert run("convert", tmp_path / "a.safetensors", *options, "-o", out).status == 0
    assert {tuple(value.shape) for value in load_file(out).values()} == {(4, 8, 3, 3), (8, 4, 1, 1)}


def test_models_of_no_known_family_keep_their_paths_where_any_is_loaded(write, modules_in):
    file = write(["base_model.model.encoder.thing.query"])
    assert modules_in(file, "lycoris") == {"lycoris_encoder_thing_query"}
    assert modules_in(file, "peft") == {"base_model.model.encoder.thing.query"}


def test_two_modules_with_one_name_are_refused(write, run, tmp_path):
    file = write(["base_model.model.a.b_c", "base_model.model.a_b.c"])
    ended = run("convert", file, "--to", "lycoris", "-o", tmp_path / "o.safetensors")
    assert (ended.status, "would both get the name lycoris_a_b_c" in ended.stderr) == (1, True)


def test_a_config_of_the_model_is_for_llama_cpp_alone(write, run, tmp_path):
    file = write([WAN["kohya"]], "wan")
    options = ("--model-config", tmp_path / "config.json", "-o", tmp_path / "o.safetensors")
    assert "--model-config only affects llama.cpp's names" in run("convert", file, *options).refusal
    assert "leave it out" in run("convert", file, "--to", "diffusers", *options).refusal


def test_the_summary_says_which_names_became_which(write, run, tmp_path):
    file = write([WAN["kohya"]], "wan")
    told = run("convert", file, "--to", "diffusers", "-o", tmp_path / "o.safetensors").stdout
    assert "1 modules, kohya names to diffusers names, LoRA to plain LoRA" in told
    told = run("convert", file, "--to", "kohya", "-o", tmp_path / "k.safetensors").stdout
    assert "1 modules of kohya names, LoRA to plain LoRA" in told


def test_a_file_in_other_names_gets_those_of_peft_in_a_folder(write, run, tmp_path):
    ended = run("convert", write([WAN["kohya"]], "wan"), "--to", "peft", "-o", tmp_path / "o.safetensors")
    assert "adapter.safetensors gets PEFT's names, which keep their scale in an adapter_config.json" in ended.refusal
    assert "so the output is a folder; name a folder, such as -o" in ended.refusal


def test_a_layout_is_the_schemes_own(write, run, tmp_path):
    options = ("--to", "kohya", "--layout", "original", "-o", tmp_path / "o.safetensors")
    assert run("convert", write([WAN["kohya"]], "wan"), *options).status == 2


def test_every_scheme_that_is_written_is_tried_here():
    tried = {scheme for names in FAMILIES.values() for scheme in names}
    # Those two are for language models, and have tests of their own.
    assert set(written()) == {*tried, "gguf", "mlx"}, "put its name for a layer into the tables of some families"


def test_names_of_no_known_model_are_those_of_the_scheme_already(write_safetensors, run, tmp_path):
    """Nobody can tell the path behind a name of LyCORIS there, and nobody has to."""
    file = write_safetensors(lora("lycoris_lin_0", rank=4))
    ended = run("convert", file, "--to", "lycoris", "-o", tmp_path / "o.safetensors")
    assert ended.status == 0, ended.stderr
    assert load_file(tmp_path / "o.safetensors").keys() == lora("lycoris_lin_0").keys()
    assert (
        "lora-inspect does not know its place in peft names"
        in run("convert", file, "--to", "peft", "-o", tmp_path / "p").refusal
    )
