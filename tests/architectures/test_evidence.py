"""Evidence beside names: which families that share names it rules out, and which it has to leave open."""

import json
from pathlib import Path

import pytest
from real_headers import write_shapes

from lora_inspect.architectures import by_name
from lora_inspect.architectures.detection import candidates
from lora_inspect.files.checkpoint import open_checkpoint
from lora_inspect.reading.adapter import read_adapter
from lora_inspect.reading.identify import adapter_candidates

Module = tuple[str, int | None, int | None]


def families(modules: list[Module], metadata: dict[str, str] | None = None, prefix: str = "") -> set[str]:
    found = candidates(modules, metadata or {}, prefixes={prefix} if prefix else ())
    return {one.architecture.name for one in found}


def flattened(modules: list[Module]) -> list[Module]:
    return [(path.replace(".", "_"), *features) for path, *features in modules]


def attention(depth: int, parent: str, leaves: dict[str, tuple[int, int]]) -> list[Module]:
    return [(f"{parent}.{at}.{leaf}", *widths) for at in range(depth) for leaf, widths in leaves.items()]


# What trainers call attention alone, with the widths of FLUX.1, Chroma and HunyuanVideo.
FUSED = {f"{side}_attn.{leaf}": (out, 3072) for side in ("img", "txt") for leaf, out in (("qkv", 9216), ("proj", 3072))}
SPLIT = {f"attn.{leaf}": (3072, 3072) for leaf in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj")}
FLUX = {"flux", "chroma"}


@pytest.mark.parametrize("flat", [False, True], ids=["dotted", "flattened"])
@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (1, {*FLUX, "flux2", "hunyuan_video"}),
        (18, {*FLUX, "hunyuan_video"}),
        (19, FLUX),
        (20, {"hunyuan_video"}),
    ],
)
def test_the_double_blocks_alone_tell_flux_from_hunyuan_video(depth: int, expected: set[str], flat: bool):
    modules = attention(depth, "double_blocks", FUSED)
    # HunyuanVideo's original names are those of FLUX.1 where underscores join them; its class in ComfyUI has dots.
    assert families(flattened(modules) if flat else modules) == expected


def test_single_blocks_of_which_some_are_left_out_tell_no_depth():
    double = attention(19, "transformer_blocks", SPLIT)
    single = [(f"single_transformer_blocks.{at}.attn.to_q", 3072, 3072) for at in (7, 12, 16, 20)]
    assert families(double) == FLUX
    assert families([*double, *single]) == {*FLUX, "hunyuan_video", "framepack"}


@pytest.mark.parametrize(
    ("key", "value", "family"),
    [
        # sd-scripts, ai-toolkit and OneTrainer.
        ("ss_base_model_version", "flux1", "flux"),
        ("ss_base_model_version", "flux.1", "flux"),
        ("ss_base_model_version", "flux.1_kontext", "flux"),
        ("ss_base_model_version", "chroma", "chroma"),
        ("modelspec.architecture", "Flux.1-dev/lora", "flux"),
        ("modelspec.architecture", "Flux.1-fill-dev/lora", "flux"),
        ("modelspec.architecture", "Chroma1/lora", "chroma"),
        # PEFT.
        ("base_model_class", "FluxTransformer2DModel", "flux"),
        ("base_model_class", "ChromaTransformer2DModel", "chroma"),
        ("base_model_name_or_path", "black-forest-labs/FLUX.1-dev", "flux"),
        ("base_model_name_or_path", "lodestones/Chroma1-HD", "chroma"),
    ],
)
def test_what_trainers_write_tells_flux_from_chroma(key: str, value: str, family: str):
    modules = attention(19, "transformer_blocks", SPLIT)
    assert families(modules) == FLUX
    assert families(modules, {key: value}) == {family}
    [found] = candidates(modules, {key: value})
    assert " rules out " in found.says


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ss_sd_model_name", "chroma-unlocked-v37.safetensors"),
        ("ss_output_name", "my_chroma_lora"),
        ("base_model_name_or_path", "/home/me/black-forest-labs/FLUX.1-dev"),
        ("base_model_name_or_path", "FLUX.1-dev"),
        ("base_model_name_or_path", "C:\\models\\chroma"),
        ("base_model_name_or_path", "someone/a-finetune"),
        ("base_model_name_or_path", "a/" * 5000),
        ("base_model_class", "PeftModel"),
    ],
)
def test_names_of_files_and_of_other_models_decide_nothing(key: str, value: str):
    modules = attention(19, "transformer_blocks", SPLIT)
    assert candidates(modules, {key: value}) == candidates(modules, {})


@pytest.mark.parametrize(
    "lie",
    [
        {"ss_base_model_version": "chroma"},
        {"modelspec.architecture": "Chroma1/lora"},
        {"base_model_class": "ChromaTransformer2DModel"},
        {"base_model_name_or_path": "lodestones/Chroma1-HD"},
    ],
)
def test_metadata_does_not_win_over_a_layer_that_its_model_lacks(lie: dict[str, str]):
    modules = [*attention(19, "transformer_blocks", SPLIT), ("transformer_blocks.0.norm1.linear", 18432, 3072)]
    assert families(modules, lie) == {"flux"}


def test_the_layer_that_chroma_alone_has_wins_over_metadata():
    modules = [*attention(19, "double_blocks", FUSED), ("distilled_guidance_layer.in_proj", 5120, 64)]
    assert families(modules, {"ss_base_model_version": "flux1"}) == {"chroma"}


def test_metadata_does_not_win_over_the_depth():
    modules = attention(19, "transformer_blocks", SPLIT)
    assert families(modules, {"ss_base_model_version": "framepack"}) == FLUX
    assert families(modules, {"base_model_name_or_path": "org/HunyuanVideo"}) == FLUX


BOTH_HUNYUAN = [
    *attention(20, "transformer_blocks", SPLIT),
    *attention(40, "single_transformer_blocks", {"attn.to_q": (3072, 3072)}),
]


def test_hunyuan_video_and_framepack_have_the_same_blocks_in_the_names_of_diffusers():
    assert families(BOTH_HUNYUAN) == {"hunyuan_video", "framepack"}


def test_kohya_s_prefix_before_the_names_of_diffusers_is_framepack():
    """musubi-tuner trains HunyuanVideo in its original names, and FramePack in those of diffusers."""
    assert families(flattened(BOTH_HUNYUAN), prefix="lora_unet_") == {"framepack"}
    [found] = candidates(flattened(BOTH_HUNYUAN), {}, prefixes=["lora_unet_"])
    assert found.says.endswith("the prefix lora_unet_ rules out HunyuanVideo")


@pytest.mark.parametrize("prefix", ["lora_transformer_", "lycoris_"])
def test_a_prefix_before_any_names_leaves_both(prefix: str):
    assert families(flattened(BOTH_HUNYUAN), prefix=prefix) == {"hunyuan_video", "framepack"}


def test_two_prefixes_decide_nothing():
    found = candidates(flattened(BOTH_HUNYUAN), {}, prefixes=["lora_unet_", "lora_transformer_"])
    assert {one.architecture.name for one in found} == {"hunyuan_video", "framepack"}


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"ss_base_model_version": "hunyuan_video"}, "hunyuan_video"),
        ({"modelspec.architecture": "hunyuan-video/lora"}, "hunyuan_video"),
        ({"ss_network_module": "networks.lora_framepack"}, "framepack"),
        ({"base_model_name_or_path": "lllyasviel/FramePackI2V_HY"}, "framepack"),
        ({"base_model_name_or_path": "hunyuanvideo-community/HunyuanVideo"}, "hunyuan_video"),
        ({"base_model_class": "HunyuanVideoTransformer3DModel"}, "hunyuan_video"),
        ({"base_model_class": "HunyuanVideoFramepackTransformer3DModel"}, "framepack"),
    ],
)
def test_metadata_tells_hunyuan_video_from_framepack(metadata: dict[str, str], family: str):
    assert families(BOTH_HUNYUAN, metadata) == {family}


def test_onetrainer_does_not_train_framepack():
    assert families(BOTH_HUNYUAN, {"ot_branch": "master"}) == {"hunyuan_video"}
    [found] = candidates(BOTH_HUNYUAN, {"ot_branch": "master"})
    assert found.says.endswith("OneTrainer does not train FramePack")
    # It trains FLUX.1 and Chroma alike, and what it writes does not win over the layers.
    assert families(attention(19, "transformer_blocks", SPLIT), {"ot_branch": "master"}) == FLUX
    assert families([("blocks.0.cross_attn.k", 5120, 5120)], {"ot_branch": "master"}) == {"wan"}


def test_what_the_metadata_calls_the_base_is_stronger_than_the_prefix():
    found = families(flattened(BOTH_HUNYUAN), {"ss_base_model_version": "hunyuan_video"}, "lora_unet_")
    assert found == {"hunyuan_video"}


DECODER = "model.language_model.layers"


# Published widths: Gemma 3 4B and 27B, Qwen2.5-VL 3B, 7B and 32B, Qwen3-VL 2B, 4B and 32B, Mistral Small 3, Llava 7B.
@pytest.mark.parametrize(
    ("hidden", "query", "key"),
    [
        (2560, 2048, 1024),
        (5376, 4096, 2048),
        (2048, 2048, 256),
        (3584, 3584, 512),
        (5120, 5120, 1024),
        (2048, 2048, 1024),
        (2560, 4096, 1024),
        (5120, 8192, 1024),
        (5120, 4096, 1024),
        (4096, 4096, 4096),
    ],
)
def test_other_widths_than_hidream_o1_s_are_a_language_model(hidden: int, query: int, key: int):
    modules = attention(2, DECODER, {"self_attn.q_proj": (query, hidden), "self_attn.v_proj": (key, hidden)})
    assert families(modules) == {"llm"}


def test_a_feed_forward_of_another_width_is_a_language_model():
    """Llava-Llama-3 8B has the attention of Qwen3-VL 8B."""
    layers = {"self_attn.q_proj": (4096, 4096), "mlp.gate_proj": (14336, 4096)}
    assert families(attention(32, DECODER, layers)) == {"llm"}


QWEN3_VL_8B = attention(36, DECODER, {"self_attn.q_proj": (4096, 4096), "self_attn.v_proj": (1024, 4096)})


def test_the_widths_of_qwen3_vl_8b_leave_both():
    assert families(QWEN3_VL_8B) == {"llm", "hidream_o1"}
    # The class of either is called so.
    assert families(QWEN3_VL_8B, {"base_model_class": "Qwen3VLForConditionalGeneration"}) == {"llm", "hidream_o1"}


@pytest.mark.parametrize(
    ("base", "family"),
    [
        ("Qwen/Qwen3-VL-8B-Instruct", "llm"),
        ("unsloth/Qwen3-VL-8B-Instruct-unsloth-bnb-4bit", "llm"),
        ("HiDream-ai/HiDream-O1-Image", "hidream_o1"),
    ],
)
def test_the_named_base_tells_qwen3_vl_from_hidream_o1(base: str, family: str):
    assert families(QWEN3_VL_8B, {"base_model_name_or_path": base}) == {family}


@pytest.mark.parametrize("prefix", ["lora_unet_", "lora_transformer_"])
def test_a_language_model_has_no_underscored_names(prefix: str):
    assert families(flattened(QWEN3_VL_8B), prefix=prefix) == {"hidream_o1"}
    # That is no matter of widths: there may be another size of it.
    narrow = [(path, 16, 16) for path, *_ in flattened(QWEN3_VL_8B)]
    assert families(narrow, prefix=prefix) == {"hidream_o1"}
    assert families(narrow, prefix="lycoris_") == {"llm"}


def test_a_layer_beyond_hidream_o1_s_is_a_language_model():
    assert families([*QWEN3_VL_8B, (f"{DECODER}.36.self_attn.q_proj", 4096, 4096)]) == {"llm"}


SD = {"sd15", "sd2"}


@pytest.mark.parametrize("flat", [False, True], ids=["dotted", "flattened"])
@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("down_blocks.0.attentions.0", SD),
        ("down_blocks.1.attentions.1", {*SD, "sdxl"}),
        ("down_blocks.2.attentions.1", {*SD, "sdxl"}),
        ("mid_block.attentions.0", {*SD, "sdxl"}),
        ("up_blocks.0.attentions.2", {"sdxl"}),
        ("up_blocks.1.attentions.0", {*SD, "sdxl"}),
        ("up_blocks.2.attentions.0", SD),
        ("up_blocks.3.attentions.0", SD),
        ("input_blocks.1.1", SD),
        ("input_blocks.2.1", SD),
        ("input_blocks.4.1", {*SD, "sdxl"}),
        ("input_blocks.8.1", {*SD, "sdxl"}),
        ("output_blocks.0.1", {"sdxl"}),
        ("output_blocks.2.1", {"sdxl"}),
        ("output_blocks.3.1", {*SD, "sdxl"}),
        ("output_blocks.6.1", SD),
        ("output_blocks.9.1", SD),
    ],
)
def test_attention_is_of_the_unets_that_have_it_in_that_block(block: str, expected: set[str], flat: bool):
    modules: list[Module] = [(f"{block}.transformer_blocks.0.attn1.to_q", 640, 640)]
    assert families(flattened(modules) if flat else modules) == expected


def test_the_upsampler_in_the_place_of_attention_is_no_attention():
    """SD 1.5 has an upsampler at `output_blocks.2.1`, where SDXL has attention."""
    assert families([("output_blocks.2.1.conv", 1280, 1280)]) == SD
    assert families([("output_blocks.2.2.conv", 1280, 1280)]) == {"sdxl"}


def test_the_width_of_the_text_is_stronger_than_the_blocks():
    """A distilled Stable Diffusion 1.x has attention where its teacher has none."""
    assert families([("up_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 640, 768)]) == {"sd15"}


@pytest.mark.parametrize("metadata", [{"ss_base_model_version": "sdxl_base_v1-0"}, {"ss_v2": "True"}])
def test_metadata_of_an_unet_does_not_win_over_its_blocks(metadata: dict[str, str]):
    modules: list[Module] = [("up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", 1280, 1280)]
    assert families(modules, metadata) == {"sdxl"}
    low: list[Module] = [("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", 320, 320)]
    assert "sdxl" not in families(low, metadata)


@pytest.mark.parametrize("name", ["sd15", "sd2", "sdxl"])
@pytest.mark.parametrize("number", [0, 1], ids=["first layout", "second layout"])
def test_relations_are_between_layers_that_an_unet_has(name: str, number: int):
    """An independent source of the blocks with attention: the relations, which say each block by its number."""
    architecture = by_name(name)
    layout = architecture.layouts[number]
    paths = {path for one in architecture.correspondence.relations for path in (one.whole, *one.parts)}
    assert not [path for path in paths for start in layout.missing if path.startswith(f"{start}.")]


def read(path: Path) -> set[str]:
    return {one.architecture.name for one in adapter_candidates(read_adapter(open_checkpoint(str(path))))}


def test_the_config_of_peft_beside_a_file_counts(tmp_path: Path):
    path = write_shapes("flux-lora-diffusers-base-model", tmp_path / "adapter_model.safetensors", "BF16")
    assert read(path) == FLUX
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "base_model_name_or_path": "lodestones/Chroma1-HD"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert read(path) == {"chroma"}


@pytest.mark.parametrize("value", [None, 7, ["lodestones/Chroma1-HD"], {"a": 1}, ""])
def test_a_config_may_say_anything(tmp_path: Path, value: object):
    path = write_shapes("flux-lora-diffusers-base-model", tmp_path / "adapter_model.safetensors", "BF16")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "base_model_name_or_path": value, "auto_mapping": value}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert read(path) == FLUX
